"""The run directory: its configuration, the checkpoints to resume from, and those that are kept."""

import json
import pathlib
import time

import keras
import tensorflow as tf

from training.step import Trainer

MAX_TO_KEEP = 2


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def check_config(run_dir: pathlib.Path, config: dict, resume: bool) -> None:
    """Sees that the directory holds no run, or one of this configuration that may be resumed.

    Raises:
      ValueError: if it does not.
    """
    path = run_dir / "config.json"
    if not path.exists():
        return
    if not resume:
        raise ValueError(f"{run_dir} holds a run: leave out --noresume to go on with it, or give another --run_dir")
    kept = json.loads(path.read_text())
    differing = [f"{key} {kept.get(key)!r}, not {value!r}" for key, value in config.items() if kept.get(key) != value]
    if differing:
        raise ValueError(f"{run_dir} holds a run with {', '.join(differing)}: give this one another --run_dir")


class Checkpoints:
    """A run's checkpoints: in `checkpoints/` the newest, to resume from; in `checkpoints/cycles/` one a cycle."""

    def __init__(self, run_dir: pathlib.Path, trainer: Trainer):
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._step = trainer.step
        everything = tf.train.Checkpoint(
            model=trainer.model,
            optimizer=trainer.optimizer,
            step=trainer.step,
            skipped=trainer.skipped,
            totals=trainer.totals,
            seconds=self.seconds,
        )
        weights = tf.train.Checkpoint(model=trainer.model)
        folder = run_dir / "checkpoints"
        self._newest = tf.train.CheckpointManager(everything, str(folder), MAX_TO_KEEP)
        self._cycles = tf.train.CheckpointManager(weights, str(folder / "cycles"), None, checkpoint_name="cycle")
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Restores the newest checkpoint, if there is one."""
        if self._newest.latest_checkpoint:
            self._newest.checkpoint.restore(self._newest.latest_checkpoint).assert_consumed()
        self._saved = time.monotonic()

    def minutes_since_save(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def save(self) -> None:
        now = time.monotonic()
        self.seconds.assign_add(now - self._saved)
        self._newest.save(int(self._step))
        self._saved = now

    def save_cycle(self, cycle: int) -> None:
        """Keeps the weights of the end of a cycle, counted from 1."""
        self._cycles.save(cycle)


def restore_model(run_dir: pathlib.Path, model: keras.Model) -> None:
    """Restores the weights of a run's newest checkpoint into a network that was built as that run's was.

    Raises:
      FileNotFoundError: if there is no checkpoint.
    """
    path = tf.train.latest_checkpoint(str(run_dir / "checkpoints"))
    if path is None:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint: train there first, or name another --run_dir")
    tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched().expect_partial()
