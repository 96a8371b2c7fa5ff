"""A program loads TensorFlow quietly, unless that fails; and says why TensorFlow uses no GPU."""

import pathlib
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from training import startup

REPOSITORY = pathlib.Path(startup.__file__).resolve().parents[1]
# In place of TensorFlow, whose libraries write to the file descriptor.
STUB = """
import logging, os
os.write(2, b"a library's message\\n")
{}
get_logger = logging.getLogger
class config: list_physical_devices = staticmethod(lambda kind=None: [])
class sysconfig: get_build_info = staticmethod(lambda: {{"is_cuda_build": True}})
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program with a stub in place of TensorFlow, which ends with a statement of its own."""

    def run(statement="", **environment):
        (tmp_path / "tensorflow.py").write_text(STUB.format(statement))
        environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "CUDA_VISIBLE_DEVICES": "-1"} | environment
        command = [sys.executable, "-S", "-c", "from training import startup\nstartup.set_up_devices()\nprint('end')"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    return run


def test_loading_is_quiet(start):
    result = start()
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_loading_is_not_quiet_if_all_messages_are_asked_for(start):
    result = start(TF_CPP_MIN_LOG_LEVEL="0")
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "a library's message\n")


@pytest.mark.parametrize("name", ["SIGABRT", "SIGILL"])
def test_a_process_that_crashes_while_it_loads(start, name):
    """As on a processor without AVX."""
    result = start(f"import signal; os.kill(os.getpid(), signal.{name})")
    assert (result.returncode, result.stdout) == (-getattr(signal, name), "")
    assert result.stderr.startswith("Fatal Python error") and "tensorflow.py" in result.stderr


def test_an_error_while_it_loads(start):
    result = start("raise ImportError('libcudart.so: cannot open shared object file')")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("\nImportError: libcudart.so: cannot open shared object file\n")


MISSING = {"usable": 0, "present": True, "hidden": None, "platform": "linux", "installed": False, "cuda": True}


@pytest.mark.parametrize(
    "facts, words",
    [
        ({}, 'run  pip install --editable ".[gpu]"'),
        ({"hidden": "0"}, 'run  pip install --editable ".[gpu]"'),
        ({"installed": True}, "TF_CPP_MIN_LOG_LEVEL=0"),
        ({"platform": "win32"}, "WSL2"),
        ({"installed": True, "cuda": False}, "without CUDA"),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see(facts, words):
    line = startup.missing_gpu(**MISSING | facts)
    assert "TensorFlow sees no GPU" in line and words in line and "\n" not in line


@pytest.mark.parametrize("facts", [{"usable": 1}, {"present": False}, {"hidden": ""}, {"hidden": "-1"}])
def test_no_line_without_a_reason(facts):
    assert startup.missing_gpu(**MISSING | facts) is None


def test_the_line_is_printed_once(start, tmp_path):
    """In a process whose PATH has nvidia-smi, and whose TensorFlow sees no GPU."""
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    result = start(PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="0")
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1 and "TensorFlow sees no GPU" in result.stderr


def test_devices_that_have_started(monkeypatch):
    def refuse(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    startup.set_up_devices()
