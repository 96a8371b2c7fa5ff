"""The run directory: its configuration, the checkpoints to resume from, and those that are kept."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

import keras
import tensorflow as tf

import models
from training.step import Trainer

MAX_TO_KEEP = 2


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def read_config(run_dir: pathlib.Path) -> dict:
    """The configuration of the run that the directory holds.

    Raises:
      FileNotFoundError: if it holds none.
      ValueError: if its config.json is damaged.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} is no run: it holds no config.json")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): put it back, or give another --run_dir") from error
    if not isinstance(config, dict) or config.get("model") not in models.REGISTRY or "dataset" not in config:
        raise ValueError(f"{path} names no model or no dataset: put it back, or give another --run_dir")
    return config


def check_config(run_dir: pathlib.Path, config: dict, resume: bool) -> None:
    """Sees that the directory holds no run, or one of this configuration that may be resumed.

    Raises:
      OSError: if it is no directory.
      ValueError: if it holds another run, or one that is not to be resumed.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise NotADirectoryError(f"{run_dir} is a file: give another --run_dir")
    if not (run_dir / "config.json").exists():
        return
    if not resume:
        raise ValueError(f"{run_dir} holds a run: leave out --noresume to go on with it, or give another --run_dir")
    kept = read_config(run_dir)
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
        self._folder = run_dir / "checkpoints"
        self._newest = tf.train.CheckpointManager(everything, str(self._folder), MAX_TO_KEEP)
        self._cycles = tf.train.CheckpointManager(weights, str(self._folder / "cycles"), None, checkpoint_name="cycle")
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Restores the newest checkpoint, if there is one.

        Raises:
          ValueError: if it is damaged.
        """
        path = _newest(self._folder)
        if path:
            with _telling(path):
                self._newest.checkpoint.restore(path).assert_consumed()
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


def load_model(run_dir: pathlib.Path) -> keras.Model:
    """Builds a run's network, auxiliary heads and all, in float32, with the weights of its newest checkpoint.

    Raises:
      FileNotFoundError: if the directory holds no run, or no checkpoint.
      ValueError: if what it holds is damaged.
    """
    name = read_config(run_dir)["model"]
    path = _newest(run_dir / "checkpoints")
    if path is None:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint: train first, or name another --run_dir")
    model = models.build(name, **models.FOR_TRAINING.get(name, {}))
    load_weights(model, path)
    return model


def load_weights(model: keras.Model, path: str) -> None:
    """Gives a network the weights of one checkpoint.

    Raises:
      ValueError: if it is damaged, or another network's.
    """
    with _telling(path):
        tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched().expect_partial()


def last_cycles(run_dir: pathlib.Path, count: int) -> list[str]:
    """The checkpoints of the end of a run's last learning-rate cycles, the oldest first.

    Raises:
      ValueError: if the run has fewer.
    """
    paths = [path.with_suffix("") for path in (run_dir / "checkpoints/cycles").glob("cycle-*.index")]
    paths.sort(key=lambda path: int(path.name.removeprefix("cycle-")))
    if count > len(paths):
        held = "the end of 1 cycle" if len(paths) == 1 else f"the ends of {len(paths)} cycles"
        raise ValueError(f"{run_dir} holds {held}: --snapshots={count} is more")
    return [str(path) for path in paths[-count:]]


def _newest(folder: pathlib.Path) -> str | None:
    path = tf.train.latest_checkpoint(str(folder))
    if path is None and any(folder.glob("ckpt-*")):  # TensorFlow takes an unreadable list of checkpoints for none.
        raise ValueError(f"{folder / 'checkpoint'} is damaged or missing: put it back, or give another --run_dir")
    return path


@contextlib.contextmanager
def _telling(path: str) -> Iterator[None]:
    """Turns what TensorFlow raises of a checkpoint that it cannot restore into one error that names it."""
    try:
        yield
    except (AssertionError, IndexError, ValueError, tf.errors.OpError) as error:
        raise ValueError(f"checkpoint {path} is damaged, or of another network: give another --run_dir") from error
