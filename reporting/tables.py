"""The tables: the paper's 3 and 4, epochs, snapshots, compression; how they are written and printed."""

import csv
import functools
import math
import pathlib
import statistics
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import models
from models import cost
from reporting import paper
from reporting.runs import Group, Run
from tiny_imagenet import input_pipeline

NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)
HEADER_WIDTH = 10  # Characters; a longer header takes several lines on the terminal.


class Spread(NamedTuple):
    """The mean over seeds and their standard deviation."""

    mean: float
    deviation: float


Value = float | int | str | Spread | None
Row = dict[str, Value]


class Table(NamedTuple):
    """A table, its rows with the same keys, and a note to print below it."""

    name: str
    title: str
    rows: list[Row]
    note: str = ""


def over_seeds(values: Iterable[float | None]) -> float | Spread | None:
    """The one value, or the mean and standard deviation (n - 1) of several; None if any is missing."""
    values = list(values)
    if not values or None in values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values)) if len(values) > 1 else values[0]


def mean(value: float | Spread | None) -> float | None:
    return value.mean if isinstance(value, Spread) else value


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share that was measured on a number of images."""
    squared = NORMAL_95**2 / images
    centre = share + squared / 2
    half = NORMAL_95 * math.sqrt(share * (1 - share) / images + squared / images / 4)
    return (centre - half) / (1 + squared), (centre + half) / (1 + squared)


def percent(run: Run, evaluation: str, key: str = "top_1") -> float | None:
    """One of a run's scores in percent; None if it has no such evaluation."""
    return 100 * float(run.evaluations[evaluation][key]) if evaluation in run.evaluations else None


def not_finished(group: Group) -> str:
    """A note that names the runs which are cut short or still in training, with their scores so far."""
    notes = []
    for run in group.runs:
        if not run.finished:
            seed = f"seed {run.config.get('seed')} " if len(group.runs) > 1 else ""
            top_1 = f", top-1 {100 * run.validation['validation_top_1'][-1]:.2f}" if run.epochs_done else ""
            notes.append(f"{seed}not finished; so far {run.progress}{top_1}")
    return "; ".join(notes)


def table_3(groups: list[Group]) -> Table:
    """The paper's Table 3. A run that is not finished has only a note."""
    rows, samples = [], set()
    for group in groups:
        runs = group.finished
        ten_crop = over_seeds(percent(run, "evaluation_ten_crop") for run in runs)
        interval = None
        if ten_crop is not None:
            images = runs[0].evaluations["evaluation_ten_crop"]["images"]
            interval = "{:.2f} to {:.2f}".format(*(100 * end for end in wilson(mean(ten_crop) / 100, images)))
        name = "evaluation_train_ten_crop"
        samples |= {run.evaluations[name]["images"] for run in runs if name in run.evaluations}
        rows.append(
            {
                "run": group.name,
                "epochs": group.config["num_epochs"],
                "seeds": len(runs) or None,
                "training top-1, ten crops": over_seeds(percent(run, name) for run in runs),
                "validation top-1, centre crop": over_seeds(percent(run, "evaluation") for run in runs),
                "validation top-1, ten crops": ten_crop,
                "95% interval": interval,
                "validation top-5, ten crops": over_seeds(percent(run, "evaluation_ten_crop", "top_5") for run in runs),
                "the paper's training": group.published.training_top_1,
                "the paper's validation": group.published.validation_top_1,
                "note": not_finished(group),
            }
        )
    note = "In percent. Validation uses all validation images after the last epoch. The interval is Wilson's 95% score "
    note += "interval of the validation top-1 by ten crops; it does not cover the differences between seeds."
    if samples:
        sizes = " or ".join(f"{images:,}" for images in sorted(samples))
        note += f" Training uses a random sample of {sizes} training images."
    return Table("table_3", "Table 3: accuracy", rows, note + several_seeds(groups))


def several_seeds(groups: list[Group]) -> str:
    """What ± means, if it is used."""
    several = any(len(group.finished) > 1 for group in groups)
    return " ± is the standard deviation over the seeds." if several else ""


def epochs(groups: list[Group]) -> Table:
    """Figure 6 in numbers: the validation top-1 by the centre crop after each epoch, a column for each group."""
    rows = [{"epoch": epoch} for epoch in range(1, 1 + max(group.config["num_epochs"] for group in groups))]
    for group in groups:
        curves = [
            dict(zip(run.validation["epoch"], 100 * run.validation["validation_top_1"], strict=True))
            for run in group.shown
        ]
        for row in rows:
            top_1 = [curve.get(row["epoch"]) for curve in curves]
            row[group.label] = over_seeds(None if value is None else float(value) for value in top_1)
    note = "Validation top-1 in percent after each epoch, by the centre crop, in the precision of the training."
    return Table("epochs", "Validation by epoch", rows, note + several_seeds(groups))


@functools.cache
def network_cost(network: str) -> tuple[int, int]:
    """The trainable parameters of a network as it is trained, and the multiply-adds of one image's inference."""
    trained = models.build(network, training=True)
    return cost.parameters(trained), sum(cost.multiply_adds(models.build(network)))


def table_4(groups: list[Group]) -> Table:
    """The paper's Table 4: parameters and time; and the multiply-adds of one 56x56 image's inference."""
    rows = []
    for group in groups:
        parameters, multiply_adds = network_cost(group.network)
        speed = mean(over_seeds(run.images_per_second for run in group.shown if run.images_per_second))
        images = paper.SETTINGS["num_epochs"] * input_pipeline.train_size(group.config["dataset"])
        rows.append(
            {
                "run": group.name,
                "parameters": parameters,
                "the paper's parameters": group.published.parameters,
                "multiply-adds (millions)": multiply_adds / 1e6,
                "precision": group.config.get("precision"),
                "device": ", ".join(sorted({run.time["device"] for run in group.shown if run.time})),
                "images per second": speed,
                "hours for 10 epochs": images / speed / 3600 if speed else None,
                "the paper's hours": group.published.hours,
                "note": "" if group.finished else "not finished",
            }
        )
    note = "Parameters include auxiliary classifiers, multiply-adds do not. Hours are of training alone, without "
    note += "validation, at the speed shown. The paper's are of a GPU of 2017."
    return Table("table_4", "Table 4: size and time", rows, note)


def of_own_data(run: Run, result: dict | None) -> bool:
    """Returns whether there is an evaluation, of the validation images of the run's dataset."""
    if result is None or result["split"] != "validation":
        return False
    return result.get("dataset") in (None, run.config["dataset"])


def snapshots(groups: list[Group]) -> Table:
    """What averaging the softmax over the last cycles' snapshots adds to the last weights' top-1."""
    rows = []
    for group in groups:
        names = {name for run in group.finished for name in run.evaluations if name.startswith("evaluation_snapshots_")}
        for name in sorted(names, key=lambda name: (len(name), name)):
            runs = [run for run in group.finished if of_own_data(run, run.evaluations.get(name))]
            if not runs:
                continue
            ten_crop = runs[0].evaluations[name]["ten_crop"]
            last = over_seeds(percent(run, "evaluation_ten_crop" if ten_crop else "evaluation") for run in runs)
            averaged = over_seeds(percent(run, name) for run in runs)
            rows.append(
                {
                    "run": group.name,
                    "seeds": len(runs),
                    "cycles": runs[0].evaluations[name]["snapshots"],
                    "crops": 10 if ten_crop else 1,
                    "last weights, top-1": last,
                    "average, top-1": averaged,
                    "added": None if last is None else mean(averaged) - mean(last),
                }
            )
    note = "Validation top-1 in percent, of the last weights and of the mean softmax over the last cycles' snapshots."
    return Table("snapshots", "What snapshots add", rows, note + several_seeds(groups))


def compression(groups: list[Group]) -> Table:
    """The size and accuracy of each file of weights and each TFLite file that evaluate.py scored beside its run.

    The loss is against the run's evaluation.json. A run that is not finished shows only the size.
    """
    rows = []
    for group in groups:
        for run in group.runs:
            for name, result in run.evaluations.items():
                of_file = "file" in result and isinstance(result.get("bytes"), int)
                if not of_file or not of_own_data(run, result) or result["ten_crop"]:
                    continue
                top_1 = percent(run, name) if run.finished else None
                own = percent(run, "evaluation")
                rows.append(
                    {
                        "run": group.name + (f", seed={run.config.get('seed')}" if len(group.runs) > 1 else ""),
                        "file": result["file"],
                        "bytes": result["bytes"],
                        "top-1": top_1,
                        "top-1 lost": None if None in (own, top_1) else own - top_1,
                        "note": "" if run.finished else "not finished",
                    }
                )
    return Table("compression", "What compression costs", rows, "Validation top-1 in percent, by the centre crop.")


def cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, Spread):
        return f"{value.mean:.2f} ± {value.deviation:.2f}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def plain(rows: list[Row]) -> list[dict[str, str]]:
    """The rows of a CSV file: a column with standard deviations is followed by one of theirs."""

    def number(value):
        return f"{value:.6g}" if isinstance(value, float) else value

    spread = {key for row in rows for key, value in row.items() if isinstance(value, Spread)}
    lines = []
    for row in rows:
        line = {}
        for key, value in row.items():
            line[key] = number(mean(value))
            if key in spread:
                line[f"{key}, s.d."] = number(value.deviation) if isinstance(value, Spread) else None
        lines.append(line)
    return lines


def write(table: Table, out: pathlib.Path, listed: int | None = None) -> None:
    """Writes a table as NAME.csv and, its first `listed` rows, as NAME.md; removes both if it has no rows."""
    if not table.rows:
        for suffix in ("csv", "md"):
            (out / f"{table.name}.{suffix}").unlink(missing_ok=True)
        return
    lines = plain(table.rows)
    with (out / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    header = list(table.rows[0])
    rows = [header, ["---"] * len(header), *([cell(value) for value in row.values()] for row in table.rows[:listed])]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    note = f"\n{table.note}\n" if table.note else ""
    (out / f"{table.name}.md").write_text(text + note, encoding="utf-8")


def terminal(table: Table, listed: int | None = None) -> str:
    """The first `listed` rows as aligned text, without empty columns; notes on rows are below."""
    rows = table.rows[:listed]
    columns = []
    for key in rows[0]:
        cells = [cell(row[key]) for row in rows]
        if key != "note" and any(cells):
            width = max(HEADER_WIDTH, *map(len, cells))
            left = any(isinstance(row[key], str) and row[key] for row in rows)
            columns.append((textwrap.wrap(key, width), cells, left))
    height = max(len(header) for header, _, _ in columns)
    lines = [[] for _ in range(height + len(rows))]
    for header, cells, left in columns:
        texts = [""] * (height - len(header)) + header + cells
        width = max(map(len, texts))
        for line, text in zip(lines, texts, strict=True):
            line.append(text.ljust(width) if left else text.rjust(width))
    rule = "-" * max(len("  ".join(line)) for line in lines)
    texts = ["  ".join(line).rstrip() for line in lines]
    notes = [f"{next(iter(row.values()))}: {row['note']}" for row in rows if row.get("note")]
    notes = [*dict.fromkeys(notes), *textwrap.wrap(table.note, 100)]
    return "\n".join([table.title, rule, *texts[:height], rule, *texts[height:], rule, *notes])
