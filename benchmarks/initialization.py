"""Measures what a network learns in its first steps with other initial kernels: python -m benchmarks.initialization

The network is GoogLeNet by default, with batch normalization and with biases in its place. The steps are those of
train.py on the real data, at the start of its first cycle.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import keras
from absl import flags
from keras import layers

import flags as project_flags
import models
from flags import FLAGS
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import schedule, step

INITIALIZERS = {
    "he": keras.initializers.HeNormal,
    "glorot": keras.initializers.GlorotUniform,
    "normal, 0.01": lambda seed: keras.initializers.RandomNormal(stddev=0.01, seed=seed),
}

MEASURED = 20  # Steps at the end whose means are printed.


def define_flags() -> None:
    project_flags.define_data_flags()
    flags.DEFINE_enum("dataset", "full", input_pipeline.DATASETS, "Data to train on.")
    flags.DEFINE_enum("model", "googlenet", list(models.REGISTRY), "The network.")
    flags.DEFINE_integer("steps", 390, "Steps of training.", lower_bound=MEASURED)
    flags.DEFINE_float("learning_rate", 0.1, "Learning rate at the start.", lower_bound=0.0)
    flags.DEFINE_integer("batch_size", 256, "Images per step.", lower_bound=1)
    flags.DEFINE_enum("precision", None, ["float32", "mixed_float16", "mixed_bfloat16"], "Default: train.py's.")


def initialized(model: keras.Model, initializer, batch_norm: bool) -> keras.Model:
    """Copies a network with other initial kernels, and if not `batch_norm` with biases in place of its normalization.

    Args:
      model: The network.
      initializer: From a seed to the initializer of every kernel.
      batch_norm: Whether batch normalization stays.
    """
    count = 0

    def copy(layer):
        nonlocal count
        count += 1
        if isinstance(layer, layers.BatchNormalization) and not batch_norm:
            return lambda x, mask=None: x
        config = layer.get_config()
        if "kernel_initializer" in config:
            config["kernel_initializer"] = initializer(seed=count)
            config["use_bias"] = config["use_bias"] or not batch_norm
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def train(model: keras.Model, data: input_pipeline.TinyImageNet) -> str:
    """Returns the mean cross-entropy, top-1 and global norm of the last steps, in three columns of a table."""
    trainer = step.Trainer(
        model,
        data.mean_image,
        learning_rate=FLAGS.learning_rate,
        cycle_steps=schedule.Schedule(10, len(data.splits["train"]), FLAGS.batch_size, 5).cycle_steps,
        momentum=models.REGISTRY[FLAGS.model].momentum,
        weight_decay=1e-4,
        clip_norm=10.0,
    )
    batches = input_pipeline.train_batches(data.splits["train"], FLAGS.batch_size, 0, 0, FLAGS.steps)
    for number, batch in enumerate(batches):
        if number == FLAGS.steps - MEASURED:
            trainer.reset_means()
        trainer.train_step(*batch)
    means = trainer.means()
    return f"{means['cross_entropy']:.3f} | {means['top_1']:.2%} | {means['global_norm']:.3g}"


def main(_) -> None:
    precision = FLAGS.precision or step.default_precision()
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    title = f"{FLAGS.model}, {precision}, learning rate {FLAGS.learning_rate}, "
    print(f"{title}means of steps {FLAGS.steps - MEASURED + 1} to {FLAGS.steps}:\n")
    print("| kernels | normalization | cross-entropy | top-1 | global norm |\n| --- | --- | --- | --- | --- |")
    for name, initializer in INITIALIZERS.items():
        for batch_norm in (True, False):
            keras.config.set_dtype_policy(precision)  # clear_session resets it.
            model = initialized(models.build(FLAGS.model, training=True), initializer, batch_norm)
            kind = "batch normalization" if batch_norm else "biases"
            try:
                row = train(model, data)
            except UserError:
                row = "diverged | | "
            print(f"| {name} | {kind} | {row} |", flush=True)
            keras.utils.clear_session()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
