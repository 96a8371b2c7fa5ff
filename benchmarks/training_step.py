"""How fast Trainer.train_step is on the CPU, in float32: python -m benchmarks.training_step --model=alexnet

Beside it, where PyTorch is installed, the same network and step in PyTorch, in both of its memory formats; and the
machine's rate of large matrix products, which no step can beat. What is compared takes turns, and of the rounds the
fastest counts, so that other load on the machine weighs little.
"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import functools
import importlib.util
import os
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
from flags import FLAGS, run
from models import cost
from tiny_imagenet import crops
from training import step

NETWORKS = ("baseline", "alexnet", "googlenet", "resnet20")  # Those of pytorch_models.py.
SIZE = 2048
PRODUCTS = 5

flags.DEFINE_enum("model", "baseline", NETWORKS, "The network.")
flags.DEFINE_integer("batch_size", 64, "Images a step.", lower_bound=1)
flags.DEFINE_integer("steps", 10, "Steps a round.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Rounds, of which the fastest counts.", lower_bound=1)


def multiply_adds(model: keras.Model) -> int:
    """Of a training step, for each image: the convolutions' and dense layers', forward and backward."""
    counts = cost.multiply_adds(model)
    # Backward are two products as large as forward's one, but the first layer's input has no gradient.
    return 3 * sum(counts) - counts[0]


def products(matrix: tf.Tensor) -> None:
    for _ in range(PRODUCTS):
        product = tf.matmul(matrix, matrix)
    product[0, 0].numpy()


def tensorflow_step(settings: dict, batch: tuple[np.ndarray, ...]) -> tuple[keras.Model, Callable[[], None]]:
    """The network, and what does `steps` steps of it."""
    model = models.build(FLAGS.model, training=True)
    mean_image = np.full((crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), 128, np.float32)
    trainer = step.Trainer(model, mean_image, cycle_steps=1e6, **settings)
    images, which, labels = map(tf.constant, batch)

    def steps():
        for _ in range(FLAGS.steps):
            trainer.train_step(images, which, labels)
        trainer.means()  # Waits for the last of them.

    return model, steps


def pytorch_steps(settings: dict, batch: tuple[np.ndarray, ...], parameters: int) -> dict[str, Callable[[], None]]:
    """The same in PyTorch, by memory format."""
    import torch

    from benchmarks import pytorch_models

    torch.set_num_threads(os.cpu_count())
    images, which, labels = map(torch.from_numpy, batch)
    mean_crops = np.full((10, crops.CROP_SIZE, crops.CROP_SIZE, 3), 128, np.float32)
    named = {}
    for name, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        peer = pytorch_models.Step(
            FLAGS.model,
            mean_crops,
            memory_format,
            auxiliary_weight=step.AUXILIARY_WEIGHT,
            scale=crops.SCALE,
            **settings,
        )
        if peer.num_parameters() != parameters:
            raise ValueError(f"{FLAGS.model} has {parameters} parameters, but {peer.num_parameters()} in PyTorch")

        def steps(peer=peer):
            for _ in range(FLAGS.steps):
                peer(images, which.long(), labels)

        named[f"PyTorch, {name}"] = steps
    return named


def main(_) -> None:
    tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    number = FLAGS.batch_size
    batch = (
        rng.integers(0, 256, (number, crops.CROP_SIZE, crops.CROP_SIZE, 3), np.uint8),
        rng.integers(0, 10, number, np.int32),
        rng.integers(0, 200, number, np.int64),
    )
    # A rate at which no network diverges, as NaN and denormal numbers have speeds of their own.
    settings = dict(learning_rate=1e-3, momentum=0.9, weight_decay=1e-4, clip_norm=10.0)
    model, steps = tensorflow_step(settings, batch)
    parameters = cost.parameters(model)
    contenders = {"TensorFlow": steps}
    if importlib.util.find_spec("torch"):
        contenders |= pytorch_steps(settings, batch, parameters)
    else:
        print("PyTorch is not installed: no peer (pip install torch)")
    contenders["products"] = functools.partial(products, tf.random.uniform((SIZE, SIZE)))

    seconds = {name: [] for name in contenders}
    for round in range(FLAGS.rounds + 1):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            if round:  # The one before the first warms up.
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}

    matmul = PRODUCTS * 2 * SIZE**3 / best.pop("products") / 1e9
    speeds = {name: FLAGS.steps * number / value for name, value in best.items()}
    reached = speeds["TensorFlow"] * 2 * multiply_adds(model) / 1e9
    print(f"{FLAGS.model}, {parameters:,} parameters, batch {number}, float32, {os.cpu_count()} CPUs")
    print(f"{'':<28}{'images/s':>10}{'TensorFlow is':>18}")
    for name, speed in speeds.items():
        print(f"{name:<28}{speed:>10.1f}{speeds['TensorFlow'] / speed:>11.2f} times")
    print(f"{'':<28}{'GFLOP/s':>10}")
    print(f"{f'{SIZE}^3 matrix product':<28}{matmul:>10.1f}")
    print(f"{'TensorFlow step':<28}{reached:>10.1f}{reached / matmul:>11.1%} of it")


if __name__ == "__main__":
    run(main)
