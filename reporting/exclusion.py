"""Chooses training images that may not be worth training on, for train.py --exclude (the paper's section 6).

python -m reporting.exclusion --out=DIR writes DIR/half_1.txt and half_2.txt, the ids of two random halves. After

    python train.py --model=alexnet --exclude=DIR/half_1.txt --run_dir=DIR/half_1

and the same for half_2, each training image has a network that was not trained on it. The same command then scores the
images by these networks. It writes the ids of those with the lowest margin to worst.txt, and as many random ids to
random.txt. results/exclusion.sh runs all of this.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import pathlib
import shlex

import numpy as np

import flags
from deployment import export
from flags import FLAGS
from reporting import mistakes
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, run_directory
from training.files import read_json, replace_file

SEED = 0


def write_halves(ids: np.ndarray, files: list[pathlib.Path]) -> None:
    shuffled = np.random.default_rng(SEED).permutation(ids)
    for path, half in zip(files, np.array_split(shuffled, len(files)), strict=True):
        _write(path, half)


def held_out_margins(data: input_pipeline.TinyImageNet, files: list[pathlib.Path]) -> dict[str, float]:
    """Returns the margin of each image's label, by the network that was not trained on it: see `mistakes.margins`."""
    found = {}
    for file in files:
        run_dir = file.with_suffix("")
        if not run_directory.has_run(run_dir):
            missing = f"--exclude={shlex.quote(str(file))} --run_dir={shlex.quote(str(run_dir))}"
            raise UserError(f"{run_dir} is not trained yet: pass {missing} to train.py")
        model, _ = checkpoints.load_model(run_dir)
        config, ids = run_directory.read_config(run_dir), file.read_text().split()
        if config["exclude"] != run_directory.describe_exclusion(file, ids):
            raise UserError(f"{run_dir} was not trained with --exclude={file}: delete it, and train it again")
        if not read_json(run_dir / "time.json").get("finished_step"):
            raise UserError(f"{run_dir} is not finished: train it to its end")
        split = data.in_order_of(export.wnids_of(run_dir)).splits["train"]
        split = split.without(set(split.ids.tolist()) - set(ids))  # Those that it was not trained on.
        probabilities = evaluation.predict(evaluation.classifier(model, data.mean_image), split)
        print(f"{run_dir}: top-1 {evaluation.accuracy(probabilities, split.labels)['top_1']:.2%} on the other half")
        found |= zip(split.ids.tolist(), mistakes.margins(probabilities, split.labels).tolist(), strict=True)
    return found


def _write(path: pathlib.Path, ids) -> None:
    with replace_file(path) as partial:
        partial.write_text("".join(f"{id}\n" for id in sorted(ids)))


def main(_) -> None:
    out = pathlib.Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "half_1.txt", out / "half_2.txt"]
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    if not all(file.exists() for file in files):
        write_halves(data.splits["train"].ids, files)
        print(f"written to {files[0]} and {files[1]}: train a network without each, to {out}/half_1 and {out}/half_2")
        return
    margins = held_out_margins(data, files)
    ids = np.array(sorted(margins))
    count = round(FLAGS.percent / 100 * len(ids))
    _write(out / "worst.txt", sorted(margins, key=margins.get)[:count])
    _write(out / "random.txt", np.random.default_rng(SEED).choice(ids, count, replace=False))
    print(f"written to {out / 'worst.txt'} and {out / 'random.txt'}: {count} ids each")


if __name__ == "__main__":
    flags.define_exclusion_flags()
    cli.run(main)
