"""Prepares the data set once, whatever happens meanwhile, and reads it: TFDS' shards, and decoded arrays beside them.

What is prepared appears under its name only when it is whole, so a folder that is there can be trusted. One process
prepares at a time; what a killed one left behind goes when the next begins.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tiny_imagenet.archive import IMAGE_SIZE

DECODE_BATCH = 500

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def prepare(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Returns a builder whose data is prepared, with the decoded arrays in the folder "decoded" of its data_dir.

    Writes nothing where that has been done before.

    Args:
      make_builder: Makes the builder. A builder knows only of what was prepared before it was made.

    Raises:
      OSError: if the archive cannot be had, or data_dir cannot be written or has no room.
      ValueError: if the archive or what is in data_dir is damaged.
    """
    folder = "the prepared data"
    try:
        builder = make_builder()
        folder = pathlib.Path(builder.data_dir)
        if folder.exists():
            builder.info.metadata["words"], builder.info.splits["train"]
    except Exception as error:
        if isinstance(error, OSError) or type(error) is ValueError:
            raise
        # TFDS reads dataset_info.json and metadata.json unchecked. Where it fails to make a builder it names data_dir.
        raise _damaged(folder, f"dataset_info.json or metadata.json: {error}") from error
    if (folder / "decoded").exists():
        return builder
    with _lock(folder.parent) as locked:
        builder = make_builder()
        if not (folder / "decoded").exists():
            if locked:  # Else it may be another process' work in progress.
                _clean_up(folder)
            try:
                builder.download_and_prepare()
                _decode(builder, folder / "decoded")
            except Exception as error:
                # In the shards a full disk is TensorFlow's ResourceExhaustedError, which TFDS makes a RuntimeError.
                for reason in map(os.strerror, _DISK_FULL):
                    if reason in str(error):
                        remedy = "the real data takes about 1.7 GB; make room, or give another --data_dir"
                        raise OSError(f"{reason} to prepare the data in {folder.parent}: {remedy}") from error
                raise
    return builder


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[bool]:
    """Waits until no other process prepares in `folder`; yields False if its file system has no locks.

    The lock is the kernel's, on an open file: it goes with its process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "prepare.lock", "ab")
    except OSError as error:
        remedy = "the data is not prepared there yet; give a --data_dir that can be written"
        raise OSError(error.errno, f"{error.strerror}: {remedy}", error.filename) from error
    with file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process to prepare the data in {folder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = False
        yield locked


def _clean_up(folder: pathlib.Path) -> None:
    """Removes what killed preparations of `folder`, data_dir/tiny_imagenet/CONFIG/VERSION, left behind."""
    leftovers = [
        *folder.glob("decoded.incomplete.*"),
        *folder.parent.glob(f"incomplete.*_{folder.name}"),
        *folder.parents[2].glob("downloads/*tiny-imagenet-200*.tmp.*"),
    ]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)


def _decode(builder: tfds.core.DatasetBuilder, decoded: pathlib.Path) -> None:
    """Writes each split's arrays and the mean image to the folder `decoded`, which appears only when it is whole."""
    partial = decoded.with_name(f"decoded.incomplete.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, info in builder.info.splits.items():
            shape = (info.num_examples, IMAGE_SIZE, IMAGE_SIZE, 3)
            labels, ids = [], []
            total = np.zeros(shape[1:], np.uint64)
            read_config = tfds.ReadConfig(interleave_cycle_length=1)
            batches = builder.as_dataset(split=name, read_config=read_config).batch(DECODE_BATCH).prefetch(2)
            with open(partial / f"{name}_images.npy", "wb") as file:
                _write_header(file, np.uint8, shape)
                for batch in batches.as_numpy_iterator():
                    file.write(batch["image"].tobytes())
                    labels.extend(batch["label"])
                    ids.extend(id.decode() for id in batch["id"])
                    total += batch["image"].sum(axis=0, dtype=np.uint64)
            if len(ids) != shape[0]:
                raise _damaged(decoded.parent, f"{name} has {len(ids)} images, not {shape[0]}")
            _save(partial / f"{name}_labels.npy", np.array(labels, np.int64))
            _save(partial / f"{name}_ids.npy", np.array(ids))
            if name == "train":
                _save(partial / "mean_image.npy", (total / shape[0]).astype(np.float32))
        partial.rename(decoded)
    except tf.errors.OpError as error:
        raise _damaged(decoded.parent, error.message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_header(file, dtype, shape: tuple[int, ...]) -> None:
    """Begins an .npy file, to be written from front to back.

    On a full disk a write fails. To a mapped file it would kill the process (SIGBUS), and np.save's error does not say
    why it failed.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        _write_header(file, array.dtype, array.shape)
        file.write(array.tobytes())


def read_array(path: pathlib.Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an .npy file by mapping it into memory or, on a file system that cannot, whole.

    Args:
      path: The file, in the folder "decoded".
      kind: What its dtype must be: NumPy's name of it, or "str" for text of any length.
      shape: What its shape must be.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is damaged, or not that array.
    """
    try:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            array = np.load(path, allow_pickle=False)
        if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("its length is not what its header says")
        found = array.dtype.name.rstrip("0123456789") if kind == "str" else array.dtype.name
    except Exception as error:  # np.load meets damage with ValueError, EOFError, MemoryError, BadZipFile...
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path.parent, f"{path.name} cannot be read: {error}") from error
    if (found, array.shape) != (kind, shape) or not array.dtype.isnative:
        raise _damaged(path.parent, f"{path.name} is {array.dtype} {array.shape}, not {kind} {shape}")
    return array


def _damaged(folder: pathlib.Path | str, problem: str) -> ValueError:
    return ValueError(f"{folder} is damaged ({' '.join(problem.split())}): delete it, and it is prepared anew")
