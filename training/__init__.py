"""Training and evaluation of the networks. Import it before TensorFlow."""

import os
import sys

# TensorFlow leaves oneDNN off on CPUs without AVX-512, where it makes a training step up to twice as fast.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"


def _import_tensorflow() -> None:
    """Imports TensorFlow and sets its devices up without their notes on standard error.

    TF_CPP_MIN_LOG_LEVEL does not reach the notes written while its libraries load, which look like faults on a machine
    that has no GPU (github.com/tensorflow/tensorflow/issues/100442).
    """
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


_import_tensorflow()
