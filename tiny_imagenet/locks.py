"""Keeps two processes from writing to the same folder."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import IO

import portalocker


@contextlib.contextmanager
def lock(path: pathlib.Path, when_taken: Callable[[], None]) -> Iterator[bool]:
    """Holds an exclusive lock on a file, and waits for it while another process holds it.

    The operating system releases the lock when the process ends, even if the process is killed.

    Args:
      path: The lock file. It is created if it does not exist, and it stays.
      when_taken: Called once if another process holds the lock. To give up instead of waiting, it raises an error.

    Yields:
      True, or False if the file system does not support locks.

    Raises:
      OSError: if the file cannot be opened.
    """
    # Not portalocker.Lock: in portalocker 3 its error for a file system without locks is that for a taken lock.
    with open(path, "ab") as file:
        locked = True
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            when_taken()
            _wait(file)
        except portalocker.LockException:
            locked = False
        yield locked


def _wait(file: IO) -> None:
    while True:
        with contextlib.suppress(portalocker.AlreadyLocked):  # Windows gives up after ten seconds.
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            return
