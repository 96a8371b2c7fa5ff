"""The run directory: its configuration, the checkpoints to resume from, and those that are kept."""

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

import models
from models.layers import to_plain_keras
from tiny_imagenet import locks
from tiny_imagenet.errors import UserError
from tiny_imagenet.tiny_imagenet_dataset_builder import Builder
from training.files import remove_folder, replace_file
from training.step import Trainer
from training.summaries import EVENTS

DATASETS = {config.name for config in Builder.BUILDER_CONFIGS}
MAX_TO_KEEP = 2
WRITTEN = (
    "checkpoints",
    "train",
    "validation",
    "saved_model",
    "metrics.csv",
    "time.json",
    "provenance.json",
    "evaluation.json",
    "evaluation_*.json",
    "model.keras",
    "classes.json",
    "model.tflite",
    "model_int8.tflite",
    "compressed.weights.h5",
    "config.json",
)
"""The content of a run directory. Without config.json, the last, the rest belongs to another program."""
OUTDATED = (
    "model.keras",
    "model.tflite",
    "model_int8.tflite",
    "compressed.weights.h5",
    "evaluation_model*.json",
    "evaluation_compressed*.json",
    "evaluation_saved_model*.json",
)
"""Files that training makes outdated, beside the SavedModel. They do not record their step."""
CHECKPOINTS = ("checkpoints/ckpt-*", "checkpoints/snapshots/snapshot-*")
DAMAGED = (AssertionError, IndexError, ValueError, tf.errors.OpError)  # TensorFlow's errors for a damaged checkpoint.


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_config(run_dir: pathlib.Path) -> dict:
    """Returns the configuration of the run that the directory holds.

    Raises:
      UserError: if it holds none, or its config.json is damaged.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise UserError(f"{run_dir} is not a run: it has no config.json; use a folder that train.py wrote")
    remedy = "restore it, or use another run"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(config, dict) or config.get("model") not in models.REGISTRY:
        raise UserError(f"{path} is damaged (it names no known model): {remedy}")
    if config.get("dataset") not in DATASETS:
        raise UserError(f"{path} is damaged (it names no known dataset): {remedy}")
    for key in ("num_epochs", "num_cycles"):
        if key in config and (not isinstance(config[key], int) or config[key] < 1):
            raise UserError(f"{path} is damaged (it gives {key}={config[key]!r}): {remedy}")
    return config


def dataset_of(file: pathlib.Path) -> str:
    """Returns the dataset of the run that a file is in, beside its config.json; "full" if it is in none."""
    dataset = read_json(file.parent / "config.json").get("dataset")
    return dataset if dataset in DATASETS else "full"


def has_run(run_dir: pathlib.Path) -> bool:
    """Returns whether the directory holds a run. A run exists from its first checkpoint on."""
    return (run_dir / "config.json").exists() and bool(_steps(run_dir))


def check_config(run_dir: pathlib.Path, config: dict, resume: bool = True, may_change_cycles: bool = False) -> None:
    """Checks that a run may start in the directory, or resume there with this configuration.

    What a failed start has left does not count as a run, as it has no checkpoint and no time.json.

    Args:
      run_dir: The directory, which need not exist.
      config: The configuration, or a part of it.
      resume: Whether a run may be resumed.
      may_change_cycles: Whether a run with more epochs than before may have cycles of another length than before.

    Raises:
      UserError: if it is a file, or if it holds files of another program, a run of another configuration, one that
        may not resume, or one whose checkpoints were deleted.
    """
    kept = _read_own_config(run_dir)
    if kept is None:
        return
    if not has_run(run_dir):
        if (run_dir / "time.json").exists():
            raise UserError(f"{run_dir} holds a run without checkpoints: add --overwrite, or pass another --run_dir")
        return
    if config.keys() - kept.keys():
        raise UserError(
            f"{run_dir} holds a run of an older version, which cannot be trained further: add --overwrite, or pass "
            "another --run_dir"
        )
    if not resume:
        raise UserError(f"{run_dir} holds a run: drop --noresume, add --overwrite, or pass another --run_dir")
    if "num_epochs" in config and config["num_epochs"] > kept.get("num_epochs", config["num_epochs"]):
        # The learning rate depends on both numbers, by the length of a cycle.
        epochs, cycles = kept["num_epochs"], kept["num_cycles"]
        same_length = config["num_epochs"] * cycles / epochs
        if config["num_cycles"] != same_length and not may_change_cycles:
            keep = f"pass --num_cycles={same_length:g} to keep their length, or " if same_length.is_integer() else ""
            raise UserError(
                f"{run_dir} has {cycles} cycles in {epochs} epochs: {keep}pass --num_cycles to change their length"
            )
        kept = kept | {key: config[key] for key in ("num_epochs", "num_cycles")}
    differing = [f"{key}={kept.get(key)}, not {value}" for key, value in config.items() if kept.get(key) != value]
    if differing:
        raise UserError(
            f"{run_dir} holds a run with {'; '.join(differing)}: use the same flags, or pass another --run_dir"
        )


def _read_own_config(run_dir: pathlib.Path) -> dict | None:
    """Returns the configuration that the last start of train.py in the directory wrote; None if there was none.

    Raises:
      UserError: if it is a file, or if it holds files of another program.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file: pass another --run_dir")
    if not (run_dir / "config.json").exists():
        for path in (path for name in WRITTEN for path in run_dir.glob(name)):
            raise UserError(f"{path} was not written by a run of this project: pass another --run_dir")
        return None
    return read_config(run_dir)


def read_json(path: pathlib.Path) -> dict:
    """Returns the content of a JSON file; empty if there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remove_run(run_dir: pathlib.Path) -> None:
    """Removes the run that the directory holds: the folder saved_model, and otherwise only what this project wrote.

    Raises:
      UserError: if the directory holds no run of this project.
    """
    if _read_own_config(run_dir) is None:
        return
    _clear(run_dir / "checkpoints")
    for folder in ("saved_model", "saved_model.partial"):
        remove_folder(run_dir / folder)
    for pattern in (*CHECKPOINTS, f"train/{EVENTS}", f"validation/{EVENTS}", "partial.*", *WRITTEN):
        for path in run_dir.glob(pattern):
            if path.is_file():
                path.unlink()
    for folder in ("checkpoints/snapshots", "checkpoints", "train", "validation"):
        with contextlib.suppress(OSError):  # It holds other files, or does not exist.
            (run_dir / folder).rmdir()


def remove_outdated(run_dir: pathlib.Path) -> None:
    """Removes exported networks and their scores before a run is trained further."""
    for pattern in OUTDATED:
        for path in run_dir.glob(pattern):
            path.unlink()
    remove_folder(run_dir / "saved_model")


@contextlib.contextmanager
def lock(run_dir: pathlib.Path) -> Iterator[None]:
    """Makes the run directory, and keeps other processes from writing to it until the block or the process ends.

    A file system that does not support locks gets none.

    Raises:
      UserError: if another process has locked it.
      OSError: if it cannot be made.
    """

    def refuse():
        raise UserError(f"another process is writing to {run_dir}: wait until it ends, or pass another --run_dir")

    run_dir.mkdir(parents=True, exist_ok=True)
    with locks.lock(run_dir / ".lock", refuse):
        yield


class Checkpoints:
    """A run's checkpoints: the newest two in `checkpoints/`, and the snapshots in `checkpoints/snapshots/`."""

    def __init__(self, run_dir: pathlib.Path, trainer: Trainer):
        self.seconds = 0.0
        """The time that the steps so far took, without pauses, checkpoints and validation."""
        self.step = 0
        """The step of the newest checkpoint: the step that a restart resumes from."""
        self._trainer = trainer
        self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._everything = tf.train.Checkpoint(
            model=trainer.model,
            accumulators=trainer.accumulators,
            loss_scale=trainer.loss_scale,
            finite_steps=trainer.finite_steps,
            step=trainer.step,
            skipped=trainer.skipped,
            totals=trainer.totals,
            not_finite=trainer.not_finite,
            seconds=self._seconds,
        )
        self._weights = tf.train.Checkpoint(model=trainer.model)
        self._run_dir = run_dir
        _clear(run_dir / "checkpoints")
        self._saved = self._clock = time.monotonic()

    def restore(self, run_dir: pathlib.Path) -> None:
        """Restores the newest checkpoint of the run in `run_dir` that is not damaged, if there is a run.

        Raises:
          UserError: if all checkpoints are damaged.
        """
        if _steps(run_dir):
            self.step = _restore_newest(run_dir, lambda path: self._everything.read(path).assert_consumed())
            self.seconds = float(self._seconds)
        self._saved = self._clock = time.monotonic()

    def minutes_since_save(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def count_time(self) -> None:
        """Adds the time since the last call, or since `restart_clock`, to `seconds`."""
        last, self._clock = self._clock, time.monotonic()
        self.seconds += self._clock - last

    def restart_clock(self) -> None:
        """Leaves the time since the last `count_time` out of `seconds`, because it was not spent training."""
        self._clock = time.monotonic()

    def training_time(self) -> datetime.timedelta:
        """Returns `seconds`, rounded, to print."""
        return datetime.timedelta(seconds=round(self.seconds))

    def save(self) -> None:
        """Writes a checkpoint, and then removes all but this one and the one before.

        Raises:
          UserError: if it cannot be written. The others are kept.
        """
        self._seconds.assign(self.seconds)
        step = int(self._trainer.step.numpy())
        self._write(self._everything, f"checkpoints/ckpt-{step}")
        steps = _steps(self._run_dir)
        kept = [number for number in steps if number <= step][:MAX_TO_KEEP]
        for number in set(steps) - set(kept):  # Later ones are damaged: the run resumed from before them.
            for path in self._run_dir.glob(f"checkpoints/ckpt-{number}.*"):
                path.unlink()
        self.step = step
        self._saved = self._clock = time.monotonic()

    def save_snapshot(self) -> None:
        """Saves a snapshot, which is the weights at the end of a cycle, under the number of the step.

        Raises:
          UserError: if they cannot be written.
        """
        self._write(self._weights, f"checkpoints/snapshots/snapshot-{self._trainer.step.numpy()}")

    def remove_snapshot(self, step: int) -> None:
        """Removes the snapshot of a step, if there is one."""
        for path in self._run_dir.glob(f"checkpoints/snapshots/snapshot-{step}.*"):
            path.unlink()

    def _write(self, checkpoint: tf.train.Checkpoint, name: str) -> None:
        path = self._run_dir / name
        try:
            checkpoint.write(str(path))
            for file in path.parent.glob(f"{path.name}.*"):
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())  # TensorFlow does not, and an older checkpoint is removed next.
        except tf.errors.OpError as error:  # ResourceExhaustedError if the disk is full.
            _clear(path.parent)
            remedy = "make room or fix the path, and start the same command again to resume from the last checkpoint"
            raise UserError(f"cannot write to {path.parent} ({error.message}): {remedy}") from error


def load_model(run_dir: pathlib.Path) -> tuple[keras.Model, int]:
    """Builds a run's network in float32, auxiliary classifiers included, with the weights of its newest checkpoint.

    It consists of Keras' own layers alone, as the exported model does, so that both give the same probabilities.

    Returns:
      The network, and the checkpoint's step.

    Raises:
      UserError: if the directory holds no run or no checkpoint, or what it holds is damaged.
    """
    name = read_config(run_dir)["model"]
    model = to_plain_keras(models.build(name, training=True))
    if not has_run(run_dir):
        raise UserError(f"{run_dir} holds no checkpoint: train first, or name another --run_dir")
    return model, _restore_newest(run_dir, lambda path: load_weights(model, path))


def load_weights(model: keras.Model, path: str) -> None:
    """Gives a network the weights of one checkpoint.

    Raises:
      UserError: if it is damaged, or another network's.
    """
    try:
        tf.train.Checkpoint(model=model).read(path).assert_existing_objects_matched().expect_partial()
    except DAMAGED as error:
        raise UserError(f"checkpoint {path} is damaged, or of another network: pass another --run_dir") from error


def last_snapshots(run_dir: pathlib.Path, count: int) -> list[str]:
    """Returns the paths of a run's last snapshots, the oldest first.

    Raises:
      UserError: if the run has fewer.
    """
    paths = [path.with_suffix("") for path in (run_dir / "checkpoints/snapshots").glob("snapshot-*.index")]
    paths.sort(key=lambda path: int(path.name.removeprefix("snapshot-")))
    if count > len(paths):
        held = "1 snapshot" if len(paths) == 1 else f"{len(paths)} snapshots"
        raise UserError(f"{run_dir} holds {held}: lower --snapshots={count}")
    return [str(path) for path in paths[-count:]]


def _steps(run_dir: pathlib.Path) -> list[int]:
    """Returns the steps of the run's checkpoints, the newest first. The index of a checkpoint is written last."""
    names = [path.stem.removeprefix("ckpt-") for path in (run_dir / "checkpoints").glob("ckpt-*.index")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _restore_newest(run_dir: pathlib.Path, restore: Callable[[str], object]) -> int:
    """Restores the newest checkpoint that is not damaged, and reports each damaged one. Returns its step."""
    steps = _steps(run_dir)
    for older, step in enumerate(steps, start=1):
        path = run_dir / "checkpoints" / f"ckpt-{step}"
        try:
            restore(str(path))
        except (UserError, *DAMAGED) as error:
            problem = f"checkpoint {path} is damaged, or of another network"
            if older == len(steps):
                raise UserError(f"{problem}: pass another --run_dir") from error
            print(f"{problem}: trying the one of step {steps[older]}", file=sys.stderr, flush=True)
        else:
            return step


def _clear(folder: pathlib.Path) -> None:
    """Removes checkpoints that were not written to their end."""
    for name in ("ckpt", "snapshot"):
        for path in folder.rglob(f"{name}-*_temp*"):
            shutil.rmtree(path, ignore_errors=True)
        for data in folder.rglob(f"{name}-*.data-*"):
            if not data.with_name(f"{data.name.partition('.data-')[0]}.index").exists():
                data.unlink()
