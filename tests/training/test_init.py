"""What importing `training` does, and which modules the programs import."""

import pathlib
import re
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_the_import_sets_the_environment_alone():
    """In a Python without TensorFlow, too."""
    code = """
import os, sys
before = sys.excepthook, set(sys.modules), dict(os.environ)
import training
assert sys.excepthook is before[0]
new = {name.partition(".")[0] for name in set(sys.modules) - before[1]}
assert new - sys.stdlib_module_names == {"training"}
print(sorted(set(os.environ) - set(before[2])))
"""
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY), "HOME": "/"}, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "['KERAS_BACKEND', 'TF_CPP_MIN_LOG_LEVEL', 'TF_ENABLE_ONEDNN_OPTS']\n"


def test_no_module_of_one_system_alone():
    """The programs import on Windows too."""
    programs = [
        *REPOSITORY.glob("*.py"),
        *(
            path
            for name in ("deployment", "models", "reporting", "tiny_imagenet", "training")
            for path in REPOSITORY.glob(f"{name}/**/*.py")
        ),
    ]
    assert len(programs) > 20
    for path in programs:
        found = re.findall(
            r"^\s*(?:import|from) (fcntl|grp|pwd|resource|termios|msvcrt)\b", path.read_text(), re.MULTILINE
        )
        assert not found, path
