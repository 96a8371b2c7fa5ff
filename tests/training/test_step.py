import collections
import functools
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models.layers import BatchNormalization
from tiny_imagenet.errors import UserError
from training import step

MEAN = np.full((64, 64, 3), 120, np.float32)
LABELS = tf.constant([3, 1, 2, 0, 1, 1, 0, 2], tf.int64)
IMAGES = tf.constant(np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3)), tf.uint8)
WHICH = tf.constant([0, 8, 72, 80, 40, 81, 100, 161])


def small_network(dropout=0.0, auxiliary_heads=0):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((56, 56, 3))
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu", name="conv")(inputs)
    x = BatchNormalization(name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    names = ["logits", *(f"auxiliary{number}" for number in range(auxiliary_heads))]
    outputs = [keras.layers.Dense(4, dtype="float32", name=name)(x) for name in names]
    return keras.Model(inputs, outputs if auxiliary_heads else outputs[0])


def trainer(model=None, **options):
    defaults = {"learning_rate": 0.1, "cycle_steps": 100.0, "momentum": 0.9, "weight_decay": 1e-4, "clip_norm": 10.0}
    return step.Trainer(model or small_network(), MEAN, **(defaults | options))


def under(policy, function):
    keras.config.set_dtype_policy(policy)
    try:
        return function()
    finally:
        keras.config.set_dtype_policy("float32")


@functools.cache
def build(name, policy="float32"):
    return under(policy, lambda: models.build(name, training=True))


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
    model = build(name)
    kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
    assert float(step.l2_loss(model)) == pytest.approx(
        sum(float(tf.nn.l2_loss(kernel)) for kernel in kernels), rel=1e-4
    )


def reference_step(model, accumulators, rate, nesterov, momentum=0.9, weight_decay=1e-4, clip_norm=10.0):
    """A step by hand: Keras' cross-entropy, NumPy in float64 for the norm, the clipping and the momentum."""
    inputs = (tf.cast(IMAGES, tf.float32) - 120) / 64
    with tf.GradientTape() as tape:
        logits = model(inputs, training=True)
        loss = tf.reduce_mean(keras.losses.categorical_crossentropy(tf.one_hot(LABELS, 4), logits, from_logits=True))
        for weight in model.trainable_weights:
            if "kernel" in weight.path:
                loss += weight_decay / 2 * tf.reduce_sum(tf.square(weight))
    gradients = [gradient.numpy().astype(np.float64) for gradient in tape.gradient(loss, model.trainable_weights)]
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    factor = min(1.0, clip_norm / norm)
    for weight, accumulator, gradient in zip(model.trainable_weights, accumulators, gradients, strict=True):
        gradient = factor * gradient
        accumulator[...] = momentum * accumulator + gradient
        weight.assign(weight.numpy() - rate * (gradient + momentum * accumulator if nesterov else accumulator))
    return float(loss), norm


@pytest.mark.parametrize("nesterov, clip_norm", [(True, 10.0), (True, 0.05), (False, 10.0)])
def test_equals_steps_by_hand(nesterov, clip_norm):
    """Over three restarts of the learning rate, where forms of the momentum differ."""
    options = {"clip_norm": clip_norm, "cycle_steps": 3.5} | ({} if nesterov else {"nesterov": False})
    ours, reference = trainer(**options), small_network()
    accumulators = [np.zeros(weight.shape) for weight in reference.trainable_weights]
    for number in range(1, 15):
        ours.reset_means()
        ours.train_step(IMAGES, WHICH, LABELS)
        rate = 0.05 * (np.cos(np.pi * ((number - 1) % 3.5) / 3.5) + 1)
        loss, norm = reference_step(reference, accumulators, rate, nesterov, clip_norm=clip_norm)
        assert ours.means()["loss"] == pytest.approx(loss, rel=1e-4)
        assert ours.means()["global_norm"] == pytest.approx(norm, rel=1e-3)
        assert (norm > 0.05) and (norm < 10)  # So that one of the two limits clips, and the other does not.
    for weight, expected in zip(ours.model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-5)
    for accumulator, expected in zip(ours.accumulators, accumulators, strict=True):
        np.testing.assert_allclose(accumulator, expected, rtol=1e-3, atol=1e-5)


def test_a_step_without_momentum_is_gradient_descent():
    """A network may give its momentum as an int."""
    ours, reference = trainer(momentum=0), small_network()
    for number in range(1, 4):
        ours.train_step(IMAGES, WHICH, LABELS)
        rate = 0.05 * (np.cos(np.pi * (number - 1) / 100) + 1)
        reference_step(reference, [np.zeros(weight.shape) for weight in reference.trainable_weights], rate, True, 0.0)
    for weight, expected in zip(ours.model.weights, reference.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_nested_models_are_trained_alike():
    """A backbone nested in a model keeps its weight decay and its dropout seeds."""
    backbone = small_network(dropout=0.5)
    nested = keras.Sequential([keras.Input((56, 56, 3)), keras.Sequential([backbone])])
    ours, inside = trainer(nested), trainer(small_network(dropout=0.5))
    for each in (ours, inside):
        each.train_step(IMAGES, WHICH, LABELS)
    assert ours.means() == pytest.approx(inside.means(), rel=1e-6)
    for weight, expected in zip(nested.weights, inside.model.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_l2_loss_is_over_every_kind_of_kernel():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(4, 3)(inputs)
    model = keras.Model(inputs, keras.layers.DepthwiseConv2D(3)(x))
    kernels = [weight.numpy() for weight in model.weights if "kernel" in weight.path]
    assert len(kernels) == 3
    assert float(step.l2_loss(model)) == pytest.approx(sum((kernel**2).sum() for kernel in kernels) / 2)


def operations(graph):
    """Counts the operations of a graph, and of the functions that it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    return collections.Counter(node.op for node in nodes)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_step_does_not_branch(policy):
    """A branch makes a GPU wait for the host."""
    ours = under(policy, lambda: trainer(small_network()))
    counts = operations(ours.train_step.get_concrete_function(IMAGES, WHICH, LABELS).graph)
    assert counts["ResourceApplyMomentum"] == len(ours.model.trainable_weights)
    assert not {"If", "StatelessIf", "While", "StatelessWhile"} & set(counts)


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
    inputs = (tf.cast(IMAGES, tf.float32) - 120) / 64
    right = np.argmax(ours.model(inputs, training=True), axis=1) == LABELS.numpy()
    ours.train_step(IMAGES, WHICH, LABELS)
    assert ours.means()["top_1"] == pytest.approx(right.mean())


def test_auxiliary_losses_are_weighted():
    model = small_network(auxiliary_heads=2)
    for layer in model.layers[-3:]:
        layer.kernel.assign(tf.zeros_like(layer.kernel))
    ours = trainer(model, weight_decay=0.0)
    ours.train_step(IMAGES, WHICH, LABELS)
    assert ours.means()["cross_entropy"] == pytest.approx(np.log(4), rel=1e-5)
    assert ours.means()["loss"] == pytest.approx(1.6 * np.log(4), rel=1e-5)


def test_the_first_output_is_the_networks_own():
    """The cross-entropy and the accuracy are its alone."""
    model = small_network(auxiliary_heads=2)
    own = keras.Model(model.input, model.outputs[0])
    logits = own((tf.cast(IMAGES, tf.float32) - 120) / 64, training=True)
    expected = keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True).numpy().mean()
    ours = trainer(model)
    ours.train_step(IMAGES, WHICH, LABELS)
    assert ours.means()["cross_entropy"] == pytest.approx(expected, rel=1e-5)


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
    before = [variable.numpy() for variable in [*half.model.weights, *half.accumulators]]
    half.loss_scale.assign(2.0**40)
    half.train_step(IMAGES, WHICH, LABELS)
    assert int(half.skipped) == 1
    assert int(half.step) == 2
    assert float(half.loss_scale) == 2.0**39
    for variable, expected in zip([*half.model.weights, *half.accumulators], before, strict=True):
        np.testing.assert_array_equal(variable, expected)
    assert np.isfinite(half.means()["loss"])


def test_the_loss_scale_is_keras_own():
    """Doubled after a number of finite steps, counted from the last change, and halved after one that is not."""
    finite = [True] * 3 + [False] + [True] * 5 + [False, False] + [True] * 2
    ours = under("mixed_float16", lambda: trainer(small_network()))
    variable = keras.Variable([1.0], trainable=True)
    inner = keras.optimizers.SGD(1e-9)
    theirs = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15, dynamic_growth_steps=2)
    theirs.build([variable])
    with mock.patch.object(step, "SCALE_GROWTH_STEPS", 2):
        for each in finite:
            ours._update_loss_scale(tf.constant(not each))
            theirs.apply([tf.constant([1.0 if each else np.inf])])
            assert float(ours.loss_scale) == float(theirs.scale_loss(1.0))


def test_float16_skips_a_step_whose_activations_overflow():
    """Batch normalization's statistics, which Keras changes on the way forward, are as before too."""
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
    assert float(brain.loss_scale) == 1
    assert int(brain.finite_steps) == 0


def test_divergence_is_an_error():
    ours = trainer()
    ours.train_step(IMAGES, WHICH, LABELS)
    ours.model.get_layer("logits").bias.assign(np.full(4, np.nan))
    for _ in range(2):
        ours.train_step(IMAGES, WHICH, LABELS)
    with pytest.raises(UserError, match="NaN or infinite at step 2;.*learning_rate"):
        ours.means()


def test_divergence_in_float16_is_told_from_a_skipped_step():
    half = under("mixed_float16", lambda: trainer(small_network()))
    half.model.get_layer("conv").kernel.assign(np.full_like(half.model.get_layer("conv").kernel, np.nan))
    half.train_step(IMAGES, WHICH, LABELS)
    half.means()
    for _ in range(2):
        half.train_step(IMAGES, WHICH, LABELS)
    with pytest.raises(UserError, match="NaN or infinite at step 1;.*float32"):
        half.means()


def test_steps_that_are_all_skipped_are_divergence():
    half = under("mixed_float16", lambda: trainer(small_network()))
    half.loss_scale.assign(2.0**60)  # Too high for the gradients, whatever the loss.
    for _ in range(9):
        half.train_step(IMAGES, WHICH, LABELS)
    assert np.isnan(half.means()["loss"])
    half.train_step(IMAGES, WHICH, LABELS)
    with pytest.raises(UserError, match="overflow float16, 10 of 10 steps were skipped;.*float32"):
        half.means()


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_xla_computes_the_same_step(precision):
    """As float32 without XLA: Eigen's sums in bfloat16, on processors without AVX-512, are less exact than XLA's."""
    plain = trainer(small_network())
    compiled = under(precision, lambda: trainer(small_network(), jit_compile=True))
    for _ in range(3):
        for each in (plain, compiled):
            each.train_step(IMAGES, WHICH, LABELS)
    tolerance = 1e-5 if precision == "float32" else 0.02
    for name, value in plain.means().items():
        assert compiled.means()[name] == pytest.approx(value, rel=tolerance)
    for weight, expected in zip(compiled.model.weights, plain.model.weights, strict=True):
        difference = np.linalg.norm(weight.numpy() - expected.numpy())
        assert difference <= tolerance * max(np.linalg.norm(expected), 0.1)


# A part of each kind, cut out of its network: where it begins, where it ends, and how many images see its batch
# normalization in a well-conditioned state. Whole networks in float16, which a CPU emulates, take minutes.
PARTS = [
    ("baseline", "image", "pool", 2),
    ("alexnet", "conv4", "pool5", 1),
    ("alexnet", "pool3", "bn3", 2),
    ("alexnet", "pool5", "logits", 2),
    ("googlenet", "pool7", "inception8", 2),
    ("googlenet", "inception6", "auxiliary2", 2),
    ("resnet20", "stage3_block2", "stage4_block1", 1),
    ("squeezenet_complex_bypass", "fire7_add", "fire8_add", 1),
    ("squeezenet_complex_bypass", "fire9_add", "logits", 2),
    ("vgg16", "pool4", "conv5_1_relu", 4),
    ("vgg16", "pool5", "fc6_relu", 16),
]
IN_FLOAT32 = {"logits", "auxiliary2", "conv10"}


def outputs_and_gradients(part, inputs, direction):
    """What a part makes of its inputs in training; and its gradients, by inputs and weights, in some direction."""
    inputs = tf.cast(inputs, part.input.dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = tf.cast(part(inputs, training=True), tf.float32)
        along = tf.reduce_sum(outputs * direction)
    return [outputs, *(tf.cast(each, tf.float32) for each in tape.gradient(along, [inputs, *part.trainable_weights]))]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name, first, last, images", PARTS)
def test_16_bits_agree_with_float32(name, first, last, images, policy):
    """In every output and gradient; what has nothing to do with another is off by more than its own size."""
    networks = [build(name, each) for each in ("float32", policy)]
    single, half = (keras.Model(each.get_layer(first).output, each.get_layer(last).output) for each in networks)
    for layer in half.layers[1:]:
        expected = "float32" if layer.name in IN_FLOAT32 else policy.removeprefix("mixed_")
        assert layer.compute_dtype == expected and layer.variable_dtype == "float32"
    rng = np.random.default_rng(0)
    for one, other in zip(single.weights, half.weights, strict=True):
        if one.name in ("kernel", "gamma"):  # Of which some are zero, or one, at first.
            one.assign(rng.normal(size=one.shape) * np.prod(one.shape[:-1]) ** -0.5)
        other.assign(one)
    inputs = np.maximum(rng.normal(size=(images, *single.input_shape[1:])), 0)
    direction = rng.normal(size=(images, *single.output_shape[1:]))
    found, expected = (outputs_and_gradients(part, inputs, direction) for part in (half, single))
    for one, other in zip(found, expected, strict=True):
        error = tf.norm(one - other) / tf.norm(other)
        assert error < 0.15
