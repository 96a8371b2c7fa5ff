"""Training and evaluation of the networks. Import it before TensorFlow."""

import contextlib
import os
import sys
from collections.abc import Iterator

# TensorFlow leaves oneDNN off on CPUs without AVX-512, where it makes a training step up to twice as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps from standard error what libraries, those in C++ too, write there meanwhile."""
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


def _import_tensorflow() -> None:
    """Imports TensorFlow and sets its devices up without their notes on standard error.

    TF_CPP_MIN_LOG_LEVEL does not reach the notes written while its libraries load, which look like faults on a machine
    that has no GPU (github.com/tensorflow/tensorflow/issues/100442).
    """
    with quiet():
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


_import_tensorflow()
