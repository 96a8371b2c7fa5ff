"""PyTorch's peers in the benchmarks are the same networks. Skipped where PyTorch is not installed."""

import pytest

import models
from models import cost

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["baseline", "alexnet", "googlenet", "resnet20"])
def test_a_peer_has_the_parameters_and_multiply_adds_of_the_keras_network(name):
    from benchmarks import pytorch_models

    model, peer = models.build(name, training=True), pytorch_models.REGISTRY[name]()
    counts = []

    def count(layer, inputs, output):
        counts.append(layer.weight.numel() * output[0, 0].numel())  # A kernel is used once at each place of the output.

    for layer in peer.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        peer.eval()(torch.zeros(1, 3, 56, 56))

    assert sum(weight.numel() for weight in peer.parameters()) == cost.parameters(model)
    assert sorted(counts) == sorted(cost.multiply_adds(model))
