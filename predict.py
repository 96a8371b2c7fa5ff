"""Classifies pictures with a trained network: python predict.py photo.jpg holiday/"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import concurrent.futures
import contextlib
import csv
import itertools
import mimetypes
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

import flags
from deployment import export, pictures, tflite
from flags import FLAGS
from models import weights
from tiny_imagenet.errors import UserError
from training import evaluation, run_directory, stderr
from training.distribution import cpu_cores

# Pillow warns of a picture of more pixels, and refuses one of more than twice as many. Phones take up to 200 million.
Image.MAX_IMAGE_PIXELS = 100_000_000
SUFFIXES = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}


def is_picture(path: pathlib.Path) -> bool:
    """Returns whether a file's name is that of a picture, also of a kind that Pillow does not read, such as HEIC."""
    if path.name.startswith("._"):  # macOS puts such files beside others.
        return False
    kind, _ = mimetypes.guess_type(path.name)
    return kind.startswith("image/") if kind else path.suffix.lower() in SUFFIXES


def find_pictures(paths: Iterable[str]) -> list[pathlib.Path]:
    """Lists each file once. Replaces a folder by the pictures in it and its subfolders, if there are any."""
    found = []
    for path in map(pathlib.Path, paths):
        # Path.is_dir raises an error for some paths, such as one with too long a name.
        below = path.rglob("*") if os.path.isdir(path) else ()
        within = sorted(file for file in below if is_picture(file) and os.path.isfile(file))
        found += within or [path]
    return list(dict.fromkeys(found))


def read_picture(path: pathlib.Path) -> np.ndarray | str:
    """Reads a picture, or its first frame, turns it upright, and resizes it by `pictures.resize`.

    Transparency is left out.

    Returns:
      (64, 64, 3) uint8, or why it cannot be read.
    """
    if os.path.isdir(path):
        return "holds no pictures"
    try:
        with Image.open(path) as image:
            image.load()
            with contextlib.suppress(Exception):  # Of damaged EXIF data.
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                return "holds floats of an unknown range: convert it to 8 or 16 bits"
            if image.mode.startswith("I"):  # 16 bits, which `convert` would clip to 8.
                image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
            pixels = np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError:
        return f"has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels: make it smaller"
    except Exception as error:  # Pillow raises errors of many kinds. Only those of the system have a `strerror`.
        return getattr(error, "strerror", None) or "not a picture that Pillow reads, or damaged: save it as JPEG or PNG"
    with tf.device("CPU:0"):  # A large photo is not worth the way to a GPU.
        return pictures.resize(pixels).numpy()


def load_classifier() -> Callable[[np.ndarray], dict[str, tf.Tensor]]:
    """Returns the network that the flags name, as a function from (N, 64, 64, 3) uint8; see `weights.best_classes`."""
    if FLAGS.saved_model:
        saved_model = export.load_saved_model(pathlib.Path(FLAGS.saved_model))
        return lambda images: saved_model.signatures["serving_default"](images=tf.constant(images))
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
            if not named or run_directory.dataset_of(file) != "full":
                run_dir = shlex.quote(str(file.parent))
                raise UserError(f"{file} has other classes than Tiny ImageNet: use --run_dir={run_dir}")
        model = export.load_weights(FLAGS.model, FLAGS.weights or weights.SHIPPED)
        classify, classes = evaluation.classifier(model, weights.mean_image()), weights.classes()
    return lambda images: weights.best_classes(classify(images), classes)


def main(_) -> None:
    if not FLAGS.pictures or "" in FLAGS.pictures:  # Such as an unset variable of the shell's.
        raise UserError("name pictures or folders: python predict.py photo.jpg holiday/")
    if FLAGS.csv and is_picture(pathlib.Path(FLAGS.csv)):
        raise UserError(
            f"--csv={FLAGS.csv} has the name of a picture: give it the name of a table, such as classes.csv"
        )
    classify = load_classifier()
    files = find_pictures(FLAGS.pictures)
    failed = 0
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(cpu_cores()))
        write = print_picture
        if FLAGS.csv:
            # A file's name need not be text.
            file = open(FLAGS.csv, "w", newline="", encoding="utf-8", errors="surrogateescape")
            write = write_csv(stack.enter_context(file))
        for start in range(0, len(files), FLAGS.batch_size):
            batch = files[start : start + FLAGS.batch_size]
            with stderr.quiet():  # Pillow warns of pictures, and libtiff logs its errors.
                read = list(pool.map(read_picture, batch))
            images = {}
            for path, image in zip(batch, read, strict=True):
                if isinstance(image, str):
                    print(f"predict.py: {path}: {image}", file=sys.stderr)
                    failed += 1
                else:
                    images[path] = image
            if images:
                best = weights.name_best(classify(np.stack(list(images.values()))))
                for path, rows in zip(images, best, strict=True):
                    write(path, rows)
    if FLAGS.csv:
        print(f"{len(files) - failed} of {len(files)} pictures are in {FLAGS.csv}")
    if failed:
        sys.exit(1)


def print_picture(path: pathlib.Path, best: Iterable[tuple[str, str, float]]) -> None:
    """Prints the best classes of a picture: WordNet id, words and probability of each."""
    print(path)
    for wnid, words, probability in best:
        print(f"{probability:8.2%}  {wnid}  {words}")


def write_csv(file: TextIO) -> Callable[[pathlib.Path, Iterable[tuple[str, str, float]]], None]:
    """Writes the header of a table with a row for each picture; returns a function that writes a row."""
    table = csv.writer(file)
    ranks = range(1, weights.TOP_K + 1)
    table.writerow(["picture", *(f"{name}_{rank}" for rank in ranks for name in ("wnid", "words", "probability"))])

    def write(path, best):
        row = [(wnid, words, f"{probability:.6g}") for wnid, words, probability in best]
        table.writerow([path, *itertools.chain(*row)])

    return write


if __name__ == "__main__":
    flags.define_predict_flags()
    cli.run(main)
