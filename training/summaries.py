"""The three places that a run reports to: metrics.csv, TensorBoard's events, and the terminal."""

import csv
import datetime
import math
import os
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf
import tqdm
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api as hparams

from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training.files import replace_file
from training.run_directory import EVENTS, EVENTS_SUFFIX

FIELDS = (
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "cross_entropy",
    "top_1",
    "global_norm",
    "validation_cross_entropy",
    "validation_top_1",
    "validation_top_5",
)


class Metrics:
    """metrics.csv: a row for each interval of training steps, and one for each epoch's validation."""

    def __init__(self, path: pathlib.Path, step: int):
        """Opens the file to append rows after `step`. The validation of that step has not run yet.

        Drops the rows that a run wrote after its last checkpoint. The last of them may be incomplete.

        Raises:
          UserError: if the file is damaged.
        """
        header = ",".join(FIELDS)
        self._rows = []
        if path.exists():
            first, *rows = path.read_text(errors="replace").split("\n")
            whole = [row.split(",") for row in rows[:-1]]  # The text after the last newline is an incomplete row.
            if first != header or any(len(row) != len(FIELDS) or not row[0].isdigit() for row in whole):
                raise UserError(f"{path} is damaged or of another version: restore it, or pass another --run_dir")
            rows = [dict(zip(FIELDS, row, strict=True)) for row in whole]
            self._rows = [row for row in rows if int(row["step"]) < step or int(row["step"]) == step and row["loss"]]
        with replace_file(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
        self._path = path
        self._first = 0 if self._rows else step  # A worker that is not the first has no rows of the steps before.

    def append(self, **row: float) -> None:
        self._rows.append(row)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)

    def flush(self) -> None:
        """Writes the rows to the disk, before a checkpoint makes them the run's."""
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())

    def epoch_means(self, epoch: int) -> dict[str, float]:
        """Returns the mean loss and top-1 over an epoch's training steps; NaN if it has no row."""
        sums, last = {"loss": 0.0, "top_1": 0.0}, self._first
        count = 0
        for row in (row for row in self._rows if row.get("loss")):
            steps, last = int(row["step"]) - last, int(row["step"])
            if int(row["epoch"]) == epoch and not math.isnan(float(row["loss"])):
                count += steps
                sums = {name: total + steps * float(row[name]) for name, total in sums.items()}
        return {name: total / count if count else math.nan for name, total in sums.items()}


class TensorBoard:
    """TensorBoard's events, in `train/` and `validation/` as Keras' own callback writes them."""

    def __init__(self, run_dir: pathlib.Path, step: int):
        """Opens the events to append events after `step`, whose validation has not run yet. Drops later events."""
        self._writers = {}
        for name, last in (("train", step), ("validation", step - 1)):
            for path in (run_dir / name).glob(EVENTS):
                if step:
                    _drop_events(path, last)
                else:
                    path.unlink()
            try:
                self._writers[name] = tf.summary.create_file_writer(str(run_dir / name), filename_suffix=EVENTS_SUFFIX)
            except tf.errors.OpError as error:
                problem = f"cannot write to {run_dir / name} ({error.message})"
                raise UserError(f"{problem}: pass another --run_dir") from error

    def start(self, name: str, config: dict, images: np.ndarray) -> None:
        """Writes the flags, as text and as the HParams trial `name`, and a grid of crops, (N, 56, 56, 3) uint8."""
        side = min(8, int(len(images) ** 0.5))
        rows = images[: side * side].reshape(side, side, crops.CROP_SIZE, crops.CROP_SIZE, 3)
        grid = rows.swapaxes(1, 2).reshape(1, side * crops.CROP_SIZE, side * crops.CROP_SIZE, 3)
        table = "\n".join(["| flag | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in config.items())])
        with self._writers["train"].as_default(0):
            tf.summary.text("flags", table)
            tf.summary.image("augmented training images", grid)
        with self._writers["validation"].as_default(0):
            hparams.hparams(config, trial_id=name)

    def scalars(self, writer: str, step: int, **values: float) -> None:
        with self._writers[writer].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()


def _drop_events(path: pathlib.Path, last: int) -> None:
    """Drops the events of steps after `last` from a file of TensorBoard's, and the last event if it is incomplete."""
    with replace_file(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if Event.FromString(record).step <= last:
                    writer.write(record)
        except tf.errors.DataLossError:
            pass  # The run was killed while it wrote.


class Progress:
    """Progress on the terminal: a bar on a terminal, a plain line for each interval elsewhere."""

    def __init__(self, step: int, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._bar = tqdm.tqdm(
            desc=f"step {step}/{num_steps}",
            total=num_steps * batch_size,
            initial=step * batch_size,
            unit=" images",
            unit_scale=True,
            bar_format="{desc} |{bar}| {rate_fmt}, {remaining} left{postfix}",
            file=sys.stdout,
            disable=not (sys.stdout and sys.stdout.isatty()),
            dynamic_ncols=True,
        )
        self._drawn = 0.0

    def due(self) -> bool:
        """Returns whether there is a bar, and it should be drawn again."""
        return not self._bar.disable and time.monotonic() - self._drawn > 0.5

    def draw(self, step: int, epoch: int, learning_rate: float, loss: float, top_1: float, speed: float) -> None:
        """Reports the mean loss and top-1 of the last steps, and their speed in images per second."""
        if self._bar.disable:
            left = round((self._num_steps - step) * self._batch_size / speed)
            print(
                f"epoch {epoch} step {step}/{self._num_steps} loss {loss:.4f} top-1 {top_1:.2%} "
                f"lr {learning_rate:.4f} {speed:.1f} images/s {datetime.timedelta(seconds=left)} left",
                flush=True,
            )
        else:
            self._bar.set_description_str(f"step {step}/{self._num_steps}", refresh=False)
            self._bar.set_postfix_str(f"loss {loss:.2f}, top-1 {top_1:.1%}", refresh=False)
            self._bar.update(step * self._batch_size - self._bar.n)
            self._bar.refresh()
        self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def close(self) -> None:
        """Leaves the bar as it is, so that other lines may follow."""
        self._bar.close()
