"""Runs a program's main in the tests' own process, with the program's flags."""

import contextlib
import io
import subprocess
from collections.abc import Callable, Iterator
from typing import TextIO

import flags
from flags import FLAGS
from training import cli


@contextlib.contextmanager
def defined(program: str) -> Iterator[set[str]]:
    """Defines a program's flags for as long as the `with` block lasts, and yields their names."""
    others = set(FLAGS)
    getattr(flags, f"define_{program}_flags")()
    own = set(FLAGS) - others
    try:
        yield own
    finally:
        for name in own:
            delattr(FLAGS, name)
        FLAGS.unparse_flags()


def run(
    main: Callable[[list[str]], None], argv: list[str], terminal: TextIO | None = None
) -> subprocess.CompletedProcess:
    """Runs a main whose flags are defined: its returncode, and its output unless that goes to `terminal`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    returncode = 0
    with contextlib.redirect_stdout(terminal or stdout), contextlib.redirect_stderr(terminal or stderr):
        try:
            cli.run(main, argv)
        except SystemExit as exit:
            returncode = exit.code or 0
    return subprocess.CompletedProcess(argv, returncode, stdout.getvalue(), stderr.getvalue())
