"""The networks by name: what `--model` reads. The first four are the paper's own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras

from models.alexnet import alexnet
from models.baseline import baseline
from models.googlenet import googlenet
from models.resnet20 import resnet20
from models.squeezenet import squeezenet
from models.vgg16 import vgg16


class Network(NamedTuple):
    """A network and how it is trained.

    Attributes:
      builder: Builds it, from normalised images, (N, 56, 56, 3) floats, to logits, (N, num_classes) float32. It gives
        the model the name that the network has in `REGISTRY`.
      momentum: Of SGD. The paper gives 0.9, for ResNet-20 alone (section 4.1.4).
      training: Arguments of `builder` for what the network has in training alone. Its first output is still its logits.
    """

    builder: Callable[..., keras.Model]
    momentum: float = 0.9
    training: dict = {}


REGISTRY = {
    "baseline": Network(baseline, momentum=0.0),  # With 0.9 it does not learn at the paper's learning rate.
    "alexnet": Network(alexnet),
    "googlenet": Network(googlenet, training={"auxiliary_heads": True}),
    "resnet20": Network(resnet20),
    "plain20": Network(functools.partial(resnet20, shortcuts=False)),
    "squeezenet": Network(squeezenet),
    "squeezenet_simple_bypass": Network(functools.partial(squeezenet, bypass="simple")),
    "squeezenet_complex_bypass": Network(functools.partial(squeezenet, bypass="complex")),
    "vgg16": Network(vgg16, momentum=0.0),
}


def build(name: str, *, training: bool = False, **options) -> keras.Model:
    """Builds a network with new weights, under Keras' global dtype policy.

    Args:
      name: A key of `REGISTRY`.
      training: Whether to add what the network has in training alone, such as GoogLeNet's auxiliary classifiers.
      **options: Arguments of the network's own builder.

    Returns:
      A functional model from normalised images, (N, 56, 56, 3) floats, to logits, (N, 200) float32. With `training`, it
      may return a list of logits, the network's own first.

    Raises:
      ValueError: if no network has that name, or if its builder names the model otherwise.
    """
    if name not in REGISTRY:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(REGISTRY)}")
    network = REGISTRY[name]
    model = network.builder(**(network.training if training else {}) | options)
    if model.name != name:
        raise ValueError(f"the builder of {name!r} names its model {model.name!r}: both must be the same")
    return model
