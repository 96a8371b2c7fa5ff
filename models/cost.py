"""What a network costs: its parameters and multiply-adds (the paper's Table 4)."""

import math

import keras
from keras import layers


def parameters(model: keras.Model) -> int:
    """The trainable parameters."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def multiply_adds(model: keras.Model) -> list[int]:
    """Of the inference of one image, in each convolution and dense layer, in the model's order.

    Biases, batch normalisation, activations and pooling are left out, as is usual.
    """
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    weighted = [layer for layer in model.layers if isinstance(layer, counted)]
    # A kernel is used once at each place of its layer's output; a dense layer's has one.
    return [math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in weighted]
