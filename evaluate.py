"""Scores a run, weights, a SavedModel or a TFLite file on Tiny ImageNet: python evaluate.py --run_dir=runs/googlenet"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import os
import pathlib
import re
import sys
from typing import TextIO

import numpy as np

import flags
from deployment import export, tflite
from flags import FLAGS
from models import weights
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, run_directory
from training.files import replace_file, write_json


def write_predictions(path: str, split: input_pipeline.Split, wnids: list[str], classes) -> None:
    """Writes the challenge's format: one line `test_0.JPEG n02124075` per image, sorted by image number."""
    lines = {id: f"{id} {wnids[label]}\n" for id, label in zip(split.ids, classes, strict=True)}
    text = "".join(lines[id] for id in sorted(lines, key=lambda id: [int(number) for number in re.findall(r"\d+", id)]))
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
    if FLAGS.seed not in (None, evaluation.SAMPLE_SEED):
        parts.append(f"seed_{FLAGS.seed}")
    if FLAGS.snapshots > 1:
        parts.append(f"snapshots_{FLAGS.snapshots}")
    if FLAGS.ten_crop:
        parts.append("ten_crop")
    folder = path if FLAGS.run_dir else path.parent
    if FLAGS.weights == weights.SHIPPED:
        folder = pathlib.Path()  # The working directory: weights/ may be an installed package's.
    return folder / f"{'_'.join(parts)}.json"


def check_writable(path: str | pathlib.Path, flag: str) -> None:
    """Raises UserError if a file cannot be written, before scoring takes its time."""
    if os.path.isdir(path) or not os.access(os.path.dirname(path) or ".", os.W_OK):
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


def main(_) -> None:
    if FLAGS.weights == weights.SHIPPED:
        path = weights.FOLDER / f"{FLAGS.model}.weights.h5"
    else:
        file = FLAGS.weights or FLAGS.saved_model or FLAGS.tflite
        path = pathlib.Path(FLAGS.run_dir or os.path.abspath(file))  # A SavedModel may be named as ".".
    own_dataset = run_directory.read_config(path)["dataset"] if FLAGS.run_dir else run_directory.dataset_of(path)
    dataset = FLAGS.dataset or own_dataset
    output = pathlib.Path(FLAGS.output or score_file(path))
    step = None
    if FLAGS.run_dir:
        snapshots = checkpoints.last_snapshots(path, FLAGS.snapshots) if FLAGS.snapshots > 1 else []
        model, step = checkpoints.load_model(path)
    elif FLAGS.weights:
        model = export.load_weights(FLAGS.model, FLAGS.weights)
    elif FLAGS.tflite:
        classify = tflite.classifier(path)
    else:
        saved_model = export.load_saved_model(pathlib.Path(FLAGS.saved_model))
        signature = saved_model.signatures["serving_default"]
        classify = lambda images: signature(images=images)["probabilities"]  # noqa: E731
    if FLAGS.split != "test":
        check_writable(output, "output")
    if FLAGS.predictions not in (None, "-"):
        check_writable(FLAGS.predictions, "predictions")
    if FLAGS.saved_model:
        wnids = export.wnids_of_saved_model(saved_model)
    else:
        wnids = export.wnids_of(path if FLAGS.run_dir else path.parent)
    data = input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive).in_order_of(wnids)
    split = data.splits[FLAGS.split]
    if FLAGS.images:
        split = split.sample(FLAGS.images, evaluation.SAMPLE_SEED if FLAGS.seed is None else FLAGS.seed)
    if FLAGS.run_dir or FLAGS.weights:
        classify = evaluation.classifier(model, data.mean_image, FLAGS.ten_crop)
    if FLAGS.snapshots > 1:
        probabilities = np.zeros((len(split), len(data.wnids)), np.float32)
        for snapshot in snapshots:
            checkpoints.load_weights(model, snapshot)
            probabilities += evaluation.predict(classify, split, FLAGS.batch_size) / FLAGS.snapshots
    else:
        probabilities = evaluation.predict(classify, split, FLAGS.batch_size)

    if FLAGS.split != "test":
        scores = evaluation.accuracy(probabilities, split.labels)
        result = evaluation.result(scores, dataset, FLAGS.split, split, step, FLAGS.ten_crop, FLAGS.snapshots)
        if path.is_file():
            result |= {"file": path.name, "bytes": path.stat().st_size}
        print_scores(result, sys.stderr if FLAGS.predictions == "-" else sys.stdout)
        write_json(output, result)
    if FLAGS.predictions:
        write_predictions(FLAGS.predictions, split, data.wnids, probabilities.argmax(axis=1))


if __name__ == "__main__":
    flags.define_evaluate_flags()
    cli.run(main)
