"""The networks by name: what `--model` reads. The first four are the paper's own."""

from models import keras_settings  # noqa: F401, I001  # It sets what the networks assume of Keras.

import functools
import inspect
import os
from collections.abc import Callable
from typing import NamedTuple

import keras

from models import weights as weight_files
from models.alexnet import alexnet
from models.baseline import baseline
from models.googlenet import googlenet
from models.resnet20 import resnet20
from models.squeezenet import squeezenet
from models.vgg16 import vgg16
from models.weights import decode_predictions, preprocess_input

__all__ = ["REGISTRY", "Network", "build", "decode_predictions", "preprocess_input"]

INPUT_SHAPE = (56, 56, 3)
POOLINGS = {None: None, "avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}


class Network(NamedTuple):
    """A network and how it is trained.

    Attributes:
      builder: Builds it, from normalized images, (N, 56, 56, 3) floats, to logits, (N, num_classes) float32. It gives
        the model the name that the network has in `REGISTRY`. If images of other sizes fit the network, the builder has
        an argument `input_shape`.
      features: The name of the layer whose output is the last feature map, (N, H, W, C).
      momentum: SGD momentum. The paper gives 0.9, for ResNet-20 alone (section 4.1.4).
      training: Builder arguments used only for training. The first output must still be the network's logits.
    """

    builder: Callable[..., keras.Model]
    features: str
    momentum: float = 0.9
    training: dict = {}

    def arguments(self) -> set[str]:
        """Returns the names of the builder's arguments."""
        return set(inspect.signature(self.builder).parameters)


REGISTRY = {
    "baseline": Network(baseline, "bn"),
    "alexnet": Network(alexnet, "pool5"),
    "googlenet": Network(googlenet, "inception9", training={"auxiliary_heads": True}),
    "resnet20": Network(resnet20, "stage4_block2"),
    # With momentum, it does not learn at the paper's learning rate.
    "baseline_table1": Network(functools.partial(baseline, batch_norm=False), "pool", momentum=0.0),
    "plain20": Network(functools.partial(resnet20, shortcuts=False), "stage4_block2"),
    "squeezenet": Network(squeezenet, "fire9"),
    "squeezenet_simple_bypass": Network(functools.partial(squeezenet, bypass="simple"), "fire9_add"),
    "squeezenet_complex_bypass": Network(functools.partial(squeezenet, bypass="complex"), "fire9_add"),
    "vgg16": Network(vgg16, "pool5"),
}


def build(
    name: str,
    *,
    num_classes: int = 200,
    weights: str | os.PathLike | None = None,
    include_top: bool = True,
    pooling: str | None = None,
    training: bool = False,
    input_shape: tuple[int | None, int | None, int] = INPUT_SHAPE,
    **options,
) -> keras.Model:
    """Builds a network, under Keras' global dtype policy.

    `weights`, `include_top`, `pooling` and `input_shape` are as in `keras.applications`.

    Args:
      name: A key of `REGISTRY`.
      num_classes: The number of logits.
      weights: None for new weights, "tiny_imagenet" for trained ones that come with the repository, or the path of a
        `.weights.h5` file of this network.
      include_top: Whether to return logits. If not, the model returns its last feature map.
      pooling: None to return that feature map, "avg" or "max" to pool it over height and width.
      training: Whether to add what only training needs, such as GoogLeNet's auxiliary classifiers.
      input_shape: (height, width, channels). Networks with global pooling take any height and width, or None.
      **options: Other arguments of the network's own builder.

    Returns:
      A functional model from normalized images, (N, *input_shape) floats (see `preprocess_input`), to logits,
      (N, num_classes) float32. With `training`, it may return a list of logits, the network's own first. Without
      `include_top`, it returns features: (N, H, W, C), or (N, C) with `pooling`.

    Raises:
      ValueError: if no network has that name, if the arguments do not fit, or if the weights do not exist, are damaged
        or are of another network.
      TypeError: if the network's builder has no such option.
    """
    if name not in REGISTRY:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(REGISTRY)}")
    if pooling not in POOLINGS or (pooling and include_top):
        raise ValueError(f"pooling must be None, or 'avg' or 'max' with include_top=False, not {pooling!r}")
    network = REGISTRY[name]
    if weights == weight_files.SHIPPED and num_classes != (trained := weight_files.NUM_CLASSES):
        if include_top:
            raise ValueError(f"{weights=} needs num_classes={trained} or include_top=False, not {num_classes=}")
        num_classes = trained
    if tuple(input_shape) != INPUT_SHAPE:
        if "input_shape" not in network.arguments():
            raise ValueError(f"{name} ends in dense layers, so its input_shape is {INPUT_SHAPE}, not {input_shape}")
        options["input_shape"] = tuple(input_shape)
    extras = network.training if training and include_top else {}
    model = network.builder(num_classes=num_classes, **extras | options)
    if model.name != name:
        raise ValueError(f"the builder of {name!r} names its model {model.name!r}: both must be the same")
    if weights is not None:
        weight_files.load(keras.Model(model.input, model.outputs[0], name=name), weights)
    if include_top:
        return model
    features = model.get_layer(network.features).output
    if pooling:
        features = POOLINGS[pooling](name=f"{pooling}_pool")(features)
    return keras.Model(model.input, features, name=name)
