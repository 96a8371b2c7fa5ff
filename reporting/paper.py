"""The paper's results (Tables 3 and 4) and settings."""

from typing import NamedTuple


class Result(NamedTuple):
    """A network's row in Table 3, top-1 in percent, and in Table 4, hours on one GPU of 2017."""

    training_top_1: float | None = None
    validation_top_1: float | None = None
    parameters: str | None = None
    hours: int | None = None


RESULTS = {
    "baseline": Result(34.40, 33.04),
    "alexnet": Result(46.20, 43.65, "15 million", 19),
    "googlenet": Result(53.43, 49.40, "1.1 million", 5),
    "resnet20": Result(58.40, 55.40, "11 million", 14),
}

SETTINGS = {
    "dataset": "full",
    "learning_rate": 0.1,
    "batch_size": 256,
    "num_epochs": 10,
    "num_cycles": 5,
    "nesterov": True,
    "augmentation": "ten_crop",
    "weight_decay": 1e-4,
    "clip_norm": 10.0,
    "sync_batch_norm": False,
}
"""The settings that a run's name leaves out: train.py's defaults, except momentum, which each network sets."""
