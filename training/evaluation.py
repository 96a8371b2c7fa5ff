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

    @tf.function(input_signature=[tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), tf.uint8)])
    def probabilities(images):
        def of_crop(number):
            which = tf.fill(tf.shape(images)[:1], number)
            inputs = crops.normalise(crops.crop(images, which), which, mean_image)
            return tf.nn.softmax(tf.nest.flatten(model(inputs, training=False))[0])

        if not ten_crop:
            return of_crop(crops.CENTRE)
        # One crop after the other, so that ten take no more memory than one.
        softmax = tf.map_fn(of_crop, tf.range(10), fn_output_signature=tf.float32, parallel_iterations=1)
        return tf.reduce_mean(softmax, axis=0)

    return probabilities


def predict(classify: Classifier, split: Split, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """The probabilities of every image of a split, in its order: (n, classes) float32."""
    return np.concatenate([classify(images).numpy() for images, _ in evaluation_batches(split, batch_size)])


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The mean cross-entropy, "loss", and the accuracies "top_1" and "top_5", as fractions."""
    own = probabilities[np.arange(len(labels)), labels]
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # Of equals, the first, as argmax has it.
    right = best == labels[:, None]
    return {
        "loss": float(-np.mean(np.log(np.maximum(own, np.finfo(np.float32).tiny)))),
        "top_1": float(np.mean(right[:, 0])),
        "top_5": float(np.mean(right.any(axis=1))),
    }


def score(classify: Classifier, split: Split, batch_size: int = BATCH_SIZE) -> dict[str, float]:
    """The accuracy over a split; see `accuracy`."""
    return accuracy(predict(classify, split, batch_size), split.labels)


def result(scores: dict[str, float], name: str, split: Split, ten_crop: bool = False, snapshots: int = 1) -> dict:
    """What evaluation.json holds: the scores, of which images they are, and how they were had."""
    return {"split": name, "images": len(split), **scores, "ten_crop": ten_crop, "snapshots": snapshots}
