"""Writes the paper's tables and figures from runs: python report.py --runs='runs/*'

Writes one network's mistakes on the validation images, with the paper's Figure 8:
python report.py --mistakes=runs/googlenet, or --mistakes=resnet20 for the trained weights in weights/
"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import os
import pathlib

import matplotlib

import flags
import models
from flags import FLAGS
from models import weights
from reporting import figures, mistakes, runs, tables
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation, export


def compare(found: list[runs.Run], out: pathlib.Path) -> None:
    """Writes Figures 5 to 7 and the tables, and prints the tables but for that of the epochs."""
    groups = runs.group(found)
    printed = [of(groups) for of in (tables.table_3, tables.table_4, tables.snapshots, tables.compression)]
    for table in (tables.epochs(groups), *printed):
        tables.write(table, out)
    figures.write(groups, out)
    for table in printed:
        if table.rows:
            print(tables.terminal(table), end="\n\n")


def analyse_mistakes(source: str, out: str | None) -> pathlib.Path:
    """Scores the validation images with a network, writes what it gets wrong, and returns the folder of the result.

    Args:
      source: A run, whose newest checkpoint is used, or the name of a network whose weights come with the repository.
      out: The folder. By default `mistakes`, in the run or in the working directory.
    """
    run_dir = pathlib.Path(source)
    if source in models.REGISTRY and not run_dir.exists():
        model = export.load_weights(source, weights.SHIPPED, "--mistakes=RUN_DIR")
        dataset, folder, wnids = "full", "mistakes", export.wnids_of(weights.FOLDER)
    else:
        model, _ = checkpoints.load_model(run_dir)
        dataset, folder = checkpoints.read_config(run_dir)["dataset"], run_dir / "mistakes"
        wnids = export.wnids_of(run_dir)
    data = input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive).in_order_of(wnids)
    split = data.splits["validation"]
    print(f"scoring {len(split):,} images by the centre crop and by ten crops", flush=True)
    centre_crop, ten_crop = (
        evaluation.predict(evaluation.classifier(model, data.mean_image, ten), split) for ten in (False, True)
    )
    folder = pathlib.Path(out or folder)
    folder.mkdir(parents=True, exist_ok=True)
    mistakes.write(split, data.wnids, data.words, centre_crop, ten_crop, folder)
    return folder


def main(_) -> None:
    with matplotlib.rc_context(figures.STYLE):
        if FLAGS.mistakes:
            out = analyse_mistakes(FLAGS.mistakes, FLAGS.out)
        else:
            found = runs.find_runs(FLAGS.runs)
            parent = os.path.commonpath([run.path.absolute().parent for run in found])
            out = pathlib.Path(FLAGS.out or f"{parent}/report")
            out.mkdir(parents=True, exist_ok=True)
            compare(found, out)
    print(f"written to {out}")


if __name__ == "__main__":
    flags.define_report_flags()
    flags.run(main)
