import keras
import numpy as np
import pytest

from tiny_imagenet.input_pipeline import Split
from training import evaluation

MEAN = np.random.default_rng(1).uniform(100, 150, (64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    """One whose logits depend on where in the crop what is."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((56, 56, 3))
    x = keras.layers.AveragePooling2D(14)(inputs)
    return keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(x)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def softmax(network, images, mirrored, y, x):
    inputs = ((images - MEAN) / 64)[:, y : y + 56, x : x + 56]
    logits = network(inputs[:, :, ::-1] if mirrored else inputs).numpy()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_centre_crop(network, images):
    expected = softmax(network, images, False, 4, 4)
    np.testing.assert_allclose(evaluation.classifier(network, MEAN)(images), expected, rtol=1e-4)


def test_ten_crop_is_the_mean_of_the_softmax(network, images):
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    expected = np.mean([softmax(network, images, m, *corner) for m in (False, True) for corner in corners], axis=0)
    np.testing.assert_allclose(evaluation.classifier(network, MEAN, ten_crop=True)(images), expected, rtol=1e-4)


def test_predict_is_in_order_whatever_the_batch(network, images):
    split = Split(images, np.zeros(5, np.int64), np.array(list("abcde")))
    classify = evaluation.classifier(network, MEAN)
    for batch_size in (2, 5, 100):
        np.testing.assert_allclose(evaluation.predict(classify, split, batch_size), classify(images), rtol=1e-5)


def test_accuracy():
    probabilities = np.array(
        [
            [0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0],
            [0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.0],
            [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05],
            [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05],
        ],
        np.float32,
    )
    scores = evaluation.accuracy(probabilities, np.array([0, 0, 4, 5]))
    assert scores["top_1"] == 1 / 4
    assert scores["top_5"] == 3 / 4
    assert scores["cross_entropy"] == pytest.approx(-np.log([0.4, 0.2, 0.1, 0.08]).mean())


def test_a_network_that_cannot_tell_is_as_good_as_chance():
    """Ties go to the first classes, as with argmax, and do not count as right for all."""
    labels = np.arange(200)
    scores = evaluation.accuracy(np.full((200, 200), 1 / 200, np.float32), labels)
    assert (scores["top_1"], scores["top_5"]) == (1 / 200, 5 / 200)
