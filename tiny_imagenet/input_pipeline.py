"""Loads the dataset and makes batches from it.

The JPEGs are decoded once, into memory-mapped arrays, and read by index. A training batch depends only on the seed and
the step, so a run can resume at any step without other state.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Collection

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tiny_imagenet import crops, preparation
from tiny_imagenet.errors import UserError
from tiny_imagenet.tiny_imagenet_dataset_builder import Builder

DATASETS = tuple(Builder.builder_configs)
AUGMENTATIONS = ("ten_crop", "uniform", "all_crops")
PARALLEL_CALLS = 8  # Batches made at a time. More are not faster, because each holds Python's lock for a while.


@dataclasses.dataclass(frozen=True)
class Split:
    """Decoded images in a fixed order: images (n, 64, 64, 3) uint8, memory-mapped; labels (n,) int64; ids (n,) str."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, size: int, seed: int) -> "Split":
        """Returns `size` images drawn at random, each at most once, in their order; all if there are no more."""
        random = np.random.default_rng(seed)
        rows = np.sort(random.choice(len(self), min(size, len(self)), replace=False))
        return Split(self.images[rows], self.labels[rows], self.ids[rows])

    def without(self, ids: Collection[str]) -> "Split":
        """Returns a copy without the images of the given ids, in memory and in the same order.

        Raises:
          UserError: if an id is of no image, or if no image is left.
        """
        if unknown := sorted(set(ids) - set(self.ids.tolist())):
            raise UserError(f"no image is called {unknown[0]!r}: exclude ids such as {self.ids[0]}")
        if len(set(ids)) == len(self):
            raise UserError("no image is left: exclude fewer")
        rows = np.flatnonzero(~np.isin(self.ids, list(ids)))
        return Split(self.images[rows], self.labels[rows], self.ids[rows])


@dataclasses.dataclass(frozen=True)
class TinyImageNet:
    """The dataset.

    Attributes:
      splits: "train", "validation" and "test"; all labels of the last are -1.
      mean_image: (64, 64, 3) float32, the mean of the training images.
      wnids: WordNet ids of the classes, in label order.
      words: Names of the classes, in label order.
    """

    splits: dict[str, Split]
    mean_image: np.ndarray
    wnids: list[str]
    words: list[str]

    def in_order_of(self, wnids: list[str] | None) -> "TinyImageNet":
        """Returns the dataset with its classes, and so its labels, in the order of a network's.

        Args:
          wnids: WordNet ids of the network's classes, in the order of its logits. None, where they are not known,
            leaves the dataset as it is.

        Raises:
          UserError: if the network has other classes.
        """
        if wnids is None or wnids == self.wnids:
            return self
        if sorted(wnids) != sorted(self.wnids):
            unknown = sorted({*self.wnids} - {*wnids} or {*wnids} - {*self.wnids})
            raise UserError(
                f"the network and the data have different classes (only one of them has {unknown[0]}): "
                "pass the data that the network was trained on"
            )
        label = {wnid: label for label, wnid in enumerate(wnids)}
        labels = np.array([*(label[wnid] for wnid in self.wnids), -1])  # -1, of the test images, stays -1.
        splits = {name: dataclasses.replace(split, labels=labels[split.labels]) for name, split in self.splits.items()}
        words = dict(zip(self.wnids, self.words, strict=True))
        return dataclasses.replace(self, splits=splits, wnids=wnids, words=[words[wnid] for wnid in wnids])


def load(dataset: str = "full", data_dir: str | None = None, archive: str | None = None) -> TinyImageNet:
    """Loads the dataset, and prepares it first if needed: downloads the archive, writes TFDS' shards, decodes them.

    Args:
      dataset: The builder's configuration, one of DATASETS.
      data_dir: The folder for prepared data; if None, TFDS' default: $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      archive: Path of a copy of the archive, to use instead of downloading it.

    Raises:
      UserError: if the archive or the prepared data is missing or damaged, if the download fails, or if `data_dir`
        cannot be written or has no room.
      OSError: if `data_dir` cannot be read.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        tfds.disable_progress_bar()
    builder = preparation.prepare(dataset, data_dir, archive)
    decoded = pathlib.Path(builder.data_dir) / "decoded"
    image = (crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3)
    splits = {}
    for name, info in builder.info.splits.items():
        size = info.num_examples
        splits[name] = Split(
            preparation.read_array(decoded / f"{name}_images.npy", "uint8", (size, *image)),
            np.array(preparation.read_array(decoded / f"{name}_labels.npy", "int64", (size,))),
            np.array(preparation.read_array(decoded / f"{name}_ids.npy", "str", (size,))),
        )
    mean_image = np.array(preparation.read_array(decoded / "mean_image.npy", "float32", image))
    wnids = list(builder.info.features["label"].names)
    return TinyImageNet(splits, mean_image, wnids, list(builder.info.metadata["words"]))


def load_boxes(
    split: str, dataset: str = "full", data_dir: str | None = None, archive: str | None = None
) -> np.ndarray:
    """Reads the bounding boxes of the objects from TFDS' shards, in the order of the images.

    Args:
      split: "train" or "validation". The test images have no boxes.
      dataset: As for `load`, like the other arguments.

    Returns:
      (n, 4) float32: ymin, xmin, ymax, xmax, from 0 to 1.

    Raises:
      UserError, OSError: as `load`.
    """
    builder = preparation.prepare(dataset, data_dir, archive)
    examples = builder.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=preparation.in_order(),  # As the images were decoded.
    )
    try:
        return np.array([example["bbox"] for example in examples.as_numpy_iterator()])
    except tf.errors.OpError as error:
        raise preparation.damaged(pathlib.Path(builder.data_dir), error.message) from error


def train_size(dataset: str) -> int:
    """Returns the number of training images of a dataset that need not be prepared yet."""
    config = Builder.builder_configs[dataset]
    return config.num_classes * config.train_per_class


def shuffled_indices(step: tf.Tensor, size: int, batch_size: int, seed: int) -> tf.Tensor:
    """Returns the images of a step, counted from 0. Each epoch is a new permutation of range(size).

    If the batch size does not divide the size, a batch takes the end of one epoch and the start of the next.

    Returns:
      (batch_size,) int64.
    """
    position = tf.cast(step, tf.int64) * batch_size + tf.range(batch_size, dtype=tf.int64)
    epoch = position // size
    keys = tf.stack([tf.fill(tf.shape(epoch), tf.constant(seed, tf.int64)), epoch, tf.zeros_like(epoch)], axis=1)
    # tf.random.experimental.index_shuffle documents a key per index, but pads the wrong axis of such keys (TF 2.21).
    return tf.raw_ops.RandomIndexShuffle(index=position % size, seed=keys, max_index=size - 1, rounds=4)


def train_batches(
    split: Split,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    context: tf.distribute.InputContext | None = None,
    augmentation: str = "ten_crop",
) -> tf.data.Dataset:
    """Returns the batches of the steps range(start, stop), counted from 0.

    Args:
      split: The images to draw from.
      batch_size: The number of images per step.
      seed: Seed of the order of the images and of their crops.
      start: The step of the first batch.
      stop: The step after the last batch.
      context: The replicas that the batches are for. Each replica gets its own part of every step's images, one
        replica after the other; no other images are read.
      augmentation: A value of `AUGMENTATIONS`. "ten_crop": one of the paper's ten crops of each image, at random;
        "uniform": one of all 162, as in the paper's reference [11]; "all_crops": all ten.

    Returns:
      A dataset of crops (N, 56, 56, 3) uint8, the number of each (see `crops.py`), (N,) int64, and labels (N,) int64,
      where N is batch_size / replicas, and ten times that with "all_crops".
    """
    context = context or tf.distribute.InputContext()
    replicas = context.num_replicas_in_sync // context.num_input_pipelines  # Fed by this pipeline.
    size = batch_size // context.num_replicas_in_sync
    shape = (crops.CROP_SIZE, crops.CROP_SIZE, 3)
    # The crops of all images by their offsets, without a copy: (n, 9, 9, 56, 56, 3).
    windows = np.lib.stride_tricks.sliding_window_view(split.images, shape, axis=(1, 2, 3)).squeeze(axis=3)

    drawn_from = tf.range(crops.NUM_CROPS) if augmentation == "uniform" else tf.constant(crops.TEN_CROPS)
    # TensorFlow keeps int32 on the host: a GPU's step would wait for it.
    drawn_from = tf.cast(drawn_from, tf.int64)

    def take(index, offset):
        y, x = np.divmod(offset, crops.OFFSETS)
        return windows[index, y, x], split.labels[index]

    def batch(count):
        step, replica = count // replicas, context.input_pipeline_id * replicas + count % replicas
        mine = replica * size + tf.range(size, dtype=tf.int64)
        index = tf.gather(shuffled_indices(step, len(split), batch_size, seed), mine)
        if augmentation == "all_crops":
            index, crop_index = tf.repeat(index, len(drawn_from)), tf.tile(drawn_from, [size])
        else:
            drawn = tf.random.stateless_uniform((batch_size,), [seed, step], 0, len(drawn_from), tf.int32)
            crop_index = tf.gather(drawn_from, tf.gather(drawn, mine))
        mirrored, offset = crop_index // crops.OFFSETS**2, crop_index % crops.OFFSETS**2
        images, labels = tf.numpy_function(take, [index, offset], [tf.uint8, tf.int64], stateful=False)
        images.set_shape((*crop_index.shape, *shape))
        labels.set_shape(crop_index.shape)
        return crops.mirror(images, mirrored), crop_index, labels

    batches = tf.data.Dataset.range(start * replicas, stop * replicas)
    return _prefetched(batches, batch)


def evaluation_batches(split: Split, batch_size: int) -> tf.data.Dataset:
    """Returns every image once, in order.

    Returns:
      A dataset of images (N, 64, 64, 3) uint8 and labels (N,) int64; the last batch may be smaller.
    """

    def rows(index):
        images, labels = tf.numpy_function(
            lambda i: (split.images[i], split.labels[i]), [index], [tf.uint8, tf.int64], stateful=False
        )
        images.set_shape((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3))
        labels.set_shape((None,))
        return images, labels

    batches = tf.data.Dataset.range(len(split)).batch(batch_size)
    return _prefetched(batches, rows)


def _prefetched(dataset: tf.data.Dataset, function: Callable[..., tuple]) -> tf.data.Dataset:
    """Returns the results of `function` in order, computed ahead of their use."""
    options = tf.data.Options()
    # Autotuning finds nothing faster, and the end of a program has to wait for its thread, which sleeps up to a minute.
    options.autotune.enabled = False
    return dataset.map(function, PARALLEL_CALLS, deterministic=True).prefetch(PARALLEL_CALLS).with_options(options)
