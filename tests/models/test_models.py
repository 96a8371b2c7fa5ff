import functools

import keras
import numpy as np
import pytest

import models


@functools.cache  # No test changes what it builds.
def build(name, **options):
    keras.utils.set_random_seed(0)
    return models.build(name, **options)


def count(model):
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_takes_crops_and_gives_float32_logits(name):
    model = build(name)
    assert model.input_shape == (None, 56, 56, 3)
    logits = model(np.zeros((2, 56, 56, 3), np.float32))
    assert logits.shape == (2, 200)
    assert logits.dtype == "float32"


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("baseline", 13_054_504),
        ("baseline_table1", 13_053_448),
        ("alexnet", 15_303_176),
        ("resnet20", 11_279_112),
    ],
)
def test_parameters(name, parameters):
    """Trainable ones: the paper's Table 4 has 15 million for alexnet and 11 for resnet20."""
    assert count(build(name)) == parameters


def test_parameters_of_googlenet():
    """The paper's 1.1 million has the auxiliary heads, and biases where ours has batch normalization."""
    ours = build("googlenet", auxiliary_heads=True)
    convolutions = [layer for layer in ours.layers if isinstance(layer, keras.layers.Conv2D)]
    assert count(ours) == 1_162_983 + sum(layer.filters for layer in convolutions)


def conv_bn(depth, filters, kernel_size):
    """A convolution's weights, and of the batch normalization after it a scale and a shift a filter."""
    return depth * filters * kernel_size**2 + 2 * filters


def test_parameters_of_plain20():
    """Seventeen convolutions and a dense layer; resnet20 has three projections more."""
    stem = conv_bn(3, 64, 7)
    stages = 4 * conv_bn(64, 64, 3)
    for width in (128, 256, 512):
        stages += conv_bn(width // 2, width, 3) + 3 * conv_bn(width, width, 3)
    dense = 512 * 200 + 200
    assert count(build("plain20")) == stem + stages + dense == 11_105_288
    projections = conv_bn(64, 128, 1) + conv_bn(128, 256, 1) + conv_bn(256, 512, 1)
    assert count(build("resnet20")) == stem + stages + dense + projections


def test_parameters_of_squeezenet():
    """By Iandola's Table 1: input depth, squeeze, expand. Only the complex bypass has parameters of its own."""
    modules = [(96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
    modules += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
    fire = sum(conv_bn(d, s, 1) + conv_bn(s, e, 1) + conv_bn(s, e, 3) for d, s, e in modules)
    expected = conv_bn(3, 96, 7) + fire + 512 * 200 + 200
    assert count(build("squeezenet")) == expected == 841_000
    assert count(build("squeezenet_simple_bypass")) == expected
    bypasses = conv_bn(96, 128, 1) + conv_bn(128, 256, 1) + conv_bn(256, 384, 1) + conv_bn(384, 512, 1)
    assert count(build("squeezenet_complex_bypass")) == expected + bypasses == 1_183_528


def test_parameters_of_vgg16():
    stages = conv_bn(3, 64, 3) + conv_bn(64, 64, 3)
    stages += conv_bn(64, 128, 3) + conv_bn(128, 128, 3)
    stages += conv_bn(128, 256, 3) + 2 * conv_bn(256, 256, 3)
    stages += conv_bn(256, 512, 3) + 5 * conv_bn(512, 512, 3)
    dense = 512 * 1024 + 2 * 1024 + 1024 * 1024 + 2 * 1024 + 1024 * 200 + 200
    assert count(build("vgg16")) == stages + dense == 16_500_872


def test_sizes_of_the_images_inside():
    """The strides and pools of the paper's tables."""

    def sizes(name, layers):
        model = build(name, training=True)
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
    assert sizes("squeezenet", ["conv1", "fire2", "fire4", "fire5", "fire8", "fire9", "conv10"]) == [
        (28, 28, 96),
        (28, 28, 128),
        (28, 28, 256),
        (14, 14, 256),
        (14, 14, 512),
        (7, 7, 512),
        (7, 7, 200),
    ]
    assert sizes("vgg16", ["pool1", "pool2", "pool3", "pool4", "pool5"]) == [
        (28, 28, 64),
        (14, 14, 128),
        (7, 7, 256),
        (3, 3, 512),
        (1, 1, 512),
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


def test_pools():
    """Class, size and strides: the paper's Tables 1 and 2.

    GoogLeNet's are those of the code that it builds on, except before its auxiliary classifiers.
    """

    def pools(name):
        layers = [layer for layer in build(name, training=True).layers if hasattr(layer, "pool_size")]
        return [(type(layer).__name__[:3], layer.pool_size[0], layer.strides[0], layer.padding) for layer in layers]

    assert pools("baseline") == [("Max", 2, 2, "valid")]
    assert pools("alexnet") == [("Max", 2, 2, "valid")] * 3
    assert pools("resnet20") == []
    googlenet = pools("googlenet")
    assert googlenet.count(("Max", 3, 1, "same")) == 9  # One in each inception module.
    assert googlenet.count(("Max", 3, 2, "same")) == 3
    assert [pool for pool in googlenet if pool[0] == "Ave"] == [("Ave", 5, 3, "valid")] * 2
    assert len(googlenet) == 14


def test_hidden_layers_of_alexnet_are_rectified():
    layers = [
        layer for layer in build("alexnet").layers if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    ]
    *hidden, logits = [layer.activation.__name__ for layer in layers]
    assert set(hidden) == {"relu"} and logits == "linear"


def test_the_baseline_of_table_1_lacks_batch_normalization_alone():
    names = [layer.name for layer in build("baseline").layers]
    expected = "image conv pool bn flatten fc fc_bn fc_relu dropout logits".split()
    assert names == expected
    table_1 = [layer.name for layer in build("baseline_table1").layers]
    assert table_1 == [name for name in expected if name not in ("bn", "fc_bn")]


def test_resnet20_has_20_convolutions_and_3_projections():
    layers = build("resnet20").layers
    convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    assert not any(layer.use_bias for layer in convolutions)
    assert sum("shortcut" in layer.name for layer in convolutions) == 3
    # Sixteen in the blocks, the stem, and the projections.
    assert len(convolutions) == 20


def test_plain20_is_resnet20_without_its_shortcuts():
    """The same layers in the same order, but for the additions and the projections."""
    plain = [layer.name for layer in build("plain20").layers]
    residual = [layer.name for layer in build("resnet20").layers]
    assert plain == [name for name in residual if not name.endswith("_add") and "shortcut" not in name]


@pytest.mark.parametrize(
    "name, added, projected",
    [
        ("squeezenet", [], []),
        ("squeezenet_simple_bypass", [3, 5, 7, 9], []),
        ("squeezenet_complex_bypass", [2, 3, 4, 5, 6, 7, 8, 9], [2, 4, 6, 8]),
    ],
)
def test_bypasses_are_around_fire_modules(name, added, projected):
    """What is added to a module's output comes from what its squeeze layer takes."""
    model = build(name)
    additions = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert [layer.name for layer in additions] == [f"fire{number}_add" for number in added]
    assert [layer.name for layer in model.layers if layer.name.endswith("_bypass")] == [
        f"fire{number}_bypass" for number in projected
    ]
    for number, addition in zip(added, additions, strict=True):
        module = model.get_layer(f"fire{number}_squeeze").input
        output, shortcut = addition.input
        assert output is model.get_layer(f"fire{number}").output
        if number in projected:
            assert shortcut is model.get_layer(f"fire{number}_bypass_bn").output
            assert model.get_layer(f"fire{number}_bypass").input is module
        else:
            assert shortcut is module


def test_unknown_bypass():
    with pytest.raises(ValueError, match="None, 'simple', 'complex'"):
        models.build("squeezenet", bypass="both")


@pytest.mark.parametrize("name", models.REGISTRY)
def test_batch_norm_settings_of_the_reference(name):
    """The code that the paper builds on has a decay of 0.9 in every batch normalization, and an epsilon of 0.001."""
    norms = [layer for layer in build(name).layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == (set() if name == "baseline_table1" else {(0.9, 1e-3)})


def test_auxiliary_heads_are_in_training_alone():
    training = build("googlenet", training=True)
    assert [output.shape for output in training.outputs] == [(None, 200)] * 3
    assert len(build("googlenet").outputs) == 1


@pytest.mark.parametrize("name", models.REGISTRY)
def test_mixed_precision_keeps_variables_and_logits_in_float32(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.build(name, training=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in model.trainable_weights} == {"float32"}
    assert {output.dtype for output in model.outputs} == {"float32"}
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    # SqueezeNet's conv10 computes the logits.
    assert {layer.compute_dtype for layer in convolutions if layer.name != "conv10"} == {"bfloat16"}


@pytest.mark.parametrize("name", ["baseline", "alexnet", "squeezenet", "squeezenet_complex_bypass", "vgg16"])
def test_starts_with_equal_logits(name):
    """Whatever the image, every class is as likely: its loss begins at ln 200."""
    inputs = np.random.default_rng(0).normal(size=(8, 56, 56, 3)).astype(np.float32)
    np.testing.assert_array_equal(build(name)(inputs), np.zeros((8, 200)))


FROM_ZERO = ("baseline", "alexnet", "squeezenet", "squeezenet_simple_bypass", "squeezenet_complex_bypass", "vgg16")


@pytest.mark.parametrize("name", models.REGISTRY)
def test_initial_kernels(name):
    """He's before batch normalization but in the baseline, Glorot's elsewhere, zero for the logits of some networks."""
    model = build(name, training=True)
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel = layer.kernel.numpy()
        if kernel.shape[-1] == 200 and name in FROM_ZERO:
            assert not kernel.any(), layer.name
            continue
        *window, fan_in, fan_out = kernel.shape
        size = np.prod(window, dtype=int)
        he = not layer.use_bias and (name, layer.name) != ("baseline", "fc")
        variance = 2 / (size * fan_in) if he else 2 / (size * (fan_in + fan_out))
        # Five times the standard deviation of the estimate. The kernels' mean is zero.
        assert np.mean(kernel**2) == pytest.approx(variance, rel=5 * np.sqrt(2 / kernel.size)), layer.name
        assert not layer.use_bias or not layer.bias.numpy().any(), layer.name


def test_unknown_name():
    with pytest.raises(ValueError, match="baseline, alexnet"):
        models.build("lenet")


def test_a_builder_must_name_its_model_as_the_registry_does(monkeypatch):
    monkeypatch.setitem(models.REGISTRY, "lenet", models.Network(models.baseline, "pool"))
    with pytest.raises(ValueError, match="'lenet' names its model 'baseline'"):
        models.build("lenet")
