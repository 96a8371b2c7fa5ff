"""Training and evaluation of the networks. Import it before TensorFlow, whose environment it sets."""

from __future__ import annotations  # So that an old Python gets as far as the message about missing packages.

import contextlib
import glob
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator

# By default TensorFlow uses oneDNN only on CPUs with AVX-512. On others it makes a training step up to twice as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
if os.path.expanduser("~") == "~":  # Without a home folder, TensorFlow would make a folder named ~ for .keras.
    os.environ.setdefault("KERAS_HOME", "/tmp/.keras")

# The packages in setup.cfg, by the names that a Python program imports.
PACKAGES = {
    "absl": "absl-py",
    "h5py": "h5py",
    "importlib_resources": "importlib_resources",
    "keras": "Keras",
    "matplotlib": "Matplotlib",
    "numpy": "NumPy",
    "portalocker": "portalocker",
    "tensorboard": "TensorBoard",
    "tensorflow": "TensorFlow",
    "tensorflow_datasets": "TensorFlow Datasets",
    "tqdm": "tqdm",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discards standard error inside the `with` block, including what C++ libraries write there."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def missing_gpu(*, usable: int, present: bool, hidden: str | None, platform: str, installed: bool) -> str | None:
    """Explains in one line why TensorFlow uses no GPU of a machine that has one; None if there is nothing to explain.

    Args:
      usable: How many GPUs TensorFlow sees.
      present: Whether the machine has an NVIDIA GPU or its driver.
      hidden: The environment variable CUDA_VISIBLE_DEVICES.
      platform: `sys.platform`.
      installed: Whether the CUDA libraries of TensorFlow's pip package are installed.
    """
    if usable or not present or hidden in ("", "-1"):
        return None
    if platform == "win32":
        remedy = "on Windows it uses GPUs only in WSL2 (tensorflow.org/install/pip)"
    elif installed:
        remedy = "set TF_CPP_MIN_LOG_LEVEL=0 to see why"
    else:
        remedy = 'to use it, run  pip install --editable ".[gpu]"'
    return f"TensorFlow sees no GPU, although this machine has one: {remedy}"


def _set_up_devices() -> str | None:
    """Lets the GPUs' memory grow, and returns what to say about a GPU that TensorFlow does not see."""
    import tensorflow as tf

    # After the one line about a damaged checkpoint, TensorFlow would warn of each variable in it.
    tf.get_logger().setLevel("ERROR")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # TensorFlow has started the device already.
            tf.config.experimental.set_memory_growth(gpu, True)
    return missing_gpu(
        usable=len(gpus),
        present=bool(glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        platform=sys.platform,
        installed=importlib.util.find_spec("nvidia") is not None,
    )


def _report_missing_package(kind, error, traceback) -> None:
    """Reports a package that this Python lacks in one line, and all other errors as usual; a `sys.excepthook`."""
    if not issubclass(kind, ModuleNotFoundError) or error.name not in PACKAGES:
        _usual_excepthook(kind, error, traceback)
        return
    program = os.path.basename(sys.argv[0]) or "python"
    print(
        f"{program}: {PACKAGES[error.name]} is not installed in this Python ({sys.executable}): "
        "run  pip install --editable .  in the repository, or use its .venv/bin/python",
        file=sys.stderr,
    )


_usual_excepthook, sys.excepthook = sys.excepthook, _report_missing_package

# TF_CPP_MIN_LOG_LEVEL does not silence what TensorFlow's libraries log while they load, which looks like an error on a
# machine without a GPU (github.com/tensorflow/tensorflow/issues/100442).
with contextlib.nullcontext() if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" else quiet():
    _no_gpu = _set_up_devices()
if _no_gpu:
    print(_no_gpu, file=sys.stderr)
