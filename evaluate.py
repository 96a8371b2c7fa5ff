"""Scores a run, weights, a SavedModel or a TFLite file on Tiny ImageNet: python evaluate.py --run_dir=runs/googlenet"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import os
import pathlib
import re
import sys
from typing import NamedTuple, TextIO

import keras
import numpy as np

import flags
from deployment import export, tflite
from flags import FLAGS
from models import weights
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, run_directory
from training.files import is_written_in_place, replace_file, write_json


def write_predictions(path: str, split: input_pipeline.Split, wnids: list[str], classes) -> None:
    """Writes the challenge's format: one line `test_0.JPEG n02124075` per image, sorted by image number."""
    rows = sorted(zip(split.ids, classes, strict=True), key=lambda row: list(map(int, re.findall(r"\d+", row[0]))))
    text = "".join(f"{id} {wnids[label]}\n" for id, label in rows)
    if path == "-":
        sys.stdout.write(text)
    else:
        with replace_file(pathlib.Path(path)) as partial:
            partial.write_text(text)
        print(f"written to {path}")


def score_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the default file for the scores: evaluation.json, or a name that says how else they were measured."""
    parts = ["evaluation"]
    if not FLAGS.run_dir:
        parts.append(path.name if FLAGS.saved_model else path.stem)
    if FLAGS.split != "validation":
        parts.append(FLAGS.split)
    if FLAGS.split == "train" and FLAGS.images != evaluation.TRAINING_SAMPLE:
        parts.append(f"images_{FLAGS.images or 'all'}")
    if FLAGS.snapshots > 1:
        parts.append(f"snapshots_{FLAGS.snapshots}")
    if FLAGS.ten_crop:
        parts.append("ten_crop")
    folder = path if FLAGS.run_dir else path.parent
    if FLAGS.weights == weights.SHIPPED:
        folder = pathlib.Path()  # The working directory: weights/ may be an installed package's.
    return folder / f"{'_'.join(parts)}.json"


def check_writable(path: str | pathlib.Path, flag: str) -> None:
    """Raises UserError if `replace_file` cannot write a file, before scoring takes its time."""
    target = os.path.realpath(path)
    needed = target if is_written_in_place(target) else os.path.dirname(target)
    if os.path.isdir(target) or not os.access(needed, os.W_OK):
        raise UserError(f"cannot write {path}: pass --{flag} with a file in a writable folder")


def print_scores(result: dict, file: TextIO) -> None:
    """Prints what goes to evaluation.json as a table of one row."""
    columns = {
        "split": result["split"],
        "images": result["images"],
        "crops": 10 if result["ten_crop"] else 1,
        "snapshots": result["snapshots"],
        "top-1": f"{result['top_1']:.2%}",
        "top-5": f"{result['top_5']:.2%}",
    }
    if "bytes" in result:
        columns["bytes"] = result["bytes"]
    print("".join(f"{name:>12}" for name in columns), file=file)
    print("".join(f"{value:>12}" for value in columns.values()), file=file)


class Source(NamedTuple):
    """What is scored.

    Attributes:
      path: The run, the SavedModel or the file.
      dataset: The dataset that it was trained on, as far as is known.
      wnids: The WordNet ids of its classes, in the order of its outputs; None if it does not name them.
      model: From normalized crops to logits; None for an exported network.
      classify: An exported network, by the centre crop; None for others.
      step: The step of a run's newest checkpoint; None for others.
    """

    path: pathlib.Path
    dataset: str
    wnids: list[str] | None
    model: keras.Model | None = None
    classify: evaluation.Classifier | None = None
    step: int | None = None


def load_source() -> Source:
    """Loads the network that the flags name."""
    if FLAGS.run_dir:
        path = pathlib.Path(FLAGS.run_dir)
        model, step = checkpoints.load_model(path)
        return Source(path, run_directory.read_config(path)["dataset"], export.wnids_of(path), model, step=step)
    if FLAGS.weights == weights.SHIPPED:
        path = weights.FOLDER / f"{FLAGS.model}.weights.h5"
    else:  # A SavedModel may be named as ".".
        path = pathlib.Path(os.path.abspath(FLAGS.weights or FLAGS.saved_model or FLAGS.tflite))
    dataset = FLAGS.dataset or run_directory.dataset_of(path)
    if FLAGS.saved_model:
        saved_model = export.load_saved_model(pathlib.Path(FLAGS.saved_model))
        classify = lambda images: saved_model.signatures["serving_default"](images=images)["probabilities"]  # noqa: E731
        return Source(path, dataset, export.wnids_of_saved_model(saved_model), classify=classify)
    wnids = export.wnids_of(path.parent)
    if FLAGS.tflite:
        return Source(path, dataset, wnids, classify=tflite.classifier(path))
    return Source(path, dataset, wnids, export.load_weights(FLAGS.model, FLAGS.weights))


def main(_) -> None:
    source = load_source()
    snapshots = checkpoints.last_snapshots(source.path, FLAGS.snapshots) if FLAGS.snapshots > 1 else [None]
    output = pathlib.Path(FLAGS.output or score_file(source.path))
    if FLAGS.split != "test":
        check_writable(output, "output")
    if FLAGS.predictions not in (None, "-"):
        check_writable(FLAGS.predictions, "predictions")
    data = input_pipeline.load(source.dataset, FLAGS.data_dir, FLAGS.archive).in_order_of(source.wnids)
    split = data.splits[FLAGS.split]
    if FLAGS.images:
        split = split.sample(FLAGS.images, evaluation.SAMPLE_SEED)

    classify = source.classify or evaluation.classifier(source.model, data.mean_image, FLAGS.ten_crop)
    probabilities = np.zeros((len(split), len(data.wnids)), np.float32)
    for snapshot in snapshots:
        if snapshot:
            checkpoints.load_weights(source.model, snapshot)
        probabilities += evaluation.predict(classify, split, FLAGS.batch_size) / len(snapshots)

    if FLAGS.split != "test":
        scores = evaluation.accuracy(probabilities, split.labels)
        result = evaluation.result(
            scores, source.dataset, FLAGS.split, split, source.step, FLAGS.ten_crop, FLAGS.snapshots
        )
        if source.path.is_file():
            result |= {"file": source.path.name, "bytes": source.path.stat().st_size}
        print_scores(result, sys.stderr if FLAGS.predictions == "-" else sys.stdout)
        write_json(output, result)
    if FLAGS.predictions:
        write_predictions(FLAGS.predictions, split, data.wnids, probabilities.argmax(axis=1))


if __name__ == "__main__":
    flags.define_evaluate_flags()
    cli.run(main)
