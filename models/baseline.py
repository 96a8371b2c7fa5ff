"""The baseline of the paper's section 4.1.1 and Table 1."""

import keras
from keras import layers

from models.layers import BatchNormalization


def baseline(num_classes: int = 200, batch_norm: bool = True, dropout: float = 0.0) -> keras.Model:
    """One convolution and one hidden dense layer: 13,054,504 parameters.

    The paper takes the network from an assignment of CS231n, whose network is that of Table 1 with a kernel size of 7,
    which the table does not give, and with batch normalization after the convolution, which the table leaves out. Here
    it comes after the pool, as in the paper's Table 2. A second one, before the ReLU of the dense layer, keeps the loss
    from rising at each restart of the learning rate. The kernel of the logits starts at zero.

    Without batch normalization, this is baseline_table1, Table 1 with that kernel size: 13,053,448 parameters.

    Args:
      num_classes: The number of logits.
      batch_norm: Whether to add batch normalization. The model's name is "baseline", or "baseline_table1" without.
      dropout: The dropout rate before the logits.

    Returns:
      A model from (N, 56, 56, 3) floats to (N, num_classes) float32 logits.
    """
    inputs = keras.Input((56, 56, 3), name="image")
    x = layers.Conv2D(16, 7, padding="same", activation="relu", name="conv")(inputs)
    x = layers.MaxPooling2D(2, name="pool")(x)
    if batch_norm:
        x = BatchNormalization(name="bn")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(1024, use_bias=not batch_norm, name="fc")(x)
    if batch_norm:
        x = BatchNormalization(name="fc_bn")(x)
    x = layers.ReLU(name="fc_relu")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    initializer = "zeros" if batch_norm else "glorot_uniform"
    logits = layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="baseline" if batch_norm else "baseline_table1")
