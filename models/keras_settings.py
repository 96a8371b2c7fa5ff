"""Keras' settings that the networks assume, whatever ~/.keras/keras.json and KERAS_BACKEND say.

`models` imports this module first, so that the settings apply wherever the networks are built.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras reads it when it is imported.

import keras  # noqa: E402

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"Keras was imported with its backend {keras.config.backend()}, and the networks need TensorFlow: "
        "import models before keras, or set the environment variable KERAS_BACKEND=tensorflow"
    )
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
