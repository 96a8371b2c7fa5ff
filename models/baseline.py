"""The baseline of the paper's section 4.1.1 and Table 1."""

import keras
from keras import layers


def baseline(num_classes: int = 200) -> keras.Model:
    """One convolution and one hidden dense layer: 13,053,448 parameters.

    The paper's Table 1 gives no kernel size. It is 7 here, as in the CS231n assignment that the paper takes the network
    from.

    Returns:
      A model from (N, 56, 56, 3) floats to (N, num_classes) float32 logits.
    """
    inputs = keras.Input((56, 56, 3), name="image")
    x = layers.Conv2D(16, 7, padding="same", activation="relu", name="conv")(inputs)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(1024, activation="relu", name="fc")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="baseline")
