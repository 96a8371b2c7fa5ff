"""The networks by name: what `--model` reads. The first four are the paper's own."""

import functools

import keras

from models.alexnet import alexnet
from models.baseline import baseline
from models.googlenet import googlenet
from models.resnet20 import resnet20
from models.squeezenet import squeezenet
from models.vgg16 import vgg16

REGISTRY = {
    "baseline": baseline,
    "alexnet": alexnet,
    "googlenet": googlenet,
    "resnet20": resnet20,
    "plain20": functools.partial(resnet20, shortcuts=False),
    "squeezenet": squeezenet,
    "squeezenet_simple_bypass": functools.partial(squeezenet, bypass="simple"),
    "squeezenet_complex_bypass": functools.partial(squeezenet, bypass="complex"),
    "vgg16": vgg16,
}

# What a network has in training alone; its first output is still its own logits.
FOR_TRAINING = {"googlenet": {"auxiliary_heads": True}}


def build(name: str, **options) -> keras.Model:
    """Builds one network, with fresh weights, under Keras' global dtype policy.

    Args:
      name: A key of `REGISTRY`.
      **options: Arguments of that network's own builder, for what differs from the paper.

    Returns:
      A functional model from normalised images, (N, 56, 56, 3) floats, to logits, (N, 200) float32.

    Raises:
      ValueError: if no network has that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[name](**options)
