"""Mistakes on the command line, and what the flags are when they are not given."""

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
    ("train", [], "--model"),
    ("evaluate", [], "run_dir"),
    ("evaluate", ["--run_dir=run", "--saved_model=model"], "saved_model"),
    ("evaluate", ["--run_dir=run", "--split=train+test"], "split"),
    ("evaluate", ["--run_dir=run", "--split=test"], "--predictions"),
    ("evaluate", ["--run_dir=run", "--tflite=model.tflite"], "tflite"),
    ("evaluate", ["--saved_model=model", "--tflite=model.tflite"], "tflite"),
    ("evaluate", ["--saved_model=model", "--ten_crop"], "--run_dir"),
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


def test_help(run_scripts):
    """It lists each flag of the program, and exits as absl's does."""
    train, evaluate = run_scripts([["train.py", "--help"], ["evaluate.py", "--help"]])
    data = {"dataset", "data_dir", "archive"}
    names = "model learning_rate batch_size num_epochs num_cycles momentum weight_decay clip_norm precision seed"
    names += " run_dir resume log_every checkpoint_minutes export_only tflite"
    assert listed(train) >= {*names.split(), *data}
    assert "split" not in listed(train)
    names = "run_dir saved_model tflite split ten_crop snapshots predictions batch_size output"
    assert listed(evaluate) >= {*names.split(), *data}
    assert "learning_rate" not in listed(evaluate)


def listed(result):
    assert (result.returncode, result.stderr) == (1, "")
    return set(re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE))
