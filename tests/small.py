"""A small network and a small data set, so that a run of train.py that learns something takes seconds.

`--model=small --dataset=synthetic` is a network with batch normalization, dropout and an auxiliary head, and 10 classes
of 40 training images; `--model=small_without_dropout` has neither dropout nor head. As a program this file is train.py
with all of these: python tests/small.py --model=small
"""

import contextlib
import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from training import cli  # noqa: E402, I001  # It loads TensorFlow, so it comes first.

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

import models  # noqa: E402
from models import weights  # noqa: E402
from models.layers import conv_bn_relu  # noqa: E402
from tiny_imagenet import tiny_imagenet_dataset_builder  # noqa: E402

COUNTS = {"num_classes": 10, "train_per_class": 40, "validation_per_class": 20, "test_images": 50}


def network(
    num_classes: int | None = None, auxiliary_head: bool = False, dropout: float = 0.0, name: str = "small"
) -> keras.Model:
    """A network for the 10 classes of the small data set, whatever `num_classes` is."""
    inputs = keras.Input((56, 56, 3), name="image")
    x = inputs
    for number, (filters, kernel_size) in enumerate(((16, 5), (32, 3), (64, 3), (64, 3)), start=1):
        x = conv_bn_relu(x, filters, kernel_size, 2, name=f"conv{number}")
    average = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(dropout, name="dropout")(layers.Flatten(name="flatten")(x))
    outputs = [
        layers.Dense(COUNTS["num_classes"], kernel_initializer="zeros", dtype="float32", name=head)(features)
        for head, features in (("logits", x), ("auxiliary", average))
    ]
    return keras.Model(inputs, outputs if auxiliary_head else outputs[0], name=name)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Adds the networks to --model, and makes --dataset=synthetic small."""
    configs = tiny_imagenet_dataset_builder.Builder.BUILDER_CONFIGS
    synthetic = next(config for config in configs if config.name == "synthetic")
    added = {
        "small": models.Network(network, "conv4_relu", training={"auxiliary_head": True, "dropout": 0.2}),
        "small_without_dropout": models.Network(functools.partial(network, name="small_without_dropout"), "conv4_relu"),
    }
    with mock.patch.dict(models.REGISTRY, added), mock.patch.dict(vars(synthetic), COUNTS):
        yield


def ship_untrained(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Fills a folder as weights/ is, with untrained weights of a network. Returns the folder."""
    for file in ("classes.json", "mean_image.npy"):
        shutil.copy(weights.FOLDER / file, folder)
    path = folder / f"{name}.weights.h5"
    weights.save(models.build(name), path)
    entry = {"sha256": weights.checksum(path), "ten_crop_top_1": 0.005}
    (folder / "index.json").write_text(json.dumps({name: entry}))
    return folder


def reverse_classes(data_dir: pathlib.Path, folder: pathlib.Path, prefix: str = "n9") -> pathlib.Path:
    """Copies prepared data with its classes in the reverse order, as if the lines of wnids.txt were. Returns the copy.

    With another `prefix`, its WordNet ids are others too.
    """
    copy = folder / "reversed"
    shutil.copytree(data_dir, copy, copy_function=lambda source, target: pathlib.Path(target).symlink_to(source))

    def replace(path, change):
        content = path.read_bytes()
        path.unlink()  # The link.
        path.write_bytes(change(content))

    (labels_file,) = copy.rglob("label.labels.txt")
    wnids = labels_file.read_text().replace("n9", prefix).split()[::-1]
    replace(labels_file, lambda _: "".join(f"{wnid}\n" for wnid in wnids).encode())

    def reverse_words(content):
        metadata = json.loads(content)
        return json.dumps(metadata | {"words": metadata["words"][::-1]}).encode()

    replace(labels_file.with_name("metadata.json"), reverse_words)
    for path in copy.rglob("*_labels.npy"):
        labels = np.load(path)
        path.unlink()
        np.save(path, np.where(labels < 0, labels, len(wnids) - 1 - labels))
    return copy


if __name__ == "__main__":
    import flags
    import train

    with registered():
        flags.define_train_flags()
        cli.run(train.main)
