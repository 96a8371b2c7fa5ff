"""Reads the Tiny ImageNet archive, a zip file or an unpacked folder, and checks everything in it."""

import collections
import os
import pathlib
import re
import zipfile
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np
import tensorflow as tf

from tiny_imagenet.errors import UserError

IMAGE_SIZE = 64
# The training images are in the deepest folders: train/n01443537/images.
_DEPTH = 3
# The largest file, words.txt, has 2.6 MB; every image has less than 4 kB. A zip bomb of a few kB holds gigabytes.
_MAX_BYTES = 16 * 2**20
_MAX_IMAGE_BYTES = 2**20
# The test images have no boxes. This box covers the whole image.
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
# The classes of Tiny ImageNet in the order of the official archive's wnids.txt, which is that of the labels.
OFFICIAL_WNIDS = (pathlib.Path(__file__).parent / "wnids.txt").read_text().split()


class Image(NamedTuple):
    """An image of the archive, which is not read yet.

    Attributes:
        file: path relative to the archive's root.
        label: index of its class in `Index.wnids`, or -1 for a test image.
        box: (ymin, xmin, ymax, xmax), each in [0, 1].
    """

    file: str
    label: int
    box: tuple[float, float, float, float]


class Index(NamedTuple):
    """The classes of an archive and the images of its splits.

    Attributes:
        wnids: WordNet ids of the classes, in label order: that of wnids.txt, or for Tiny ImageNet's classes that of the
            official archive.
        words: names of the classes, in label order.
        splits: images by split name.
    """

    wnids: list[str]
    words: list[str]
    splits: dict[str, list[Image]]


class Archive:
    """The files of an archive, by their paths relative to its root, the folder that holds wnids.txt.

    A zip file is read in place, without unpacking it. Several threads may read at once.

    Args:
        source: path of a zip file, an open zip file, or path of an unpacked folder (the root or its parent).
        name: name of the archive in error messages; by default its path.

    Raises:
        UserError: `source` does not exist, has no wnids.txt, is not a complete zip file, or has names that are unsafe
            or not unique.
        OSError: `source` cannot be opened.
    """

    def __init__(self, source: str | os.PathLike | IO[bytes], name: str | None = None):
        self.name = name or str(source)
        self._zip = None
        if isinstance(source, str | os.PathLike):
            source = pathlib.Path(source).expanduser()
            if not source.exists():
                raise UserError(f"{self.name}: no such file or folder; give a copy of tiny-imagenet-200.zip")
        if isinstance(source, pathlib.Path) and source.is_dir():
            files = [*source.glob("wnids.txt"), *sorted(source.glob("*/wnids.txt"))]
            if not files:
                raise UserError(f"{self.name}: no wnids.txt here or one level below; give the folder that holds it")
            self._root = files[0].parent
            self.files = set()
            for folder, folders, files in os.walk(self._root, followlinks=True):
                below = pathlib.Path(folder).relative_to(self._root)
                self.files.update((below / file).as_posix() for file in files)
                if len(below.parts) == _DEPTH:
                    folders.clear()  # Links may form a cycle.
        else:
            if isinstance(source, pathlib.Path):
                if not source.is_file():
                    raise self.damaged("neither a file nor a folder")
                source = open(source, "rb")  # noqa: SIM115, stays open for later reads
            try:
                self._zip = zipfile.ZipFile(source)
            except Exception as error:  # BadZipFile, NotImplementedError, OSError (a negative seek)...
                raise self.damaged(f"not a zip file, or an incomplete one ({error})") from error
            self._root, self.files = self._zip_names()

    def _zip_names(self) -> tuple[str, set[str]]:
        names = [name for name in self._zip.namelist() if not name.endswith("/")]
        for name in names:
            if re.match(r"[/\\]|\w:", name) or ".." in re.split(r"[/\\]", name):
                raise self.damaged(f"{name} points outside the archive")
        for name, count in collections.Counter(names).items():
            if count > 1:
                raise self.damaged(f"{name} occurs {count} times")
        roots = [name.removesuffix("wnids.txt") for name in names if name.rpartition("/")[2] == "wnids.txt"]
        if not roots:
            raise UserError(f"{self.name}: wnids.txt is missing, so this is not Tiny ImageNet; use another archive")
        root = min(roots, key=len)
        return root, {name.removeprefix(root) for name in names if name.startswith(root)}

    def damaged(self, problem: str) -> UserError:
        """Returns the error that names a problem of the archive and its remedy."""
        # The problem may quote the archive: text of any length, with line breaks and control characters.
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in problem[:300])
        return UserError(f"{self.name}: {line}; use another copy of the archive")

    def read(self, file: str, limit: int = _MAX_BYTES) -> bytes:
        """Returns the bytes of a file, at most `limit`.

        Raises:
            UserError: the file is missing, damaged, or larger than `limit`.
        """
        if file not in self.files:
            raise self.damaged(f"{file} is missing")
        if self._zip is None:
            path = self._root / file
            if not path.is_file():
                raise self.damaged(f"{file} is not a file, or is a broken link")
            with open(path, "rb") as stream:
                data = stream.read(limit + 1)
        else:
            info = self._zip.getinfo(self._root + file)
            # Python's decompressors for other methods do not limit their output: a zip bomb would fill the memory.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.damaged(f"{file} uses a compression method other than deflate")
            try:
                with self._zip.open(info) as stream:
                    data = stream.read(limit + 1)
            except Exception as error:  # BadZipFile, zlib.error, EOFError, RuntimeError, OSError...
                raise self.damaged(f"{file} cannot be read ({error})") from error
        if len(data) > limit:
            raise self.damaged(f"{file} is larger than {limit // 2**20} MB")
        return data

    def read_images(self, files: Sequence[str]) -> list[bytes]:
        """Returns the bytes of images, each of them a complete JPEG of 64x64 pixels.

        Raises:
            UserError: an image is missing, or is not such a JPEG.
        """
        images = [self.read(file, _MAX_IMAGE_BYTES) for file in files]
        for file, image in zip(files, images, strict=True):
            if not image.startswith(b"\xff\xd8\xff"):
                raise self.damaged(f"{file} is not a JPEG image")
        try:
            shapes = _shapes(images).numpy()
        except tf.errors.InvalidArgumentError:
            # The error does not say which image of the batch is damaged.
            shapes = [self._shape(file, image) for file, image in zip(files, images, strict=True)]
        for file, (height, width, _) in zip(files, shapes, strict=True):
            if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
                raise self.damaged(f"{file} has {width}x{height} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}")
        return images

    def _shape(self, file: str, image: bytes) -> np.ndarray:
        try:
            return _shapes([image])[0].numpy()
        except tf.errors.InvalidArgumentError as error:
            raise self.damaged(f"{file} is a damaged JPEG image") from error

    def index(self, *, num_classes: int, train_per_class: int, validation_per_class: int, test_images: int) -> Index:
        """Lists the classes and the images of the splits train, validation and test, without reading any image.

        Args:
            num_classes: expected number of classes.
            train_per_class: expected number of training images per class.
            validation_per_class: expected number of validation images per class.
            test_images: expected number of test images.

        Raises:
            UserError: a file is missing, a count differs, or a file contradicts itself or another file.
        """
        wnids = [line.strip() for line in self._lines("wnids.txt")]
        if len(set(wnids)) != len(wnids):
            doubled = collections.Counter(wnids).most_common(1)[0][0]
            raise self.damaged(f"wnids.txt names {doubled} more than once")
        self._check_count("wnids.txt", "classes", len(wnids), num_classes)
        if set(wnids) == set(OFFICIAL_WNIDS):
            wnids = OFFICIAL_WNIDS  # A copy of the archive with its lines in another order gives the same labels.
        words = dict(line.partition("\t")[::2] for line in self._lines("words.txt"))
        for wnid in wnids:
            if not words.get(wnid):
                raise self.damaged(f"words.txt has no words for {wnid}")

        folders = collections.defaultdict(set)
        for name in self.files:
            folder, _, file = name.rpartition("/")
            # macOS' Finder adds files such as ._n01443537_0.JPEG.
            if file.endswith(".JPEG") and not file.startswith("."):
                if not name.isprintable():
                    raise self.damaged(f"{name} is not the name of an image")
                folders[folder].add(file)
        known = {f"train/{wnid}/images" for wnid in wnids}
        for folder in folders:
            if folder.startswith("train/") and folder not in known:
                raise self.damaged(f"{folder} holds images, but wnids.txt does not name its class")

        train = []
        for label, wnid in enumerate(wnids):
            folder = f"train/{wnid}/images"
            self._check_count(folder, "images", len(folders[folder]), train_per_class)
            rows = self._rows(f"train/{wnid}/{wnid}_boxes.txt", 5, folder, folders[folder])
            train += [Image(f"{folder}/{file}", label, box) for file, _, box in rows]

        folder, file = "val/images", "val/val_annotations.txt"
        self._check_count(folder, "images", len(folders[folder]), num_classes * validation_per_class)
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        validation = []
        for name, (wnid,), box in self._rows(file, 6, folder, folders[folder]):
            if wnid not in labels:
                raise self.damaged(f"{file} gives {name} the class {wnid}, which wnids.txt does not name")
            validation.append(Image(f"{folder}/{name}", labels[wnid], box))
        counts = collections.Counter(image.label for image in validation)
        for label, wnid in enumerate(wnids):
            self._check_count(file, f"images of {wnid}", counts[label], validation_per_class)

        folder = "test/images"
        self._check_count(folder, "images", len(folders[folder]), test_images)
        test = [Image(f"{folder}/{file}", -1, WHOLE_IMAGE) for file in sorted(folders[folder])]
        return Index(wnids, [words[wnid] for wnid in wnids], {"train": train, "validation": validation, "test": test})

    def _lines(self, file: str) -> list[str]:
        try:
            text = self.read(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{file} is not UTF-8 text") from error
        return [line for line in text.splitlines() if line.strip()]

    def _check_count(self, where: str, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise self.damaged(f"{where} has {found} {what}, not {expected}")

    def _rows(self, table: str, columns: int, folder: str, files: set[str]) -> list[tuple[str, list[str], tuple]]:
        """Returns (file, middle columns, box) of each line of a table that must list each of `files` exactly once."""
        rows = {}
        for number, line in enumerate(self._lines(table), start=1):
            file, *between = line.split("\t")
            box = _box(between[-4:])
            if len(between) + 1 != columns or box is None:
                raise self.damaged(f"{table} line {number} is not a file and its box in pixels from 0 to 63: {line!r}")
            if file in rows:
                raise self.damaged(f"{table} names {file} more than once")
            if file not in files:
                raise self.damaged(f"{table} names {file}, which {folder} does not hold")
            rows[file] = (file, between[:-4], box)
        for file in sorted(files - rows.keys()):
            raise self.damaged(f"{table} does not name {file}, which {folder} holds")
        return list(rows.values())


def _box(pixels: Sequence[str]) -> tuple[float, float, float, float] | None:
    """Returns the normalized box of four pixel coordinates, or None if they do not form a box."""
    try:
        xmin, ymin, xmax, ymax = map(int, pixels)
    except ValueError:
        return None
    if not (0 <= xmin <= xmax < IMAGE_SIZE and 0 <= ymin <= ymax < IMAGE_SIZE):
        return None
    # The files give the first and the last pixel of a box: a whole image is 0 to 63, and hundreds of boxes are one
    # pixel wide, with xmin = xmax. So the box ends at the far edge of its last pixel.
    return ymin / IMAGE_SIZE, xmin / IMAGE_SIZE, (ymax + 1) / IMAGE_SIZE, (xmax + 1) / IMAGE_SIZE


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def _shapes(images: tf.Tensor) -> tf.Tensor:
    """Returns the (height, width, channels) of JPEGs; decodes those of the right size to check that they are intact.

    It decodes no others, because a few hundred bytes can claim to be an image of gigabytes.
    """

    # A call per batch takes a third of the time of a call per image, and uses all cores.
    def shape(image):
        claimed = tf.io.extract_jpeg_shape(image)
        is_right = tf.reduce_all(claimed[:2] == IMAGE_SIZE)
        return tf.cond(is_right, lambda: tf.shape(tf.io.decode_jpeg(image, channels=3)), lambda: claimed)

    return tf.map_fn(shape, images, fn_output_signature=tf.TensorSpec([3], tf.int32))
