"""What a run reports while it trains."""

import pathlib

import numpy as np

from training import summaries
from training.schedule import Schedule
from training.step import Trainer
from training.stopwatch import Stopwatch


class Reporter:
    """Reports to metrics.csv, TensorBoard and the terminal, from the step on that a run starts or resumes at."""

    def __init__(self, run_dir: pathlib.Path, step: int, schedule: Schedule, stopwatch: Stopwatch):
        self._metrics = summaries.Metrics(run_dir / "metrics.csv", step)
        self._board = summaries.TensorBoard(run_dir, step)
        self._progress = summaries.Progress(step, schedule.num_steps, schedule.batch_size)
        self._schedule, self._stopwatch = schedule, stopwatch
        self._last = step, stopwatch.seconds

    def start(self, name: str, config: dict, images: np.ndarray) -> None:
        """Reports a run's name, its configuration and its first images, (N, 56, 56, 3) uint8."""
        self._board.start(name, config, images)

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._progress.say(line)

    def flush(self) -> None:
        """Writes metrics.csv and TensorBoard's events to the disk."""
        self._metrics.flush()
        self._board.flush()

    def close(self) -> None:
        """Ends the progress bar."""
        self._progress.close()

    def training(self, step: int, trainer: Trainer, log: bool) -> None:
        """Reports the means over the steps since the last row of metrics.csv.

        Args:
          step: The step just done.
          trainer: Measured them. If `log`, its means start anew.
          log: Whether to add a row. If not, a progress bar may be drawn.

        Raises:
          UserError: if training has diverged.
        """
        if not (log or self._progress.due()):
            return
        means = trainer.means()  # On a GPU, it waits for the steps.
        self._stopwatch.count()
        (first, started), now = self._last, self._stopwatch.seconds
        speed = (step - first) * self._schedule.batch_size / max(now - started, 1e-9)
        epoch, rate = self._schedule.epoch(step), float(trainer.learning_rate(step))
        self._progress.draw(step, epoch, rate, means["loss"], means["top_1"], speed)
        if not log:
            return
        self._metrics.append(step=step, epoch=epoch, learning_rate=rate, **means)
        self._board.scalars("train", step, learning_rate=rate, images_per_second=speed, **means)
        if trainer.model.compute_dtype == "float16":
            scale, skipped = trainer.loss_scale.numpy(), trainer.skipped.numpy()
            self._board.scalars("train", step, loss_scale=scale, skipped_steps=skipped)
        trainer.reset_means()
        self._last = step, now

    def validation(self, step: int, scores: dict[str, float]) -> None:
        """Reports the scores at the end of an epoch."""
        epoch = self._schedule.epoch(step)
        means = self._metrics.epoch_means(epoch)
        self._metrics.append(step=step, epoch=epoch, **{f"validation_{name}": value for name, value in scores.items()})
        self._board.scalars("validation", step, **scores)
        self._board.flush()
        self.say(
            f"epoch {epoch}/{self._schedule.num_epochs}: loss {means['loss']:.4f}, top-1 {means['top_1']:.2%}, "
            f"validation top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}, {self._stopwatch} of training"
        )
