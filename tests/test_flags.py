"""The command line: defaults, mistakes in it, the help; and which errors end in one line."""

import collections
import contextlib
import errno
import io
import os
import re
import signal
import sys
import types

import pytest
import tensorflow as tf

import flags
from flags import FLAGS
from tiny_imagenet.errors import UserError

WRONG_IN_BOTH = [
    ("--nosuch_flag=1", "unknown flag --nosuch_flag"),
    ("--nosuch_flag", "unknown flag --nosuch_flag"),
    ("--data-dir=data", "unknown flag --data-dir: did you mean --data_dir?"),
    ("positional", "'positional' is not a flag"),
    ("--batch_size=many", "batch_size"),
    ("--dataset=imagenet", "dataset"),
    ("--data_dir", "data_dir"),
    ("--flagfile=nosuch_file", "nosuch_file"),
]
NOT_IN_REPORT = [flag for flag, word in WRONG_IN_BOTH if word in ("batch_size", "dataset")]
WRONG_IN_TRAIN = [
    ("--model=vgg", "alexnet"),
    ("--model=", "model"),
    ("--seed=4294967296", "seed"),
    ("--run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("--precision=float16", "mixed_float16"),
    ("--resume=maybe", "resume"),
    ("--lr=0.1", "unknown flag --lr: did you mean --learning_rate?"),
    ("--epochs", "unknown flag --epochs: did you mean --num_epochs?"),
    ("--batch-size=4", "did you mean --batch_size?"),
    ("--wd=0", "did you mean --weight_decay?"),
    ("--learning_rat=1", "did you mean --learning_rate?"),
    ("--model_name=alexnet", "did you mean --model?"),
    ("--no-resume", "did you mean --resume?"),
]
WRONG = [
    *(("train", ["--model=baseline", flag], word) for flag, word in WRONG_IN_BOTH + WRONG_IN_TRAIN),
    *(("evaluate", ["--run_dir=run", flag], word) for flag, word in WRONG_IN_BOTH),
    *(("report", ["--mistakes=run", flag], word) for flag, word in WRONG_IN_BOTH if flag not in NOT_IN_REPORT),
    ("train", [], "--model is required: one of baseline, alexnet"),
    ("evaluate", [], "give exactly one of --run_dir, --weights, --saved_model, --tflite"),
    ("evaluate", ["--run_dir=run", "--saved_model=model"], "saved_model"),
    ("evaluate", ["--run_dir=run", "--split=train+test"], "split"),
    ("evaluate", ["--run_dir=run", "--split=test"], "--predictions"),
    ("evaluate", ["--run_dir=run", "--tflite=model.tflite"], "tflite"),
    ("evaluate", ["--saved_model=model", "--tflite=model.tflite"], "tflite"),
    ("evaluate", ["--saved_model=model", "--ten_crop"], "--run_dir"),
    ("report", [], "runs"),
    ("report", ["runs/a", "runs/b"], "runs"),
    ("report", ["--runs=runs/*", "--mistakes=run"], "mistakes"),
    ("evaluate", ["--tflite=model.tflite", "--ten_crop"], "--run_dir"),
    ("evaluate", ["--saved_model=model", "--snapshots=2"], "--run_dir"),
    ("evaluate", ["--tflite=model.tflite", "--snapshots=2"], "--run_dir"),
    ("evaluate", ["--run_dir=run", "--snapshots=0"], "snapshots"),
    ("evaluate", ["--run_dir=run", "--snapshots=all"], "snapshots"),
    ("train", ["--model=baseline", "--tflite=model.tflite"], "tflite"),
    ("train", ["--model=baseline", "--tflite", "--noexport"], "--tflite: needs --export"),
]


@contextlib.contextmanager
def defined(program):
    """Defines a program's flags, for as long as the `with` block lasts."""
    others = set(FLAGS)
    getattr(flags, f"define_{program}_flags")()
    try:
        yield
    finally:
        for name in set(FLAGS) - others:
            delattr(FLAGS, name)
        FLAGS.unparse_flags()


def run(program, arguments, main=lambda argv: None):
    """Runs a program that has `main` and whose flags are defined: its returncode, stdout and stderr."""
    argv = [f"{program}.py", *arguments]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as caught:
        flags.run(main, argv)
    return types.SimpleNamespace(
        args=argv, returncode=caught.value.code or 0, stdout=stdout.getvalue(), stderr=stderr.getvalue()
    )


def values(program, *arguments):
    """The flags' values as the program's main sees them."""
    seen = {}
    with defined(program):
        result = run(program, arguments, lambda argv: seen.update(FLAGS.flag_values_dict()))
    assert (result.returncode, result.stderr) == (0, "")
    return seen


@pytest.mark.parametrize(
    "program, arguments, word", WRONG, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_wrong_flags(assert_one_line, program, arguments, word):
    with defined(program):
        result = run(program, arguments, lambda argv: pytest.fail("main runs"))
    assert_one_line(result, 2, word, f"{program}.py: ", "(see --help)")
    assert result.stdout == ""


def test_a_flagfile_that_is_not_text(tmp_path, assert_one_line):
    (tmp_path / "flags").write_bytes(b"\xff\xfe--seed=1")
    with defined("train"):
        assert_one_line(run("train", ["--model=baseline", f"--flagfile={tmp_path / 'flags'}"]), 2, "decode")


def test_the_papers_values_are_the_defaults():
    paper = {"learning_rate": 0.1, "batch_size": 256, "num_epochs": 10, "num_cycles": 5, "weight_decay": 1e-4}
    ours = {
        "clip_norm": 10.0,
        "dataset": "full",
        "precision": "auto",
        "resume": True,
        "export_only": False,
        "tflite": False,
    }
    assert values("train", "--model=resnet20").items() >= {**paper, **ours, "model": "resnet20"}.items()
    expected = {"split": "validation", "ten_crop": False, "dataset": None, "predictions": None, "snapshots": 1}
    assert values("evaluate", "--run_dir=run").items() >= expected.items()


def test_right_flags_are_taken():
    given = values("train", "--model=alexnet", "--momentum=0", "--weight_decay=0", "--noresume", "--seed=7")
    assert given.items() >= {"momentum": 0.0, "weight_decay": 0.0, "resume": False, "seed": 7}.items()
    given = values("evaluate", "--saved_model=~/model", "--split=test", "--predictions=-")
    home = os.path.expanduser("~")
    assert given.items() >= {"split": "test", "predictions": "-", "run_dir": None}.items()
    assert given["saved_model"] == f"{home}/model"


@pytest.mark.parametrize(
    "given, runs",
    [
        (["--runs=runs/*", "--out=results/"], ["runs/*"]),
        (["--runs", "runs/a", "runs/b", "--out=results/"], ["runs/a", "runs/b"]),  # As the shell expands a pattern.
        (["--out=results/", "--runs=runs/a,runs/b", "runs/c"], ["runs/a", "runs/b", "runs/c"]),
    ],
)
def test_runs_to_report(given, runs):
    seen = values("report", *given)
    assert (seen["runs"], seen["out"]) == (runs, "results/")


# What may be taken, by the flag's name.
INTEGERS = {
    **dict.fromkeys(["num_epochs", "num_cycles"], range(1, 10**6 + 1)),
    **dict.fromkeys(["batch_size", "log_every", "snapshots"], range(1, 2**31)),
    "seed": range(2**32),
}
FLOATS = {
    "learning_rate": lambda value: 0 < value < 3.5e38,
    "momentum": lambda value: 0 <= value < 1,
    "weight_decay": lambda value: 0 <= value < 3.5e38,
    "clip_norm": lambda value: 0 < value < 3.5e38,
    "checkpoint_minutes": lambda value: 0 <= value < float("inf"),
}
CHOICES = ("dataset", "distribute", "model", "precision", "split")
SWITCHES = ("resume", "export_only", "sync_batch_norm", "ten_crop")
STRINGS = ("archive", "data_dir", "out", "output", "predictions", "run_dir", "saved_model")
VALUES = "0 -0 1 -1 1.5 1e3 1e39 1e308 1e400 1e-320 -1e-320 nan -nan inf -inf Infinity 0x10 0b1 1_0 1,000 1e".split()
VALUES += "true True None null [] {} -- - $(id) %s%n ~ ~nobody ../../.. train+test é \u0663 \ud800".split()
VALUES += [str(10**30), str(-(10**30)), "9" * 5000, str(2**31 - 1), str(2**31), str(2**63)]
VALUES += ["", " ", "a\nb", "a\tb", "\x1b[2J", "a\0b", "x" * 10**5]


def is_right(name, value):
    """Whether a flag may have a value, once parsed."""
    if name in INTEGERS:
        return isinstance(value, int) and value in INTEGERS[name]
    if name in FLOATS:
        return FLOATS[name](value)
    if name in STRINGS:
        return value != "" and "\0" not in value
    return name in SWITCHES and isinstance(value, bool)  # No choice is among the values.


@pytest.mark.parametrize(
    "program, needed",
    [
        ("train", "--model=baseline"),
        ("evaluate", "--run_dir=run --split=train --images=9"),
        ("report", "--mistakes=run"),
    ],
    ids=["train", "evaluate", "report"],
)
def test_fuzzed_flags(program, needed):
    """A flag takes each value as what it should be, or the program ends with status 2 and one line."""
    taken = collections.Counter()
    with defined(program):
        names = [*INTEGERS, *FLOATS, *CHOICES, *SWITCHES, *STRINGS]
        names = [name for name in names if name in FLAGS and f"--{name}=" not in needed]
        for name in names:
            for value in VALUES:
                seen = []
                arguments = [*needed.split() * (name != "saved_model"), f"--{name}={value}"]
                result = run(program, arguments, lambda argv: seen.append(FLAGS[name].value))  # noqa: B023
                FLAGS.unparse_flags()
                if result.returncode == 0:
                    assert result.stderr == "" and is_right(name, seen[0]), (name, value, seen)
                    taken[name] += 1
                else:
                    assert (result.returncode, seen) == (2, []), (name, value, result)
                    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, (name, value, result.stderr)
                    assert name in result.stderr, (name, value, result.stderr)
    assert all(taken[name] for name in names if name not in CHOICES), taken


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("program", ["train", "evaluate", "predict", "report"])
def test_help(run_main, program, flag):
    """It shows the program's docstring and exactly the program's flags, even where other flags are missing or wrong."""
    others = set(FLAGS)
    with defined(program):
        expected = set(FLAGS) - others
    result = run_main(f"{program}.py", flag, "--batch_size=0")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python {program}.py " in result.stdout.split("Flags:")[0]
    assert set(re.findall(r"^  --(?:\[no\])?(\w+):", result.stdout, re.MULTILINE)) == expected
    some = {"train": "archive", "evaluate": "ten_crop", "predict": "csv", "report": "mistakes"}
    assert some[program] in expected and "verbosity" not in expected


def test_help_of_a_process(run_script):
    result = run_script("train.py", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "python train.py --model=" in result.stdout
    assert "--learning_rate: Learning rate at the start of each cycle. Default: 0.1." in result.stdout
    assert "One of: baseline, alexnet" in result.stdout and "absl" not in result.stdout.split("--helpfull")[0]


def test_names_that_the_terminal_cannot_show():
    """They are printed with escapes."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    with defined("train"), contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as caught:
        flags.run(lambda argv: print("你好", os.fsdecode(b"caf\xe9")), ["train.py", "--model=baseline"])
    assert not caught.value.code
    assert terminal.buffer.getvalue() == rb"\u4f60\u597d caf\udce9" + os.linesep.encode()


def raises(error, *arguments):
    """The result of train.py if its main raises an error."""

    def main(argv):
        raise error

    with defined("train"):
        return run("train", ["--model=baseline", *arguments], main)


def path_error(number, path):
    return OSError(number, os.strerror(number), str(path))


def op_error(kind, message):
    return kind(None, None, message)


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("the loss\nbecame NaN: try less"), "train.py: the loss became NaN: try less\n"),
        (op_error(tf.errors.ResourceExhaustedError, "OOM when allocating tensor"), "out of memory: try a smaller"),
        (op_error(tf.errors.ResourceExhaustedError, "x; No space left on device"), "No space left on device: make"),
        (MemoryError(), "out of memory: try a smaller"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device: make room"),
        (RuntimeError("cannot close (errno = 28, error message = 'No space left on device')"), "make room"),
        (path_error(errno.ENOENT, "/given/run/train"), "train.py: /given/run/train: No such file or directory\n"),
        (path_error(errno.EACCES, "/given"), "/given: Permission denied"),
        (path_error(errno.EROFS, "runs/baseline"), "runs/baseline: Read-only file system"),
        (path_error(errno.EACCES, os.path.expanduser("~/tensorflow_datasets/x")), "Permission denied"),
    ],
)
def test_errors_of_users_are_one_line(error, words, assert_one_line):
    assert_one_line(raises(error, "--run_dir=/given/run"), 1, words)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        KeyError("top_1"),
        RuntimeError("generator raised StopIteration"),
        FloatingPointError("underflow"),
        ZeroDivisionError("division by zero"),
        op_error(tf.errors.InvalidArgumentError, "Incompatible shapes"),
        op_error(tf.errors.NotFoundError, "Key not found in checkpoint"),
        *(op_error(kind, "x") for kind in (tf.errors.CancelledError, tf.errors.UnavailableError)),
        OSError("h5py failed"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ],
    ids=repr,
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught:
        raises(error, "--run_dir=/given/run")
    assert caught.value is error


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
            flags.run(lambda argv: print("a row") or end(), ["report.py", flag])
    assert caught.value.code == 128 + signal.SIGPIPE


def test_a_program_without_an_output():
    with contextlib.redirect_stdout(None), defined("report"), pytest.raises(SystemExit) as caught:
        flags.run(lambda argv: None, ["report.py", "--runs=run"])
    assert not caught.value.code


def test_an_error_in_a_program_without_an_output():
    def fail(argv):
        raise UserError("too bad")

    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(io.StringIO()) as stderr, defined("report"):
        with pytest.raises(SystemExit) as caught:
            flags.run(fail, ["report.py", "--runs=run"])
    assert (caught.value.code, stderr.getvalue()) == (1, "report.py: too bad\n")


def test_out_of_memory_in_a_program_without_batches(assert_one_line):
    def main(argv):
        raise MemoryError

    with defined("report"):
        assert_one_line(run("report", ["--runs=run"], main), 1, "report.py: out of memory\n")
