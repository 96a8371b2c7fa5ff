"""The exported network: a SavedModel, a Keras model and TFLite files, each of them self-contained.

train.py exports a finished run. To export another, or again: python -m deployment.export --run_dir=runs/googlenet
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import json
import pathlib
import shlex

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import flags
import models
from deployment import pictures, tflite
from flags import FLAGS
from models import weights
from models.layers import to_plain_keras
from tiny_imagenet import crops, input_pipeline
from tiny_imagenet.errors import UserError
from tiny_imagenet.input_pipeline import TinyImageNet
from training import checkpoints, run_directory
from training.files import remove_folder, replace_file, write_json

IMAGE_SHAPE = (crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3)


def inference_model(model: keras.Model) -> keras.Model:
    """Copies a trained network into a float32 one of Keras' own layers, without its auxiliary classifiers."""
    return to_plain_keras(keras.Model(model.input, model.outputs[0], name=model.name))


def whole_model(network: keras.Model, mean_image: np.ndarray) -> keras.Model:
    """Copies a network into a model from raw images to probabilities, of Keras' own layers alone.

    The network's layers keep their names, and are not nested in a submodel. Before them are "images" (the input),
    "centre_crop" and "normalization", after them "probabilities".

    Args:
      network: From normalized crops, (N, 56, 56, 3) floats, to logits.
      mean_image: (64, 64, 3) float32, the mean of the training images.

    Returns:
      A functional model from (N, 64, 64, 3) uint8 to (N, classes) float32 that sum to 1.
    """
    mean = crops.slice_crop(mean_image, crops.CENTRE)
    images = keras.Input(IMAGE_SHAPE, dtype="uint8", name="images")
    # Not Keras' CenterCrop: its default of training=True also holds for the layers after it, if the model is called
    # without `training`. Not Keras' Normalization: Keras' export to ONNX makes its mean an input.
    margin = (crops.IMAGE_SIZE - crops.CROP_SIZE) // 2
    x = layers.Cropping2D(margin, dtype="float32", name="centre_crop")(images)
    x = layers.Rescaling(1 / crops.SCALE, -mean / crops.SCALE, dtype="float32", name="normalization")(x)
    logits = network.call(x)  # Not network(x), which would make it one layer.
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(logits)
    return to_plain_keras(keras.Model(images, probabilities, name=network.name))


def export(model: keras.Model, data: TinyImageNet, run_dir: pathlib.Path, with_tflite: bool = False) -> None:
    """Writes a network to the run directory as `saved_model/` and `model.keras`, and its classes as `classes.json`.

    They replace older ones. Neither model needs code of this project.

    `model.keras` is that of `whole_model`. `classes.json` holds the "wnids" and the "words" of its classes, in order.

    Args:
      model: The network in float32; see `inference_model`.
      data: For the mean image and the classes.
      run_dir: The folder to write to.
      with_tflite: Whether to write the two files of `tflite.export` too.
    """
    whole = whole_model(model, data.mean_image)
    partial = run_dir / "saved_model.partial"
    remove_folder(partial)
    save_saved_model(whole, {"wnids": data.wnids, "words": data.words}, partial)
    remove_folder(run_dir / "saved_model")
    partial.rename(run_dir / "saved_model")

    with replace_file(run_dir / "model.keras") as partial:
        whole.save(partial)
    write_classes(run_dir, data)

    if with_tflite:
        tflite.export(model, data, run_dir)


def save_saved_model(whole: keras.Model, classes: dict[str, list[str]], folder: pathlib.Path) -> None:
    """Writes a SavedModel with two signatures.

    Both return `probabilities` (N, 200) float32, in the order of `classes`, and of the five most probable classes, the
    best first, `wnids` and `words`, (N, 5) strings.

    As `wnids` and `words`, it also holds those of all classes.

    - `serving_default` takes `images`, (N, 64, 64, 3) uint8.
    - `serve_jpeg` takes `jpegs`, (N,) strings: encoded pictures of any size, as `pictures.decode` reads them and
      `pictures.resize` makes them fit. They may be of different sizes and formats.

    Args:
      whole: From `whole_model`.
      classes: The "wnids" and the "words" of its classes.
      folder: The folder to write.
    """

    @tf.function(input_signature=[tf.TensorSpec((None, *IMAGE_SHAPE), tf.uint8, name="images")])
    def serve(images):
        """Classifies raw images.

        Args:
          images: (N, 64, 64, 3) uint8.

        Returns:
          `probabilities` (N, 200) float32; `wnids` and `words` (N, 5) strings, the most probable class first.
        """
        images = tf.ensure_shape(images, (None, *IMAGE_SHAPE))  # A loaded signature checks the dtype alone.
        return weights.best_classes(whole(images, training=False), classes)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="jpegs")])
    def serve_jpeg(jpegs):
        """Classifies encoded pictures of any size: JPEG, PNG, BMP, GIF (the first frame) or WebP.

        The square in the middle of each is resized to 64x64 pixels.

        Args:
          jpegs: (N,) strings, the contents of the files.

        Returns:
          As `serve`.
        """
        jpegs = tf.ensure_shape(jpegs, (None,))
        to_image = lambda jpeg: tf.ensure_shape(pictures.resize(pictures.decode(jpeg)), IMAGE_SHAPE)  # noqa: E731
        return serve(tf.map_fn(to_image, jpegs, fn_output_signature=tf.uint8))

    module = tf.Module()  # Not keras.export.ExportArchive, which writes every weight twice.
    module.weights = [variable.value for variable in whole.weights]
    module.serve, module.serve_jpeg = serve, serve_jpeg
    module.wnids, module.words = (tf.Variable(classes[name], trainable=False) for name in ("wnids", "words"))
    tf.saved_model.save(module, str(folder), {"serving_default": serve, "serve_jpeg": serve_jpeg})


def load_weights(name: str | None, path: str, run_flag: str = "--run_dir") -> keras.Model:
    """Builds a network in float32 with the weights of a file, or with those that come with the repository.

    Args:
      name: The network; None for the best one that comes with the repository.
      path: A `.weights.h5` file, or "tiny_imagenet".
      run_flag: The program's flag for a run, which the error names.

    Raises:
      UserError: if there are no such weights, or they are damaged or another network's.
    """
    try:
        return models.build(name or weights.best_network(), weights=path)
    except ValueError as error:
        raise UserError(f"{error}; to use a run of your own, pass {run_flag}") from error


def load_keras(run_dir: pathlib.Path) -> keras.Model:
    """Loads the `model.keras` that `export` wrote to a run directory.

    Raises:
      UserError: if there is none, or it is damaged or of an older version.
    """
    path = run_dir / "model.keras"
    remedy = f"export it: python -m deployment.export --run_dir={shlex.quote(str(run_dir))}"
    if not path.is_file():
        raise UserError(f"{path} does not exist: train the run to its end, or {remedy}")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises errors of many kinds.
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if model.input_shape != (None, *IMAGE_SHAPE):
        raise UserError(f"{path} takes images of {model.input_shape}, as older versions did: {remedy}")
    return model


def load_saved_model(path: pathlib.Path) -> "tf.__internal__.tracking.AutoTrackable":
    """Loads a SavedModel that `export` wrote.

    Raises:
      UserError: if there is no SavedModel, or it is damaged or another program's.
    """
    if not tf.saved_model.contains_saved_model(str(path)):
        problem = "is not a SavedModel" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: give the folder saved_model in a run, or the run itself as --run_dir")
    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, *checkpoints.DAMAGED) as error:
        raise UserError(
            f"{path} is damaged ({error}): export it again by python -m deployment.export --run_dir=RUN"
        ) from error
    signature = loaded.signatures.get("serving_default")
    if (
        signature is None
        or list(signature.structured_input_signature[1]) != ["images"]
        or not {"probabilities", "wnids", "words"} <= signature.structured_outputs.keys()
    ):
        raise UserError(f"{path} is not of this project: serving_default does not map images to probabilities")
    return loaded


def wnids_of_saved_model(loaded: "tf.__internal__.tracking.AutoTrackable") -> list[str] | None:
    """Returns the WordNet ids of the classes, in the order of the probabilities; None if an older version wrote it.

    Args:
      loaded: From `load_saved_model`.
    """
    wnids = getattr(loaded, "wnids", None)
    return None if wnids is None else [wnid.decode() for wnid in wnids.numpy().tolist()]


def write_classes(folder: pathlib.Path, data: TinyImageNet) -> None:
    """Writes `classes.json`: the "wnids" and the "words" of the classes, in the order of the labels of `data`."""
    write_json(folder / "classes.json", {"wnids": data.wnids, "words": data.words})


def wnids_of(folder: pathlib.Path) -> list[str] | None:
    """Returns the "wnids" of the `classes.json` in a folder: the classes of the run, weights and TFLite files there.

    Runs of older versions have one only once they are exported, and a file may be anywhere: None if there is none.

    Raises:
      UserError: if it is damaged.
    """
    return load_classes(folder)["wnids"] if (folder / "classes.json").exists() else None


def load_classes(folder: pathlib.Path) -> dict[str, list[str]]:
    """Reads the `classes.json` that `write_classes` wrote: "wnids" and "words", in the order of the probabilities.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    path = folder / "classes.json"
    try:
        classes = json.loads(path.read_text())
        pairs = list(zip(classes["wnids"], classes["words"], strict=True))
        if not all(isinstance(name, str) for pair in pairs for name in pair):
            raise TypeError("a name is not text")
        if not pairs or len(dict(pairs)) < len(pairs):
            raise ValueError("no class, or one twice")
        return {"wnids": classes["wnids"], "words": classes["words"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "delete it, and python -m deployment.export --run_dir=RUN writes it"
        shipped = "weights/classes.json is that of Tiny ImageNet"
        raise UserError(f"{path} is missing or damaged: {remedy}; {shipped}") from error


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir)
    config = run_directory.read_config(run_dir)
    data = input_pipeline.load(config["dataset"], FLAGS.data_dir, FLAGS.archive).in_order_of(wnids_of(run_dir))
    with run_directory.lock(run_dir):
        model, _ = checkpoints.load_model(run_dir)
        export(inference_model(model), data, run_dir, FLAGS.tflite)
    print(f"exported to {run_dir}")


if __name__ == "__main__":
    flags.define_export_flags()
    cli.run(main)
