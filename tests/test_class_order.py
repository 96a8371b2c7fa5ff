"""Runs whose data has its classes in another order than before, as a copy of the archive may."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import small
from models import weights

FLAGS = "--model=small_without_dropout --dataset=synthetic --batch_size=50 --learning_rate=0.03 --precision=float32"


@pytest.fixture(scope="module")
def reversed_data_dir(tmp_path_factory, small_data_dir):
    return small.reverse_classes(small_data_dir, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(run_main):
    """Trains for a number of epochs, or goes on until they are done."""

    def run(run_dir, data_dir, epochs, *flags):
        own = [f"--run_dir={run_dir}", f"--data_dir={data_dir}", f"--num_epochs={epochs}", f"--num_cycles={epochs}"]
        with small.registered():
            return run_main("train.py", *FLAGS.split(), *own, "--nofinal_scores", *flags)

    return run


@pytest.fixture(scope="module")
def export(run_main):
    def run(run_dir, data_dir):
        with small.registered():
            return run_main("deployment.export", f"--run_dir={run_dir}", f"--data_dir={data_dir}")

    return run


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory, train, small_data_dir):
    path = tmp_path_factory.mktemp("first_epoch")
    result = train(path, small_data_dir, 1, "--noexport")
    assert (result.returncode, result.stderr) == (0, "")
    return path


def classes(folder):
    return json.loads((folder / "classes.json").read_text())["wnids"]


def test_a_run_records_its_classes(first_epoch, small_data_dir):
    assert classes(first_epoch) == next(small_data_dir.rglob("label.labels.txt")).read_text().split()


def test_a_resumed_run_keeps_its_order(tmp_path, train, first_epoch, small_data_dir, reversed_data_dir):
    """It learns what it would have learned, and a new run in its place has the order of the data."""
    runs = {}
    for name, data_dir in (("same", small_data_dir), ("reversed", reversed_data_dir)):
        shutil.copytree(first_epoch, tmp_path / name)
        result = train(tmp_path / name, data_dir, 2)
        assert (result.returncode, result.stderr) == (0, "")
        assert classes(tmp_path / name) == classes(first_epoch)
        checkpoint = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints/ckpt-16"))
        names = [name for name in checkpoint.get_variable_to_shape_map() if name.startswith("model/")]
        scores = json.loads((tmp_path / name / "evaluation.json").read_text())
        runs[name] = {name: checkpoint.get_tensor(name) for name in names}, scores
    (same, scores), (other, other_scores) = runs.values()
    assert same and same.keys() == other.keys() and scores == other_scores
    for name, value in same.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-6, err_msg=name)  # A GPU's are not bit-equal.

    assert train(tmp_path / "same", reversed_data_dir, 1, "--noexport", "--overwrite").returncode == 0
    assert classes(tmp_path / "same") == classes(first_epoch)[::-1]


def test_a_run_of_an_older_version_is_not_checked(tmp_path, export, first_epoch, reversed_data_dir):
    """It did not record its classes before it was exported."""
    shutil.copytree(first_epoch, tmp_path / "run")
    (tmp_path / "run/classes.json").unlink()
    assert export(tmp_path / "run", reversed_data_dir).returncode == 0
    assert classes(tmp_path / "run") == classes(first_epoch)[::-1]


def test_export_keeps_the_order_of_the_run(tmp_path, export, first_epoch, reversed_data_dir):
    shutil.copytree(first_epoch, tmp_path / "run")
    assert export(tmp_path / "run", reversed_data_dir).returncode == 0
    assert classes(tmp_path / "run") == classes(first_epoch)


def test_data_of_other_classes(tmp_path, train, export, first_epoch, small_data_dir, assert_one_line):
    data_dir = small.reverse_classes(small_data_dir, tmp_path, "n8")
    for result in (train(first_epoch, data_dir, 2), export(first_epoch, data_dir)):
        assert_one_line(result, 1, "different classes", "was trained on")


def test_names_of_pictures_are_not_those_of_another_order(tmp_path, run_main, assert_one_line):
    """`predict.py --weights` names classes in the order of the shipped weights."""
    folder = small.ship_untrained("squeezenet", tmp_path)
    path = shutil.copy(folder / "squeezenet.weights.h5", folder / "own.weights.h5")
    (folder / "picture.png").write_bytes(tf.io.encode_png(np.zeros((64, 64, 3), np.uint8)).numpy())
    flags = ["--model=squeezenet", f"--weights={path}"]
    assert run_main("predict.py", folder / "picture.png", *flags).returncode == 0
    named = weights.classes()
    (folder / "classes.json").write_text(json.dumps({name: values[::-1] for name, values in named.items()}))
    assert_one_line(run_main("predict.py", folder / "picture.png", *flags), 1, "own.weights.h5 has other classes")
