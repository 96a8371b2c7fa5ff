"""The reduced GoogLeNet of the paper's section 4.1.3, by the table of its reference [11]."""

import keras
from keras import layers

from models.layers import conv_bn_relu

# Each inception module: 1x1 | 1x1 reduce, 3x3 | 1x1 reduce, 5x5 | 1x1 after the pool.
INCEPTION = {
    1: (32, 48, 64, 8, 16, 16),
    2: (64, 64, 96, 16, 48, 32),
    3: (96, 48, 104, 8, 24, 32),
    4: (80, 56, 112, 12, 32, 32),
    5: (64, 64, 64, 12, 32, 32),
    6: (55, 72, 72, 16, 32, 32),
    7: (64, 80, 80, 8, 64, 64),
    8: (64, 80, 80, 16, 64, 64),
    9: (96, 96, 96, 24, 64, 64),
}
POOL_AFTER = (2, 5, 7)
AUXILIARY_AFTER = (3, 6)


def googlenet(
    num_classes: int = 200,
    auxiliary_heads: bool = False,
    dropout: float = 0.0,
    input_shape: tuple = (56, 56, 3),
) -> keras.Model:
    """GoogLeNet for 56x56 images: nine inception modules.

    With biases, as in the paper, it has 1,162,983 parameters with its auxiliary classifiers (the paper: 1.1 million).
    Here it has 1,166,158, because batch normalization replaces the bias of every convolution: without it, the network
    does not learn at the paper's learning rate of 0.1.

    Args:
      num_classes: The number of logits.
      auxiliary_heads: Whether to add the two auxiliary classifiers. Only training needs them.
      dropout: The dropout rate before the logits of each classifier. The paper's reference [11] has 0.4, and 0.3 in the
        auxiliary classifiers.
      input_shape: (height, width, channels). Height and width may be of any size, or None.

    Returns:
      A model from (N, *input_shape) floats to (N, num_classes) float32 logits. With `auxiliary_heads`, it returns a
      list of three such logits, the network's own first.
    """

    def inception(x, filters, name):
        ones, reduce3, threes, reduce5, fives, pooled = filters
        branch1 = conv_bn_relu(x, ones, 1, name=f"{name}_1x1")
        branch3 = conv_bn_relu(x, reduce3, 1, name=f"{name}_3x3_reduce")
        branch3 = conv_bn_relu(branch3, threes, 3, name=f"{name}_3x3")
        branch5 = conv_bn_relu(x, reduce5, 1, name=f"{name}_5x5_reduce")
        branch5 = conv_bn_relu(branch5, fives, 5, name=f"{name}_5x5")
        pool = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
        branch_pool = conv_bn_relu(pool, pooled, 1, name=f"{name}_pool_1x1")
        return layers.Concatenate(name=name)([branch1, branch3, branch5, branch_pool])

    def classifier(x, name):
        x = layers.GlobalAveragePooling2D(name=f"{name}_average")(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
        return layers.Dense(num_classes, dtype="float32", name=name)(x)

    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, 64, 7, name="stem")
    outputs = []
    for number, filters in INCEPTION.items():
        x = inception(x, filters, f"inception{number}")
        if auxiliary_heads and number in AUXILIARY_AFTER:
            name = f"auxiliary{len(outputs) + 1}"
            head = layers.AveragePooling2D(5, 3, name=f"{name}_pool")(x)
            head = conv_bn_relu(head, 128, 1, name=f"{name}_1x1")
            outputs.append(classifier(head, name))
        if number in POOL_AFTER:
            x = layers.MaxPooling2D(3, 2, padding="same", name=f"pool{number}")(x)
    outputs.insert(0, classifier(x, "logits"))
    return keras.Model(inputs, outputs if auxiliary_heads else outputs[0], name="googlenet")
