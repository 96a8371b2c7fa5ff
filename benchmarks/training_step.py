"""Measures the training step beside PyTorch's: python -m benchmarks.training_step --precision=float32

It takes the GPU if there is one, else the CPU. For each of the paper's networks it prints the images per second of
`Trainer.train_step`; those of the same step in PyTorch, if PyTorch is installed (on a CPU in both memory formats, on a
GPU with and without torch.compile); and, as a yardstick, the step's share of the device's matrix-product rate. The
implementations take turns, and the fastest round counts, to reduce noise from other load.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import importlib.util
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import models
from flags import FLAGS
from models import cost
from tiny_imagenet import crops
from training import distribution, step

NETWORKS = ("baseline", "alexnet", "googlenet", "resnet20")  # Those of pytorch_models.py.
CONTIGUOUS, CHANNELS_LAST = "PyTorch, contiguous", "PyTorch, channels_last"
COMPILED = "PyTorch, channels_last, torch.compile"

flags.DEFINE_multi_enum("model", NETWORKS, NETWORKS, "The networks; by default all four of the paper's.")
flags.DEFINE_enum("precision", "float32", ["float32", "mixed_float16", "mixed_bfloat16"], "Keras' dtype policy.")
flags.DEFINE_bool("jit_compile", False, "Whether XLA compiles TensorFlow's step.")
flags.DEFINE_integer("batch_size", 256, "Images per step.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Rounds after the one that warms up.", lower_bound=1)
flags.DEFINE_float("seconds", 3.0, "Length of a contender's turn, which is at least one step.", lower_bound=0.0)
flags.DEFINE_integer("product", 4096, "Size of the square matrices in the matrix product.", lower_bound=1)


def on_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def peers() -> tuple[str, ...]:
    """PyTorch's contenders on the device that TensorFlow uses; none if PyTorch is not installed for it."""
    if not importlib.util.find_spec("torch"):
        return ()
    import torch

    if on_gpu():
        return (CHANNELS_LAST, COMPILED) if torch.cuda.is_available() else ()
    return CONTIGUOUS, CHANNELS_LAST


def steps_per_call() -> int:
    """Steps or products between two waits for the device: a GPU would be idle while the program prepares the next."""
    return 20 if on_gpu() else 1


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of a training step per image: the convolutions' and dense layers', forward and backward."""
    counts = cost.multiply_adds(model)
    # The backward pass has two products as large as the forward one, but the network's input needs no gradient.
    return 3 * sum(counts) - counts[0]


def matrix_product(precision: str) -> Callable[[], None]:
    """A square matrix product in the precision of the convolutions."""
    matrix = tf.cast(tf.random.uniform((FLAGS.product, FLAGS.product)), precision.removeprefix("mixed_"))

    def products():
        for _ in range(steps_per_call()):
            product = tf.matmul(matrix, matrix)
        product[0, 0].numpy()

    return products


def tensorflow_step(model: keras.Model, settings: dict, batch: tuple[np.ndarray, ...]) -> Callable[[], None]:
    mean_image = np.full((crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), 128, np.float32)
    trainer = step.Trainer(model, mean_image, cycle_steps=1e6, jit_compile=FLAGS.jit_compile, **settings)
    images, crop_index, labels = map(tf.constant, batch)

    def train_steps():
        for _ in range(steps_per_call()):
            trainer.train_step(images, crop_index, labels)
        trainer.means()  # Waits for the steps.

    return train_steps


def pytorch_steps(
    name: str, parameters: int, precision: str, settings: dict, batch: tuple[np.ndarray, ...]
) -> dict[str, Callable[[], None]]:
    """The same step in PyTorch, on the same device, by contender; nothing if PyTorch cannot use the device."""
    if not peers():
        return {}
    import torch

    from benchmarks import pytorch_models

    torch.set_num_threads(distribution.cpu_cores())
    torch.backends.cudnn.benchmark = True  # As in TensorFlow, like the TF32.
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if on_gpu() else "cpu"
    images, crop_index, labels = (torch.from_numpy(array).to(device) for array in batch)
    mean_crops = np.full((10, crops.CROP_SIZE, crops.CROP_SIZE, 3), 128, np.float32)

    def contender(label: str) -> Callable[[], None]:
        peer = pytorch_models.Step(
            name,
            mean_crops,
            torch.contiguous_format if label == CONTIGUOUS else torch.channels_last,
            device=device,
            compiled=label == COMPILED,
            dtype=getattr(torch, precision.removeprefix("mixed_")),
            auxiliary_weight=step.AUXILIARY_WEIGHT,
            scale=crops.SCALE,
            **settings,
        )
        if peer.num_parameters() != parameters:
            raise ValueError(f"{name} has {parameters} parameters, but {peer.num_parameters()} in PyTorch")

        def train_steps():
            for _ in range(steps_per_call()):
                peer(images, crop_index, labels)
            if device == "cuda":
                torch.cuda.synchronize()

        return train_steps

    return {label: contender(label) for label in peers()}


def calls_per_second(call: Callable[[], None]) -> float:
    started, done = time.perf_counter(), 0
    while True:
        call()
        done += 1
        elapsed = time.perf_counter() - started
        if elapsed >= FLAGS.seconds:
            return done / elapsed


def measure(name: str, precision: str, batch: tuple[np.ndarray, ...]) -> str:
    """The network's row of the table."""
    # A learning rate at which no network diverges: NaN and denormal numbers have speeds of their own.
    momentum = models.REGISTRY[name].momentum
    settings = dict(learning_rate=1e-3, momentum=momentum, weight_decay=1e-4, clip_norm=10.0)
    model = models.build(name, training=True)
    contenders = {"TensorFlow": tensorflow_step(model, settings, batch)}
    contenders |= pytorch_steps(name, cost.parameters(model), precision, settings, batch)
    contenders["product"] = matrix_product(precision)

    best = dict.fromkeys(contenders, 0.0)
    for round in range(FLAGS.rounds + 1):
        for contender, call in contenders.items():
            speed = calls_per_second(call)
            if round:  # The first round warms up.
                best[contender] = max(best[contender], speed)

    product = best.pop("product") * steps_per_call() * 2 * FLAGS.product**3 / 1e9
    ours, *others = (FLAGS.batch_size * steps_per_call() * speed for speed in best.values())
    reached = ours * 2 * multiply_adds(model) / 1e9
    cells = [f"{ours:,.1f}", *(f"{other:,.1f}" for other in others)]
    cells += [f"{ours / max(others):.2f}"] if others else []
    cells += [f"{reached:,.0f}", f"{product:,.0f}", f"{reached / product:.0%}"]
    return f"| {name} | {' | '.join(cells)} |"


def main(_) -> None:
    precision = FLAGS.precision
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    number = FLAGS.batch_size
    batch = (
        rng.integers(0, 256, (number, crops.CROP_SIZE, crops.CROP_SIZE, 3), np.uint8),
        rng.integers(0, 10, number, np.int64),
        rng.integers(0, 200, number, np.int64),
    )
    device = distribution.describe_devices(tf.distribute.get_strategy())
    print(f"{device}, {precision}, batch {number}, TensorFlow {tf.__version__}, images/s and GFLOP/s:\n")
    columns = ["network", "TensorFlow"]
    columns += [*peers(), "TensorFlow / the better"] if peers() else []
    columns += ["TensorFlow's GFLOP/s", f"{FLAGS.product}^3 matrix product", "share of it"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in dict.fromkeys(FLAGS.model):
        keras.config.set_dtype_policy(precision)  # clear_session resets it.
        print(measure(name, precision, batch), flush=True)
        keras.utils.clear_session()
    if not peers():
        print("\nPyTorch is not installed for this device, so there is no comparison: pip install torch")


if __name__ == "__main__":
    cli.run(main)
