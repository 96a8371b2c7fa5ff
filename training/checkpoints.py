"""The run directory: its configuration, the checkpoints to resume from, and those that are kept."""

import contextlib
import fcntl
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

import models
from training.step import Trainer

MAX_TO_KEEP = 2
DAMAGED = (AssertionError, IndexError, ValueError, tf.errors.OpError)  # What TensorFlow raises of such a checkpoint.


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
        raise ValueError(f"{path} is damaged ({error}): put it back, or name another run") from error
    if not isinstance(config, dict) or config.get("model") not in models.REGISTRY or "dataset" not in config:
        raise ValueError(f"{path} names no model or no dataset: put it back, or name another run")
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


@contextlib.contextmanager
def lock(run_dir: pathlib.Path) -> Iterator[None]:
    """Makes the run directory, and keeps other processes from writing to it; ends with the process at the latest.

    Raises:
      OSError: if another process holds it, or it cannot be made.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"{run_dir} is another process's: wait for it, or give another --run_dir") from error
        except OSError:
            pass  # Not every network file system has locks.
        yield


class Checkpoints:
    """A run's checkpoints: in `checkpoints/` the newest, to resume from; in `checkpoints/cycles/` one a cycle."""

    def __init__(self, run_dir: pathlib.Path, trainer: Trainer):
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.step = 0
        """The step of the newest checkpoint, saved or restored: where the next start goes on from."""
        self._trainer = trainer
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
        _clear(folder)
        self._newest = tf.train.CheckpointManager(everything, str(folder), MAX_TO_KEEP)
        self._cycles = tf.train.CheckpointManager(weights, str(folder / "cycles"), None, checkpoint_name="cycle")
        self._saved = time.monotonic()

    def restore(self, run_dir: pathlib.Path) -> None:
        """Restores a run's newest checkpoint that is whole, if it has any.

        Raises:
          ValueError: if all are damaged.
        """
        if _restore_newest(run_dir, lambda path: self._newest.checkpoint.restore(path).assert_consumed()):
            self.step = int(self._trainer.step.numpy())
        self._saved = time.monotonic()

    def minutes_since_save(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def save(self) -> None:
        """Saves everything, and then drops the oldest.

        Raises:
          OSError: if it cannot be written: the others are still there.
        """
        now = time.monotonic()
        self.seconds.assign_add(now - self._saved)
        step = int(self._trainer.step.numpy())
        with _writing(self._newest.directory):
            self._newest.save(step)
        self.step, self._saved = step, now

    def save_cycle(self, cycle: int) -> None:
        """Keeps the weights of the end of a cycle, counted from 1.

        Raises:
          OSError: if they cannot be written.
        """
        with _writing(self._cycles.directory):
            self._cycles.save(cycle)


def load_model(run_dir: pathlib.Path) -> keras.Model:
    """Builds a run's network, auxiliary heads and all, in float32, with the weights of its newest whole checkpoint.

    Raises:
      FileNotFoundError: if the directory holds no run, or no checkpoint.
      ValueError: if what it holds is damaged.
    """
    name = read_config(run_dir)["model"]
    model = models.build(name, training=True)
    if not _restore_newest(run_dir, lambda path: load_weights(model, path)):
        raise FileNotFoundError(f"{run_dir} holds no checkpoint: train first, or name another --run_dir")
    return model


def load_weights(model: keras.Model, path: str) -> None:
    """Gives a network the weights of one checkpoint.

    Raises:
      ValueError: if it is damaged, or another network's.
    """
    try:
        tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched().expect_partial()
    except DAMAGED as error:
        raise ValueError(f"checkpoint {path} is damaged, or of another network: give another --run_dir") from error


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


def _restore_newest(run_dir: pathlib.Path, restore: Callable[[str], object]) -> bool:
    """Restores the newest checkpoint that can be, telling of those that cannot; False if there is none at all.

    TensorFlow's own list, the file `checkpoint`, may be damaged as well, so the checkpoints themselves count. Of each
    the index is written last.
    """
    names = [path.stem.removeprefix("ckpt-") for path in (run_dir / "checkpoints").glob("ckpt-*.index")]
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for older, step in enumerate(steps, start=1):
        path = run_dir / "checkpoints" / f"ckpt-{step}"
        try:
            restore(str(path))
            return True
        except DAMAGED as error:
            problem = f"checkpoint {path} is damaged, or of another network"
            if older == len(steps):
                raise ValueError(f"{problem}: give another --run_dir") from error
            print(f"{problem}: trying the one of step {steps[older]}", file=sys.stderr, flush=True)
    return False


def _clear(folder: pathlib.Path) -> None:
    """Removes what was not written to its end."""
    for temporary in [*folder.rglob("*_temp*")]:
        shutil.rmtree(temporary, ignore_errors=True)
    for data in folder.rglob("*.data-*"):
        if not data.with_name(f"{data.name.partition('.data-')[0]}.index").exists():
            data.unlink()


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[None]:
    """Turns what TensorFlow raises of a full disk, which it calls an exhausted resource, into an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        _clear(pathlib.Path(folder))
        remedy = "make room, or mend it, and start the same command again: it goes on from the last checkpoint"
        raise OSError(f"cannot write to {folder} ({error.message}): {remedy}") from error
