"""The real Tiny ImageNet, where TINY_IMAGENET_ARCHIVE names a copy of its archive."""

import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import models
from models import weights
from tiny_imagenet import input_pipeline
from training import evaluation

ARCHIVE = os.environ.get("TINY_IMAGENET_ARCHIVE")
RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"

pytestmark = pytest.mark.skipif(not ARCHIVE, reason="TINY_IMAGENET_ARCHIVE does not name a copy of the archive")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(data_dir):
    return input_pipeline.load("full", data_dir, ARCHIVE)


def test_counts(data):
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 100_000,
        "validation": 10_000,
        "test": 10_000,
    }
    np.testing.assert_array_equal(np.bincount(data.splits["train"].labels), np.full(200, 500))
    np.testing.assert_array_equal(np.bincount(data.splits["validation"].labels), np.full(200, 50))


def test_images_and_labels_are_those_of_the_archive(data):
    with zipfile.ZipFile(ARCHIVE) as archive:
        root = "tiny-imagenet-200"
        wnids = archive.read(f"{root}/wnids.txt").decode().split()
        words = dict(line.split("\t") for line in archive.read(f"{root}/words.txt").decode().splitlines())
        annotations = archive.read(f"{root}/val/val_annotations.txt").decode().splitlines()
        validation = {line.split("\t")[0]: line.split("\t")[1] for line in annotations}
        assert data.wnids == wnids
        assert data.words == [words[wnid] for wnid in wnids]
        for name in data.splits:
            split = data.splits[name]
            for row in np.random.default_rng(0).choice(len(split), 100, replace=False):
                id = str(split.ids[row])
                wnid = {"train": id.split("_")[0], "validation": validation.get(id), "test": None}[name]
                path = {"train": f"train/{wnid}/images", "validation": "val/images", "test": "test/images"}[name]
                image = tf.io.decode_jpeg(archive.read(f"{root}/{path}/{id}"), channels=3)
                np.testing.assert_array_equal(split.images[row], image)
                assert split.labels[row] == (wnids.index(wnid) if wnid else -1)


def test_boxes_are_those_of_the_archive(data, data_dir):
    with zipfile.ZipFile(ARCHIVE) as archive:
        lines = archive.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines()
    corners = {id: np.array(corners, int) for id, _, *corners in (line.split("\t") for line in lines)}
    xmin, ymin, xmax, ymax = np.array([corners[id] for id in data.splits["validation"].ids]).T
    expected = np.stack([ymin, xmin, ymax + 1, xmax + 1], axis=1) / 64  # The files give the last pixel.
    np.testing.assert_array_equal(input_pipeline.load_boxes("validation", "full", data_dir), expected)


def test_mean_image(data):
    """Pillow's decoder gives these means; TensorFlow's, whose default is the fast DCT, red and blue lower by one."""
    np.testing.assert_allclose(data.mean_image.mean(axis=(0, 1)), [122.5, 114.3, 101.4], atol=1.5)


def test_weights_folder_has_its_classes_and_mean_image(data):
    assert weights.classes() == {"wnids": data.wnids, "words": data.words}
    np.testing.assert_array_equal(weights.mean_image(), data.mean_image)


@pytest.mark.parametrize("name", weights.index())
def test_shipped_weights_score_as_their_run(name, data):
    """On five hundred validation images, within three standard deviations of the mean over ten thousand."""
    validation = data.splits["validation"]
    rows = np.arange(0, 10_000, 20)
    sample = input_pipeline.Split(validation.images[rows], validation.labels[rows], validation.ids[rows])
    model = models.build(name, weights="tiny_imagenet")
    classify = evaluation.classifier(model, weights.mean_image())
    scores = json.loads((RESULTS / weights.index()[name]["run"] / "evaluation.json").read_text())
    assert abs(evaluation.score(classify, sample)["top_1"] - scores["top_1"]) < 3 * (0.25 / 500) ** 0.5
