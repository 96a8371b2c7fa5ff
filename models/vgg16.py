"""VGG-16, which the paper discusses in section 2.3."""

import keras
from keras import layers

from models.layers import BatchNormalization, conv_bn_relu

# Configuration D: the filters of each stage's 3x3 convolutions, and how many there are.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(num_classes: int = 200, dropout: float = 0.0) -> keras.Model:
    """VGG-16 (Simonyan and Zisserman, arXiv:1409.1556, Table 1, configuration D) for 56x56 images.

    The thirteen convolutions and five pools are the original's: 56-28-14-7-3-1. The dense layers get 512 features, not
    25,088, and have 1,024 units, not 4,096, as in the paper's own networks; 16,500,872 parameters.

    Two departures let it learn at the paper's learning rate of 0.1: batch normalization replaces the bias of every
    layer but the last, and the kernel of the logits starts at zero, as in `alexnet`.

    Args:
      num_classes: The number of logits.
      dropout: The dropout rate after each hidden dense layer. Simonyan and Zisserman have 0.5.

    Returns:
      A model from (N, 56, 56, 3) floats to (N, num_classes) float32 logits.
    """
    inputs = keras.Input((56, 56, 3), name="image")
    x = inputs
    for stage, (filters, convolutions) in enumerate(STAGES, start=1):
        for number in range(1, convolutions + 1):
            x = conv_bn_relu(x, filters, 3, name=f"conv{stage}_{number}")
        x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc6", "fc7"):
        x = layers.Dense(1024, use_bias=False, kernel_initializer="he_normal", name=name)(x)
        x = BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    logits = layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="vgg16")
