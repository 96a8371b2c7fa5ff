"""TensorFlow where a program starts. Import it before anything that imports TensorFlow, which it loads quietly."""

import contextlib
import faulthandler
import glob
import importlib.util
import os
import shutil
import sys

from training import stderr

# TF_CPP_MIN_LOG_LEVEL does not silence what TensorFlow's libraries log while they load, nor the error that listing the
# devices logs on a machine without a GPU (github.com/tensorflow/tensorflow/issues/100442).
loud = "tensorflow" in sys.modules or os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or sys.stderr is None
if not loud:
    faulthandler.enable(os.dup(2))  # A crash while they load, as on a processor without AVX, is reported all the same.
with contextlib.nullcontext() if loud else stderr.quiet():
    import tensorflow as tf

    tf.config.list_physical_devices()


def set_up_devices() -> None:
    """Lets the GPUs' memory grow, and says in one line why TensorFlow uses no GPU of a machine that has one."""
    # After the one line about a damaged checkpoint, TensorFlow would warn of each variable in it.
    tf.get_logger().setLevel("ERROR")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # TensorFlow has started the device already.
            tf.config.experimental.set_memory_growth(gpu, True)
    line = missing_gpu(
        usable=len(gpus),
        present=bool(glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi")),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
        platform=sys.platform,
        installed=importlib.util.find_spec("nvidia") is not None,
        cuda=tf.sysconfig.get_build_info()["is_cuda_build"],
    )
    if line:
        print(line, file=sys.stderr)


def missing_gpu(
    *, usable: int, present: bool, hidden: str | None, platform: str, installed: bool, cuda: bool
) -> str | None:
    """Explains in one line why TensorFlow uses no GPU of a machine that has one; None if there is nothing to explain.

    Args:
      usable: How many GPUs TensorFlow sees.
      present: Whether the machine has an NVIDIA GPU or its driver.
      hidden: The environment variable CUDA_VISIBLE_DEVICES.
      platform: `sys.platform`.
      installed: Whether the CUDA libraries of TensorFlow's pip package are installed.
      cuda: Whether TensorFlow is built for CUDA.
    """
    if usable or not present or hidden in ("", "-1"):
        return None
    if platform == "win32":
        remedy = "on Windows it uses GPUs only in WSL2 (tensorflow.org/install/pip)"
    elif not cuda:  # As for Linux on Arm.
        remedy = "this TensorFlow is built without CUDA; NVIDIA's NGC containers hold one with it"
    elif installed:
        remedy = "set TF_CPP_MIN_LOG_LEVEL=0 to see why"
    else:
        remedy = 'to use it, run  pip install --editable ".[gpu]"'
    return f"TensorFlow sees no GPU, although this machine has one: {remedy}"
