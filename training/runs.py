"""Reads what runs have written, finished or still going on, or what results/ keeps of it; no checkpoint is needed."""

import csv
import dataclasses
import glob
import json
import os
import pathlib
import sys

import numpy as np

import models
from tiny_imagenet.errors import UserError
from tiny_imagenet.tiny_imagenet_dataset_builder import Builder
from training import checkpoints

TRAIN_SIZES = {config.name: config.num_classes * config.train_per_class for config in Builder.BUILDER_CONFIGS}
TRAINING_FIELDS = ("step", "epoch", "learning_rate", "loss", "top_1")
VALIDATION_FIELDS = ("step", "epoch", "validation_top_1", "validation_top_5")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says of its run, which may still be going on.

    Attributes:
      path: The directory.
      name: What the tables and figures call it.
      config: config.json.
      training: The columns of metrics.csv's training rows, by TRAINING_FIELDS: (R,) float64 each.
      validation: Those of its validation rows, one an epoch, by VALIDATION_FIELDS: (E,) float64 each.
      time: time.json; None if there is none.
    """

    path: pathlib.Path
    name: str
    config: dict
    training: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    time: dict | None

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
        return f"{self.epochs_done} of {self.config['num_epochs']}"

    @property
    def label(self) -> str:
        return self.name if self.finished else f"{self.name} ({self.progress} epochs)"

    def training_top_1(self) -> float:
        """The mean over the steps of the last finished epoch, as a fraction.

        Raises:
          UserError: if metrics.csv has no training row of that epoch.
        """
        steps = np.diff(self.training["step"], prepend=0)
        top_1 = self.training["top_1"]
        known = (self.training["epoch"] == self.epochs_done) & np.isfinite(top_1)  # NaN: all of its steps were skipped.
        if not known.any():
            raise UserError(f"{self.path / 'metrics.csv'} is damaged: epoch {self.epochs_done} has no training row")
        return float(np.average(top_1[known], weights=steps[known]))


def damaged(path: pathlib.Path, reason: object) -> UserError:
    return UserError(f"{path} is damaged ({reason}): put it back, or leave its run out")


def read_json(path: pathlib.Path, **types: type) -> dict | None:
    """A JSON object that has the keys of `types`, each of its type; None if there is no such file.

    Raises:
      UserError: if it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(path, error) from error
    for key, kind in types.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise damaged(path, f"it gives no {key}")
    return content


def read_metrics(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The training and the validation rows of a metrics.csv, by column; of a run that has yet to write it, none.

    Raises:
      UserError: if it is damaged anywhere but in a last line that is still being written.
    """
    training_rows, validation_rows = [], []
    try:
        text = path.read_text() if path.exists() else ""
    except ValueError as error:
        raise damaged(path, error) from error
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), strict=True)
    try:
        if reader.fieldnames and not {*TRAINING_FIELDS, *VALIDATION_FIELDS} <= set(reader.fieldnames):
            raise ValueError("columns are missing")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("it is too long or too short")
            if row["validation_top_1"]:
                validation_rows.append([float(row[field]) for field in VALIDATION_FIELDS])
            else:
                training_rows.append([float(row[field]) for field in TRAINING_FIELDS])
        training = np.array(training_rows, np.float64).reshape(-1, len(TRAINING_FIELDS))
        validation = np.array(validation_rows, np.float64).reshape(-1, len(VALIDATION_FIELDS))
        for rows in (training, validation):
            if not (np.diff(rows[:, 0], prepend=0) > 0).all():
                raise ValueError("its steps are not in order")
    except (ValueError, csv.Error) as error:
        raise damaged(path, f"line {reader.line_num}: {error}") from error
    return dict(zip(TRAINING_FIELDS, training.T, strict=True)), dict(zip(VALIDATION_FIELDS, validation.T, strict=True))


def read_run(path: pathlib.Path, name: str) -> Run:
    """Reads a run directory, or what results/ keeps of one: it needs no checkpoint.

    Raises:
      UserError: if a file is damaged.
    """
    config = checkpoints.read_config(path)
    for key in ("num_epochs", "batch_size"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise damaged(path / "config.json", f"it gives no {key}")
    if config["dataset"] not in TRAIN_SIZES:
        raise damaged(path / "config.json", f"it gives dataset {config['dataset']!r}")
    training_rows, validation_rows = read_metrics(path / "metrics.csv")
    time = read_json(path / "time.json", seconds=(int, float), steps=int, device=str)
    return Run(path, name, config, training_rows, validation_rows, time)


def find_runs(patterns: list[str]) -> list[Run]:
    """Reads the run directories that patterns match, in the order of the networks; others are told of and left out.

    Raises:
      UserError: if there is none.
    """
    paths = {}
    for pattern in map(os.path.expanduser, patterns):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f"{pattern} is no run: there is no such directory")
        paths |= {os.path.realpath(match): pathlib.Path(match) for match in matches if os.path.isdir(match)}
    with_config = []
    for path in paths.values():
        if (path / "config.json").exists():
            with_config.append(path)
        else:
            print(f"report.py: {path} holds no config.json: it is left out", file=sys.stderr)
    if not with_config:
        raise UserError(f"--runs={','.join(patterns)}: no directory there holds a run")
    names = [path.resolve().name for path in with_config]
    unique = [name if names.count(name) == 1 else str(path) for name, path in zip(names, with_config, strict=True)]
    runs = [read_run(path, name) for path, name in zip(with_config, unique, strict=True)]
    return sorted(runs, key=lambda run: (list(models.REGISTRY).index(run.network), run.name))
