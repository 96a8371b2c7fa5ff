"""The programs' command line: parsing, help, and which errors end in one line."""

import contextlib
import errno
import io
import os
import signal
import sys

import pytest
import tensorflow as tf

from command_line import defined, run
from flags import FLAGS
from tiny_imagenet.errors import UserError
from training import cli


def train(*arguments, main=lambda argv: None):
    """The result of train.py with another main."""
    with defined("train"):
        return run(main, ["train.py", "--model=baseline", *map(str, arguments)])


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--batch-size=3", "'batch-size'. Did you mean: batch_size ?"),
        ("--batch_size=0", "batch_size"),
        ("--data_dir", "data_dir"),
        ("--flagfile=nosuch_file", "nosuch_file"),
        ("positional", "'positional' is not a flag"),
    ],
)
def test_wrong_flags(flag, words, assert_one_line):
    result = train(flag, main=lambda argv: pytest.fail("main runs"))
    assert_one_line(result, 2, "train.py: ", words, "(see --help)")
    assert result.stdout == ""


def test_flagfile(tmp_path, assert_one_line):
    file, seen = tmp_path / "flags", []
    file.write_text("--seed=7\n")
    assert train(f"--flagfile={file}", main=lambda argv: seen.append(FLAGS.seed)).returncode == 0
    assert seen == [7]
    file.write_bytes(b"\xff\xfe--seed=1")
    assert_one_line(train(f"--flagfile={file}"), 2, "decode")


@pytest.mark.parametrize(
    "given, runs",
    [
        (["--runs=runs/*", "--out=results/"], ["runs/*"]),
        (["--runs", "runs/a", "runs/b", "--out=results/"], ["runs/a", "runs/b"]),  # As the shell expands a pattern.
        (["--out=results/", "--runs=runs/a,runs/b", "runs/c"], ["runs/a", "runs/b", "runs/c"]),
    ],
)
def test_runs_to_report(given, runs):
    seen = []
    with defined("report"):
        assert run(lambda argv: seen.append((FLAGS.runs, FLAGS.out)), ["report.py", *given]).returncode == 0
    assert seen == [(runs, "results/")]


def test_runs_without_their_flag(assert_one_line):
    with defined("report"):
        assert_one_line(run(lambda argv: None, ["report.py", "runs/a", "runs/b"]), 2, "runs")


def test_help(run_script):
    """It shows the program's docstring and the program's flags alone, and TensorFlow's loading logs nothing."""
    result = run_script("train.py", "-h", COLUMNS="100")
    assert (result.returncode, result.stderr) == (0, "")
    assert "python train.py --model=" in result.stdout
    assert "  --learning_rate: Learning rate at the start of each cycle.\n    (default: '0.1')" in result.stdout
    assert "  --archive:" in result.stdout and "verbosity" not in result.stdout


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--helpfull"])
def test_help_needs_no_other_flag(flag):
    with defined("train"):
        result = run(lambda argv: pytest.fail("main runs"), ["train.py", flag])
    assert (result.returncode, result.stderr) == (0, "")
    assert ("--verbosity" in result.stdout) == (flag == "--helpfull")


def raises(error):
    """The result of train.py if its main raises an error."""

    def main(argv):
        raise error

    return train(main=main)


def path_error(number, path):
    return OSError(number, os.strerror(number), path)


def op_error(kind, message):
    return kind(None, None, message)


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("the loss\nbecame NaN: try less"), "train.py: the loss became NaN: try less\n"),
        (UserError("no run:\n\n  two  spaces.zip\n"), "train.py: no run: two  spaces.zip\n"),  # The name of a file.
        (op_error(tf.errors.ResourceExhaustedError, "OOM when allocating tensor"), "out of memory: try a smaller"),
        (op_error(tf.errors.ResourceExhaustedError, "x; No space left on device"), "No space left on device: make"),
        (
            op_error(tf.errors.InternalError, "'cuLaunchKernel' failed with 'CUDA_ERROR_INVALID_HANDLE'"),
            "CUDA_VISIBLE_DEVICES=-1 to use the CPU",
        ),
        (MemoryError(), "out of memory: try a smaller"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device: make room"),
        (RuntimeError("cannot close (errno = 28, error message = 'No space left on device')"), "make room"),
        (path_error(errno.ENOENT, "/run/train"), "train.py: /run/train: No such file or directory\n"),
        (path_error(errno.EACCES, "/run/.lock"), "/run/.lock: Permission denied: choose a place where you may"),
        (path_error(errno.EROFS, "runs/baseline"), "runs/baseline: Read-only file system"),
    ],
)
def test_errors_of_users_are_one_line(error, words, assert_one_line):
    assert_one_line(raises(error), 1, words)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        op_error(tf.errors.InvalidArgumentError, "Incompatible shapes"),
        op_error(tf.errors.NotFoundError, "Key not found in checkpoint"),
        OSError("h5py failed"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ],
    ids=repr,
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught:
        raises(error)
    assert caught.value is error


def test_ctrl_c():
    result = raises(KeyboardInterrupt())
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize("buffering", [1, -1])  # By line; by block.
@pytest.mark.parametrize(
    "flag, end",
    [
        ("--runs=run", lambda: None),
        ("--runs=run", lambda: sys.exit(1)),
        ("--runs=run", lambda: open("/nosuch/file")),
        ("--help", None),
    ],
    ids=["returns", "exits", "fails", "help"],
)
def test_output_that_nobody_reads(flag, end, buffering):
    """A program whose output goes to `head` ends as after SIGPIPE, without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=buffering) as stdout, contextlib.redirect_stdout(stdout), defined("report"):
        with pytest.raises(SystemExit) as caught:
            cli.run(lambda argv: print("a row") or end(), ["report.py", flag])
    assert caught.value.code == 128 + signal.SIGPIPE


def test_a_program_without_an_output():
    with contextlib.redirect_stdout(None), defined("report"), pytest.raises(SystemExit) as caught:
        cli.run(lambda argv: None, ["report.py", "--runs=run"])
    assert not caught.value.code


def test_an_error_in_a_program_without_an_output():
    def fail(argv):
        raise UserError("too bad")

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()) as stderr, defined("report"):
        with pytest.raises(SystemExit) as caught:
            cli.run(fail, ["report.py", "--runs=run"])
    assert (caught.value.code, stderr.getvalue()) == (1, "report.py: too bad\n")


def test_out_of_memory_in_a_program_without_batches(assert_one_line):
    def main(argv):
        raise MemoryError

    with defined("report"):
        assert_one_line(run(main, ["report.py", "--runs=run"]), 1, "report.py: out of memory\n")


def test_names_that_the_terminal_cannot_show():
    """They are printed with escapes."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    with defined("train"), contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as caught:
        cli.run(lambda argv: print("\u4f60\u597d", os.fsdecode(b"caf\xe9")), ["train.py", "--model=baseline"])
    assert not caught.value.code
    assert terminal.buffer.getvalue() == rb"\u4f60\u597d caf\udce9" + os.linesep.encode()
