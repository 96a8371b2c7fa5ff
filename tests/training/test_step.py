import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training import step

MEAN = np.full((64, 64, 3), 120, np.float32)
LABELS = tf.constant([3, 1, 2, 0, 1, 1, 0, 2], tf.int64)
IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3)), tf.uint8)
WHICH = tf.constant([0, 1, 2, 3, 4, 5, 6, 9])


def small_network(dropout=0.0):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((56, 56, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu", name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(4, dtype="float32", name="logits")(x))


def trainer(model=None, **options):
    defaults = {"learning_rate": 0.1, "cycle_steps": 100.0, "momentum": 0.9, "weight_decay": 1e-4, "clip_norm": 10.0}
    return step.Trainer(model or small_network(), MEAN, **(defaults | options))


def under(policy, function):
    keras.config.set_dtype_policy(policy)
    try:
        return function()
    finally:
        keras.config.set_dtype_policy("float32")


def test_l2_loss_is_half_the_squares_of_the_kernels_alone():
    model = small_network()
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    assert len(kernels) == 2
    for weight in model.weights:
        if weight.name != "kernel":
            weight.assign(100 * tf.ones_like(weight))
    assert float(step.l2_loss(model)) == pytest.approx(sum((kernel**2).sum() for kernel in kernels) / 2)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_l2_loss_is_over_every_convolution_and_dense_layer(name):
    model = models.build(name, training=True)
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    assert float(step.l2_loss(model)) == pytest.approx(
        sum(float(tf.nn.l2_loss(kernel)) for kernel in kernels), rel=1e-4
    )


def reference_step(model, velocities, rate, momentum=0.9, weight_decay=1e-4, clip_norm=10.0):
    """A step by hand: Keras' cross-entropy, NumPy for the norm, the clipping and the momentum."""
    inputs = (tf.cast(IMAGES, tf.float32) - 120) / crops.SCALE
    with tf.GradientTape() as tape:
        logits = model(inputs, training=True)
        loss = tf.reduce_mean(keras.losses.categorical_crossentropy(tf.one_hot(LABELS, 4), logits, from_logits=True))
        for weight in model.trainable_weights:
            if "kernel" in weight.path:
                loss += weight_decay / 2 * tf.reduce_sum(tf.square(weight))
    gradients = [gradient.numpy() for gradient in tape.gradient(loss, model.trainable_weights)]
    norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients))
    factor = min(1.0, clip_norm / norm)
    for weight, velocity, gradient in zip(model.trainable_weights, velocities, gradients, strict=True):
        velocity[...] = momentum * velocity - rate * factor * gradient
        weight.assign_add(velocity)
    return float(loss), norm


@pytest.mark.parametrize("clip_norm", [10.0, 0.05])
def test_equals_a_step_by_hand(clip_norm):
    ours, reference = trainer(clip_norm=clip_norm), small_network()
    velocities = [np.zeros(weight.shape, np.float32) for weight in reference.trainable_weights]
    for number in range(1, 4):
        ours.reset_means()
        ours.train_step(IMAGES, WHICH, LABELS)
        rate = 0.05 * (np.cos(np.pi * (number - 1) / 100) + 1)
        loss, norm = reference_step(reference, velocities, rate, clip_norm=clip_norm)
        assert ours.means()["loss"] == pytest.approx(loss, rel=1e-5)
        assert ours.means()["global_norm"] == pytest.approx(norm, rel=1e-4)
        assert (norm > 0.05) and (norm < 10)  # So that one of the two limits clips, and the other does not.
    for weight, expected in zip(ours.model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_means_are_of_the_steps_since_the_reset():
    ours = trainer()
    losses = []
    for _ in range(3):
        ours.reset_means()
        ours.train_step(IMAGES, WHICH, LABELS)
        losses.append(ours.means()["loss"])
    again = trainer()
    for _ in range(3):
        again.train_step(IMAGES, WHICH, LABELS)
    assert again.means()["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_top_1_counts_the_right_ones():
    ours = trainer(learning_rate=1e-9)
    inputs = crops.normalise(IMAGES, WHICH, MEAN)
    right = np.argmax(ours.model(inputs, training=True), axis=1) == LABELS.numpy()
    ours.train_step(IMAGES, WHICH, LABELS)
    assert ours.means()["top_1"] == pytest.approx(right.mean())


def test_auxiliary_losses_are_weighted():
    keras.utils.set_random_seed(1)
    model = models.build("googlenet", auxiliary_heads=True)
    for layer in ("logits", "auxiliary1", "auxiliary2"):
        model.get_layer(layer).kernel.assign(tf.zeros_like(model.get_layer(layer).kernel))
    ours = trainer(model, weight_decay=0.0)
    ours.train_step(IMAGES, WHICH, LABELS)
    assert ours.means()["cross_entropy"] == pytest.approx(np.log(200), rel=1e-5)
    assert ours.means()["loss"] == pytest.approx(1.6 * np.log(200), rel=1e-5)


def test_dropout_is_a_function_of_seed_and_step():
    def losses(first, last):
        ours = trainer(small_network(dropout=0.5), learning_rate=1e-9)
        ours.step.assign(first)
        result = []
        for _ in range(first, last):
            ours.reset_means()
            ours.train_step(IMAGES, WHICH, LABELS)
            result.append(ours.means()["cross_entropy"])
        return result

    whole = losses(0, 4)
    assert len(set(whole)) == 4
    assert losses(2, 4) == pytest.approx(whole[2:], rel=1e-6)


def test_float16_agrees_with_float32():
    single = trainer()
    half = under("mixed_float16", lambda: trainer(small_network()))
    assert float(half.loss_scale) == 2.0**15
    for _ in range(3):
        for each in (single, half):
            each.train_step(IMAGES, WHICH, LABELS)
    assert int(half.skipped) == 0
    # Of the scaled loss the norm would be tens of thousands of times as much, and would be clipped.
    assert half.means()["global_norm"] == pytest.approx(single.means()["global_norm"], rel=0.02)
    assert half.means()["loss"] == pytest.approx(single.means()["loss"], rel=0.01)
    for weight, expected in zip(half.model.trainable_weights, single.model.trainable_weights, strict=True):
        np.testing.assert_allclose(weight, expected, atol=5e-3)


def test_float16_skips_a_step_whose_gradients_overflow():
    half = under("mixed_float16", lambda: trainer(small_network()))
    half.train_step(IMAGES, WHICH, LABELS)
    before = [weight.numpy() for weight in half.model.trainable_weights]
    velocities = [variable.numpy() for variable in half.sgd.variables]
    half.optimizer.dynamic_scale.assign(2.0**40)
    half.train_step(IMAGES, WHICH, LABELS)
    assert int(half.skipped) == 1
    assert int(half.step) == 2
    assert float(half.loss_scale) == 2.0**39
    for weight, expected in zip(half.model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    for variable, expected in zip(half.sgd.variables[2:], velocities[2:], strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert np.isfinite(half.means()["loss"])


def test_float16_skips_a_step_whose_activations_overflow():
    """Batch normalisation's statistics, which Keras changes on the way forward, are as before too."""
    half = under("mixed_float16", lambda: trainer(small_network()))
    half.train_step(IMAGES, WHICH, LABELS)
    before = [weight.numpy() for weight in half.model.weights]
    kernel = half.model.get_layer("conv").kernel.numpy()
    half.model.get_layer("conv").kernel.assign(np.full_like(kernel, 6e4))
    half.train_step(IMAGES, WHICH, LABELS)
    half.model.get_layer("conv").kernel.assign(kernel)
    assert int(half.skipped) == 1
    for weight, expected in zip(half.model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_bfloat16_has_no_loss_scale():
    brain = under("mixed_bfloat16", lambda: trainer(small_network()))
    brain.train_step(IMAGES, WHICH, LABELS)
    assert brain.optimizer is brain.sgd
    assert float(brain.loss_scale) == 1


def test_divergence_is_an_error():
    ours = trainer()
    ours.train_step(IMAGES, WHICH, LABELS)
    ours.model.get_layer("logits").bias.assign(np.full(4, np.nan))
    for _ in range(2):
        ours.train_step(IMAGES, WHICH, LABELS)
    with pytest.raises(UserError, match="NaN at step 2;.*learning_rate"):
        ours.means()


def test_divergence_in_float16_is_told_from_a_skipped_step():
    half = under("mixed_float16", lambda: trainer(small_network()))
    half.model.get_layer("conv").kernel.assign(np.full_like(half.model.get_layer("conv").kernel, np.nan))
    half.train_step(IMAGES, WHICH, LABELS)
    half.means()
    for _ in range(15):
        half.train_step(IMAGES, WHICH, LABELS)
    with pytest.raises(UserError, match="16 of 16 steps were skipped.*float32"):
        half.means()


@pytest.fixture
def eagerly():
    """Without tracing, which for these networks takes longer than a few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def without_dropout(name):
    keras.utils.set_random_seed(1)
    model = models.build(name, training=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


# But for those that are others with less: float16 is emulated, and slow.
@pytest.mark.parametrize("name", sorted({*models.REGISTRY} - {"plain20", "squeezenet", "squeezenet_simple_bypass"}))
def test_16_bits_agree_with_float32(eagerly, name):
    def losses(precision):
        ours = under(precision, lambda: trainer(without_dropout(name), learning_rate=0.01))
        compute = {"float32": "float32", "mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}[precision]
        assert {weight.dtype for weight in ours.model.trainable_weights} == {"float32"}
        convolutions = [layer for layer in ours.model.layers if isinstance(layer, keras.layers.Conv2D)]
        # SqueezeNet's conv10 makes the logits.
        assert {layer.compute_dtype for layer in convolutions if layer.name != "conv10"} == {compute}
        assert {output.dtype for output in ours.model.outputs} == {"float32"}
        if precision == "mixed_float16":
            ours.optimizer.dynamic_scale.assign(2.0**8)  # Of two images the gradients overflow at its first, 2^15.
        result = []
        for _ in range(2):
            ours.reset_means()
            ours.train_step(IMAGES[:2], WHICH[:2], LABELS[:2])
            result.append(ours.means()["loss"])
        assert int(ours.skipped) == 0
        return result

    expected = losses("float32")
    assert losses("mixed_float16") == pytest.approx(expected, rel=0.02)
    assert losses("mixed_bfloat16") == pytest.approx(expected, rel=0.05)
