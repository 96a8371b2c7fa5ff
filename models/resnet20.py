"""ResNet-20 of the paper's section 4.1.4, and the same network without its shortcuts."""

import keras
from keras import layers

from models.layers import conv_bn, conv_bn_relu


def resnet20(num_classes: int = 200, shortcuts: bool = True, input_shape: tuple = (56, 56, 3)) -> keras.Model:
    """ResNet-20 for 56x56 images: a stem and four stages of two basic blocks; 11,279,112 parameters.

    The first block of stages 2 to 4 halves the height and width, 56-28-14-7. It projects its shortcut by a strided 1x1
    convolution with batch normalization (He et al., arXiv:1512.03385, option B).

    Without shortcuts, this is plain20, the ablation that the paper's section 6 asks for: the same stem and blocks
    without additions and projections; 11,105,288 parameters.

    Args:
      num_classes: The number of logits.
      shortcuts: Whether to add each block's input to its output. The model's name is "resnet20", or "plain20" without.
      input_shape: (height, width, channels). Height and width may be of any size, or None.

    Returns:
      A model from (N, *input_shape) floats to (N, num_classes) float32 logits.
    """

    def basic_block(x, filters, strides, name):
        shortcut = x
        if shortcuts and strides != 1:
            shortcut = conv_bn(x, filters, 1, strides, name=f"{name}_shortcut")
        x = conv_bn_relu(x, filters, 3, strides, name=f"{name}_conv1")
        x = conv_bn(x, filters, 3, name=f"{name}_conv2")
        if shortcuts:
            x = layers.Add(name=f"{name}_add")([x, shortcut])
        return layers.ReLU(name=name)(x)

    inputs = keras.Input(input_shape, name="image")
    x = conv_bn_relu(inputs, 64, 7, name="stem")
    for stage, filters in enumerate((64, 128, 256, 512), start=1):
        x = basic_block(x, filters, 1 if stage == 1 else 2, f"stage{stage}_block1")
        x = basic_block(x, filters, 1, f"stage{stage}_block2")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name="resnet20" if shortcuts else "plain20")
