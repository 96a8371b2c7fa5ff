"""The run directory: its configuration, the checkpoints to resume from, and those that are kept."""

import contextlib
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

import models
from tiny_imagenet import locks
from tiny_imagenet.errors import UserError
from training.files import replace_file
from training.step import Trainer

MAX_TO_KEEP = 2
DAMAGED = (AssertionError, IndexError, ValueError, tf.errors.OpError)  # What TensorFlow raises of such a checkpoint.


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_config(run_dir: pathlib.Path) -> dict:
    """The configuration of the run that the directory holds.

    Raises:
      UserError: if it holds none, or its config.json is damaged.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise UserError(f"{run_dir} is no run: it has no config.json; give the --run_dir of train.py")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or give another run") from error
    if not isinstance(config, dict) or config.get("model") not in models.REGISTRY or "dataset" not in config:
        raise UserError(f"{path} is damaged (it names no model or no dataset): restore it, or give another run")
    return config


def check_config(run_dir: pathlib.Path, config: dict, resume: bool) -> None:
    """Sees that the directory holds no run, or one of this configuration that may be resumed.

    Raises:
      UserError: if it is no directory, or holds another run, or one that is not to be resumed.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file: give another --run_dir")
    if not (run_dir / "config.json").exists():
        return
    if not resume:
        raise UserError(f"{run_dir} holds a run: remove --noresume to resume it, or give another --run_dir")
    kept = read_config(run_dir)
    differing = [f"{key} {kept.get(key)!r}, not {value!r}" for key, value in config.items() if kept.get(key) != value]
    if differing:
        raise UserError(f"{run_dir} holds a run with {', '.join(differing)}: give this one another --run_dir")


@contextlib.contextmanager
def lock(run_dir: pathlib.Path) -> Iterator[None]:
    """Makes the run directory, and keeps other processes from writing to it until the block or the process ends.

    A file system that does not support locks gets none.

    Raises:
      UserError: if another process has locked it.
      OSError: if it cannot be made.
    """

    def refuse():
        raise UserError(f"another process is writing to {run_dir}: wait until it ends, or give another --run_dir")

    run_dir.mkdir(parents=True, exist_ok=True)
    with locks.lock(run_dir / ".lock", refuse):
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
          UserError: if all are damaged.
        """
        if _restore_newest(run_dir, lambda path: self._newest.checkpoint.restore(path).assert_consumed()):
            self.step = int(self._trainer.step.numpy())
        self._saved = time.monotonic()

    def minutes_since_save(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def save(self) -> None:
        """Saves everything, and then drops the oldest.

        Raises:
          UserError: if it cannot be written: the others are still there.
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
          UserError: if they cannot be written.
        """
        with _writing(self._cycles.directory):
            self._cycles.save(cycle)


def load_model(run_dir: pathlib.Path) -> keras.Model:
    """Builds a run's network, auxiliary heads and all, in float32, with the weights of its newest whole checkpoint.

    Raises:
      UserError: if the directory holds no run or no checkpoint, or what it holds is damaged.
    """
    name = read_config(run_dir)["model"]
    model = models.build(name, training=True)
    if not _restore_newest(run_dir, lambda path: load_weights(model, path)):
        raise UserError(f"{run_dir} holds no checkpoint: train first, or give another --run_dir")
    return model


def load_weights(model: keras.Model, path: str) -> None:
    """Gives a network the weights of one checkpoint.

    Raises:
      UserError: if it is damaged, or another network's.
    """
    try:
        tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched().expect_partial()
    except DAMAGED as error:
        raise UserError(f"checkpoint {path} is damaged, or of another network: give another --run_dir") from error


def last_cycles(run_dir: pathlib.Path, count: int) -> list[str]:
    """The checkpoints of the end of a run's last learning-rate cycles, the oldest first.

    Raises:
      UserError: if the run has fewer.
    """
    paths = [path.with_suffix("") for path in (run_dir / "checkpoints/cycles").glob("cycle-*.index")]
    paths.sort(key=lambda path: int(path.name.removeprefix("cycle-")))
    if count > len(paths):
        held = "the end of 1 cycle" if len(paths) == 1 else f"the ends of {len(paths)} cycles"
        raise UserError(f"{run_dir} holds {held}: --snapshots={count} is more")
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
        except (UserError, *DAMAGED) as error:
            problem = f"checkpoint {path} is damaged, or of another network"
            if older == len(steps):
                raise UserError(f"{problem}: give another --run_dir") from error
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
    """Turns TensorFlow's errors while writing, such as ResourceExhaustedError of a full disk, into UserError."""
    try:
        yield
    except tf.errors.OpError as error:
        _clear(pathlib.Path(folder))
        remedy = "make room or fix the path, and start the same command again to resume from the last checkpoint"
        raise UserError(f"cannot write to {folder} ({error.message}): {remedy}") from error
