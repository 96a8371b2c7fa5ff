"""The time that a run's training steps take."""

import datetime
import signal
import time


class Stopwatch:
    """Adds up the time of a run's steps, and leaves out checkpoints, validation and pauses.

    After a pause (SIGSTOP, then SIGCONT) it restarts by itself.

    Attributes:
      seconds: The time of the steps so far.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self.restart()
        if hasattr(signal, "SIGCONT"):  # Windows has none.
            signal.signal(signal.SIGCONT, lambda *_: self.restart())

    def count(self) -> None:
        """Adds the time since the last call, or since `restart`."""
        last, self._clock = self._clock, time.monotonic()
        self.seconds += self._clock - last

    def restart(self) -> None:
        """Leaves out the time since the last `count`, because it was not spent training."""
        self._clock = time.monotonic()

    def __str__(self) -> str:
        return str(datetime.timedelta(seconds=round(self.seconds)))
