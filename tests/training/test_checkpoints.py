import gc
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import models
import small
from tiny_imagenet.errors import UserError
from training import checkpoints
from training.files import write_json
from training.step import Trainer

CONFIG = {"model": "small", "dataset": "synthetic", "learning_rate": 0.1}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with small.registered():
        yield


def trainer():
    settings = {"learning_rate": 0.1, "cycle_steps": 10.0, "momentum": 0.9, "weight_decay": 1e-4, "clip_norm": 10.0}
    return Trainer(models.build("small", training=True), np.zeros((64, 64, 3), np.float32), **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with the checkpoint of step 7, and its trainer."""
    path = tmp_path_factory.mktemp("run")
    write_json(path / "config.json", CONFIG)
    ours = trainer()
    ours.step.assign(7)
    ours.totals.assign([1, 2, 3, 4, 5, 6])
    ours.accumulators[-1].assign(tf.ones_like(ours.accumulators[-1]))
    ours.loss_scale.assign(4.0)
    ours.finite_steps.assign(8)
    checkpoints.Checkpoints(path, ours).save(1.5)
    return path, ours


@pytest.fixture
def copy(saved, tmp_path):
    """The same directory, to be damaged; its data is not copied but linked."""
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    for file in saved[0].rglob("*"):
        if file.is_file():
            (path / file.relative_to(saved[0])).symlink_to(file)
    return path


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def test_restores_everything(saved):
    path, ours = saved
    again = trainer()
    restored = checkpoints.Checkpoints(path, again)
    restored.restore(path)
    assert int(again.step) == 7
    assert (restored.step, restored.seconds) == (7, 1.5)
    np.testing.assert_array_equal(again.totals, [1, 2, 3, 4, 5, 6])
    assert (float(again.loss_scale), int(again.finite_steps)) == (4.0, 8)
    for one, other in zip(
        again.model.weights + again.accumulators, ours.model.weights + ours.accumulators, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_load_model_restores_the_weights(saved):
    path, ours = saved
    for one, other in zip(checkpoints.load_model(path)[0].weights, ours.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_keeps_the_newest_two_and_every_snapshot(tmp_path):
    ours = trainer()
    kept = checkpoints.Checkpoints(tmp_path, ours)
    for number in (1, 2, 3):
        ours.step.assign(number * 10)
        kept.save(1.5)
        kept.save_snapshot()
    assert sorted(path.name for path in tmp_path.glob("checkpoints/ckpt-*.index")) == ["ckpt-20.index", "ckpt-30.index"]
    assert len(list(tmp_path.glob("checkpoints/snapshots/snapshot-*.index"))) == 3


def test_last_snapshots_are_the_last_by_number(tmp_path):
    folder = tmp_path / "checkpoints/snapshots"
    folder.mkdir(parents=True)
    for number in (9, 10, 11, 2):
        (folder / f"snapshot-{number}.index").touch()
    assert checkpoints.last_snapshots(tmp_path, 3) == [str(folder / f"snapshot-{number}") for number in (9, 10, 11)]
    with pytest.raises(UserError, match="4 snapshots: lower --snapshots=5"):
        checkpoints.last_snapshots(tmp_path, 5)
    with pytest.raises(UserError, match="0 snapshots"):
        checkpoints.last_snapshots(tmp_path / "nosuch", 2)


def test_load_weights(saved):
    path, ours = saved
    model = models.build("small", training=True)
    checkpoints.load_weights(model, str(path / "checkpoints/ckpt-7"))
    np.testing.assert_array_equal(model.weights[0], ours.model.weights[0])
    with pytest.raises(UserError, match="nosuch is damaged"):
        checkpoints.load_weights(model, str(path / "nosuch"))


def test_nothing_to_restore(tmp_path):
    ours = trainer()
    checkpoints.Checkpoints(tmp_path, ours).restore(tmp_path)
    assert int(ours.step) == 0
    with pytest.raises(UserError, match="no config.json"):
        checkpoints.load_model(tmp_path)
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.load_model(tmp_path)


def truncate(path):
    replace(path, path.read_bytes()[:1000])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    replace(path, bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
@pytest.mark.parametrize("name", ["ckpt-7.data-00000-of-00001", "ckpt-7.index"])
def test_damaged_checkpoint(copy, damage, name, caplog):
    damage(copy / "checkpoints" / name)
    gc.collect()
    caplog.clear()
    with pytest.raises(UserError, match="ckpt-7 is damaged"):
        checkpoints.Checkpoints(copy, trainer()).restore(copy)
    with pytest.raises(UserError, match="ckpt-7 is damaged"):
        checkpoints.load_model(copy)
    gc.collect()  # TensorFlow would warn here of each variable that it could not restore.
    assert not caplog.records


@pytest.mark.parametrize("kind", [tf.errors.ResourceExhaustedError, tf.errors.InternalError])
def test_a_device_that_fails_is_no_damage(copy, kind, monkeypatch):
    def fail(*_):
        raise kind(None, None, "as a GPU raises it while it restores")

    monkeypatch.setattr(tf.train.Checkpoint, "read", fail)
    with pytest.raises(kind):
        checkpoints.Checkpoints(copy, trainer()).restore(copy)
    with pytest.raises(kind):
        checkpoints.load_model(copy)


def test_checkpoint_without_the_weights(tmp_path):
    write_json(tmp_path / "config.json", CONFIG)
    ours = trainer()
    tf.train.Checkpoint(step=ours.step).write(str(tmp_path / "checkpoints/ckpt-9"))
    with pytest.raises(UserError, match="ckpt-9 is damaged"):
        checkpoints.Checkpoints(tmp_path, ours).restore(tmp_path)
    with pytest.raises(UserError, match="ckpt-9 is damaged"):
        checkpoints.load_model(tmp_path)


def test_goes_on_from_the_one_before_a_damaged_checkpoint(tmp_path, saved, capsys):
    path, ours = saved
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    later = trainer()
    kept = checkpoints.Checkpoints(tmp_path, later)
    kept.restore(tmp_path)
    later.step.assign(9)
    later.model.weights[0].assign(tf.ones_like(later.model.weights[0]))
    kept.save(1.5)
    flip_a_bit(tmp_path / "checkpoints/ckpt-9.data-00000-of-00001")

    again = trainer()
    kept = checkpoints.Checkpoints(tmp_path, again)
    kept.restore(tmp_path)
    assert (int(again.step), kept.step) == (7, 7)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ckpt-9 is damaged" in error and "step 7" in error
    np.testing.assert_array_equal(again.model.weights[0], ours.model.weights[0])
    np.testing.assert_array_equal(checkpoints.load_model(tmp_path)[0].weights[0], ours.model.weights[0])
    again.step.assign(9)
    kept.save(1.5)  # In its place.
    checkpoints.Checkpoints(tmp_path, later).restore(tmp_path)
    assert int(later.step) == 9


def test_damaged_checkpoints_take_no_place(tmp_path):
    """Neither on the disk, nor of the two that are kept."""
    ours = trainer()
    kept = checkpoints.Checkpoints(tmp_path, ours)

    def save(step):
        ours.step.assign(step)
        kept.save(1.5)
        return {path.stem for path in tmp_path.glob("checkpoints/ckpt-*.index")}

    save(10)
    assert save(20) == {"ckpt-10", "ckpt-20"}
    for damaged in (30, 25):
        (tmp_path / f"checkpoints/ckpt-{damaged}.index").write_bytes(b"half")
    kept.restore(tmp_path)
    assert save(22) == {"ckpt-20", "ckpt-22"}


def test_checkpoint_half_written_is_none(copy):
    """The index comes last."""
    half = copy / "checkpoints/ckpt-9.data-00000-of-00001"
    half.write_bytes(b"half")
    again = trainer()
    checkpoints.Checkpoints(copy, again).restore(copy)
    assert int(again.step) == 7
    assert not half.exists()


def test_checkpoint_of_another_network(copy):
    replace(copy / "config.json", json.dumps(CONFIG | {"model": "baseline"}).encode())
    with pytest.raises(UserError, match="another network"):
        checkpoints.load_model(copy)
