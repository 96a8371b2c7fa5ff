"""Mistakes on the command line, and what the flags are when they are not given."""

import collections
import json
import re
import subprocess
import sys

import pytest

# Each program's flags without its TensorFlow, which takes seconds to import. Nothing after the parsing may run.
PROGRAM = "import flags; flags.define_{}_flags(); flags.run(None)"

WRONG_IN_BOTH = [
    ("--nosuch_flag=1", "nosuch_flag"),
    ("--nosuch_flag", "nosuch_flag"),
    ("positional", "'positional' is not a flag"),
    ("--batch_size=many", "batch_size"),
    ("--batch_size=1.5", "batch_size"),
    ("--batch_size=0", "batch_size"),
    ("--batch_size=-256", "batch_size"),
    ("--dataset=imagenet", "dataset"),
    ("--data_dir", "data_dir"),
    ("--flagfile=nosuch_file", "nosuch_file"),
]
WRONG_IN_TRAIN = [
    ("--model=vgg", "alexnet"),
    ("--model=", "model"),
    *((f"--learning_rate={value}", "learning_rate") for value in ("0", "-0.1", "nan", "inf", "fast", "")),
    *((f"--momentum={value}", "momentum") for value in ("1", "-0.1", "nan", "inf")),
    *((f"--weight_decay={value}", "weight_decay") for value in ("-1e-4", "nan", "inf")),
    *((f"--clip_norm={value}", "clip_norm") for value in ("0", "-1", "nan", "inf")),
    *((f"--checkpoint_minutes={value}", "checkpoint_minutes") for value in ("-1", "nan", "inf")),
    *((f"--{name}=0", name) for name in ("num_epochs", "num_cycles", "log_every")),
    ("--seed=-1", "seed"),
    ("--seed=0.5", "seed"),
    ("--seed=4294967296", "seed"),
    ("--precision=float16", "mixed_float16"),
    ("--resume=maybe", "resume"),
]
WRONG = [
    *(("train", ["--model=baseline", flag], word) for flag, word in WRONG_IN_BOTH + WRONG_IN_TRAIN),
    *(("evaluate", ["--run_dir=run", flag], word) for flag, word in WRONG_IN_BOTH),
    *(("report", ["--mistakes=run", flag], word) for flag, word in WRONG_IN_BOTH),
    ("train", [], "--model"),
    ("evaluate", [], "run_dir"),
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
]


@pytest.fixture
def run(request):
    """Runs a line of Python with flags, in the repository."""

    def run(code, *flags):
        command = [sys.executable, "-c", code, *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=request.config.rootpath, timeout=60)

    return run


@pytest.mark.parametrize(
    "program, flags, word", WRONG, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_wrong_flags(run, assert_one_line, program, flags, word):
    result = run(PROGRAM.format(program), *flags)
    assert_one_line(result, 2, word, "--help")
    assert result.stdout == ""


def values(run, program, *flags):
    """The flags' values as their program's main would see them."""
    code = "import json, flags, sys; flags.define_{}_flags(); flags.FLAGS(sys.argv); "
    code += "print(json.dumps(flags.FLAGS.flag_values_dict()))"
    result = run(code.format(program), *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_papers_values_are_the_defaults(run):
    paper = {"learning_rate": 0.1, "batch_size": 256, "num_epochs": 10, "num_cycles": 5, "weight_decay": 1e-4}
    ours = {
        "clip_norm": 10.0,
        "dataset": "full",
        "precision": "auto",
        "resume": True,
        "export_only": False,
        "tflite": False,
    }
    assert values(run, "train", "--model=resnet20").items() >= {**paper, **ours, "model": "resnet20"}.items()
    expected = {"split": "validation", "ten_crop": False, "dataset": None, "predictions": None, "snapshots": 1}
    assert values(run, "evaluate", "--run_dir=run").items() >= expected.items()


def test_right_flags_are_taken(run):
    given = values(run, "train", "--model=alexnet", "--momentum=0", "--weight_decay=0", "--noresume", "--seed=7")
    assert given.items() >= {"momentum": 0.0, "weight_decay": 0.0, "resume": False, "seed": 7}.items()
    given = values(run, "evaluate", "--saved_model=model", "--split=test", "--predictions=-")
    assert given.items() >= {"split": "test", "predictions": "-", "run_dir": None}.items()


@pytest.mark.parametrize(
    "given, runs",
    [
        (["--runs=runs/*", "--out=results/"], ["runs/*"]),
        (["--runs", "runs/a", "runs/b", "--out=results/"], ["runs/a", "runs/b"]),  # As the shell expands a pattern.
        (["--out=results/", "--runs=runs/a,runs/b", "runs/c"], ["runs/a", "runs/b", "runs/c"]),
    ],
)
def test_runs_to_report(run, given, runs):
    code = "import json, flags, sys; flags.define_report_flags(); flags._parse(sys.argv); "
    code += "print(json.dumps([flags.FLAGS.runs, flags.FLAGS.out]))"
    result = run(code, *given)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == [runs, "results/"]


# One process parses them all, each line of flags in a fork of its own, and prints [status, standard error, values].
FUZZED = """
import contextlib, io, json, os, sys, traceback
import flags

flags.define_PROGRAM_flags()
for argv in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork():
        assert os.wait()[1] == 0
        continue
    status, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            flags._parse(argv)
        except SystemExit as error:
            status = error.code
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, said.getvalue(), {} if status else flags.FLAGS.flag_values_dict()]))
    sys.stdout.flush()
    os._exit(0)
"""

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
    [("train", "--model=baseline"), ("evaluate", "--run_dir=run"), ("report", "--mistakes=run")],
    ids=["train", "evaluate", "report"],
)
def test_fuzzed_flags(run, program, needed, request):
    """Every flag takes each value as what it should be, or the program ends with status 2 and one line."""
    defined = values(run, program, needed)
    names = [*INTEGERS, *FLOATS, *CHOICES, *SWITCHES, *STRINGS]
    names = [name for name in names if name in defined and f"--{name}=" not in needed]
    cases = [(name, value) for name in names for value in VALUES]
    argv = [[program, *[needed] * (name != "saved_model"), f"--{name}={value}"] for name, value in cases]
    command = [sys.executable, "-c", FUZZED.replace("PROGRAM", program)]
    root = request.config.rootpath
    result = subprocess.run(command, input=json.dumps(argv), capture_output=True, text=True, cwd=root, timeout=120)
    assert result.returncode == 0, result.stderr
    taken = collections.Counter()
    for (name, value), line in zip(cases, result.stdout.splitlines(), strict=True):
        status, said, given = json.loads(line)
        if status == 0:
            assert said == "" and is_right(name, given[name]), (name, value, given[name])
            taken[name] += 1
        else:
            assert status == 2, (name, value, status)
            assert said.endswith("\n") and said.count("\n") == 1 and name in said, (name, value, said)
    assert all(taken[name] for name in names if name not in CHOICES), taken


def test_help(run_scripts):
    """It lists each flag of the program, and exits as absl's does."""
    train, evaluate, report = run_scripts([[f"{name}.py", "--help"] for name in ("train", "evaluate", "report")])
    data = {"dataset", "data_dir", "archive"}
    names = "model learning_rate batch_size num_epochs num_cycles momentum weight_decay clip_norm precision seed"
    names += " run_dir resume log_every checkpoint_minutes export_only tflite"
    assert listed(train) >= {*names.split(), *data}
    assert "split" not in listed(train)
    names = "run_dir saved_model tflite split ten_crop snapshots predictions batch_size output"
    assert listed(evaluate) >= {*names.split(), *data}
    assert "learning_rate" not in listed(evaluate)
    assert listed(report) >= {"runs", "mistakes", "out", "data_dir", "archive"}


def listed(result):
    assert (result.returncode, result.stderr) == (1, "")
    return set(re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE))
