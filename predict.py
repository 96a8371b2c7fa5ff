"""Classifies pictures with a trained network: python predict.py photo.jpg holiday/"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import concurrent.futures
import contextlib
import csv
import io
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

import numpy as np
import tensorflow as tf

import flags
from flags import FLAGS
from models import weights
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, export, pictures, tflite

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp")
EXIF_ORIENTATION = 0x0112
# How to turn an image upright, by its EXIF orientation; 1 is upright.
TO_UPRIGHT = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


def find_pictures(paths: Iterable[str]) -> list[pathlib.Path]:
    """Lists each file once. Replaces a folder by the pictures in it and its subfolders, if there are any."""
    found = []
    for path in map(pathlib.Path, paths):
        # Path.is_dir raises an error for some paths, such as one with too long a name.
        below = path.rglob("*") if os.path.isdir(path) else ()
        within = sorted(file for file in below if file.suffix.lower() in SUFFIXES and os.path.isfile(file))
        found += within or [path]
    return list(dict.fromkeys(found))


def read_picture(path: pathlib.Path) -> np.ndarray | str:
    """Reads a picture, and turns it upright if Pillow is installed.

    Returns:
      (64, 64, 3) uint8, or why it cannot be read.
    """
    if os.path.isdir(path):
        return f"holds no pictures ({', '.join(SUFFIXES)})"
    try:
        contents = path.read_bytes()
        image = pictures.decode(contents).numpy()
    except OSError as error:
        return error.strerror
    except tf.errors.OpError:
        return "not a picture that TensorFlow decodes (JPEG, PNG, BMP, GIF, WebP), or damaged"
    upright = TO_UPRIGHT.get(exif_orientation(contents), lambda image: image)
    with tf.device("CPU:0"):  # A large photo is not worth the way to a GPU.
        return pictures.resize(upright(image)).numpy()


def exif_orientation(contents: bytes) -> int:
    """Returns the EXIF orientation of a picture, 1 to 8; 1 if there is none, or Pillow is not installed."""
    try:
        from PIL import Image

        with Image.open(io.BytesIO(contents), formats=("JPEG", "PNG", "WEBP")) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises errors of many kinds.
        return 1


def load_classifier() -> Callable[[np.ndarray], dict[str, tf.Tensor]]:
    """Returns the network that the flags name, as a function from (N, 64, 64, 3) uint8; see `export.best_classes`."""
    if FLAGS.saved_model:
        signature = export.load_saved_model(pathlib.Path(FLAGS.saved_model))
        return lambda images: signature(images=tf.constant(images))
    if FLAGS.tflite:
        path = pathlib.Path(FLAGS.tflite)
        classify, classes = tflite.classifier(path), export.load_classes(path.parent)
    elif FLAGS.run_dir:
        run_dir = pathlib.Path(FLAGS.run_dir)
        model, classes = export.load_keras(run_dir), export.load_classes(run_dir)
        signature = [tf.TensorSpec(model.input_shape, tf.uint8)]
        classify = tf.function(lambda images: model(images, training=False), input_signature=signature)
    else:
        if FLAGS.weights not in (None, weights.SHIPPED):
            file = pathlib.Path(FLAGS.weights)
            named = export.wnids_of(file.parent) in (None, weights.classes()["wnids"])
            if not named or checkpoints.dataset_of(file) != "full":
                raise UserError(f"{file} has other classes than Tiny ImageNet: use --run_dir={file.parent}")
        model = export.load_weights(FLAGS.model, FLAGS.weights or weights.SHIPPED)
        classify, classes = evaluation.classifier(model, weights.mean_image()), weights.classes()
    return lambda images: export.best_classes(classify(images), classes)


def main(_) -> None:
    if not FLAGS.pictures:
        raise UserError("name pictures or folders: python predict.py photo.jpg holiday/")
    classify = load_classifier()
    files = find_pictures(FLAGS.pictures)
    failed = 0
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        write = print_picture
        if FLAGS.csv:
            write = write_csv(stack.enter_context(open(FLAGS.csv, "w", newline="", errors="surrogateescape")))
        for start in range(0, len(files), FLAGS.batch_size):
            batch = files[start : start + FLAGS.batch_size]
            with training.quiet():  # TensorFlow's decoders also log the errors that they raise.
                images = dict(zip(batch, pool.map(read_picture, batch), strict=True))
            for path in [path for path, image in images.items() if isinstance(image, str)]:
                print(f"predict.py: {path}: {images.pop(path)}", file=sys.stderr)
                failed += 1
            if images:
                result = classify(np.stack(list(images.values())))
                wnids, words = (np.char.decode(result[name].numpy().astype(bytes)) for name in ("wnids", "words"))
                probabilities = -np.sort(-result["probabilities"].numpy(), axis=1)[:, : export.TOP_K]
                for path, *best in zip(images, wnids, words, probabilities, strict=True):
                    write(path, zip(*best, strict=True))
    if FLAGS.csv:
        print(f"{len(files) - failed} of {len(files)} pictures are in {FLAGS.csv}")
    if failed:
        sys.exit(1)


def print_picture(path: pathlib.Path, best: Iterable[tuple[str, str, float]]) -> None:
    """Prints the best classes of a picture: WordNet id, words and probability of each."""
    print(os.fsencode(path).decode(errors="replace"))  # A file's name need not be UTF-8.
    for wnid, words, probability in best:
        print(f"{probability:8.2%}  {wnid}  {words}")


def write_csv(file: TextIO) -> Callable[[pathlib.Path, Iterable[tuple[str, str, float]]], None]:
    """Writes the header of a table with a row for each picture; returns a function that writes a row."""
    table = csv.writer(file)
    ranks = range(1, export.TOP_K + 1)
    table.writerow(["picture", *(f"{name}_{rank}" for rank in ranks for name in ("wnid", "words", "probability"))])

    def write(path, best):
        row = [(wnid, words, f"{probability:.6g}") for wnid, words, probability in best]
        table.writerow([path, *itertools.chain(*row)])

    return write


if __name__ == "__main__":
    flags.define_predict_flags()
    flags.run(main)
