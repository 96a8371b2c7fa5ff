"""Importing `training`: packages that are missing, GPUs that TensorFlow does not see, devices that have started."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

import training

REPOSITORY = pathlib.Path(training.__file__).resolve().parents[1]


def run(program, *options, environment):
    """Runs a program with --help in a Python of its own, without site-packages if `options` has -S."""
    command = [sys.executable, *options, REPOSITORY / program, "--help"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("program", ["train.py", "evaluate.py", "predict.py", "report.py"])
def test_a_python_without_tensorflow(program, assert_one_line):
    result = run(program, "-S", environment={})
    words = f"{program}: TensorFlow is not installed in this Python ({sys.executable})", "pip install --editable ."
    assert_one_line(result, 1, *words, ".venv/bin/python")


@pytest.mark.parametrize("module, name", [("absl", "absl-py"), ("keras", "Keras"), ("portalocker", "portalocker")])
def test_a_python_without_another_package(module, name, tmp_path, assert_one_line):
    """With stubs in place of the packages that a program imports before."""
    others = ("tensorflow", "keras", "tensorflow_datasets", "numpy", "absl")
    for other in others:
        (tmp_path / f"{other}.py").write_text(
            "def __getattr__(name): return __import__('unittest.mock').mock.MagicMock()"
        )
    missing = f"raise ModuleNotFoundError(\"No module named '{module}'\", name='{module}')"
    (tmp_path / f"{module}.py").write_text(missing)
    code = "import training\nimport absl, keras, portalocker"
    (tmp_path / "program.py").write_text(code)
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    command = [sys.executable, "-S", tmp_path / "program.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert_one_line(result, 1, f"program.py: {name} is not installed")


def test_another_missing_module_keeps_its_traceback(capsys):
    for error in (ModuleNotFoundError("No module named 'nosuch'", name="nosuch"), ValueError("a bug")):
        training._report_missing_package(type(error), error, None)
        assert f"{type(error).__name__}: {error}" in capsys.readouterr().err


def test_every_dependency_is_known():
    config = configparser.ConfigParser(inline_comment_prefixes="#")
    config.read(REPOSITORY / "setup.cfg")
    required = re.findall(r"^[\w-]+", config["options"]["install_requires"], re.MULTILINE)
    modules = {name.replace("-", "_").removesuffix("_py").replace("pillow", "PIL") for name in required}
    assert modules == set(training.PACKAGES)


MISSING = {"usable": 0, "present": True, "hidden": None, "platform": "linux", "installed": False}


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, 'run  pip install --editable ".[gpu]"'),
        ({"hidden": "0"}, 'run  pip install --editable ".[gpu]"'),
        ({"installed": True}, "TF_CPP_MIN_LOG_LEVEL=0"),
        ({"platform": "win32"}, "WSL2"),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see(facts, words):
    line = training.missing_gpu(**MISSING | facts)
    assert "TensorFlow sees no GPU" in line and words in line and "\n" not in line


@pytest.mark.parametrize("facts", [{"usable": 1}, {"present": False}, {"hidden": ""}, {"hidden": "-1"}])
def test_no_line_without_a_reason(facts):
    assert training.missing_gpu(**MISSING | facts) is None


def test_the_line_is_printed_once(tmp_path):
    """In a process whose PATH has nvidia-smi, and whose TensorFlow sees no GPU."""
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees a GPU")
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "tensorflow.py").write_text(
        "import logging\n"
        "get_logger = logging.getLogger\n"
        "class config: list_physical_devices = staticmethod(lambda kind: [])"
    )
    environment = {"PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    command = [sys.executable, "-S", "-c", "import training"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1 and "TensorFlow sees no GPU" in result.stderr


def test_devices_that_have_started(monkeypatch):
    def refuse(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    assert training._set_up_devices() is None


def test_no_module_of_one_system_alone():
    """The programs import on Windows too."""
    programs = [
        *REPOSITORY.glob("*.py"),
        *(path for name in ("models", "tiny_imagenet", "training") for path in REPOSITORY.glob(f"{name}/**/*.py")),
    ]
    assert len(programs) > 20
    for path in programs:
        found = re.findall(
            r"^\s*(?:import|from) (fcntl|grp|pwd|resource|termios|msvcrt)\b", path.read_text(), re.MULTILINE
        )
        assert not found, path
