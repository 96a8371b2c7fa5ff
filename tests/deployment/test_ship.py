"""Weights for the repository, from a run."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import models
from deployment import ship
from models import weights
from tiny_imagenet.errors import UserError
from training import checkpoints, run_directory
from training.files import write_json


@pytest.fixture
def run(tmp_path, synthetic_run):
    """A copy of the run that has been scored by ten crops, as if it had been trained on the real data."""
    path = tmp_path / "baseline_seed1"
    shutil.copytree(synthetic_run, path)
    write_json(path / "config.json", run_directory.read_config(path) | {"dataset": "full"})
    write_json(path / "evaluation_ten_crop.json", {"step": 10, "top_1": 0.25})
    return path


@pytest.fixture
def folder(tmp_path, synthetic_run, monkeypatch):
    path = tmp_path / "weights"
    path.mkdir()
    shutil.copy(synthetic_run / "classes.json", path)
    (path / "index.json").write_text(json.dumps({"vgg16": {}, "baseline": {"run": "baseline"}}))
    monkeypatch.setattr(weights, "FOLDER", path)
    return path


def test_ships_the_newest_checkpoint(run, folder, run_main):
    path = folder / "baseline.weights.h5"
    result = run_main("deployment.ship", f"--run_dir={run}")
    assert (result.returncode, result.stdout) == (0, f"written to {path}\n"), result.stderr
    assert sorted(file.name for file in folder.iterdir()) == ["baseline.weights.h5", "classes.json", "index.json"]
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    index = json.loads((folder / "index.json").read_text())
    logits = index["baseline"].pop("logits")
    entry = {"run": "baseline_seed1", "step": 10, "ten_crop_top_1": 0.25, "sha256": checksum}
    assert index == {"baseline": entry, "vgg16": {}}
    shipped = models.build("baseline", weights="tiny_imagenet")
    assert logits == pytest.approx(weights.sample_logits(shipped), abs=1e-3)
    for weight, expected in zip(shipped.weights, checkpoints.load_model(run)[0].weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), np.float16(expected.numpy()))


def test_a_damaged_index(run, folder):
    """Nothing is replaced."""
    (folder / "index.json").write_text("<<<<<<< HEAD")
    with pytest.raises(UserError, match="index.json is damaged"):
        ship.ship(run)
    assert not list(folder.glob("*.h5"))


def test_synthetic_data_are_refused(synthetic_run, folder):
    with pytest.raises(UserError, match="trained on synthetic data"):
        ship.ship(synthetic_run)


def test_another_order_of_the_classes_is_refused(run, folder):
    classes = json.loads((folder / "classes.json").read_text())
    write_json(run / "classes.json", {key: names[::-1] for key, names in classes.items()})
    with pytest.raises(UserError, match=f"the classes of {run}, or their order, are not those of weights/"):
        ship.ship(run)
    assert not list(folder.glob("*.h5"))


@pytest.mark.parametrize("scores", [None, "{", '{"step": 5, "top_1": 0.2}', '{"top_1": 0.2}'])
def test_a_run_must_have_been_scored(run, folder, scores):
    run = run.rename(run.with_name("moved 2"))
    (run / "evaluation_ten_crop.json").unlink()
    if scores:
        (run / "evaluation_ten_crop.json").write_text(scores)
    with pytest.raises(UserError, match=f"evaluate.py --run_dir='{run}' --ten_crop"):
        ship.ship(run)
    assert not list(folder.glob("*.h5"))
