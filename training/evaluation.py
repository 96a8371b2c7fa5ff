"""Top-1 and top-5 accuracy, by the centre crop or by the mean of the softmax over the ten crops."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tiny_imagenet import crops
from tiny_imagenet.input_pipeline import Split, evaluation_batches

BATCH_SIZE = 250

Classifier = Callable[[tf.Tensor], tf.Tensor]
"""From images, (N, 64, 64, 3) uint8, to probabilities, (N, classes) float32."""


def classifier(model: keras.Model, mean_image: np.ndarray, ten_crop: bool = False) -> Classifier:
    """The whole way from raw images to probabilities.

    Args:
      model: From normalised crops, (N, 56, 56, 3) floats, to logits; of several outputs the first counts.
      mean_image: (64, 64, 3) float32, the training set's.
      ten_crop: Whether to average the softmax over the ten crops, rather than to take the centre crop's.
    """
    views = np.arange(10, dtype=np.int32) if ten_crop else np.array([crops.CENTRE], np.int32)

    @tf.function(input_signature=[tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), tf.uint8)])
    def probabilities(images):
        number = tf.shape(images)[0]
        which = tf.tile(views, [number])
        taken = crops.crop(tf.repeat(images, len(views), axis=0), which)
        logits = tf.nest.flatten(model(crops.normalise(taken, which, mean_image), training=False))[0]
        softmax = tf.nn.softmax(tf.cast(logits, tf.float32))
        return tf.reduce_mean(tf.reshape(softmax, (number, len(views), softmax.shape[-1])), axis=1)

    return probabilities


def predict(classify: Classifier, split: Split, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """The probabilities of every image of a split, in its order: (n, classes) float32."""
    return np.concatenate([classify(images).numpy() for images, _ in evaluation_batches(split, batch_size)])


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The mean cross-entropy, "loss", and the accuracies "top_1" and "top_5", as fractions."""
    own = probabilities[np.arange(len(labels)), labels]
    return {
        "loss": float(-np.mean(np.log(np.maximum(own, np.finfo(np.float32).tiny)))),
        "top_1": float(np.mean(tf.math.in_top_k(labels, probabilities, 1))),
        "top_5": float(np.mean(tf.math.in_top_k(labels, probabilities, 5))),
    }


def score(classify: Classifier, split: Split, batch_size: int = BATCH_SIZE) -> dict[str, float]:
    """The accuracy over a split; see `accuracy`."""
    return accuracy(predict(classify, split, batch_size), split.labels)


def result(scores: dict[str, float], name: str, split: Split, ten_crop: bool = False) -> dict:
    """What evaluation.json holds: the scores, of which images they are, and how they were had."""
    return {"split": name, "images": len(split), **scores, "ten_crop": ten_crop, "snapshots": 1}
