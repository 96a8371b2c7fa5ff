"""The paper's tables and figures from runs: python report.py --runs=runs/* --out=results

And how one run's network fails on validation, the paper's Figure 8: python report.py --mistakes=runs/googlenet
"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import csv
import functools
import pathlib
import textwrap
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

import flags
import models
from flags import FLAGS
from models import cost
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation, mistakes, schedule
from training.runs import TRAIN_SIZES, Run, find_runs, read_json


class Paper(NamedTuple):
    """A network's row in the paper's Table 3, top-1 in percent, and Table 4, hours on one GPU of 2017."""

    training_top_1: float
    validation_top_1: float
    parameters: str | None = None
    hours: int | None = None


PAPER = {
    "baseline": Paper(34.40, 33.04),
    "alexnet": Paper(46.20, 43.65, "15 million", 19),
    "googlenet": Paper(53.43, 49.40, "1.1 million", 5),
    "resnet20": Paper(58.40, 55.40, "11 million", 14),
}
PAPER_EPOCHS = 10
NO_PAPER = Paper(None, None)

COLUMN = 3.4  # Inches: one of two columns on a page.
STYLE = {
    "font.size": 8,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "svg.hashsalt": "tiny-imagenet-cnns",  # The same figure is the same bytes.
}
# Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, which is faint on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = "osD^vPX<>"
LINES = ("-", "--", ":", "-.")
MARK_EVERY = 0.12  # Of the axes' diagonal.
SMOOTHING = 0.9
SHOWN = 24
LISTED = 50


def of_paper(run: Run) -> Paper:
    """The paper's row of a run's network, if the run is of the real data."""
    return PAPER.get(run.network, NO_PAPER) if run.config["dataset"] == "full" else NO_PAPER


def write_table(out: pathlib.Path, name: str, rows: list[dict], note: str = "", listed: int | None = None) -> None:
    """Writes rows, dicts with the same keys, as NAME.csv and, its first `listed`, as NAME.md with a note below."""

    def cell(value):
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.2f}"
        return f"{value:,}" if isinstance(value, int) else value

    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows[:listed])]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (out / f"{name}.md").write_text(table + (f"\n{note}\n" if note else ""))


def table_3(runs: list[Run]) -> list[dict]:
    """The paper's Table 3: training and validation top-1 in percent. A run cut short has only a note."""
    rows = []
    for run in runs:
        paper, note = of_paper(run), ""
        training_top_1 = validation_top_1 = validation_top_5 = None
        if run.epochs_done:
            training_top_1 = 100 * run.training_top_1()
            validation_top_1 = 100 * float(run.validation["validation_top_1"][-1])
            validation_top_5 = 100 * float(run.validation["validation_top_5"][-1])
        if not run.finished:
            note = "not finished"
            if run.epochs_done:
                note += f"; so far training {training_top_1:.2f}, validation {validation_top_1:.2f}"
            training_top_1 = validation_top_1 = validation_top_5 = None
        elif run.config["dataset"] != "full":
            note = f"{run.config['dataset']} data"

        def difference(ours, papers):
            return None if ours is None or papers is None else ours - papers

        rows.append(
            {
                "run": run.name,
                "network": run.network,
                "epochs": run.progress,
                "training top-1": training_top_1,
                "the paper's training": paper.training_top_1,
                "training difference": difference(training_top_1, paper.training_top_1),
                "validation top-1": validation_top_1,
                "the paper's validation": paper.validation_top_1,
                "validation difference": difference(validation_top_1, paper.validation_top_1),
                "validation top-5": validation_top_5,
                "note": note,
            }
        )
    return rows


@functools.cache
def network_cost(network: str) -> tuple[int, int]:
    """The trainable parameters of a network as it is trained, and its multiply-adds as it infers."""
    trained = models.build(network, training=True)
    return cost.parameters(trained), sum(cost.multiply_adds(models.build(network)))


def hours(run: Run) -> tuple[float | None, str]:
    """The hours of the paper's ten epochs at the run's own speed, and a note where it did not do just these."""
    if run.time is None or run.time["steps"] < 1:
        return None, "not timed"
    steps = schedule.num_steps(PAPER_EPOCHS, TRAIN_SIZES[run.config["dataset"]], run.config["batch_size"])
    note = "" if run.time["steps"] == steps else f"time scaled from {run.time['steps']:,} steps to {steps:,}"
    return run.time["seconds"] / run.time["steps"] * steps / 3600, note


def table_4(runs: list[Run]) -> list[dict]:
    """The paper's Table 4: parameters and time; and the multiply-adds of one 56x56 image's inference."""
    rows = []
    for run in runs:
        parameters, multiply_adds = network_cost(run.network)
        time, note = hours(run)
        rows.append(
            {
                "run": run.name,
                "network": run.network,
                "parameters": parameters,
                "the paper's parameters": of_paper(run).parameters,
                "multiply-adds (millions)": multiply_adds / 1e6,
                "hours for 10 epochs": time,
                "the paper's hours": of_paper(run).hours,
                "device": run.time["device"] if time is not None else None,
                "note": note if run.finished else "; ".join(filter(None, ["not finished", note])),
            }
        )
    return rows


def compression(runs: list[Run]) -> list[dict]:
    """The size and accuracy of each TFLite model that evaluate.py has scored beside its run; accuracy in percent.

    What is lost is against the run's own evaluation.json, where both are of validation, by the centre crop.
    """

    def plain(result):
        keys = ("split", "ten_crop", "snapshots")
        return result is not None and tuple(map(result.get, keys)) == ("validation", False, 1)

    rows = []
    for run in runs:
        own = read_json(run.path / "evaluation.json", split=str, top_1=(int, float))
        for name in ("model", "model_int8"):
            result = read_json(run.path / f"evaluation_{name}.json", split=str, top_1=(int, float), bytes=int)
            if result is None:
                continue
            lost = 100 * (own["top_1"] - result["top_1"]) if plain(own) and plain(result) else None
            rows.append(
                {
                    "run": run.name,
                    "network": run.network,
                    "file": f"{name}.tflite",
                    "bytes": result["bytes"],
                    "top-1": 100 * float(result["top_1"]),
                    "accuracy lost": lost,
                    "note": "" if run.finished else f"not finished: {run.progress} epochs",
                }
            )
    return rows


def style(run: Run, runs: list[Run]) -> dict:
    """How its lines are drawn: a colour and a marker for each network; a kind of line for each run of the same."""
    number = list(dict.fromkeys(other.network for other in runs)).index(run.network)
    same = [other.name for other in runs if other.network == run.network]
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[same.index(run.name) % len(LINES)],
    }


def axes_of(xlabel: str, ylabel: str) -> Axes:
    """The axes of a new figure, one column wide."""
    axes = Figure().subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return axes


def legend(axes: Axes) -> Figure:
    """Puts the legend below the axes, in a figure as high as it needs."""
    labels = axes.get_legend_handles_labels()[1]
    columns = 2 if max(map(len, labels), default=0) <= 22 else 1
    lines = sum(1 + label.count("\n") for label in labels) / columns
    axes.figure.set_size_inches(COLUMN, 2.3 + 0.15 * lines)
    axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return axes.figure


def figure_5(runs: list[Run]) -> Figure:
    """The learning rate by step: a line for each schedule, the longest run's of those that share it."""
    axes = axes_of("step", "learning rate")
    groups = {}
    for run in runs:
        keys = ("dataset", "learning_rate", "batch_size", "num_epochs", "num_cycles")
        groups.setdefault(tuple(map(run.config.get, keys)), []).append(run)
    for number, group in enumerate(groups.values()):
        longest = max(group, key=lambda run: run.training["step"].max(initial=0))
        names = textwrap.fill(", ".join(run.name for run in group), 50)
        look = style(longest, runs) if len(group) == 1 else {"color": "0.3", "linestyle": LINES[number % len(LINES)]}
        rates = longest.training["learning_rate"]
        axes.plot(longest.training["step"], rates, label=names, markevery=MARK_EVERY, **look)
    axes.set_ylim(bottom=0)
    return legend(axes)


def figure_6(runs: list[Run]) -> Figure:
    """Validation top-1 by epoch; as stars, where the paper's networks end."""
    axes = axes_of("epoch", "validation top-1 (%)")
    for run in runs:
        epochs, top_1 = run.validation["epoch"], 100 * run.validation["validation_top_1"]
        axes.plot(epochs, top_1, label=run.label, markevery=max(1, len(epochs) // 10), **style(run, runs))
    stars = {run.network: run for run in runs if of_paper(run).validation_top_1}
    for run in stars.values():
        look = {"markerfacecolor": "white", "markeredgecolor": style(run, runs)["color"], "clip_on": False}
        axes.plot(PAPER_EPOCHS, of_paper(run).validation_top_1, "*", markersize=8, **look)
    if stars:
        axes.plot(
            [], [], "*", markersize=8, label="the paper's end points", markerfacecolor="white", markeredgecolor="0.3"
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return legend(axes)


def smooth(values: np.ndarray) -> np.ndarray:
    """The exponential moving average, its start corrected as TensorBoard's and Adam's: (R,) to (R,)."""
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        averages.append(average / (1 - SMOOTHING**count))
    return np.array(averages)


def figure_7(runs: list[Run]) -> Figure:
    """The training loss by step: each row of metrics.csv, thin and light, and smoothed."""
    axes = axes_of("step", "training loss")
    for run in runs:
        known = np.isfinite(run.training["loss"])
        steps, loss = run.training["step"][known], run.training["loss"][known]
        look = style(run, runs)
        axes.plot(steps, loss, color=look["color"], linewidth=0.4, alpha=0.35)
        axes.plot(steps, smooth(loss), label=run.label, markevery=MARK_EVERY, **look)
    return legend(axes)


def write_comparison(runs: list[Run], out: pathlib.Path) -> None:
    """Writes Tables 3 and 4, Figures 5 to 7 and, where there are TFLite models, what their compression costs."""
    note = "Top-1 and top-5 in percent; training's is the mean over the last epoch's steps, of augmented images."
    write_table(out, "table_3", table_3(runs), note)
    write_table(out, "table_4", table_4(runs), "The paper's hours are those of one GPU of 2017.")
    compressed = compression(runs)
    if compressed:
        write_table(out, "compression", compressed, "Top-1 and what is lost of it in percent, of validation.")
    for draw in (figure_5, figure_6, figure_7):
        figure = draw(runs)
        figure.savefig(out / f"{draw.__name__}.png", metadata={"Software": None})
        figure.savefig(out / f"{draw.__name__}.svg", metadata={"Date": None, "Creator": None})


def contact_sheet(images: list[np.ndarray], titles: list[str], columns: int = 6) -> Figure:
    """Images side by side, each below its title."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.2 * columns, 1.5 * max(rows, 1)), layout="constrained")
    for number, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image)
        axes.set_title(title, fontsize=7)
        axes.axis("off")
    return figure


def confusion_figure(confusion: np.ndarray, wnids: list[str]) -> Figure:
    """Of each class the share of its images that got each answer; by WordNet id, which puts like beside like."""
    order = np.argsort(wnids)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.5, 3.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares[np.ix_(order, order)], cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="none")
    axes.set_xlabel("answer, by WordNet id")
    axes.set_ylabel("label, by WordNet id")
    figure.colorbar(image, label="share of the label's images")
    return figure


def detail_table(detail: np.ndarray, right: np.ndarray, ambiguous: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Accuracy by how much detail images have, in fifths of all images and of each class's.

    A class of skies has less detail than one of carpets, and may be known better for another reason: the fifths of each
    class hold the same classes.

    Args:
      detail: (N,) floats; see `mistakes.detail`.
      right: (N,) bools, whether the answer is the label.
      ambiguous: (N,) bools, whether the label may be ambiguous.
      labels: (N,) ints.
    """

    def percent(of, chosen):
        return 100 * float(of[chosen].mean()) if chosen.any() else None

    rows = []
    of_all, of_class = mistakes.quintiles(detail, np.zeros_like(labels)), mistakes.quintiles(detail, labels)
    for fifth in range(5):
        row = {"fifth by detail": f"{fifth + 1}{' (least)' if fifth == 0 else ' (most)' if fifth == 4 else ''}"}
        for name, fifths in (("of all", of_all), ("of each class", of_class)):
            chosen = fifths == fifth
            row |= {f"images, {name}": int(chosen.sum()), f"top-1, {name}": percent(right, chosen)}
            row |= {f"ambiguous, {name}": percent(ambiguous, chosen)}
        rows.append(row)
    return rows


def write_mistakes(
    split: input_pipeline.Split,
    wnids: list[str],
    words: list[str],
    centre_crop: np.ndarray,
    ten_crop: np.ndarray,
    out: pathlib.Path,
) -> None:
    """Writes how a network fails on labelled images; see `training.mistakes` for what is measured.

    Args:
      split: The images.
      wnids: The WordNet id of each label.
      words: What each means.
      centre_crop: The probabilities of the images, (N, C), by the centre crop: what is scored.
      ten_crop: Those over the ten crops: what tells an ambiguous label, since it depends less on the crop.
      out: The folder.
    """
    labels, answers = split.labels, centre_crop.argmax(axis=1)
    words = [word.split(",")[0] for word in words]  # The first of each class's synonyms.
    details = mistakes.detail(split.images)
    confusion = mistakes.confusion_matrix(labels, answers, len(wnids))

    with (out / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *wnids])
        writer.writerows([wnid, *row] for wnid, row in zip(wnids, confusion.tolist(), strict=True))
    confusion_figure(confusion, wnids).savefig(out / "confusion.png")

    pairs = [
        {
            "class": words[a],
            "wnid": wnids[a],
            "taken for": words[b],
            "its wnid": wnids[b],
            "times": int(confusion[a, b]),
            "and the other way": int(confusion[b, a]),
            "both": int(confusion[a, b] + confusion[b, a]),
        }
        for a, b in mistakes.confused_pairs(confusion).tolist()
    ]
    if pairs:
        write_table(out, "confused_pairs", pairs, listed=LISTED)

    accuracy, wrong = mistakes.class_accuracy(confusion), confusion - np.diag(confusion.diagonal())
    classes = [
        {
            "wnid": wnids[label],
            "class": words[label],
            "images": int(confusion[label].sum()),
            "top-1": 100 * float(accuracy[label]),
            "most often taken for": words[wrong[label].argmax()] if wrong[label].any() else None,
            "times": int(wrong[label].max()),
        }
        for label in np.argsort(-accuracy, kind="stable").tolist()
    ]
    write_table(out, "classes", classes, "Top-1 in percent.")

    def write_images(name, sheet, chosen, probabilities, others):
        """A table of the chosen images with, of their labels and of other classes, the probabilities; and a sheet."""
        own, other = (probabilities[chosen, of[chosen]].tolist() for of in (labels, others))
        rows = [
            {
                "image": str(split.ids[i]),
                "label": wnids[labels[i]],
                "its words": words[labels[i]],
                "probability": own[rank],
                "other": wnids[others[i]],
                "the other's words": words[others[i]],
                "the other's probability": other[rank],
                "detail": float(details[i]),
            }
            for rank, i in enumerate(chosen.tolist())
        ]
        if not rows:
            return
        write_table(out, name, rows, listed=LISTED)
        shown = rows[:SHOWN]
        names = ("its words", "the other's words", "the other's probability")
        titles = [
            f"{word[:20]}\n{other[:20]} {share:.0%}" for word, other, share in (map(row.get, names) for row in shown)
        ]
        contact_sheet([split.images[i] for i in chosen[:SHOWN]], titles).savefig(out / f"{sheet}.png")

    wrong_images = mistakes.confident_mistakes(centre_crop, labels)
    write_images("mistakes", "figure_8", wrong_images, centre_crop, answers)
    ambiguous = mistakes.ambiguous(ten_crop, labels)
    write_images("ambiguous", "ambiguous", ambiguous, ten_crop, mistakes.confident_classes(ten_crop, labels))
    is_ambiguous = np.isin(np.arange(len(labels)), ambiguous)
    note = "Top-1 and possibly ambiguous labels in percent; detail is the variance of the Laplacian."
    write_table(out, "detail", detail_table(details, answers == labels, is_ambiguous, labels), note)
    print(f"{len(wrong_images):,} of {len(labels):,} wrong; {len(ambiguous):,} labels possibly ambiguous")


def main(_) -> None:
    if FLAGS.mistakes is None:
        runs = find_runs(FLAGS.runs)
        out = pathlib.Path(FLAGS.out or "results")
        out.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            write_comparison(runs, out)
    else:
        run_dir = pathlib.Path(FLAGS.mistakes)
        model, _ = checkpoints.load_model(run_dir)
        dataset = checkpoints.read_config(run_dir)["dataset"]
        data = input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive)
        out = pathlib.Path(FLAGS.out or run_dir / "mistakes")
        out.mkdir(parents=True, exist_ok=True)
        split = data.splits["validation"]
        print(f"scoring {len(split):,} images by the centre crop and by the ten crops", flush=True)
        centre_crop, ten_crop = (
            evaluation.predict(evaluation.classifier(model, data.mean_image, ten), split) for ten in (False, True)
        )
        with matplotlib.rc_context(STYLE):
            write_mistakes(split, data.wnids, data.words, centre_crop, ten_crop, out)
    print(f"written to {out}")


if __name__ == "__main__":
    flags.define_report_flags()
    flags.run(main)
