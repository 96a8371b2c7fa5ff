"""Training and evaluation of the networks. Import it before TensorFlow and Keras, whose environment it sets."""

import os
import platform

# By default TensorFlow uses oneDNN only with AVX-512. On other x86 CPUs it makes a training step up to twice as fast.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
if os.path.expanduser("~") == "~":  # Without a home folder, Keras would make one named ~, and Matplotlib would fail.
    os.environ.setdefault("KERAS_HOME", f"/tmp/.keras-{os.getuid()}")
    os.environ.setdefault("MPLCONFIGDIR", f"/tmp/.matplotlib-{os.getuid()}")
