"""What a run was made with: the code's commit, the versions of its libraries, the devices and the time."""

import datetime
import pathlib
import platform
import subprocess

import keras
import numpy as np
import tensorflow as tf

from training.files import read_json, write_json

FILE = "provenance.json"


def commit() -> str | None:
    """Returns the commit of this code, with "-dirty" after it if a file differs from it; None outside a Git clone."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # The folder may lie in another project's clone.
        return None
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record(run_dir: pathlib.Path, step: int, device: str) -> list[dict]:
    """Adds a start of the run to the list "starts" in provenance.json.

    Earlier starts stay in the list if the run keeps steps of theirs.

    Args:
      run_dir: The run directory.
      step: The number of steps already done.
      device: A name of the devices.

    Returns:
      The list.
    """
    path = run_dir / FILE
    try:
        starts = [start for start in read_json(path)["starts"] if start["step"] < step]
    except (TypeError, KeyError):
        starts = []
    start = {
        "step": step,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "device": device,
    }
    starts.append(start)
    write_json(path, {"starts": starts})
    return starts
