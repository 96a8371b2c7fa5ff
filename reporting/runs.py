"""Reads the small files of run directories: of finished runs, of runs in training, or the copies in results/."""

import csv
import dataclasses
import glob
import os
import pathlib
import sys

import numpy as np

import models
from reporting import paper
from tiny_imagenet.errors import UserError
from training import run_directory
from training.files import read_json

TRAINING_COLUMNS = ("step", "epoch", "learning_rate", "cross_entropy")
VALIDATION_COLUMNS = ("step", "epoch", "validation_top_1")
OBJECT_SIZE_COLUMNS = ("quintile by area", "area (% of the picture)", "images", "top-1")
NO_RESULT = paper.Result()
UNNAMED = ("model", "precision", "seed", "log_every")  # Keys of config.json that `setting` ignores.


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says about its run.

    Attributes:
      path: The directory.
      name: The directory's name, or its path where two directories have the same name.
      config: The content of config.json.
      training: The TRAINING_COLUMNS of metrics.csv's training rows: (R,) float64 each, NaN where empty.
      validation: The VALIDATION_COLUMNS of its validation rows, one an epoch: (E,) float64 each.
      evaluations: The contents of evaluation*.json, by file name without the extension.
      time: The content of time.json; None without the file.
      object_size: The OBJECT_SIZE_COLUMNS of mistakes/object_size.csv, by row; none without the file.
    """

    path: pathlib.Path
    name: str
    config: dict
    training: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    evaluations: dict[str, dict]
    time: dict | None
    object_size: list[dict]

    @property
    def network(self) -> str:
        return self.config["model"]

    @property
    def epochs_done(self) -> int:
        return int(self.validation["epoch"].max(initial=0))

    @property
    def finished(self) -> bool:
        return self.epochs_done == self.config["num_epochs"]

    @property
    def progress(self) -> str:
        return f"{self.epochs_done} of {self.config['num_epochs']} epochs"

    @property
    def setting(self) -> str:
        """The network, followed by each setting that is not the paper's: "resnet20, num_cycles=1"."""
        settings = paper.SETTINGS | {"momentum": models.REGISTRY[self.network].momentum}
        config = dict(self.config)
        if config.get("momentum") == 0:
            config.pop("nesterov", None)  # It has no effect.
        named = [
            f"{key}={value}"
            for key, value in config.items()
            if key not in UNNAMED and (value != settings[key] if key in settings else value)
        ]
        return ", ".join([self.network, *named])

    @property
    def images_per_second(self) -> float | None:
        """The speed of training, without pauses, checkpoints and validation; None if time.json does not say."""
        if not self.time or not (self.time["steps"] > 0 and self.time["seconds"] > 0):
            return None
        return self.time["steps"] * self.config["batch_size"] / self.time["seconds"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: one row of a table, one line of a figure.

    Attributes:
      name: What the tables and figures call it: the network, and what sets the runs apart from others of it.
      runs: The runs.
    """

    name: str
    runs: list[Run]

    @property
    def network(self) -> str:
        return self.runs[0].network

    @property
    def config(self) -> dict:
        return self.runs[0].config

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def shown(self) -> list[Run]:
        """The runs that figures show: those that are finished, or the longest one if none is."""
        return self.finished or [max(self.runs, key=lambda run: run.training["step"].max(initial=0))]

    @property
    def is_papers(self) -> bool:
        """Whether it is one of the paper's networks with the paper's settings."""
        named = (self.network, f"{self.network}, precision={self.config.get('precision')}")
        return self.network in paper.RESULTS and self.name in named

    @property
    def label(self) -> str:
        return self.name if self.finished else f"{self.name} ({self.shown[0].progress})"

    @property
    def published(self) -> paper.Result:
        """The paper's result for the network; an empty one where it has none, or on other data."""
        return paper.RESULTS.get(self.network, NO_RESULT) if self.config["dataset"] == "full" else NO_RESULT


def damaged(path: pathlib.Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged ({reason}): restore it, or leave its run out")


def read_checked(path: pathlib.Path, **types: type | tuple[type, ...]) -> dict | None:
    """Reads a JSON object with the keys of `types`, each of its type; None if there is no such file.

    Raises:
      UserError: if it is damaged.
    """
    if not path.exists():
        return None
    content = read_json(path)
    for key, kind in types.items():
        if not isinstance(content.get(key), kind):
            raise damaged(path, f"{key} is missing or has the wrong type")
    return content


def read_evaluations(folder: pathlib.Path, last_step: int) -> dict[str, dict]:
    """Reads evaluation*.json.

    A file that is of an earlier step than the run's last is skipped with a line on standard error.

    Raises:
      UserError: if one is damaged.
    """
    number = (int, float)
    types = {"split": str, "images": int, "top_1": number, "top_5": number, "ten_crop": bool, "snapshots": int}
    found = {}
    for path in sorted(folder.glob("evaluation*.json")):
        content = read_checked(path, **types)
        step = content.get("step")  # None: exported files and older versions do not say.
        if step is not None and step < last_step:
            problem = f"it is of step {step}, not {last_step}; score the run again after training"
            print(f"report.py: skipping {path}: {problem}", file=sys.stderr)
        else:
            found[path.stem] = content
    return found


def read_metrics(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads the training and the validation rows of a metrics.csv, by column; none if the run has yet to write it.

    Only the columns that a report uses must be there, so a file of an older version will do.

    Raises:
      UserError: if it is damaged anywhere but in a last line that is still being written.
    """
    columns = (TRAINING_COLUMNS, VALIDATION_COLUMNS)
    rows = ([], [])
    try:
        text = path.read_text() if path.exists() else ""
    except ValueError as error:
        raise damaged(path, error) from error
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), strict=True)
    try:
        missing = {*TRAINING_COLUMNS, *VALIDATION_COLUMNS} - set(reader.fieldnames or ())
        if reader.fieldnames and missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("too many or too few values")
            validation = row["validation_top_1"] != ""
            rows[validation].append([float(row[column] or "nan") for column in columns[validation]])
        arrays = [np.array(of, np.float64).reshape(-1, len(names)) for of, names in zip(rows, columns, strict=True)]
        for array in arrays:
            if not (np.diff(array[:, 0], prepend=0) > 0).all() or np.isnan(array[:, 1]).any():
                raise ValueError("the steps or epochs are not in order")
    except (ValueError, csv.Error) as error:
        raise damaged(path, f"line {reader.line_num}: {error}") from error
    training, validation = (
        dict(zip(names, array.T, strict=True)) for names, array in zip(columns, arrays, strict=True)
    )
    return training, validation


def read_object_size(path: pathlib.Path) -> list[dict]:
    """Reads what `report.py --mistakes` wrote of a run: the OBJECT_SIZE_COLUMNS; none if there is no such file.

    Raises:
      UserError: if it is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: row[key] for key in OBJECT_SIZE_COLUMNS} for row in csv.DictReader(file, strict=True)]
        return [row | {"images": int(row["images"]), "top-1": float(row["top-1"])} for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise damaged(path, error) from error


def read_run(path: pathlib.Path, name: str) -> Run:
    """Reads a run directory; it needs no checkpoint.

    Raises:
      UserError: if a file is damaged.
    """
    config = run_directory.read_config(path)
    for key in ("num_epochs", "batch_size"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise damaged(path / "config.json", f"{key} is missing or not positive")
    training, validation = read_metrics(path / "metrics.csv")
    time = read_checked(path / "time.json", seconds=(int, float), steps=int, device=str)
    last_step = int(training["step"].max(initial=0))
    evaluations = read_evaluations(path, last_step)
    object_size = read_object_size(path / "mistakes" / "object_size.csv")
    return Run(path, name, config, training, validation, evaluations, time, object_size)


def find_runs(patterns: list[str]) -> list[Run]:
    """Reads the run directories that patterns match, in the networks' order.

    A directory without a config.json is skipped, with a line on standard error unless it is an earlier report.

    Raises:
      UserError: if there is none, or a file is damaged.
    """
    paths = {}
    for pattern in map(os.path.expanduser, patterns):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f"--runs={pattern}: there is no such directory")
        paths |= {os.path.realpath(match): pathlib.Path(match) for match in matches if os.path.isdir(match)}
    with_config = []
    for path in paths.values():
        if (path / "config.json").exists():
            with_config.append(path)
        elif not (path / "table_3.csv").exists():
            print(f"report.py: skipping {path}: it has no config.json", file=sys.stderr)
    if not with_config:
        raise UserError(f"--runs={','.join(patterns)}: no directory there holds a run")
    names = [path.resolve().name for path in with_config]
    unique = [name if names.count(name) == 1 else str(path) for name, path in zip(names, with_config, strict=True)]
    runs = [read_run(path, name) for path, name in zip(with_config, unique, strict=True)]
    return sorted(runs, key=lambda run: (list(models.REGISTRY).index(run.network), run.name))


def group(runs: list[Run]) -> list[Group]:
    """Puts runs that differ only in their seed together, in the networks' order, the paper's settings first.

    A group is named after the settings that are not the paper's, and after the precision where it alone sets two groups
    apart. A second run with the same settings and seed gets a group of its own, named after its directory.
    """
    groups = {}
    for run in runs:
        name = run.setting
        if len({other.config.get("precision") for other in runs if other.setting == run.setting}) > 1:
            name += f", precision={run.config.get('precision')}"
        if any(other.config.get("seed") == run.config.get("seed") for other in groups.get(name, ())):
            name += f" ({run.name})"
        groups.setdefault(name, []).append(run)
    networks = list(models.REGISTRY)
    found = [Group(name, members) for name, members in groups.items()]
    return sorted(found, key=lambda group: (networks.index(group.network), group.name != group.network))
