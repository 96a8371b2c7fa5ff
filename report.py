"""Writes the paper's tables and figures from runs: python report.py --runs='runs/*'

Writes one network's mistakes on the validation images, with the paper's Figure 8:
python report.py --mistakes=runs/googlenet, or --mistakes=resnet20 for the trained weights in weights/
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import contextlib
import os
import pathlib

import matplotlib

import flags
import models
from deployment import export
from flags import FLAGS
from models import weights
from reporting import figures, mistake_tables, runs, tables, writing
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation, run_directory


def compare(found: list[runs.Run], out: pathlib.Path) -> None:
    """Writes Figures 5 to 7, the figure of the objects' size and all tables; prints every table except `epochs`."""
    groups = runs.group(found)
    object_size = tables.object_size(groups)
    printed = [make(groups) for make in (tables.table_3, tables.table_4, tables.snapshots, tables.compression)]
    for table in (tables.epochs(groups), *printed, object_size):
        writing.write(table, out)
    for make in (figures.figure_5, figures.figure_6, figures.figure_6_variants, figures.figure_7):
        figures.write(make(groups), make.__name__, out)
    figures.write(figures.object_size(object_size.rows), "object_size", out)
    for table in (*printed, object_size):
        if table.rows:
            print(writing.terminal(table), end="\n\n")


def analyse_mistakes(source: str, out: str | None) -> pathlib.Path:
    """Scores the validation images with a network, writes what it gets wrong, and returns the folder of the result.

    Args:
      source: A run, whose newest checkpoint is used, or the name of a network whose weights come with the repository.
      out: The folder. By default `mistakes`, in the run or in the working directory.
    """
    run_dir = pathlib.Path(source)
    with contextlib.ExitStack() as stack:
        if source in models.REGISTRY and not run_dir.exists():
            model = export.load_weights(source, weights.SHIPPED, "--mistakes=RUN_DIR")
            dataset, folder, wnids = "full", "mistakes", export.wnids_of(weights.FOLDER)
        else:
            dataset, folder = run_directory.read_config(run_dir)["dataset"], run_dir / "mistakes"
            if not out:
                stack.enter_context(run_directory.lock(run_dir))  # Training removes what is outdated.
            model, _ = checkpoints.load_model(run_dir)
            wnids = export.wnids_of(run_dir)
        data = input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive).in_order_of(wnids)
        boxes = input_pipeline.load_boxes("validation", dataset, FLAGS.data_dir, FLAGS.archive)
        split = data.splits["validation"]
        folder = pathlib.Path(out or folder)
        folder.mkdir(parents=True, exist_ok=True)  # Fails before scoring takes its time.
        print(f"scoring {len(split):,} images by the centre crop and by ten crops", flush=True)
        centre_crop, ten_crop = (
            evaluation.predict(evaluation.classifier(model, data.mean_image, ten), split) for ten in (False, True)
        )
        mistake_tables.write_all(model.name, data, boxes, centre_crop, ten_crop, folder)
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
    cli.run(main)
