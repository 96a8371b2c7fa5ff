import keras
import numpy as np
import pytest

import models


def count(model):
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_takes_crops_and_gives_float32_logits(name):
    model = models.build(name)
    assert model.input_shape == (None, 56, 56, 3)
    logits = model(np.zeros((2, 56, 56, 3), np.float32))
    assert logits.shape == (2, 200)
    assert logits.dtype == "float32"


@pytest.mark.parametrize(
    "name, parameters", [("baseline", 13_053_448), ("alexnet", 15_303_176), ("resnet20", 11_279_112)]
)
def test_parameters(name, parameters):
    """Trainable ones: the paper's Table 4 has 15 million for alexnet and 11 for resnet20."""
    assert count(models.build(name)) == parameters


def test_parameters_of_googlenet():
    """The paper's 1.1 million has the auxiliary heads, and biases where ours has batch normalisation."""
    paper = models.build("googlenet", auxiliary_heads=True, batch_norm=False)
    assert count(paper) == 1_162_983
    ours = models.build("googlenet", auxiliary_heads=True)
    convolutions = [layer for layer in ours.layers if isinstance(layer, keras.layers.Conv2D)]
    assert count(ours) == 1_162_983 + sum(layer.filters for layer in convolutions)


def test_sizes_of_the_images_inside():
    """The strides and pools of the paper's tables."""

    def sizes(name, layers):
        model = models.build(name, **models.FOR_TRAINING.get(name, {}))
        return [model.get_layer(layer).output.shape[1:] for layer in layers]

    assert sizes("baseline", ["pool"]) == [(28, 28, 16)]
    assert sizes("alexnet", ["pool2", "pool3", "pool5"]) == [(28, 28, 64), (14, 14, 128), (7, 7, 256)]
    assert sizes("resnet20", ["stem", "stage1_block2", "stage2_block2", "stage3_block2", "stage4_block2"]) == [
        (56, 56, 64),
        (56, 56, 64),
        (28, 28, 128),
        (14, 14, 256),
        (7, 7, 512),
    ]
    inceptions = [f"inception{number}" for number in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert sizes("googlenet", [*inceptions, "auxiliary1_pool", "auxiliary2_pool"]) == [
        (56, 56, 128),
        (56, 56, 240),
        (28, 28, 256),
        (28, 28, 192),
        (14, 14, 191),
        (14, 14, 272),
        (7, 7, 272),
        (7, 7, 320),
        (8, 8, 256),
        (4, 4, 191),
    ]


def test_resnet20_has_20_convolutions_and_3_projections():
    layers = models.build("resnet20").layers
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    assert not any(layer.use_bias for layer in convolutions)
    assert sum("shortcut" in layer.name for layer in convolutions) == 3
    # Sixteen in the blocks, the stem, and the projections.
    assert len(convolutions) == 20


def test_auxiliary_heads_are_in_training_alone():
    training = models.build("googlenet", **models.FOR_TRAINING["googlenet"])
    assert [output.shape for output in training.outputs] == [(None, 200)] * 3
    assert len(models.build("googlenet").outputs) == 1


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", models.REGISTRY)
def test_mixed_precision_keeps_variables_and_logits_in_float32(name, precision):
    keras.config.set_dtype_policy(precision)
    try:
        model = models.build(name, **models.FOR_TRAINING.get(name, {}))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in model.trainable_weights} == {"float32"}
    assert {output.dtype for output in model.outputs} == {"float32"}
    convolution = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    assert convolution.compute_dtype == precision.removeprefix("mixed_")


def test_alexnet_starts_without_an_opinion():
    """Whatever the image, every class is as likely: its loss begins at ln 200."""
    inputs = np.random.default_rng(0).normal(size=(8, 56, 56, 3)).astype(np.float32)
    np.testing.assert_array_equal(models.build("alexnet")(inputs), np.zeros((8, 200)))


def test_unknown_name():
    with pytest.raises(ValueError, match="baseline, alexnet"):
        models.build("lenet")
