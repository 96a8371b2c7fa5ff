"""The flags: the paper's values are the defaults, and a wrong value ends in one line."""

import collections
import os

import pytest

from command_line import defined, run
from flags import FLAGS

WRONG = [
    ("train", "", "--model is required: one of baseline, alexnet"),
    ("train", "--model=baseline --seed=4294967296", "seed"),
    ("train", "--model=baseline --run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("train", "--model=baseline --run_dir=", "must be a path"),
    ("train", "--model=baseline --run_dir=\udce9", "must be a path in UTF-8"),
    ("evaluate", "--run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("export", "--run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("compress", "--run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("ship", "--run_dir=runs/lr[0.1]", "--run_dir must not contain"),
    ("predict", "--saved_model=runs/[1]/saved_model", "--saved_model must not contain"),
    ("report", "--mistakes=runs/lr[0.1]", "--mistakes must not contain"),
    ("train", "--model=baseline --tflite --noexport", "--tflite: needs --export"),
    ("train", "--model=baseline --jit_compile --deterministic", "drop --deterministic or --jit_compile"),
    ("evaluate", "", "give exactly one of --run_dir, --weights, --saved_model, --tflite"),
    ("evaluate", "--run_dir=run --saved_model=model", "give exactly one of"),
    ("evaluate", "--saved_model=model --tflite=model.tflite", "give exactly one of"),
    ("evaluate", "--weights=w.weights.h5", "--weights: needs --model"),
    ("evaluate", "--run_dir=run --model=baseline", "--model: needs --weights"),
    ("evaluate", "--run_dir=run --split=test", "test needs --predictions"),
    ("evaluate", "--run_dir=run --split=test --predictions=p.txt --output=o.json", "--output: test has no scores"),
    ("evaluate", "--run_dir=run --images=9", "--images: needs --split=train"),
    ("evaluate", "--saved_model=model --ten_crop", "--ten_crop: needs --run_dir or --weights"),
    ("evaluate", "--tflite=model.tflite --snapshots=2", "--snapshots: needs --run_dir"),
    ("predict", "--weights=w.weights.h5", "--weights: needs --model"),
    ("predict", "--model=baseline --run_dir=run", "model, run_dir"),
    ("report", "", "runs"),
    ("report", "--runs=runs/* --mistakes=run", "mistakes"),
    ("exclusion", "--out=out --percent=nan", "--percent must be from 0.1 to 50"),
]


def values(program, *arguments):
    """The flags' values as the program's main sees them."""
    seen = {}
    with defined(program):
        result = run(lambda argv: seen.update(FLAGS.flag_values_dict()), [f"{program}.py", *arguments])
    assert (result.returncode, result.stderr) == (0, "")
    return seen


@pytest.mark.parametrize("program, arguments, words", WRONG)
def test_wrong_flags(assert_one_line, program, arguments, words):
    with defined(program):
        result = run(lambda argv: pytest.fail("main runs"), [f"{program}.py", *arguments.split()])
    assert_one_line(result, 2, f"{program}.py: ", words)


def test_the_papers_values_are_the_defaults():
    paper = {"learning_rate": 0.1, "batch_size": 256, "num_epochs": 10, "num_cycles": 5, "weight_decay": 1e-4}
    assert values("train", "--model=resnet20").items() >= {**paper, "clip_norm": 10.0, "dataset": "full"}.items()


def test_a_path_may_start_at_the_home_directory():
    assert values("train", "--model=alexnet", "--run_dir=~/run")["run_dir"] == f"{os.path.expanduser('~')}/run"


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
PATHS = ("archive", "data_dir", "out", "output", "predictions", "run_dir", "saved_model")
VALUES = (
    "0 -0 1 -1 1.5 1e3 1e39 1e308 1e400 1e-320 -1e-320 nan -nan inf -inf true [] -- ~ ~nobody é \u0663 \ud800".split()
)
VALUES += [str(10**30), str(-(10**30)), "9" * 5000, str(2**31 - 1), str(2**31), str(2**63)]
VALUES += ["", " ", "a\nb", "a\tb", "\x1b[2J", "a\0b", "x" * 10**5]


def is_right(name, value):
    """Whether a flag may have a value, once parsed."""
    if name in INTEGERS:
        return isinstance(value, int) and value in INTEGERS[name]
    if name in FLOATS:
        return FLOATS[name](value)
    return value != "" and "\0" not in value


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
    with defined(program) as own:
        names = [name for name in (*INTEGERS, *FLOATS, *PATHS) if name in own and f"--{name}=" not in needed]
        for name in names:
            for value in VALUES:
                seen = []
                arguments = [*needed.split() * (name != "saved_model"), f"--{name}={value}"]
                main = lambda argv: seen.append(FLAGS[name].value)  # noqa: B023, E731
                result = run(main, [f"{program}.py", *arguments])
                FLAGS.unparse_flags()
                if result.returncode == 0:
                    assert result.stderr == "" and is_right(name, seen[0]), (name, value, seen)
                    taken[name] += 1
                else:
                    assert (result.returncode, seen) == (2, []), (name, value, result)
                    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, (name, value, result.stderr)
                    assert name in result.stderr, (name, value, result.stderr)
    assert all(taken[name] for name in names), taken
