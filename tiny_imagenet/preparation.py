"""Prepares the dataset once and reads it: TFDS' shards, and decoded arrays beside them.

Preparation is crash-safe: a folder gets its final name only when it is complete, one process prepares at a time, and
the next one removes what a killed process left behind.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tiny_imagenet import locks
from tiny_imagenet.archive import IMAGE_SIZE
from tiny_imagenet.errors import DISK_FULL, UserError

DECODE_BATCH = 500
LOCK_FILE = "prepare.lock"


def prepare(dataset: str, data_dir: str | None, archive: str | None) -> tfds.core.DatasetBuilder:
    """Returns a builder whose data is prepared, with the decoded arrays in the folder "decoded" of its data_dir.

    If the data is already prepared, it writes nothing.

    Args:
      dataset: The builder's configuration.
      data_dir: The folder for prepared data; TFDS' default if None.
      archive: Path of a copy of the archive, to use instead of downloading it.

    Raises:
      UserError: if the archive or the prepared data is missing or damaged, if the download fails, or if data_dir cannot
        be written or has no room.
      OSError: if data_dir cannot be read.
    """
    builder = _builder(dataset, data_dir, archive)
    folder = pathlib.Path(builder.data_dir)
    if (folder / "decoded").exists():
        return builder
    file_format = builder.info.file_format
    if folder.exists() and file_format is not tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{folder} was prepared as {file_format.value}, which cannot be read here: give another --data_dir, or "
            "delete it and it is prepared again"
        )
    try:
        builder.download_and_prepare()
        with lock(folder):
            if not (folder / "decoded").exists():
                _decode(builder, folder / "decoded")
    except Exception as error:
        # TFDS turns TensorFlow's ResourceExhaustedError of a full disk into RuntimeError.
        for reason in map(os.strerror, (*DISK_FULL, errno.EFBIG)):
            if reason in str(error):
                remedy = "the real data takes about 1.7 GB; make room, or give another --data_dir"
                raise UserError(f"cannot prepare the data in {folder.parent}: {reason}: {remedy}") from error
        raise
    return builder


def _builder(dataset: str, data_dir: str | None, archive: str | None) -> tfds.core.DatasetBuilder:
    """Returns the builder, after checking TFDS' files about data that is already prepared."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = pathlib.Path(data_dir or default, "tiny_imagenet", dataset)
    try:
        builder = tfds.builder_cls("tiny_imagenet")(config=dataset, data_dir=data_dir, archive=archive)
        folder = pathlib.Path(builder.data_dir)
        if folder.exists():
            words, _ = builder.info.metadata["words"], builder.info.splits["train"]
            labels = folder / "label.labels.txt"
            wnids = re.findall(r"^n\d{8}$", labels.read_text(), re.MULTILINE) if labels.exists() else []
            if len(set(wnids)) != len(words):
                raise ValueError(f"{labels.name} does not name all classes")
    except (UserError, OSError):
        raise
    except Exception as error:  # TFDS does not check these files.
        raise damaged(folder, f"dataset_info.json, metadata.json or label.labels.txt: {error}") from error
    return builder


@contextlib.contextmanager
def lock(data_dir: str | os.PathLike) -> Iterator[None]:
    """Lets one process at a time prepare a builder's data_dir, and removes what killed processes left behind.

    Raises:
      UserError: if the lock file cannot be written.
    """
    folder = pathlib.Path(data_dir)

    def wait():
        print(f"waiting for another process to prepare the data in {folder.parent}", file=sys.stderr, flush=True)

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / LOCK_FILE).touch()
    except OSError as error:
        remedy = "the data is not prepared there yet; give a --data_dir that can be written"
        raise UserError(f"{folder.parent}: {error.strerror}: {remedy}") from error
    with locks.lock(folder.parent / LOCK_FILE, wait) as locked:
        if locked:  # Without a lock, another process may still be writing them.
            leftovers = [
                *folder.glob("decoded.incomplete.*"),
                *folder.parent.glob(f"incomplete.*_{folder.name}"),
            ]
            if folder.parent.name == "full":  # Nothing else is downloaded, under its lock.
                leftovers += folder.parents[2].glob("downloads/*tiny-imagenet-200*.tmp.*")
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True)
        yield


def in_order() -> tfds.ReadConfig:
    """Returns how to read a prepared split once: shard after shard, and without keeping the images in memory."""
    options = tf.data.Options()
    options.autotune.enabled = False  # As in `input_pipeline`: the end would wait for it.
    return tfds.ReadConfig(options=options, try_autocache=False, interleave_cycle_length=1)


def _decode(builder: tfds.core.DatasetBuilder, decoded: pathlib.Path) -> None:
    """Writes the arrays of each split and the mean image to the folder `decoded`, which appears when it is complete."""
    partial = decoded.with_name(f"decoded.incomplete.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, info in builder.info.splits.items():
            shape = (info.num_examples, IMAGE_SIZE, IMAGE_SIZE, 3)
            labels, ids = [], []
            total = np.zeros(shape[1:], np.uint64)
            batches = builder.as_dataset(split=name, read_config=in_order()).batch(DECODE_BATCH).prefetch(2)
            with open(partial / f"{name}_images.npy", "wb") as file:
                _write_header(file, np.uint8, shape)
                for batch in batches.as_numpy_iterator():
                    file.write(batch["image"].tobytes())
                    labels.extend(batch["label"])
                    ids.extend(id.decode() for id in batch["id"])
                    total += batch["image"].sum(axis=0, dtype=np.uint64)
            if len(ids) != shape[0]:
                raise damaged(decoded.parent, f"{name} has {len(ids)} images, not {shape[0]}")
            _save(partial / f"{name}_labels.npy", np.array(labels, np.int64))
            _save(partial / f"{name}_ids.npy", np.array(ids))
            if name == "train":
                _save(partial / "mean_image.npy", (total / shape[0]).astype(np.float32))
        partial.rename(decoded)
    except tf.errors.OpError as error:
        raise damaged(decoded.parent, error.message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_header(file, dtype, shape: tuple[int, ...]) -> None:
    """Writes the header of an .npy file. The array's bytes follow, written from front to back.

    On a full disk, such a write raises an error that says so. A write to a memory-mapped file would kill the process
    (SIGBUS), and np.save's error does not give the reason.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        _write_header(file, array.dtype, array.shape)
        file.write(array.tobytes())


def read_array(path: pathlib.Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the array of an .npy file, memory-mapped if the file system supports it.

    Args:
      path: The file, in the folder "decoded".
      kind: The expected dtype: its NumPy name, or "str" for text of any length.
      shape: The expected shape.

    Raises:
      UserError: if the file is missing or damaged, or holds another array.
      OSError: if it cannot be read.
    """
    try:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            array = np.load(path, allow_pickle=False)
        if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("its length differs from its header")
        found = array.dtype.name.rstrip("0123456789") if kind == "str" else array.dtype.name
    except Exception as error:  # ValueError, EOFError, MemoryError, BadZipFile...
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise damaged(path.parent, f"{path.name} cannot be read: {error}") from error
    if (found, array.shape) != (kind, shape) or not array.dtype.isnative:
        raise damaged(path.parent, f"{path.name} is {array.dtype} {array.shape}, not {kind} {shape}")
    return array


def damaged(folder: pathlib.Path, problem: str) -> UserError:
    """Returns the error about prepared data that cannot be read."""
    return UserError(f"{folder} is damaged ({' '.join(problem.split())}): delete it, and it is prepared again")
