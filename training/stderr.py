"""Standard error without the log messages of C++ libraries, which do not pass through Python."""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Iterator

DONE = b"\0"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards standard error inside the `with` block."""
    null = os.open(os.devnull, os.O_WRONLY)
    with _redirected(null):
        yield


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Discards standard error inside the `with` block, but shows it if the block raises or the process dies in it.

    A child process holds the text, since a process that aborts in native code cannot show it any more. Without
    `os.fork`, as on Windows, standard error is left as it is.
    """
    if sys.stderr is None or not hasattr(os, "fork"):
        yield
        return
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            _hold(reading)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        with _redirected(writing):
            faulthandler.enable()  # An abort without a message of its own at least shows the Python stack.
            yield
            sys.stderr.flush()
            os.write(2, DONE)
    finally:
        with contextlib.suppress(ChildProcessError):  # A parent that ignores SIGCHLD is told of no child's end.
            os.waitpid(child, 0)


def _hold(reading: int) -> None:
    """Reads a pipe to its end, and copies it to standard error unless it ends with `DONE`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent.
    text = b""
    while not text.endswith(DONE) and (part := os.read(reading, 2**16)):
        text += part
    if not text.endswith(DONE):
        os.write(2, text)


@contextlib.contextmanager
def _redirected(target: int) -> Iterator[None]:
    """Sends standard error to a file descriptor inside the `with` block, and closes the descriptor after it."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
