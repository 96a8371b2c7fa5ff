"""The command line of the programs: flags, help, and errors in one line.

Import it before anything that imports TensorFlow, which it loads quietly.
"""

from training import startup  # noqa: I001  # It loads TensorFlow, so it comes first.

import os
import pathlib
import signal
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags, logging

from tiny_imagenet.errors import DISK_FULL, UserError

FLAGS = flags.FLAGS


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs a program's main by `absl.app.run`, after setting up TensorFlow's devices.

    A user's mistake ends in one line on standard error, with exit status 2 if the flags alone show it, else 1. So does
    an error of the operating system that names a file. A bug ends in a traceback. If nobody reads the output, as after
    `| head`, the program ends without a message.
    """

    def guarded(argv):
        if not FLAGS["verbosity"].present:  # absl's default would show all log messages of TFDS.
            logging.set_verbosity(logging.WARNING)
        try:
            startup.set_up_devices()
            main(argv)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            message = _explain(error)
            if message is None:
                raise
            if sys.stdout and sys.stdout.isatty():
                print(file=sys.stderr)  # Leaves the line of the progress bar.
            _fail(argv[0], message, status=1)

    if hasattr(sys.stdout, "reconfigure"):  # It has none if the program was started without an output.
        sys.stdout.reconfigure(errors="backslashreplace")  # For names of files that the terminal cannot show.
    try:
        try:
            app.run(guarded, argv, flags_parser=_parse)
        finally:
            if sys.stdout:  # None if the program was started without one.
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end.
        sys.exit(128 + 13)  # As after SIGPIPE.


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags as absl does, but -h is --help, help ends with status 0, and an error with one line and 2."""
    FLAGS.set_gnu_getopt(True)  # Flags may follow the folders that a shell expands --runs to.
    try:
        extra = FLAGS(["--help" if argument == "-h" else argument for argument in argv])[1:]
    except SystemExit:  # After --help.
        sys.exit(0)
    except (flags.Error, UnicodeDecodeError) as error:  # The latter for a --flagfile that is not text.
        _fail(argv[0], f"{error} (see --help)", status=2)
    if extra and "runs" in FLAGS and FLAGS.runs:
        FLAGS.runs += extra
    elif extra and "pictures" in FLAGS:
        FLAGS.pictures += extra
    elif extra:
        _fail(argv[0], f"{extra[0]!r} is not a flag (see --help)", status=2)
    return argv[:1]


def _fail(program: str, message: str, status: int) -> None:
    print(
        f"{pathlib.Path(program).name}: {' '.join(filter(None, map(str.strip, message.splitlines())))}", file=sys.stderr
    )
    sys.exit(status)


def _explain(error: Exception) -> str | None:
    """What a user can do about an error, or which file it is about, in one line; None if the error does not say."""
    if isinstance(error, UserError):
        return str(error)
    for reason in map(os.strerror, DISK_FULL):  # Libraries report it by errors of all kinds.
        if reason in str(error):
            return f"{reason}: make room, and start the same command again ({error})"
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return "out of memory" + (": try a smaller --batch_size" if "batch_size" in FLAGS else "")
    if isinstance(error, tf.errors.InternalError) and "CUDA_ERROR_INVALID" in error.message:
        return (
            "this build of TensorFlow does not support the GPU (docs/questions.md says which it does): "
            f"set CUDA_VISIBLE_DEVICES=-1 to use the CPU ({error.message})"
        )
    if isinstance(error, OSError) and isinstance(error.filename, str) and error.strerror:
        remedy = ": choose a place where you may read and write" if isinstance(error, PermissionError) else ""
        return f"{error.filename}: {error.strerror}{remedy}"
    return None
