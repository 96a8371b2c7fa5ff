"""The run directory: its configuration, whose it is, and what belongs to it."""

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Collection, Iterator

import models
from tiny_imagenet import locks
from tiny_imagenet.errors import UserError
from tiny_imagenet.input_pipeline import DATASETS
from training.files import read_json, remove_folder

EVENTS_SUFFIX = ".tiny_imagenet"  # Marks this project's TensorBoard events.
EVENTS = f"events.out.tfevents.*{EVENTS_SUFFIX}"
MISTAKES = tuple(
    f"mistakes/{name}.*"
    for name in "mistakes figure_8 ambiguous classes confused_pairs confusion detail object_size".split()
)
WRITTEN = (
    "checkpoints",
    "train",
    "validation",
    "saved_model",
    "metrics.csv",
    "time.json",
    "provenance.json",
    "evaluation*.json",
    "model.keras",
    "classes.json",
    "model.tflite",
    "model_int8.tflite",
    "compressed.weights.h5",
    *MISTAKES,
    "config.json",
)
"""The files of a run. config.json is removed last: a folder with others of them but without it is another program's."""
OUTDATED = (
    "model.keras",
    "model.tflite",
    "model_int8.tflite",
    "compressed.weights.h5",
    "evaluation_model*.json",
    "evaluation_compressed*.json",
    "evaluation_saved_model*.json",
    *MISTAKES,
)
"""Files that training makes outdated, beside the SavedModel. They do not record their step."""
RESULTS = ("time.json", "evaluation*.json", "model.keras", "saved_model")
"""What only a run with checkpoints writes: without any, they were deleted, or the run's small files copied."""
CHECKPOINTS = ("checkpoints/ckpt-*", "checkpoints/snapshots/snapshot-*")


def read_config(run_dir: pathlib.Path) -> dict:
    """Returns the configuration of the run that the directory holds.

    Raises:
      UserError: if it holds none, or its config.json is damaged.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise UserError(f"{run_dir} is not a run: it has no config.json; use a folder that train.py wrote")
    remedy = "restore it, or use another run"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(config, dict) or config.get("model") not in models.REGISTRY:
        raise UserError(f"{path} is damaged (it names no known model): {remedy}")
    if config.get("dataset") not in DATASETS:
        raise UserError(f"{path} is damaged (it names no known dataset): {remedy}")
    for key in ("num_epochs", "num_cycles"):
        if key in config and (not isinstance(config[key], int) or config[key] < 1):
            raise UserError(f"{path} is damaged (it gives {key}={config[key]!r}): {remedy}")
    return _in_current_terms(config)


def _in_current_terms(config: dict) -> dict:
    """Returns a configuration of an older version in the terms of this one.

    Until there was `augmentation`, `all_crops` was its last value, and `sync_batch_norm` was the default. `exclude` is
    newer still.
    """
    config = {"exclude": ""} | config
    if "augmentation" in config:
        return config
    kept = {key: value for key, value in config.items() if (key, value) != ("sync_batch_norm", True)}
    return kept | {"augmentation": "all_crops" if kept.pop("all_crops", False) else "ten_crop"}


def describe_exclusion(file: str | pathlib.Path, ids: Collection[str]) -> str:
    """Returns what config.json says of --exclude: the file's name, and the number and a checksum of its ids."""
    digest = hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()
    return f"{pathlib.Path(file).name} ({len(ids)} images {digest[:8]})"


def dataset_of(file: pathlib.Path) -> str:
    """Returns the dataset of the run that a file is in, beside its config.json; "full" if it is in none."""
    dataset = read_json(file.parent / "config.json").get("dataset")
    return dataset if dataset in DATASETS else "full"


def has_run(run_dir: pathlib.Path) -> bool:
    """Returns whether the directory holds a run. A run exists from its first checkpoint on."""
    return (run_dir / "config.json").exists() and bool(checkpoint_steps(run_dir))


def check_config(run_dir: pathlib.Path, config: dict, resume: bool = True, may_change_cycles: bool = False) -> None:
    """Checks that a run may start in the directory, or resume there with this configuration.

    What a failed start has left does not count as a run, as it has no checkpoint and no results.

    Args:
      run_dir: The directory, which need not exist.
      config: The configuration.
      resume: Whether a run may be resumed.
      may_change_cycles: Whether a run with more epochs than before may have cycles of another length than before.

    Raises:
      UserError: if it is a file, or if it holds files of another program, a run of another configuration, one that
        may not resume, or one whose checkpoints were deleted.
    """
    kept = _read_own_config(run_dir)
    if kept is None:
        return
    if not has_run(run_dir):
        if any(path for pattern in RESULTS for path in run_dir.glob(pattern)):
            raise UserError(f"{run_dir} holds a run without checkpoints: add --overwrite, or pass another --run_dir")
        return
    if config.keys() - kept.keys():
        raise UserError(
            f"{run_dir} holds a run of an older version, which cannot be trained further: add --overwrite, or pass "
            "another --run_dir"
        )
    if not resume:
        raise UserError(f"{run_dir} holds a run: drop --noresume, add --overwrite, or pass another --run_dir")
    if config["num_epochs"] > kept["num_epochs"]:
        # The learning rate depends on both numbers, by the length of a cycle.
        epochs, cycles = kept["num_epochs"], kept["num_cycles"]
        same_length = config["num_epochs"] * cycles / epochs
        if config["num_cycles"] != same_length and not may_change_cycles:
            keep = f"pass --num_cycles={same_length:g} to keep their length, or " if same_length.is_integer() else ""
            raise UserError(
                f"{run_dir} has {cycles} cycles in {epochs} epochs: {keep}pass --num_cycles to change their length"
            )
        kept = kept | {key: config[key] for key in ("num_epochs", "num_cycles")}
    differing = [f"{key}={kept[key]}, not {value}" for key, value in config.items() if kept[key] != value]
    if differing:
        raise UserError(
            f"{run_dir} holds a run with {'; '.join(differing)}: use the same flags, or pass another --run_dir"
        )


def _read_own_config(run_dir: pathlib.Path) -> dict | None:
    """Returns the configuration that the last start of train.py in the directory wrote; None if there was none.

    Raises:
      UserError: if it is a file, or if it holds files of another program.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file: pass another --run_dir")
    if not (run_dir / "config.json").exists():
        for path in (path for name in WRITTEN for path in run_dir.glob(name)):
            raise UserError(f"{path} was not written by a run of this project: pass another --run_dir")
        return None
    return read_config(run_dir)


def remove_run(run_dir: pathlib.Path) -> None:
    """Removes the run that the directory holds: the folder saved_model, and otherwise only what this project wrote.

    Raises:
      UserError: if the directory holds no run of this project.
    """
    if _read_own_config(run_dir) is None:
        return
    remove_partial_checkpoints(run_dir / "checkpoints")
    for folder in ("saved_model", "saved_model.partial"):
        remove_folder(run_dir / folder)
    for pattern in (*CHECKPOINTS, f"train/{EVENTS}", f"validation/{EVENTS}", "partial.*", *WRITTEN):
        for path in run_dir.glob(pattern):
            if path.is_file():
                path.unlink()
    for folder in ("checkpoints/snapshots", "checkpoints", "train", "validation", "mistakes"):
        with contextlib.suppress(OSError):  # It holds other files, or does not exist.
            (run_dir / folder).rmdir()


def remove_outdated(run_dir: pathlib.Path) -> None:
    """Removes exported networks and their scores before a run is trained further."""
    for pattern in OUTDATED:
        for path in run_dir.glob(pattern):
            path.unlink()
    remove_folder(run_dir / "saved_model")


@contextlib.contextmanager
def lock(run_dir: pathlib.Path) -> Iterator[None]:
    """Makes the run directory, and keeps other processes from writing to it until the block or the process ends.

    A file system that does not support locks gets none.

    Raises:
      UserError: if another process has locked it.
      OSError: if it cannot be made.
    """

    def refuse():
        raise UserError(f"another process is writing to {run_dir}: wait until it ends, or use another folder")

    run_dir.mkdir(parents=True, exist_ok=True)
    with locks.lock(run_dir / ".lock", refuse):
        yield


def checkpoint_steps(run_dir: pathlib.Path) -> list[int]:
    """Returns the steps of the run's checkpoints, the newest first. The index of a checkpoint is written last."""
    names = [path.stem.removeprefix("ckpt-") for path in (run_dir / "checkpoints").glob("ckpt-*.index")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def remove_partial_checkpoints(folder: pathlib.Path) -> None:
    """Removes checkpoints that were not written to their end."""
    for name in ("ckpt", "snapshot"):
        for path in folder.rglob(f"{name}-*_temp*"):
            shutil.rmtree(path, ignore_errors=True)
        for data in folder.rglob(f"{name}-*.data-*"):
            if not data.with_name(f"{data.name.partition('.data-')[0]}.index").exists():
                data.unlink()
