"""Compresses a run's network to 4-bit weights: python -m deployment.compress --run_dir=runs/squeezenet

The paper's section 2.5 mentions SqueezeNet in less than 0.5 MB, by the deep compression of Han et al.
(arXiv:1510.00149): weights that share a few values, fine-tuning, and Huffman coding.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import pathlib
import shlex

import numpy as np
import tensorflow as tf
import tqdm

import flags
from deployment import export
from flags import FLAGS
from models import weights
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, run_directory
from training.schedule import Schedule
from training.step import Trainer, create_trainer

LEVELS = 7  # On each side of zero: 15 values, which 4 bits tell apart.
FILE = "compressed.weights.h5"


def quantize(kernel: tf.Tensor, step: float) -> tf.Tensor:
    """Rounds weights to the nearest of the multiples of a step from -7 to 7."""
    return tf.clip_by_value(tf.round(kernel / step), -LEVELS, LEVELS) * step


def step_size(kernel: np.ndarray) -> float:
    """Returns the power of two for which `quantize` has the lowest mean squared error.

    Multiples of a power of two up to 7 have three significant bits. So in float16 the low byte of each is zero, and
    only the high byte is left for gzip to code.
    """
    largest = np.ceil(np.log2(np.abs(kernel).max(initial=2.0**-24)))
    candidates = 2.0 ** (largest - np.arange(12))
    return float(min(candidates, key=lambda step: np.square(quantize(kernel, step) - kernel).mean()))


def compress(
    run_dir: pathlib.Path, data: input_pipeline.TinyImageNet, num_epochs: int, learning_rate: float
) -> pathlib.Path:
    """Rounds each kernel of a run's network to 15 values, fine-tunes it, and writes `compressed.weights.h5`.

    A step of fine-tuning computes the gradients for the rounded kernels and applies them to full ones, which are then
    rounded again (the straight-through estimator, arXiv:1308.3432). Fine-tuning continues the order of the run's
    images, with the run's settings, and its learning rate falls along one cosine cycle. The step size of each kernel
    stays what it is at first. Only kernels are rounded; all weights are written in float16.

    Args:
      run_dir: The run, from whose newest checkpoint it starts.
      data: The dataset of the run.
      num_epochs: The number of epochs of fine-tuning; with 0, the kernels are only rounded.
      learning_rate: The learning rate at the start.

    Returns:
      The file, which Keras' `load_weights` reads.

    Raises:
      UserError: if the directory holds no run or one that left out images, if fine-tuning diverges, or if a weight is
        beyond the range of float16.
    """
    config = run_directory.read_config(run_dir)
    if config["exclude"]:
        raise UserError(f"{run_dir} was trained with --exclude, so it cannot be fine-tuned here: use another run")
    trained, done = checkpoints.load_model(run_dir)
    steps = Schedule(num_epochs, len(data.splits["train"]), config["batch_size"], num_cycles=1).num_steps
    version_1 = {"dropout": 0.0, "sync_batch_norm": False}  # Its runs do not name them.
    trainer = create_trainer(version_1 | config | {"learning_rate": learning_rate}, data.mean_image, steps)
    trainer.model.set_weights(trained.get_weights())
    fine_tune(trainer, data, config, done, steps)
    path = run_dir / FILE
    try:
        weights.save(export.inference_model(trainer.model), path)
    except ValueError as error:
        raise UserError(str(error)) from error
    for scores in run_dir.glob("evaluation_compressed*.json"):  # Of the file before.
        scores.unlink()
    return path


def fine_tune(trainer: Trainer, data: input_pipeline.TinyImageNet, config: dict, done: int, steps: int) -> None:
    """Rounds the kernels of a network that was trained for `done` steps, and fine-tunes it; see `compress`."""
    kernels = [weight for weight in trainer.model.trainable_weights if weight.name == "kernel"]
    full = [tf.Variable(kernel) for kernel in kernels]
    step_sizes = [step_size(kernel.numpy()) for kernel in kernels]
    for kernel, size in zip(kernels, step_sizes, strict=True):
        kernel.assign(quantize(kernel, size))

    @tf.function
    def apply_and_round():
        for unrounded, kernel, size in zip(full, kernels, step_sizes, strict=True):
            unrounded.assign_add(kernel - quantize(unrounded, size))  # What the step added to the rounded kernel.
            kernel.assign(quantize(unrounded, size))

    train, batch_size, seed = data.splits["train"], config["batch_size"], config["seed"]
    batches = input_pipeline.train_batches(
        train, batch_size, seed, done, done + steps, augmentation=config["augmentation"]
    )
    bar = tqdm.tqdm(batches, "fine-tuning", steps, unit=" steps", leave=False, disable=None)
    try:
        for batch in bar:
            trainer.train_step(*batch)
            apply_and_round()
            trainer.check()
    except UserError as error:
        raise UserError("fine-tuning diverged: start again with a lower --learning_rate") from error


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir)
    config = run_directory.read_config(run_dir)
    data = input_pipeline.load(config["dataset"], FLAGS.data_dir, FLAGS.archive).in_order_of(export.wnids_of(run_dir))
    with run_directory.lock(run_dir):
        path = compress(run_dir, data, FLAGS.num_epochs, FLAGS.learning_rate)
    print(f"{path.stat().st_size:,} bytes written to {path}")
    network = f"--model={config['model']} --weights={shlex.quote(str(path))}"
    print(f"Score it:  python evaluate.py {network}{flags.data_arguments()}")


if __name__ == "__main__":
    flags.define_compress_flags()
    cli.run(main)
