"""Scores a run or a SavedModel on Tiny ImageNet: python evaluate.py --run_dir=runs/googlenet"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import pathlib
import re
import sys

import tensorflow as tf

import flags
from flags import FLAGS
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation


flags.define_evaluate_flags()


def saved_model_classifier(path: pathlib.Path) -> evaluation.Classifier:
    """A SavedModel that train.py exported."""
    signature = tf.saved_model.load(str(path)).signatures.get("serving_default")
    if (
        signature is None
        or list(signature.structured_input_signature[1]) != ["images"]
        or "probabilities" not in signature.structured_outputs
    ):
        raise ValueError(
            f"{path} is no SavedModel of train.py's: serving_default does not turn images to probabilities"
        )
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
    output = pathlib.Path(FLAGS.output or (weights if FLAGS.run_dir else weights.parent) / "evaluation.json")
    for path in (output, pathlib.Path(FLAGS.predictions or "-")):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is no folder: {path.name} cannot be written there")
    dataset = FLAGS.dataset or (checkpoints.read_config(weights)["dataset"] if FLAGS.run_dir else "full")
    data = input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive)
    split = data.splits[FLAGS.split]
    if FLAGS.run_dir:
        classify = evaluation.classifier(checkpoints.load_model(weights), data.mean_image, FLAGS.ten_crop)
    else:
        classify = saved_model_classifier(weights)
    probabilities = evaluation.predict(classify, split, FLAGS.batch_size)

    if FLAGS.split != "test":
        scores = evaluation.accuracy(probabilities, split.labels)
        table = sys.stderr if FLAGS.predictions == "-" else sys.stdout
        print(f"{'split':<12}{'images':>8}{'crops':>7}{'top-1':>9}{'top-5':>9}", file=table)
        views = 10 if FLAGS.ten_crop else 1
        print(f"{FLAGS.split:<12}{len(split):>8}{views:>7}{scores['top_1']:>9.2%}{scores['top_5']:>9.2%}", file=table)
        checkpoints.write_json(output, evaluation.result(scores, FLAGS.split, split, FLAGS.ten_crop))
    if FLAGS.predictions:
        write_predictions(FLAGS.predictions, split, data.wnids, probabilities.argmax(axis=1))


if __name__ == "__main__":
    flags.run(main)
