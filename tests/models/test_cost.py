"""Parameters and multiply-adds, counted by hand."""

import keras
import pytest
from keras import layers

import models
from models import cost


@pytest.mark.parametrize(
    "layer, expected",
    [
        (layers.Conv2D(8, 3, strides=2, padding="same"), 5 * 5 * 8 * 3 * 3 * 6),
        (layers.Conv2D(8, 3), 8 * 8 * 8 * 3 * 3 * 6),
        (layers.Conv2D(8, 3, groups=2, padding="same"), 10 * 10 * 8 * 3 * 3 * 3),
    ],
    ids=["strided", "valid", "grouped"],
)
def test_multiply_adds_of_a_layer(layer, expected):
    inputs = keras.Input((10, 10, 6))
    x = layers.GlobalAveragePooling2D()(layer(inputs))
    model = keras.Model(inputs, layers.Dense(7)(x))
    assert cost.multiply_adds(model) == [expected, x.shape[-1] * 7]


def test_nested_models_count():
    nested = keras.Sequential([keras.Input((10, 10, 6)), keras.Sequential([layers.Conv2D(8, 3)])])
    assert cost.multiply_adds(nested) == [8 * 8 * 8 * 3 * 3 * 6]


def test_cost_of_the_baseline():
    model = models.build("baseline")
    assert cost.parameters(model) == 13_054_504
    assert cost.multiply_adds(model) == [56 * 56 * 7 * 7 * 3 * 16, 28 * 28 * 16 * 1024, 1024 * 200]
