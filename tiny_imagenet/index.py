"""The classes of an archive and the images of its splits, from its tables, which must agree with its files."""

import collections
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from tiny_imagenet.archive import IMAGE_SIZE, Archive

# The WordNet ids of the official archive, in the order of its wnids.txt. It is the order of the labels, also where a
# copy's wnids.txt has another one.
LABELS = (pathlib.Path(__file__).parent / "labels.txt").read_text().split()

Box = tuple[float, float, float, float]
"""(ymin, xmin, ymax, xmax), each in [0, 1]."""

WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


class Image(NamedTuple):
    """An image of the archive, which is not read yet.

    Attributes:
      file: Path relative to the archive's root.
      label: Index of its class in `Index.wnids`, or -1 for a test image.
      box: The object's box; the whole image where the archive has none.
    """

    file: str
    label: int
    box: Box


class Index(NamedTuple):
    """The classes of an archive and the images of its splits.

    Attributes:
      wnids: WordNet ids of the classes, in label order.
      words: Names of the classes, in label order.
      splits: Images by split name: train, validation and test.
    """

    wnids: list[str]
    words: list[str]
    splits: dict[str, list[Image]]


def read_index(
    archive: Archive, *, num_classes: int, train_per_class: int, validation_per_class: int, test_images: int
) -> Index:
    """Lists the classes and the images of an archive, without reading any image.

    Args:
      archive: The archive.
      num_classes: Expected number of classes.
      train_per_class: Expected number of training images per class.
      validation_per_class: Expected number of validation images per class.
      test_images: Expected number of test images.

    Raises:
      UserError: if a file is missing, a count differs, or a file contradicts itself or another file.
    """
    wnids = _wnids(archive, num_classes)
    words = dict(line.partition("\t")[::2] for line in archive.read_lines("words.txt"))
    for wnid in wnids:
        if not words.get(wnid):
            raise archive.damaged(f"words.txt has no words for {wnid}")

    images = _images(archive)
    known = {f"train/{wnid}/images" for wnid in wnids}
    for folder in sorted(images.keys() - known):
        if folder.startswith("train/"):
            raise archive.damaged(f"{folder} holds images, but wnids.txt does not name its class")

    expected = dict.fromkeys(sorted(known), train_per_class)
    expected |= {"val/images": num_classes * validation_per_class, "test/images": test_images}
    for folder, count in expected.items():
        _check_count(archive, folder, "images", len(images[folder]), count)
    return Index(
        wnids,
        [words[wnid] for wnid in wnids],
        {
            "train": _train(archive, wnids, images),
            "validation": _validation(archive, wnids, images["val/images"], validation_per_class),
            "test": [Image(f"test/images/{file}", -1, WHOLE_IMAGE) for file in sorted(images["test/images"])],
        },
    )


def _wnids(archive: Archive, num_classes: int) -> list[str]:
    wnids = [line.strip() for line in archive.read_lines("wnids.txt")]
    for wnid, count in collections.Counter(wnids).items():
        if count > 1:
            raise archive.damaged(f"wnids.txt names {wnid} more than once")
    _check_count(archive, "wnids.txt", "classes", len(wnids), num_classes)
    return LABELS if set(wnids) == set(LABELS) else wnids


def _images(archive: Archive) -> dict[str, set[str]]:
    """Returns the names of the images in each folder."""
    images = collections.defaultdict(set)
    for path in archive.files:
        folder, _, file = path.rpartition("/")
        # macOS' Finder adds files such as ._n01443537_0.JPEG.
        if file.endswith(".JPEG") and not file.startswith("."):
            if not path.isprintable():
                raise archive.damaged(f"{path} is not the name of an image")
            images[folder].add(file)
    return images


def _train(archive: Archive, wnids: list[str], images: dict[str, set[str]]) -> list[Image]:
    # Copies made for PyTorch's ImageFolder may lack all boxes. A copy that lacks some is damaged.
    has_boxes = any(re.match(r"train/.*_boxes\.txt$", path) for path in archive.files)
    if not has_boxes:
        logging.warning("%s has no boxes of the training images: each box is the whole image", archive.name)
    train = []
    for label, wnid in enumerate(wnids):
        folder = f"train/{wnid}/images"
        boxes = dict.fromkeys(sorted(images[folder]), WHOLE_IMAGE)
        if has_boxes:
            rows = _rows(archive, f"train/{wnid}/{wnid}_boxes.txt", 5, folder, images[folder])
            boxes = {file: box for file, _, box in rows}
        train += [Image(f"{folder}/{file}", label, box) for file, box in boxes.items()]
    return train


def _validation(archive: Archive, wnids: list[str], files: set[str], per_class: int) -> list[Image]:
    folder, table = "val/images", "val/val_annotations.txt"
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    validation = []
    for file, (wnid,), box in _rows(archive, table, 6, folder, files):
        if wnid not in labels:
            raise archive.damaged(f"{table} gives {file} the class {wnid}, which wnids.txt does not name")
        validation.append(Image(f"{folder}/{file}", labels[wnid], box))
    counts = collections.Counter(image.label for image in validation)
    for wnid, label in labels.items():
        _check_count(archive, table, f"images of {wnid}", counts[label], per_class)
    return validation


def _check_count(archive: Archive, where: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise archive.damaged(f"{where} has {found} {what}, not {expected}")


def _rows(archive: Archive, table: str, columns: int, folder: str, files: set[str]) -> list[tuple[str, list[str], Box]]:
    """Returns (file, middle columns, box) of each line of a table that must list each of `files` exactly once."""
    rows = {}
    for number, line in enumerate(archive.read_lines(table), start=1):
        file, *between = line.split("\t")
        box = _box(between[-4:])
        if len(between) + 1 != columns or box is None:
            raise archive.damaged(f"{table} line {number} is not a file and its box in pixels from 0 to 63: {line!r}")
        if file in rows:
            raise archive.damaged(f"{table} names {file} more than once")
        if file not in files:
            raise archive.damaged(f"{table} names {file}, which {folder} does not hold")
        rows[file] = (file, between[:-4], box)
    for file in sorted(files - rows.keys()):
        raise archive.damaged(f"{table} does not name {file}, which {folder} holds")
    return list(rows.values())


def _box(pixels: Sequence[str]) -> Box | None:
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
