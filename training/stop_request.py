"""Requests to stop a run: Ctrl-C, or the SIGTERM of a scheduler."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

from training import distribution


class StopRequest:
    """Takes SIGINT and SIGTERM, so that a run saves a checkpoint before it ends. A second signal ends it at once.

    Args:
      strategy: Of several workers, any may be asked to stop. Then all stop.
      say: Prints a line.
      overwrite: Whether the run was started with --overwrite.
    """

    def __init__(self, strategy: tf.distribute.Strategy, say: Callable[[str], None], overwrite: bool):
        self._several_workers = distribution.has_several_workers(strategy)
        self._any_worker = distribution.any_worker(strategy)
        self._say = say
        self._again = "again without --overwrite" if overwrite else "the same command again"
        self._signal = None
        self._saved_step = None
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._receive)

    def _receive(self, signum, frame) -> None:
        self._signal = signum
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        if self._saved_step is not None:
            self.leave(self._saved_step)

    def received(self, exchange: bool) -> bool:
        """Returns whether the run must stop.

        Args:
          exchange: Whether several workers ask each other, which takes time. All must do so at the same steps.
        """
        if self._several_workers:
            return exchange and self._any_worker(self._signal is not None)
        return self._signal is not None

    @contextlib.contextmanager
    def at_once(self, step: int, others_wait: bool = True) -> Iterator[None]:
        """Ends the program without delay if a signal comes in the `with` block, in which there is nothing to save.

        Several workers must hear of it first, unless they no longer wait for this one.

        Args:
          step: The step of the newest checkpoint.
          others_wait: Whether other workers, if there are any, wait for this one.
        """
        if not (self._several_workers and others_wait):
            self._saved_step = step
            if self._signal is not None:
                self.leave(step)
        yield
        self._saved_step = None

    def leave(self, step: int) -> None:
        """Ends the program after a step that a checkpoint holds, with the exit status of a signal."""
        self._say(f"stopped after step {step}: start {self._again} to resume")
        sys.exit(128 + (self._signal or signal.SIGTERM))
