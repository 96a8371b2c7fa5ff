"""Adds a trained run to the weights that come with the repository: python -m deployment.ship --run_dir=runs/resnet20"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import pathlib
import shlex

import flags
import models
from deployment import export
from flags import FLAGS
from models import weights
from tiny_imagenet.errors import UserError
from training import checkpoints, run_directory
from training.files import read_json, write_json


def ship(run_dir: pathlib.Path) -> pathlib.Path:
    """Writes the weights of a run's newest checkpoint, in float16, to `weights/`, and their line of `index.json`.

    They replace those of another run of the network.

    Returns:
      The file of the weights.

    Raises:
      UserError: if the directory holds no run, one on synthetic data or with other classes, or one whose newest
        checkpoint has not been scored by ten crops, or if a weight is beyond the range of float16.
    """
    model, step = checkpoints.load_model(run_dir)
    if run_directory.read_config(run_dir)["dataset"] != "full":
        raise UserError(f"{run_dir} was trained on synthetic data")
    if export.wnids_of(run_dir) not in (None, weights.classes()["wnids"]):
        raise UserError(f"the classes of {run_dir}, or their order, are not those of weights/: train it on the archive")
    scores = read_json(run_dir / "evaluation_ten_crop.json")
    if scores.get("step", -1) != step:
        raise UserError(f"score it first: python evaluate.py --run_dir={shlex.quote(str(run_dir))} --ten_crop")
    path = weights.FOLDER / f"{model.name}.weights.h5"
    try:
        index = weights.index()
        weights.save(export.inference_model(model), path)
        shipped = models.build(model.name, weights=path)  # In float16.
    except ValueError as error:
        raise UserError(str(error)) from error
    entry = {"run": run_dir.resolve().name, "step": step, "ten_crop_top_1": scores["top_1"]}
    index[model.name] = entry | {"sha256": weights.checksum(path), "logits": weights.sample_logits(shipped)}
    write_json(weights.FOLDER / "index.json", dict(sorted(index.items())))
    return path


def main(_) -> None:
    print(f"written to {ship(pathlib.Path(FLAGS.run_dir))}")


if __name__ == "__main__":
    flags.define_ship_flags()
    cli.run(main)
