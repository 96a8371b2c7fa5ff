"""SqueezeNet, which the paper's section 2.5 looks at and its section 6 leaves to later work."""

import keras
from keras import layers

from models.layers import conv_bn, conv_bn_relu

# Each fire module: the filters of its squeeze layer, and of each of the two halves of its expand layer.
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

    A fire module squeezes by 1x1 convolutions and expands by 1x1 and 3x3 ones, concatenated. The sizes are Iandola's,
    but for conv1's stride and the pool after it, which are left out: so the fire modules see images as large as there,
    56x56 up to fire4, 28x28 up to fire8, 14x14 in fire9, and all downsampling is late, as their section 3.1 has it.

    Three more departures let it learn at the paper's learning rate of 0.1: a batch normalisation stands in for the bias
    of every convolution but conv10, as in `googlenet`; conv10 has no ReLU, under which a logit that is negative
    everywhere would get no gradient; and conv10's kernel starts at zero, as in `alexnet`.

    Parameters: 841,000 as it is and with the simple bypass, 1,183,528 with the complex one.

    Args:
      num_classes: The number of logits.
      bypass: Shortcuts around fire modules, of Iandola's section 6. "simple" adds their input to the output of fire3,
        fire5, fire7 and fire9, whose input is of the same depth; "complex" does, and also adds a 1x1 convolution, with
        batch normalisation, of their input to the output of fire2, fire4, fire6 and fire8.
      dropout: The rate after fire9; Iandola's is 0.5.
      input_shape: (height, width, channels) of the images, any height and width.

    Returns:
      A model from (N, *input_shape) floats to (N, num_classes) float32 logits.

    Raises:
      ValueError: if there is no such bypass.
    """
    if bypass not in BYPASSES:
        raise ValueError(f"no bypass is called {bypass!r}; there are {', '.join(map(repr, BYPASSES))}")

    def fire(x, squeeze, expand, name):
        x = conv_bn_relu(x, squeeze, 1, name=f"{name}_squeeze")
        ones = conv_bn_relu(x, expand, 1, name=f"{name}_expand1x1")
        threes = conv_bn_relu(x, expand, 3, name=f"{name}_expand3x3")
        return layers.Concatenate(name=name)([ones, threes])

    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, 96, 7, name="conv1")
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
