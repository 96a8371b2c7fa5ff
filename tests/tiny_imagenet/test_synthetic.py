"""Tests the pictures drawn by code and the archive that holds them."""

import io
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tiny_imagenet  # noqa: F401, registers the data set
from tiny_imagenet import synthetic, tiny_imagenet_dataset_builder

COUNTS = {"num_classes": 4, "train_per_class": 30, "validation_per_class": 2, "test_images": 5}


def archive_bytes(**kwargs) -> bytes:
    file = io.BytesIO()
    synthetic.write_archive(file, **(COUNTS | kwargs))
    return file.getvalue()


def test_the_seed_decides_everything():
    assert archive_bytes() == archive_bytes()
    assert archive_bytes() != archive_bytes(seed=1)


def test_layout():
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as archive:
        files = {name.removeprefix("tiny-imagenet-200/"): archive.read(name) for name in archive.namelist()}
    wnids = files["wnids.txt"].decode().split()
    assert len(wnids) == 4 and all(re.fullmatch(r"n9000\d{4}", wnid) for wnid in wnids)
    words = dict(line.split("\t") for line in files["words.txt"].decode().splitlines())
    assert len(set(words.values())) == 200 and set(wnids) < set(words)
    assert list(words) == sorted(words)
    images = [name for name in files if name.endswith(".JPEG")]
    assert sum(name.startswith("train/") for name in images) == 120
    assert sum(name.startswith("val/images/val_") for name in images) == 8
    assert sum(name.startswith("test/images/test_") for name in images) == 5
    shapes = {tuple(tf.io.decode_jpeg(files[name]).shape) for name in images}
    assert shapes == {(64, 64, 3), (64, 64, 1)}


@pytest.mark.parametrize("num_classes", [0, 201])
def test_number_of_classes(num_classes):
    with pytest.raises(ValueError, match="num_classes"):
        archive_bytes(num_classes=num_classes)


@pytest.mark.parametrize("shape", synthetic.SHAPES)
@pytest.mark.parametrize("texture", synthetic.TEXTURES)
def test_draw(shape, texture):
    images, boxes = synthetic.draw(("red", texture, shape), 20, np.random.default_rng(0))
    assert images.shape == (20, 64, 64, 3) and images.dtype == np.uint8
    assert boxes.shape == (20, 4)
    xmin, ymin, xmax, ymax = boxes.T
    assert (xmin >= 0).all() and (ymin >= 0).all() and (xmax < 64).all() and (ymax < 64).all()
    assert (xmax - xmin >= 12).all() and (ymax - ymin >= 12).all()
    assert len({image.tobytes() for image in images}) == 20


def test_colour_alone_says_something():
    """The colour at a box's centre finds a class's colour far more often than one time in ten."""
    rng = np.random.default_rng(0)
    palette = np.array(list(synthetic.COLOURS.values()))
    right = []
    for number, colour in enumerate(synthetic.COLOURS):
        images, boxes = synthetic.draw((colour, "plain", "square"), 10, rng)
        x, y = (boxes[:, 0] + boxes[:, 2]) // 2, (boxes[:, 1] + boxes[:, 3]) // 2
        centre = images[np.arange(10), y, x].astype(float)
        right += (np.square(centre[:, None] - palette).sum(axis=-1).argmin(axis=1) == number).tolist()
    assert np.mean(right) > 0.7


def test_the_builder_reads_it(tmp_path):
    config = tiny_imagenet_dataset_builder.TinyImagenetConfig(name="small_synthetic", synthetic=True, **COUNTS)
    builder = tfds.builder("tiny_imagenet", config=config, data_dir=tmp_path)
    builder.download_and_prepare()
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"train": 120, "validation": 8, "test": 5}
    assert all(len(words.split()) == 3 for words in builder.info.metadata["words"])
