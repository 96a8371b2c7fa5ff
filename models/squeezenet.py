"""SqueezeNet, which the paper discusses in section 2.5 and leaves to future work in section 6."""

import keras
from keras import layers

from models.layers import conv_bn, conv_bn_relu

# Each fire module: the filters of its squeeze layer, and of each half of its expand layer.
FIRE = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}
POOL_AFTER = (4, 8)
BYPASSES = (None, "simple", "complex")


def squeezenet(
    num_classes: int = 200, bypass: str | None = None, dropout: float = 0.0, input_shape: tuple = (56, 56, 3)
) -> keras.Model:
    """SqueezeNet v1.0 (Iandola et al., arXiv:1602.07360, Table 1) for 56x56 images: eight fire modules.

    A fire module squeezes its input with 1x1 convolutions and expands it with 1x1 and 3x3 convolutions, concatenated.
    It has 841,000 parameters, also with the simple bypass, and 1,183,528 with the complex one.

    Departures from Iandola et al.:

    - No pooling follows conv1, as the images are small. The feature maps are 28x28 up to fire4, 14x14 up to fire8, and
      7x7 in fire9: half as wide as the original's.
    - Batch normalization replaces the bias of every convolution but conv10, conv10's kernel starts at zero, and no ReLU
      follows it, so that every logit has a gradient. Without these it does not learn at a learning rate of 0.1.

    Args:
      num_classes: The number of logits.
      bypass: The shortcuts of Iandola's section 6. "simple" adds the input of fire3, fire5, fire7 and fire9 to their
        output. "complex" also adds the input of fire2, fire4, fire6 and fire8, after a 1x1 convolution with batch
        normalization.
      dropout: The dropout rate after fire9. Iandola et al. have 0.5.
      input_shape: (height, width, channels). Height and width may be of any size, or None.

    Returns:
      A model from (N, *input_shape) floats to (N, num_classes) float32 logits.

    Raises:
      ValueError: if `bypass` is not None, "simple" or "complex".
    """
    if bypass not in BYPASSES:
        raise ValueError(f"no bypass is called {bypass!r}; there are {', '.join(map(repr, BYPASSES))}")

    def fire(x, squeeze, expand, name):
        x = conv_bn_relu(x, squeeze, 1, name=f"{name}_squeeze")
        ones = conv_bn_relu(x, expand, 1, name=f"{name}_expand1x1")
        threes = conv_bn_relu(x, expand, 3, name=f"{name}_expand3x3")
        return layers.Concatenate(name=name)([ones, threes])

    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, 96, 7, 2, name="conv1")
    for number, (squeeze, expand) in FIRE.items():
        name = f"fire{number}"
        shortcut = x
        x = fire(x, squeeze, expand, name)
        if bypass and number % 2:
            x = layers.Add(name=f"{name}_add")([x, shortcut])
        elif bypass == "complex":
            x = layers.Add(name=f"{name}_add")([x, conv_bn(shortcut, 2 * expand, 1, name=f"{name}_bypass")])
        if number in POOL_AFTER:
            x = layers.MaxPooling2D(3, 2, padding="same", name=f"pool{number}")(x)
    x = layers.Dropout(dropout, name="dropout9")(x)
    x = layers.Conv2D(num_classes, 1, kernel_initializer="zeros", dtype="float32", name="conv10")(x)
    logits = layers.GlobalAveragePooling2D(dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=f"squeezenet_{bypass}_bypass" if bypass else "squeezenet")
