"""What a run writes for people while it trains: metrics.csv, TensorBoard's events, and lines on the terminal."""

import csv
import datetime
import pathlib
import shutil
import sys
import time

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api as hparams

from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training.files import replace_file

FIELDS = (
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "cross_entropy",
    "top_1",
    "global_norm",
    "validation_loss",
    "validation_top_1",
    "validation_top_5",
)


class Metrics:
    """metrics.csv: a row for each interval of training steps, and one for each epoch's validation."""

    def __init__(self, path: pathlib.Path, step: int):
        """Opens the file to go on after `step`, whose validation is still to come.

        Rows that a run wrote after its last checkpoint, the last perhaps not to its end, are dropped.

        Raises:
          UserError: if it is damaged.
        """
        header = ",".join(FIELDS)
        kept = [header]
        if path.exists():
            first, *rows = path.read_text(errors="replace").split("\n")
            whole = [row.split(",") for row in rows[:-1]]  # What follows the last end of a line is torn.
            if first != header or any(len(row) != len(FIELDS) or not row[0].isdigit() for row in whole):
                raise UserError(f"{path} is damaged: restore it, or give another --run_dir")
            loss = FIELDS.index("loss")
            kept += [",".join(row) for row in whole if int(row[0]) < step or int(row[0]) == step and row[loss]]
        with replace_file(path) as partial:
            partial.write_text("".join(f"{row}\n" for row in kept))
        self._path = path

    def append(self, **row: float) -> None:
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


class TensorBoard:
    """TensorBoard's events, in `train/` and `validation/` as Keras' own callback has them."""

    def __init__(self, run_dir: pathlib.Path, step: int):
        """Opens the events to go on after `step`, whose validation is still to come; later ones are dropped."""
        self._writers = {}
        for name, last in (("train", step), ("validation", step - 1)):
            for path in (run_dir / name).glob("events.out.tfevents.*"):
                if step:
                    _drop_events(path, last)
                else:
                    path.unlink()
            try:
                self._writers[name] = tf.summary.create_file_writer(str(run_dir / name))
            except tf.errors.OpError as error:
                raise UserError(
                    f"cannot write to {run_dir / name} ({error.message}): give another --run_dir"
                ) from error

    def start(self, config: dict, images: np.ndarray) -> None:
        """Writes the flags, as text and as HParams, and a grid of a batch's crops, (N, 56, 56, 3) uint8."""
        side = min(8, int(len(images) ** 0.5))
        rows = images[: side * side].reshape(side, side, crops.CROP_SIZE, crops.CROP_SIZE, 3)
        grid = rows.swapaxes(1, 2).reshape(1, side * crops.CROP_SIZE, side * crops.CROP_SIZE, 3)
        table = "\n".join(["| flag | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in config.items())])
        with self._writers["train"].as_default(0):
            tf.summary.text("flags", table)
            tf.summary.image("augmented training images", grid)
        with self._writers["validation"].as_default(0):
            hparams.hparams(config)

    def scalars(self, writer: str, step: int, **values: float) -> None:
        with self._writers[writer].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _drop_events(path: pathlib.Path, last: int) -> None:
    """Drops the events of steps after `last` from a file of TensorBoard's, and the last one if it is torn."""
    with replace_file(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if Event.FromString(record).step <= last:
                    writer.write(record)
        except tf.errors.DataLossError:
            pass  # The run was killed while it wrote.


class Progress:
    """How a run gets on: a line drawn over itself on a terminal; plain lines, one an interval, elsewhere."""

    def __init__(self, step: int, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._terminal = sys.stdout.isatty()
        self._drawn = 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begins an interval: speed is measured from here on."""
        self._interval = (step, time.monotonic())

    def images_per_second(self, step: int) -> float:
        first, started = self._interval
        return (step - first) * self._batch_size / (time.monotonic() - started)

    def due(self) -> bool:
        """Whether a terminal's line is old enough to be drawn again."""
        return self._terminal and time.monotonic() - self._drawn > 0.5

    def draw(self, step: int, epoch: int, learning_rate: float, loss: float, top_1: float) -> None:
        speed = self.images_per_second(step)
        left = round((self._num_steps - step) * self._batch_size / speed)
        line = (
            f"epoch {epoch} step {step}/{self._num_steps} loss {loss:.4f} top-1 {top_1:.2%} "
            f"lr {learning_rate:.4f} {speed:.1f} images/s {datetime.timedelta(seconds=left)} left"
        )
        if self._terminal:
            bar = ("=" * (20 * step // self._num_steps)).ljust(20)
            width = shutil.get_terminal_size().columns - 1  # A line that wraps is not drawn over.
            line = f"[{bar}] {line}" if len(line) + 23 <= width else line[:width]
            print(f"\r\x1b[K{line}", end="", flush=True)
        else:
            print(line, flush=True)
        self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        print(f"\r\x1b[K{line}" if self._terminal else line, flush=True)
