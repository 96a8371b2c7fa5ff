"""Keeps two processes from writing to the same folder."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import IO

import portalocker

POLL_SECONDS = 0.1


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
    with open(path, "ab") as file:
        waiting = False
        while (locked := _try_lock(file)) is None:
            if not waiting:
                when_taken()
            waiting = True
            time.sleep(POLL_SECONDS)
        yield locked


def _try_lock(file: IO) -> bool | None:
    """Returns None if another process holds the lock, False if the file system does not support locks."""
    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return None
    except portalocker.LockException:
        return False
    return True
