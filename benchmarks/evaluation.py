"""Measures the speed of evaluation in float32: python -m benchmarks.evaluation

For each network, images a second by the centre crop and by the ten crops, from raw images to probabilities. Of several
batches, the fastest counts.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
from flags import FLAGS
from models.layers import to_plain_keras
from tiny_imagenet import crops
from training import distribution, evaluation

flags.DEFINE_multi_enum("model", list(models.REGISTRY), list(models.REGISTRY), "The networks; by default all.")
flags.DEFINE_integer("batch_size", evaluation.BATCH_SIZE, "Images per batch.", lower_bound=1)
flags.DEFINE_integer("batches", 3, "Batches to time, after one to warm up.", lower_bound=1)


def images_per_second(classify: evaluation.Classifier, images: tf.Tensor) -> float:
    seconds = []
    for _ in range(1 + FLAGS.batches):
        started = time.perf_counter()
        classify(images).numpy()
        seconds.append(time.perf_counter() - started)
    return len(images) / min(seconds[1:])


def main(_) -> None:
    keras.utils.set_random_seed(0)
    size = (crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (FLAGS.batch_size, *size), np.uint8))
    mean_image = np.full(size, 128, np.float32)
    print(f"{distribution.describe_devices(tf.distribute.get_strategy())}, batch {FLAGS.batch_size}\n")
    print(f"{'images/s, float32':<28}{'centre crop':>12}{'ten crops':>12}")
    for name in FLAGS.model:
        model = to_plain_keras(models.build(name))
        speeds = [images_per_second(evaluation.classifier(model, mean_image, ten), images) for ten in (False, True)]
        print(f"{name:<28}" + "".join(f"{speed:>12.1f}" for speed in speeds), flush=True)


if __name__ == "__main__":
    cli.run(main)
