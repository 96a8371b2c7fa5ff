"""The tables of runs: the paper's 3 and 4, epochs, snapshots, compression, the size of objects."""

import functools

import models
from models import cost
from reporting import paper
from reporting.runs import OBJECT_SIZE_COLUMNS, Group, Run
from reporting.writing import Row, Spread, Table, interval, mean, over_seeds
from tiny_imagenet import input_pipeline


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


def validation(runs: list[Run], evaluation: str, name: str) -> Row:
    """The cells of a validation top-1 and of its interval."""
    top_1 = over_seeds(percent(run, evaluation) for run in runs)
    images = 0 if top_1 is None else runs[0].evaluations[evaluation]["images"]
    return {f"validation top-1, {name}": top_1, f"95% interval, {name}": interval(top_1, images)}


def table_3(groups: list[Group]) -> Table:
    """The paper's Table 3. A run that is not finished has only a note."""
    rows, samples = [], set()
    for group in groups:
        runs, name = group.finished, "evaluation_train_ten_crop"
        samples |= {run.evaluations[name]["images"] for run in runs if name in run.evaluations}
        rows.append(
            {
                "run": group.name,
                "epochs": group.config["num_epochs"],
                "seeds": len(runs) or None,
                "training top-1, ten crops": over_seeds(percent(run, name) for run in runs),
                "the paper's training": group.published.training_top_1,
                **validation(runs, "evaluation", "centre crop"),
                "the paper's validation": group.published.validation_top_1,
                **validation(runs, "evaluation_ten_crop", "ten crops"),
                "validation top-5, ten crops": over_seeds(percent(run, "evaluation_ten_crop", "top_5") for run in runs),
                "note": not_finished(group),
            }
        )
    note = (
        "In percent. Validation uses all validation images after the last epoch. The paper does not say how it crops "
    )
    note += "them, so its figure stands between the two. The intervals are Wilson's 95% score intervals; they do not "
    note += "cover the differences between seeds."
    if samples:
        sizes = " or ".join(f"{images:,}" for images in sorted(samples))
        note += f" Training uses a random sample of {sizes} training images."
    return Table("table_3", "Table 3: accuracy", rows, note + several_seeds(rows))


def several_seeds(rows: list[Row]) -> str:
    """What ± means, if it is used."""
    several = any(isinstance(value, Spread) for row in rows for value in row.values())
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
    return Table("epochs", "Validation by epoch", rows, note + several_seeds(rows))


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
    return Table("snapshots", "What snapshots add", rows, note + several_seeds(rows))


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


def object_size(groups: list[Group]) -> Table:
    """The top-1 by the area of the objects' boxes, a column for each group; see `mistakes.object_size_rows`."""
    found = {}
    for group in groups:
        for run in group.finished:
            for row in run.object_size if run.config["dataset"] == "full" else ():
                fifth = tuple(row[key] for key in OBJECT_SIZE_COLUMNS[:3])
                found.setdefault(fifth, {}).setdefault(group.name, []).append(row["top-1"])
    names = dict.fromkeys(name for top_1 in found.values() for name in top_1)
    rows = [
        dict(zip(OBJECT_SIZE_COLUMNS[:3], fifth, strict=True))
        | {name: over_seeds(top_1.get(name, ())) for name in names}
        for fifth, top_1 in found.items()
    ]
    note = "Validation top-1 in percent, by the centre crop, in fifths of the images by the area of the object's "
    note += "bounding box. The 95% intervals are in each run's table."
    return Table("object_size", "Accuracy by the object's size", rows, note + several_seeds(rows))
