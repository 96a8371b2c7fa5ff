"""A run's checkpoints: those to resume from, and the snapshots at the end of each cycle."""

import os
import pathlib
import sys
import time
from collections.abc import Callable

import keras
import tensorflow as tf

import models
from models.layers import to_plain_keras
from tiny_imagenet.errors import UserError
from training.run_directory import checkpoint_steps, has_run, read_config, remove_partial_checkpoints
from training.step import Trainer

MAX_TO_KEEP = 2
DAMAGED = (AssertionError, IndexError, ValueError, tf.errors.OpError)  # TensorFlow's errors for a damaged checkpoint.
DEVICE_FAILED = (tf.errors.ResourceExhaustedError, tf.errors.InternalError)  # OpErrors of a GPU, such as a full one.


class Checkpoints:
    """A run's checkpoints: the newest two in `checkpoints/`, and the snapshots in `checkpoints/snapshots/`.

    Attributes:
      step: The step of the newest checkpoint, which a restart resumes from.
      seconds: The time that the steps up to it took.
    """

    def __init__(self, run_dir: pathlib.Path, trainer: Trainer):
        self.step = 0
        self.seconds = 0.0
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
        remove_partial_checkpoints(run_dir / "checkpoints")
        self._saved = time.monotonic()

    def restore(self, run_dir: pathlib.Path) -> None:
        """Restores the newest checkpoint of the run in `run_dir` that is not damaged, if there is a run.

        Raises:
          UserError: if all checkpoints are damaged.
        """
        if checkpoint_steps(run_dir):
            self.step = _restore_newest(run_dir, lambda path: self._everything.read(path).assert_consumed())
            self.seconds = float(self._seconds)
        self._saved = time.monotonic()

    def minutes_since_save(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def save(self, seconds: float) -> None:
        """Writes a checkpoint, and then removes all but this one and the one before.

        Args:
          seconds: The time that the steps so far took.

        Raises:
          UserError: if it cannot be written. The others are kept.
        """
        self._seconds.assign(seconds)
        step = int(self._trainer.step.numpy())
        self._write(self._everything, f"checkpoints/ckpt-{step}")
        steps = checkpoint_steps(self._run_dir)
        kept = [number for number in steps if number <= step][:MAX_TO_KEEP]
        for number in set(steps) - set(kept):  # Later ones are damaged: the run resumed from before them.
            for path in self._run_dir.glob(f"checkpoints/ckpt-{number}.*"):
                path.unlink()
        self.step, self.seconds = step, seconds
        self._saved = time.monotonic()

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
            remove_partial_checkpoints(path.parent)
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
    except DEVICE_FAILED:
        raise
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


def _restore_newest(run_dir: pathlib.Path, restore: Callable[[str], object]) -> int:
    """Restores the newest checkpoint that is not damaged, and reports each damaged one. Returns its step."""
    steps = checkpoint_steps(run_dir)
    for older, step in enumerate(steps, start=1):
        path = run_dir / "checkpoints" / f"ckpt-{step}"
        try:
            restore(str(path))
        except DEVICE_FAILED:
            raise
        except (UserError, *DAMAGED) as error:
            problem = f"checkpoint {path} is damaged, or of another network"
            if older == len(steps):
                raise UserError(f"{problem}: train again with --overwrite, or pass another --run_dir") from error
            print(f"{problem}: trying the one of step {steps[older]}", file=sys.stderr, flush=True)
        else:
            return step
