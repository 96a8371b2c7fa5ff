"""The networks and their training step beside PyTorch's, on the same weights. Skipped without PyTorch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import cost
from models.googlenet import INCEPTION
from training.step import Trainer

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # Threads that wait spin: beside other processes, several take ten times as long as one.

BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_1x1")
BLOCKS = [f"stage{stage}_block{block}" for stage in (1, 2, 3, 4) for block in (1, 2)]
# The layers with weights in the order of PyTorch's modules; batch normalization NAME_bn follows NAME.
LAYERS = {
    "baseline": "conv bn fc logits".split(),
    "alexnet": "conv1 conv2 bn2 conv3 bn3 conv4 conv5 fc6 fc7 logits".split(),
    "googlenet": [
        "stem",
        *(f"inception{number}_{branch}" for number in INCEPTION for branch in BRANCHES),
        *"auxiliary1_1x1 auxiliary1 auxiliary2_1x1 auxiliary2 logits".split(),
    ],
    "resnet20": ["stem", *(f"{block}_{part}" for block in BLOCKS for part in ("conv1", "conv2", "shortcut")), "logits"],
}
TENSORS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
TENSORS |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
FLATTENED = {"fc": 28, "fc6": 7}  # The height and width of what dense layers take flattened.
IMAGES = 4
COLOUR = (110, 120, 130)  # Of the mean image.


def pairs(model, peer):
    """Each layer's name, its variables, and PyTorch's tensors of the same weights."""
    kinds = torch.nn.Conv2d | torch.nn.Linear | torch.nn.BatchNorm2d | torch.nn.BatchNorm1d
    modules = [module for module in peer.modules() if isinstance(module, kinds)]
    present = {layer.name for layer in model.layers}
    names = [each for name in LAYERS[model.name] for each in (name, f"{name}_bn") if each in present]
    for name, module in zip(names, modules, strict=True):
        for variable in model.get_layer(name).weights:
            yield name, variable, getattr(module, TENSORS[variable.name])


def in_pytorchs_layout(name, variable):
    """A variable's value with the output channels first. PyTorch flattens feature maps with the channels first."""
    value = variable.numpy()
    if value.ndim == 2:
        side = FLATTENED.get(name, 1)
        value = value.reshape(side, side, -1, value.shape[1]).transpose(3, 2, 0, 1)
        return value.reshape(len(value), -1)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def pad_as_tensorflow(peer):
    """Pads the strided 3x3 convolutions below and on the right alone, where PyTorch pads all four sides."""
    for module in peer.modules():
        if isinstance(module, torch.nn.Conv2d) and module.stride == (2, 2) and module.padding == (1, 1):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, inputs: torch.nn.functional.pad(inputs[0], (0, 1, 0, 1)))


def randomize(model, rng):
    """Gives every weight a part in the outputs: some kernels start at zero, and batch normalization as the identity."""
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name != "kernel" or not np.any(variable):
            variable.assign(rng.normal(0, 0.1, variable.shape))


def infer(peer, images):
    """PyTorch's outputs in a list, and the multiply-adds of its convolutions and dense layers for one image."""
    multiply_adds = []

    def count(layer, inputs, output):  # A kernel is used once at each place of the output.
        multiply_adds.append(layer.weight.numel() * output[0, 0].numel())

    layers = [layer for layer in peer.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        outputs = peer(images)
    for hook in hooks:
        hook.remove()
    return outputs if isinstance(outputs, list) else [outputs], multiply_adds


@pytest.fixture
def eagerly():
    """To trace GoogLeNet's step takes longer than these tests."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_pytorch(name, eagerly):
    """The logits, and what each of two steps adds to each weight: its gradient, and in the second step its momentum."""
    from benchmarks import pytorch_models

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = models.build(name, training=True)
    randomize(model, rng)
    settings = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "clip_norm": 1e4}
    trainer = Trainer(model, np.full((64, 64, 3), COLOUR, np.float32), cycle_steps=3, **settings)
    mean_crops = np.full((10, 56, 56, 3), COLOUR, np.float32)
    settings |= {"auxiliary_weight": 0.3, "scale": 64.0, "dtype": torch.float32}
    peer = pytorch_models.Step(name, mean_crops, torch.contiguous_format, **settings)
    assert peer.num_parameters() == cost.parameters(model)
    pad_as_tensorflow(peer.model)

    def copy_weights():
        for layer, variable, tensor in pairs(model, peer.model):
            tensor.data.copy_(torch.from_numpy(in_pytorchs_layout(layer, variable).copy()))

    copy_weights()
    images = rng.integers(0, 256, (IMAGES, 56, 56, 3), np.uint8)
    inputs = (images - np.float32(COLOUR)) / 64
    expected, multiply_adds = infer(peer.model.eval(), torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy()))
    assert sorted(multiply_adds) == sorted(cost.multiply_adds(model))
    for logits, other in zip(tf.nest.flatten(model(inputs)), expected, strict=True):
        assert np.linalg.norm(logits - other.numpy()) < 1e-4 * np.linalg.norm(other)

    peer.model.train()
    for rate in (0.1, 0.075):
        copy_weights()  # Or the second step would amplify the rounding of the first.
        before = [tensor.detach().numpy().copy() for *_, tensor in pairs(model, peer.model)]
        batch = images, np.arange(IMAGES), rng.integers(0, 200, IMAGES)
        trainer.train_step(*batch)
        peer.optimizer.param_groups[0]["lr"] = rate
        peer(*map(torch.from_numpy, batch))
        for (layer, variable, tensor), start in zip(pairs(model, peer.model), before, strict=True):
            found, expected = in_pytorchs_layout(layer, variable) - start, tensor.detach().numpy() - start
            if (layer, variable.name) == ("fc_bn", "moving_variance"):
                # That of features averages the biased variance: see models/layers.py.
                found = (found + 0.1 * start) * IMAGES / (IMAGES - 1) - 0.1 * start
            # An activation that rounding takes across a ReLU's corner changes a gradient by up to 2%.
            allowed = 0.05 * np.linalg.norm(expected) + 1e-6 * np.sqrt(found.size)
            assert np.linalg.norm(found - expected) < allowed, (layer, variable.name)
