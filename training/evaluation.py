"""Top-1 and top-5 accuracy, by the centre crop or by the mean softmax of the ten crops."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tqdm

from tiny_imagenet import crops
from tiny_imagenet.input_pipeline import Split, evaluation_batches

BATCH_SIZE = 250
TRAINING_SAMPLE, SAMPLE_SEED = 10_000, 0
"""The training images that are scored at the end of a run: how many, and the seed that draws them."""

Classifier = Callable[[tf.Tensor], tf.Tensor]
"""From images, (N, 64, 64, 3) uint8, to probabilities, (N, classes) float32."""


def classifier(model: keras.Model, mean_image: np.ndarray, ten_crop: bool = False) -> Classifier:
    """Returns a function from raw images to probabilities.

    Args:
      model: From normalized crops, (N, 56, 56, 3) floats, to logits. If it has several outputs, the first is used.
      mean_image: (64, 64, 3) float32, the mean of the training images.
      ten_crop: Whether to average the softmax over the ten crops. By default, only the centre crop is used.
    """

    mean_crops = crops.ten_crops(mean_image)

    def softmax(images, mean_crop):
        logits, *_ = tf.nest.flatten(model(crops.normalize(images, mean_crop), training=False))
        return tf.nn.softmax(logits)

    @tf.function(input_signature=[tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), tf.uint8)])
    def probabilities(images):
        if not ten_crop:
            return softmax(crops.slice_crop(images, crops.CENTRE), crops.slice_crop(mean_image, crops.CENTRE))
        # One crop after the other, so that the network takes no more memory than for one. As float32, because a GPU has
        # no lists of uint8 tensors.
        each = tf.map_fn(
            lambda crop_and_mean: softmax(*crop_and_mean),
            (crops.ten_crops(tf.cast(images, tf.float32)), mean_crops),
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )
        return tf.reduce_mean(each, axis=0)

    return probabilities


def predict(classify: Classifier, split: Split, batch_size: int = BATCH_SIZE, show_bar: bool = True) -> np.ndarray:
    """Returns the probabilities of every image of a split, in its order: (n, classes) float32.

    On a terminal, it shows a progress bar, unless `show_bar` is False.
    """
    batches = evaluation_batches(split, batch_size)
    disable = None if show_bar else True  # None: disabled except on a terminal.
    bar = tqdm.tqdm(batches, "scoring", unit=" images", unit_scale=batch_size, leave=False, disable=disable)
    # A GPU's results stay there until the last batch, so that no batch waits for the one before.
    return tf.concat([classify(images) for images, _ in bar], axis=0).numpy()


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns the mean "cross_entropy", and the accuracies "top_1" and "top_5" as fractions."""
    own = probabilities[np.arange(len(labels)), labels]
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # The first of equals, as argmax does.
    right = best == labels[:, None]
    return {
        "cross_entropy": float(-np.mean(np.log(np.maximum(own, np.finfo(np.float32).tiny)))),
        "top_1": float(np.mean(right[:, 0])),
        "top_5": float(np.mean(right.any(axis=1))),
    }


def score(classify: Classifier, split: Split, show_bar: bool = True) -> dict[str, float]:
    """Scores every image of a split; see `predict` and `accuracy`."""
    return accuracy(predict(classify, split, show_bar=show_bar), split.labels)


def result(
    scores: dict[str, float],
    dataset: str,
    name: str,
    split: Split,
    step: int | None = None,
    ten_crop: bool = False,
    snapshots: int = 1,
) -> dict:
    """Returns the content of evaluation.json: the scores, and how they were measured."""
    how = {"step": step, "ten_crop": ten_crop, "snapshots": snapshots}
    return {"dataset": dataset, "split": name, "images": len(split), **scores, **how}
