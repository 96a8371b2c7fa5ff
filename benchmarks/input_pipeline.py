"""How fast the training input pipeline is: python -m benchmarks.input_pipeline

Beside it, where PyTorch is installed, a DataLoader with two workers that reads the JPEG files, decodes them with PIL
and takes one of the ten crops of each.
"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

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

from flags import DATASETS, FLAGS, define_data_flags, run
from tiny_imagenet import crops, input_pipeline

WORKERS = 2

define_data_flags()
flags.DEFINE_enum("dataset", "full", DATASETS, "Tiny ImageNet, or pictures drawn by code.")
flags.DEFINE_integer("batch_size", 256, "Images a batch.", lower_bound=1)
flags.DEFINE_float("seconds", 10.0, "How long each of the two is measured.", lower_bound=0.1)
flags.DEFINE_integer("files", 20_000, "JPEG files to write, at most, for PyTorch to read.", lower_bound=1)


class JpegFiles:
    """A PyTorch map-style dataset of (crop, label)."""

    def __init__(self, paths: list[str], labels: list[int]):
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        import torch
        from PIL import Image

        far, middle = crops.IMAGE_SIZE - crops.CROP_SIZE, (crops.IMAGE_SIZE - crops.CROP_SIZE) // 2
        x, y = random.choice(((0, 0), (far, 0), (0, far), (far, far), (middle, middle)))
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB").crop((x, y, x + crops.CROP_SIZE, y + crops.CROP_SIZE))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), self.labels[index]


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


def pytorch_batches(files: JpegFiles) -> Iterable:
    import torch

    endless = torch.utils.data.RandomSampler(files, replacement=True, num_samples=10**9)
    # Forking is not safe in a process where TensorFlow has started its threads.
    return torch.utils.data.DataLoader(
        files, FLAGS.batch_size, sampler=endless, num_workers=WORKERS, multiprocessing_context="spawn"
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
    epoch = len(train) // FLAGS.batch_size  # To warm up, so that the arrays are in memory as the files are.
    ours = images_per_second(input_pipeline.train_batches(train, FLAGS.batch_size, 0, 0, 10**9), epoch)
    print(f"{'tf.data, this project':<36}{ours:>10,.0f} images/s")
    if not importlib.util.find_spec("torch"):
        print("PyTorch is not installed: no peer (pip install torch)")
        return
    with tempfile.TemporaryDirectory() as folder:
        peer = images_per_second(pytorch_batches(write_files(pathlib.Path(folder))), 10)
    print(f"{f'PyTorch DataLoader, {WORKERS} workers, JPEG':<36}{peer:>10,.0f} images/s")
    print(f"{'ratio':<36}{ours / peer:>10.1f}")


if __name__ == "__main__":
    run(main)
