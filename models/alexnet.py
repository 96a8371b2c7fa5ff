"""The reduced AlexNet of the paper's section 4.1.2 and Table 2."""

import keras
from keras import layers

from models.layers import BatchNormalization


def alexnet(num_classes: int = 200, dropout: float = 0.0) -> keras.Model:
    """AlexNet for 56x56 images: five convolutions of stride 1, three dense layers; 15,303,176 parameters.

    The kernel of the logits starts at zero, which keeps the first steps at the paper's learning rate of 0.1 small.

    Args:
      num_classes: The number of logits.
      dropout: The dropout rate after each hidden dense layer. The paper's Table 2 has no dropout.

    Returns:
      A model from (N, 56, 56, 3) floats to (N, num_classes) float32 logits.
    """

    def conv(x, filters, kernel_size, name):
        return layers.Conv2D(filters, kernel_size, padding="same", activation="relu", name=name)(x)

    inputs = keras.Input((56, 56, 3), name="image")
    x = conv(inputs, 64, 7, "conv1")
    x = conv(x, 64, 5, "conv2")
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = BatchNormalization(name="bn2")(x)
    x = conv(x, 128, 5, "conv3")
    x = layers.MaxPooling2D(2, name="pool3")(x)
    x = BatchNormalization(name="bn3")(x)
    x = conv(x, 256, 3, "conv4")
    x = conv(x, 256, 3, "conv5")
    x = layers.MaxPooling2D(2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(1024, activation="relu", name="fc6")(x)
    x = layers.Dropout(dropout, name="dropout6")(x)
    x = layers.Dense(1024, activation="relu", name="fc7")(x)
    x = layers.Dropout(dropout, name="dropout7")(x)
    logits = layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="alexnet")
