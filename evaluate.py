"""Scores a run or a SavedModel on Tiny ImageNet: python evaluate.py --run_dir=runs/googlenet"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import json
import pathlib
import re
import sys

import tensorflow as tf

import flags
import models
from flags import FLAGS
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation


flags.define_evaluate_flags()


def run_classifier(run_dir: pathlib.Path, mean_image) -> evaluation.Classifier:
    """The network of a run in float32, with the weights of its newest checkpoint."""
    if not (run_dir / "config.json").exists():
        raise FileNotFoundError(f"{run_dir} is no run: it holds no config.json")
    config = json.loads((run_dir / "config.json").read_text())
    model = models.build(config["model"], **models.FOR_TRAINING.get(config["model"], {}))
    checkpoints.restore_model(run_dir, model)
    return evaluation.classifier(model, mean_image, FLAGS.ten_crop)


def saved_model_classifier(path: pathlib.Path) -> evaluation.Classifier:
    """A SavedModel that train.py exported."""
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    return lambda images: signature(images=images)["probabilities"]


def write_predictions(path: str, split: input_pipeline.Split, wnids: list[str], classes) -> None:
    """Writes the challenge's format: a line `test_0.JPEG n02124075` an image, by the images' numbers."""
    lines = {id: f"{id} {wnids[label]}\n" for id, label in zip(split.ids, classes, strict=True)}
    text = "".join(lines[id] for id in sorted(lines, key=lambda id: [int(number) for number in re.findall(r"\d+", id)]))
    if path == "-":
        sys.stdout.write(text)
    else:
        pathlib.Path(path).write_text(text)


def main(_) -> None:
    weights = pathlib.Path(FLAGS.run_dir or FLAGS.saved_model)
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    split = data.splits[FLAGS.split]
    classify = run_classifier(weights, data.mean_image) if FLAGS.run_dir else saved_model_classifier(weights)
    probabilities = evaluation.predict(classify, split, FLAGS.batch_size)
    if FLAGS.predictions:
        write_predictions(FLAGS.predictions, split, data.wnids, probabilities.argmax(axis=1))
    if FLAGS.split == "test":
        return
    scores = evaluation.accuracy(probabilities, split.labels)
    result = evaluation.result(scores, FLAGS.split, split, FLAGS.ten_crop)
    output = FLAGS.output or (weights if FLAGS.run_dir else weights.parent) / "evaluation.json"
    checkpoints.write_json(pathlib.Path(output), result)
    print(f"{'split':<12}{'images':>8}{'crops':>7}{'top-1':>9}{'top-5':>9}")
    number, views = len(split), 10 if FLAGS.ten_crop else 1
    print(f"{FLAGS.split:<12}{number:>8}{views:>7}{scores['top_1']:>9.2%}{scores['top_5']:>9.2%}")


if __name__ == "__main__":
    flags.run(main)
