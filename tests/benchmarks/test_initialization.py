"""The networks of the benchmark of initializations."""

import keras
import numpy as np
import pytest

import models
from benchmarks import initialization


def test_the_networks_differ_in_their_kernels_and_biases():
    network = models.build("googlenet", training=True)
    normal = initialization.INITIALIZERS["normal, 0.01"]
    with_norm, with_biases = (initialization.initialized(network, normal, keep) for keep in (True, False))
    assert with_norm.count_params() == network.count_params()
    assert with_biases.count_params() == 1_162_983  # As in the paper's reference.
    for model in (with_norm, with_biases):
        kernels = [weight.numpy() for weight in model.weights if weight.name == "kernel"]
        assert all(kernel.std() == pytest.approx(0.01, rel=0.1) for kernel in kernels)
        assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
        assert [logits.shape for logits in model(np.zeros((1, 56, 56, 3), np.float32))] == [(1, 200)] * 3
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in with_biases.layers)
