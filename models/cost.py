"""The cost of a network: parameters and multiply-adds (the paper's Table 4)."""

import math

import keras
from keras import layers

from models.layers import flatten_layers


def parameters(model: keras.Model) -> int:
    """Counts the trainable parameters."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def multiply_adds(model: keras.Model) -> list[int]:
    """Counts the multiply-adds of each convolution and dense layer for one image, in the order of the model's layers.

    Biases, batch normalization, activations and pooling do not count, as is usual.
    """
    weighted = [layer for layer in flatten_layers(model) if isinstance(layer, layers.Conv2D | layers.Dense)]
    # A kernel is used once at each position of its layer's output. A dense layer's output has one position.
    return [math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in weighted]
