"""Measures the training input pipeline, beside PyTorch's DataLoader: python -m benchmarks.input_pipeline

Where PyTorch is installed, a DataLoader takes one of the ten crops of each image from two sources. The first is the
decoded array that this project reads too: the ratio to it compares the pipelines alone. The second is the JPEG files of
the archive: the ratio to it includes the decoding, which this project does once, before training.
"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import functools
import importlib.util
import itertools
import pathlib
import random
import tempfile
import time
from collections.abc import Iterable

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from flags import FLAGS, define_data_flags
from tiny_imagenet import crops, input_pipeline
from training.distribution import cpu_cores

WORKERS = cpu_cores()

define_data_flags()
flags.DEFINE_enum("dataset", "full", input_pipeline.DATASETS, "Tiny ImageNet, or pictures drawn by code.")
flags.DEFINE_integer("batch_size", 256, "Images per batch.", lower_bound=1)
flags.DEFINE_float("seconds", 10.0, "How long each of the three is measured.", lower_bound=0.1)
flags.DEFINE_integer("files", 20_000, "JPEG files to write, at most, for PyTorch to read.", lower_bound=1)


def random_crop(image: np.ndarray):
    """One of the ten crops of a (64, 64, 3) image, as a (56, 56, 3) PyTorch tensor."""
    import torch

    mirrored, offset = divmod(random.choice(crops.TEN_CROPS), crops.OFFSETS**2)
    crop = torch.from_numpy(np.ascontiguousarray(crops.slice_crop(image, offset)))
    return crop.flip(1) if mirrored else crop  # Faster than NumPy's.


class DecodedArray:
    """A PyTorch map-style dataset of (crop, label), over an .npy file of images."""

    def __init__(self, path: str, labels: np.ndarray):
        self.path, self.labels = path, labels.tolist()

    @functools.cached_property  # Each worker maps the file into memory: pickling a mapped array would copy it.
    def images(self) -> np.ndarray:
        return np.asarray(np.load(self.path, mmap_mode="r"))  # A memmap as it is indexes slowly.

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return random_crop(self.images[index]), self.labels[index]


class JpegFiles:
    """A PyTorch map-style dataset of (crop, label), over JPEG files."""

    def __init__(self, paths: list[str], labels: list[int]):
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        from PIL import Image

        with Image.open(self.paths[index]) as file:
            return random_crop(np.asarray(file.convert("RGB"))), self.labels[index]


def write_files(folder: pathlib.Path) -> JpegFiles:
    """Writes training images as the JPEG files that they were in the archive."""
    examples = tfds.load(
        f"tiny_imagenet/{FLAGS.dataset}",
        split="train",
        data_dir=FLAGS.data_dir,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    paths, labels = [], []
    for example in examples.take(FLAGS.files).as_numpy_iterator():
        path = folder / example["id"].decode()
        path.write_bytes(example["image"])
        paths.append(str(path))
        labels.append(int(example["label"]))
    return JpegFiles(paths, labels)


def pytorch_batches(dataset: DecodedArray | JpegFiles) -> Iterable:
    import torch

    endless = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    # Forking is not safe in a process where TensorFlow has started its threads.
    return torch.utils.data.DataLoader(
        dataset, FLAGS.batch_size, sampler=endless, num_workers=WORKERS, multiprocessing_context="spawn"
    )


def images_per_second(batches: Iterable, warm_up: int) -> float:
    """The speed after `warm_up` batches."""
    iterator = iter(batches)
    for _ in itertools.islice(iterator, warm_up):
        pass
    started, done = time.perf_counter(), 0
    for _ in iterator:
        done += 1
        elapsed = time.perf_counter() - started
        if elapsed >= FLAGS.seconds:
            break
    return done * FLAGS.batch_size / elapsed


def main(_) -> None:
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    train = data.splits["train"]
    epoch = len(train) // FLAGS.batch_size  # Warms up by an epoch, which brings the array into memory.
    ours = images_per_second(input_pipeline.train_batches(train, FLAGS.batch_size, 0, 0, 10**9), epoch)
    print("| images/s | | tf.data / DataLoader |\n| --- | --- | --- |")
    print(f"| tf.data, this project | {ours:,.0f} | |", flush=True)
    if not importlib.util.find_spec("torch"):
        print("\nPyTorch is not installed, so there is no comparison: pip install torch")
        return

    def compare(source: str, dataset: DecodedArray | JpegFiles) -> None:
        peer = images_per_second(pytorch_batches(dataset), 10)
        print(f"| PyTorch DataLoader, {WORKERS} workers, {source} | {peer:,.0f} | {ours / peer:.1f} |", flush=True)

    compare("the same decoded array", DecodedArray(train.images.filename, train.labels))
    with tempfile.TemporaryDirectory() as folder:
        compare("JPEG files", write_files(pathlib.Path(folder)))


if __name__ == "__main__":
    cli.run(main)
