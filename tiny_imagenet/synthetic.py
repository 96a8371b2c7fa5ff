"""Draws synthetic images and writes them as an archive in the layout of Tiny ImageNet."""

import os
import zipfile
from typing import IO

import numpy as np
import tensorflow as tf

from tiny_imagenet.archive import IMAGE_SIZE

SHAPES = ("disc", "square", "triangle", "ring", "cross")
TEXTURES = ("plain", "striped", "checked", "dotted")
COLOURS = {
    "red": (215, 40, 40),
    "orange": (240, 140, 20),
    "yellow": (235, 220, 50),
    "green": (50, 165, 60),
    "cyan": (60, 205, 215),
    "blue": (45, 75, 215),
    "purple": (135, 50, 185),
    "pink": (240, 130, 185),
    "brown": (120, 75, 40),
    "white": (240, 240, 240),
}
# Each class is a colour, a texture and a shape.
CLASSES = [(colour, texture, shape) for colour in COLOURS for texture in TEXTURES for shape in SHAPES]


def write_archive(
    file: str | os.PathLike | IO[bytes],
    *,
    num_classes: int = 200,
    train_per_class: int = 20,
    validation_per_class: int = 5,
    test_images: int = 500,
    seed: int = 0,
) -> None:
    """Writes a zip file in the layout of tiny-imagenet-200.zip. The same arguments give the same images.

    Args:
      file: Path of the zip file, or an open binary file.
      num_classes: Number of classes, at most 200.
      train_per_class: Number of training images per class.
      validation_per_class: Number of validation images per class.
      test_images: Number of test images, of random classes.
      seed: Seed of all random choices.

    Raises:
      ValueError: if `num_classes` is less than 1 or more than 200.
    """
    if not 1 <= num_classes <= len(CLASSES):
        raise ValueError(f"num_classes must be from 1 to {len(CLASSES)}, not {num_classes}")
    rng = np.random.default_rng(seed)
    # As in the real archive, wnids.txt is not sorted, and words.txt is sorted and has ids that are not used.
    classes = rng.permutation(len(CLASSES))
    wnids = [f"n9000{number:04d}" for number in classes]
    labels = range(num_classes)
    val_labels = rng.permutation(np.repeat(labels, validation_per_class))
    test_labels = rng.integers(num_classes, size=test_images)

    with zipfile.ZipFile(file, "w") as archive:

        def write(name: str, data: bytes | str) -> None:
            # A new ZipInfo has a fixed date, so the same images give the same bytes.
            archive.writestr(zipfile.ZipInfo(f"tiny-imagenet-200/{name}"), data)

        write("wnids.txt", "".join(f"{wnid}\n" for wnid in wnids[:num_classes]))
        names = [f"{colour} {texture} {shape}" for colour, texture, shape in CLASSES]
        write("words.txt", "".join(f"n9000{number:04d}\t{name}\n" for number, name in enumerate(names)))
        annotations = {}
        for label, wnid in zip(labels, wnids, strict=False):
            train = [f"{wnid}_{i}.JPEG" for i in range(train_per_class)]
            val = [f"val_{i}.JPEG" for i in np.flatnonzero(val_labels == label)]
            test = [f"test_{i}.JPEG" for i in np.flatnonzero(test_labels == label)]
            images, boxes = draw(CLASSES[classes[label]], len(train) + len(val) + len(test), rng)
            lines = ["\t".join(map(str, box)) + "\n" for box in boxes.tolist()]
            paths = [f"train/{wnid}/images/{name}" for name in train]
            paths += [f"val/images/{name}" for name in val]
            paths += [f"test/images/{name}" for name in test]
            grey = rng.random(len(paths)) < 0.02
            for path, image, is_grey in zip(paths, images, grey, strict=True):
                write(path, encode(image, is_grey))
            write(f"train/{wnid}/{wnid}_boxes.txt", "".join(map("\t".join, zip(train, lines, strict=False))))
            for name, line in zip(val, lines[len(train) :], strict=False):
                annotations[name] = f"{name}\t{wnid}\t{line}"
        ordered = [annotations[f"val_{i}.JPEG"] for i in range(len(val_labels))]
        write("val/val_annotations.txt", "".join(ordered))


def encode(image: np.ndarray, grey: bool) -> bytes:
    """Returns a (64, 64, 3) uint8 image as a JPEG, of one channel if `grey`."""
    if grey:
        image = image.mean(axis=-1, keepdims=True).astype(np.uint8)
    return tf.io.encode_jpeg(image, quality=90).numpy()


def draw(cls: tuple[str, str, str], count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of one class: a textured shape of random position, size and angle on a noisy background.

    Args:
      cls: Colour, texture and shape, one of CLASSES.
      count: Number of images.
      rng: The source of all random choices.

    Returns:
      Images (count, 64, 64, 3) uint8, and boxes (count, 4) int: xmin, ymin, xmax, ymax in pixels, all inclusive.
    """
    colour, texture, shape = cls
    size = IMAGE_SIZE

    def uniform(low: float, high: float, channels: int = 1) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1, channels)).astype(np.float32)

    y, x = np.mgrid[:size, :size].astype(np.float32)[:, None, :, :, None] / size
    # Coordinates in which the shape fits the unit disc, rotated by up to 20 degrees.
    radius, angle = uniform(0.2, 0.4), uniform(-0.35, 0.35)
    dy, dx = (y - uniform(0.35, 0.65)) / radius, (x - uniform(0.35, 0.65)) / radius
    u = dx * np.cos(angle) + dy * np.sin(angle)
    v = dy * np.cos(angle) - dx * np.sin(angle)
    inside = _inside(shape, u, v)

    paint = np.array(COLOURS[colour], np.float32) + uniform(-20, 20, 3)
    paint = paint * np.where(_is_dark(texture, u, v), np.float32(0.4), np.float32(1))
    # A gradient between two muted colours.
    slope = np.clip((x - 0.5) * uniform(-1, 1) + (y - 0.5) * uniform(-1, 1) + 0.5, 0, 1)
    grey = uniform(50, 200)
    background = grey + uniform(-35, 35, 3) + uniform(-50, 50, 3) * slope
    noise = rng.standard_normal((count, size, size, 1), np.float32) * uniform(4, 16)
    images = np.clip(np.where(inside, paint, background) + noise, 0, 255).astype(np.uint8)

    rows, columns = inside[..., 0].any(axis=2), inside[..., 0].any(axis=1)
    first = [columns.argmax(axis=1), rows.argmax(axis=1)]
    last = [size - 1 - columns[:, ::-1].argmax(axis=1), size - 1 - rows[:, ::-1].argmax(axis=1)]
    return images, np.stack(first + last, axis=1)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns which points (u, v) lie inside the shape."""
    if shape == "disc":
        return u**2 + v**2 < 0.9
    if shape == "ring":
        return abs(u**2 + v**2 - 0.6) < 0.4
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.8
    if shape == "triangle":
        return (v < 0.7) & (v > 2 * abs(u) - 1)
    return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1)


def _is_dark(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns which points (u, v) the texture darkens."""
    if texture == "striped":
        return np.floor(v * 4) % 2 == 1
    if texture == "checked":
        return (np.floor(u * 3) + np.floor(v * 3)) % 2 == 1
    if texture == "dotted":
        return (u * 3 % 1 - 0.5) ** 2 + (v * 3 % 1 - 0.5) ** 2 < 0.1
    return np.zeros_like(u, bool)
