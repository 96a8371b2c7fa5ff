"""The fused batch normalization beside Keras' own, and what is exported in its place."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import models
from models.layers import BatchNormalization, Conv2D, conv_bn_relu, flatten_layers, to_plain_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(3, 2, (4, 5, 6, 7)).astype(np.float32)


def pair(inputs=IMAGES, **options):
    """The fused layer and Keras' own, with the same random parameters and moving averages."""
    fused, own = BatchNormalization(**options), layers.BatchNormalization(**{"momentum": 0.9} | options)
    for layer in (fused, own):
        layer.build(inputs.shape)
    for weight, other in zip(fused.weights, own.weights, strict=True):
        value = np.random.default_rng(1).uniform(0.5, 2, weight.shape)
        weight.assign(value)
        other.assign(value)
    return fused, own


def outputs_and_gradients(layer, inputs, training=True):
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    return [outputs, *tape.gradient(loss, [inputs, layer.gamma.value, layer.beta.value])]


@pytest.mark.parametrize("training", [True, False])
def test_equals_keras(training):
    fused, own = pair()
    results = zip(*(outputs_and_gradients(layer, IMAGES, training) for layer in (fused, own)), strict=True)
    for one, other in results:
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fused.moving_mean, own.moving_mean, rtol=1e-5)


def test_moving_averages_are_of_the_mean_and_the_unbiased_variance():
    fused, _ = pair()
    mean, variance = fused.moving_mean.numpy(), fused.moving_variance.numpy()
    fused(IMAGES, training=True)
    pixels = IMAGES.reshape(-1, 7)
    np.testing.assert_allclose(fused.moving_mean, 0.9 * mean + 0.1 * pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(fused.moving_variance, 0.9 * variance + 0.1 * pixels.var(axis=0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_moving_averages_stay_in_inference_and_when_frozen(frozen):
    fused, own = pair()
    fused.trainable = own.trainable = not frozen
    before = [weight.numpy() for weight in fused.weights]
    outputs = fused(IMAGES, training=frozen)
    np.testing.assert_allclose(outputs, own(IMAGES, training=frozen), rtol=1e-3, atol=1e-4)
    for weight, value in zip(fused.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_bfloat16_equals_keras_whatever_the_number_of_channels():
    for channels in (5, 16, 24):
        images = RNG.normal(3, 2, (4, 5, 6, channels)).astype(np.float32).astype(tf.bfloat16.as_numpy_dtype)
        for training in (True, False):
            fused, own = pair(images, dtype="mixed_bfloat16")
            for layer in (fused, own):
                layer.moving_mean.assign(np.full(channels, 2.5))
            both = zip(*(outputs_and_gradients(layer, images, training) for layer in (fused, own)), strict=True)
            for one, other in both:
                one, other = np.asarray(one, float), np.asarray(other, float)
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0.05, atol=0.02 * np.abs(other).max())
            np.testing.assert_allclose(fused.moving_mean, own.moving_mean, rtol=1e-4)
            assert fused.moving_variance.shape == (channels,)
        graph = tf.function(lambda layer=fused, images=images: layer(images)).get_concrete_function().graph
        (kernel,) = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
        on_cpu = not tf.config.list_logical_devices("GPU")
        assert kernel.inputs[0].shape[-1] == (-(-channels // 16) * 16 if on_cpu else channels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_go_through_the_kernel_as_they_are(dtype):
    fused, own = pair(dtype=f"mixed_{dtype}")
    graph = tf.function(lambda x: fused(x, training=True)).get_concrete_function(tf.TensorSpec(IMAGES.shape, dtype))
    kinds = {node.type: node.inputs[0].dtype.name for node in graph.graph.get_operations() if "BatchNorm" in node.type}
    assert kinds == {"FusedBatchNormV3": dtype}
    inputs = IMAGES.astype(tf.as_dtype(dtype).as_numpy_dtype)
    outputs = fused(inputs, training=True)
    assert outputs.dtype == dtype
    np.testing.assert_allclose(
        outputs.numpy().astype(float), own(inputs, training=True).numpy().astype(float), atol=0.05
    )


@pytest.mark.parametrize(
    "inputs, options",
    [
        (IMAGES[:, 0, 0], {}),
        (IMAGES[:, 0], {}),
        (IMAGES, {"axis": 1}),
        (IMAGES, {"scale": False}),
        (IMAGES, {"center": False}),
    ],
    ids=["dense", "sequence", "axis", "no scale", "no offset"],
)
def test_what_the_kernel_cannot_do_is_keras(inputs, options):
    fused, own = pair(inputs, **options)
    np.testing.assert_array_equal(fused(inputs, training=True), own(inputs, training=True))
    for weight, other in zip(fused.weights, own.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_masks_are_keras():
    fused, own = pair()
    mask = RNG.uniform(size=IMAGES.shape[:3]) < 0.5
    outputs, expected = (layer(IMAGES, training=True, mask=mask) for layer in (fused, own))
    np.testing.assert_array_equal(outputs, expected)
    assert not np.allclose(outputs, fused(IMAGES, training=True))


@pytest.mark.parametrize(
    "shape, options, side_by_side",
    [
        ((8, 6, 7, 16), {}, True),
        ((4, 7, 5, 3), {"kernel_size": 5, "use_bias": False}, True),
        ((4, 7, 7, 16), {"kernel_size": 1}, True),
        ((6, 7, 7, 16), {}, False),
        ((8, 8, 8, 16), {}, False),
        ((8, 7, 7, 16), {"strides": 2}, False),
        ((8, 7, 7, 16), {"padding": "valid"}, False),
        ((8, 7, 7, 16), {"dtype": "float32"}, False),
    ],
)
def test_convolution_and_its_gradients_are_as_exact_as_keras_own(shape, options, side_by_side):
    keras.utils.set_random_seed(0)
    options = {"filters": 32, "kernel_size": 3, "padding": "same", "dtype": "mixed_bfloat16"} | options
    ours, own = Conv2D(**options), layers.Conv2D(**options)
    single = layers.Conv2D(**options | {"dtype": "float32"})
    inputs = tf.cast(np.random.default_rng(0).normal(size=shape), ours.compute_dtype)
    for layer in (ours, own, single):
        layer.build(shape)
        layer.set_weights(ours.get_weights())

    def outputs_and_gradients(layer):
        images = tf.cast(inputs, layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
        gradients = tape.gradient(loss, [images, layer.kernel.value])
        return [tf.cast(each, tf.float32) for each in (outputs, *gradients)]

    # Eigen adds up in bfloat16: in another order of the images, the error is up to 1.2 times as large, or as small.
    for found, keras_own, expected in zip(*map(outputs_and_gradients, (ours, own, single)), strict=True):
        assert tf.norm(found - expected) <= 1.5 * tf.norm(keras_own - expected) + 1e-6 * tf.norm(expected)
    graph = tf.function(lambda: outputs_and_gradients(ours)).get_concrete_function().graph
    (gradient,) = [op for op in graph.get_operations() if op.type == "Conv2DBackpropFilter"]
    on_cpu = not tf.config.list_logical_devices("GPU")
    assert (gradient.inputs[0].shape[0] == shape[0] // 4) == (side_by_side and on_cpu)


def test_conv_bn_relu():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv_bn_relu(inputs, 5, 3, 2, name="stem"))
    assert [layer.name for layer in model.layers[1:]] == ["stem", "stem_bn", "stem_relu"]
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    conv, norm = model.layers[1], model.layers[2]
    norm.moving_mean.assign(RNG.normal(size=5))
    features = conv(images).numpy()
    expected = np.maximum((features - norm.moving_mean) / np.sqrt(1 + 1e-3), 0)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-6)


def test_plain_keras_of_operations_and_nested_models():
    inputs = keras.Input((8, 8, 3))
    inner = keras.Model(inputs, conv_bn_relu(inputs, 3, 3, name="inner"))
    inputs = keras.Input((8, 8, 3))
    middle = keras.Model(inputs, inner(inputs))
    inputs = keras.Input((8, 8, 3))
    x = inputs + middle(inputs)
    model = keras.Model(inputs, keras.ops.tanh(x[:, 1:, :, :2]))
    plain = to_plain_keras(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in flatten_layers(plain))
    images = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(plain(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "plain20"])
def test_plain_keras_is_the_same_network(name):
    model = models.build(name)
    for weight in model.weights:
        weight.assign(np.random.default_rng(2).uniform(0.01, 0.03, weight.shape))
    plain = to_plain_keras(model)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    images = RNG.normal(size=(2, 56, 56, 3)).astype(np.float32)
    np.testing.assert_allclose(plain(images), model(images), rtol=1e-3, atol=1e-5)
