"""The files of a copy of the Tiny ImageNet archive: a zip file, or an unpacked folder."""

import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO

import tensorflow as tf

from tiny_imagenet.errors import UserError

IMAGE_SIZE = 64
# The training images are in the deepest folders: train/n01443537/images.
_DEPTH = 3
# The largest file, words.txt, has 2.6 MB; every image has less than 4 kB. A zip bomb of a few kB holds gigabytes.
_MAX_BYTES = 16 * 2**20
_MAX_IMAGE_BYTES = 2**20


class Archive:
    """The files of an archive, by their paths relative to its root, the folder that holds wnids.txt.

    A zip file is read in place, without unpacking it. Several threads may read at once. The paths are those of the
    official archive: in a zip file made on Windows, backslashes are read as slashes, and in a copy made for PyTorch's
    ImageFolder, train/WNID/NAME.JPEG is train/WNID/images/NAME.JPEG, and the images of val/WNID are in val/images.

    Args:
      source: Path of a zip file, an open zip file, or path of an unpacked folder (the root or its parent).
      name: Name of the archive in error messages; by default its path.

    Raises:
      UserError: if `source` does not exist, has no wnids.txt, is not a complete zip file, or has names that are unsafe
        or not unique.
      OSError: if `source` cannot be opened.
    """

    def __init__(self, source: str | os.PathLike | IO[bytes], name: str | None = None):
        self.name = name or str(source)
        if isinstance(source, str | os.PathLike):
            source = pathlib.Path(source).expanduser()
            if not source.exists():
                raise UserError(f"{self.name}: no such file or folder; give a copy of tiny-imagenet-200.zip")
        stored = self._folder(source) if isinstance(source, pathlib.Path) and source.is_dir() else self._zip(source)
        self.files = {}
        for name, file in stored:
            name = re.sub(r"^(train/[^/]+)/([^/]+\.JPEG)$", r"\1/images/\2", name)
            name = re.sub(r"^val/[^/]+/(?:images/)?([^/]+\.JPEG)$", r"val/images/\1", name)
            if name in self.files:
                raise self.damaged(f"{name} occurs more than once")
            self.files[name] = file

    def _folder(self, source: pathlib.Path) -> Iterator[tuple[str, str]]:
        """Yields (path below the root, whole path) of the files of an unpacked folder."""
        tables = [*source.glob("wnids.txt"), *sorted(source.glob("*/wnids.txt"))]
        if not tables:
            raise UserError(f"{self.name}: no wnids.txt here or one level below; give the folder that holds it")
        root = tables[0].parent
        for folder, folders, files in os.walk(root, followlinks=True):
            below = pathlib.Path(folder).relative_to(root)
            yield from (((below / file).as_posix(), os.path.join(folder, file)) for file in files)
            if len(below.parts) == _DEPTH:
                folders.clear()  # Links may form a cycle.

    def _zip(self, source: pathlib.Path | IO[bytes]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Yields (path below the root, entry) of the files of a zip file."""
        if isinstance(source, pathlib.Path):
            if not source.is_file():
                raise self.damaged("neither a file nor a folder")
            source = open(source, "rb")  # noqa: SIM115, stays open for later reads
        try:
            self._open_zip = zipfile.ZipFile(source)
        except Exception as error:  # BadZipFile, NotImplementedError, OSError (a negative seek)...
            raise self.damaged(f"not a zip file, or an incomplete one ({error})") from error
        files = [(info.filename.replace("\\", "/"), info) for info in self._open_zip.infolist()]
        for name, _ in files:
            if re.match(r"/|\w:", name) or ".." in name.split("/"):
                raise self.damaged(f"{name} points outside the archive")
        roots = [name.removesuffix("wnids.txt") for name, _ in files if name.rpartition("/")[2] == "wnids.txt"]
        if not roots:
            raise UserError(f"{self.name}: wnids.txt is missing, so this is not Tiny ImageNet; use another archive")
        root = min(roots, key=len)
        for name, info in files:
            if name.startswith(root) and not name.endswith("/"):
                yield name.removeprefix(root), info

    def damaged(self, problem: str) -> UserError:
        """Returns the error that names a problem of the archive and its remedy."""
        # The problem may quote the archive: text of any length, with line breaks and control characters.
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in problem[:300])
        return UserError(f"{self.name}: {line}; use another copy of the archive")

    def read(self, file: str, limit: int = _MAX_BYTES) -> bytes:
        """Returns the bytes of a file, at most `limit`.

        Raises:
          UserError: if the file is missing, damaged, or larger than `limit`.
        """
        if file not in self.files:
            raise self.damaged(f"{file} is missing")
        stored = self.files[file]
        if isinstance(stored, str):
            if not os.path.isfile(stored):
                raise self.damaged(f"{file} is not a file, or is a broken link")
            with open(stored, "rb") as stream:
                data = stream.read(limit + 1)
        else:
            # Python's decompressors for other methods do not limit their output: a zip bomb would fill the memory.
            if stored.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.damaged(f"{file} uses a compression method other than deflate")
            try:
                with self._open_zip.open(stored) as stream:
                    data = stream.read(limit + 1)
            except Exception as error:  # BadZipFile, zlib.error, EOFError, RuntimeError, OSError...
                raise self.damaged(f"{file} cannot be read ({error})") from error
        if len(data) > limit:
            raise self.damaged(f"{file} is larger than {limit // 2**20} MB")
        return data

    def read_lines(self, file: str) -> list[str]:
        """Returns the lines of a UTF-8 text file that are not blank.

        Raises:
          UserError: if the file is missing, damaged, too large, or not UTF-8 text.
        """
        try:
            text = self.read(file).decode("utf-8-sig")  # Editors on Windows write a byte order mark.
        except UnicodeDecodeError as error:
            raise self.damaged(f"{file} is not UTF-8 text") from error
        return [line for line in text.splitlines() if line.strip()]

    def read_images(self, files: Sequence[str]) -> list[bytes]:
        """Returns the bytes of images, each of them a complete JPEG of 64x64 pixels.

        Raises:
          UserError: if an image is missing, or is not such a JPEG.
        """
        images = [self.read(file, _MAX_IMAGE_BYTES) for file in files]
        for file, image in zip(files, images, strict=True):
            if not image.startswith(b"\xff\xd8\xff"):
                raise self.damaged(f"{file} is not a JPEG image")
        try:
            shapes = _shapes(images).numpy()
        except tf.errors.InvalidArgumentError as error:
            if len(files) == 1:
                raise self.damaged(f"{files[0]} is a damaged JPEG image") from error
            # The error does not say which image of the batch is damaged.
            return [image for file in files for image in self.read_images([file])]
        for file, (height, width, _) in zip(files, shapes, strict=True):
            if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
                raise self.damaged(f"{file} has {width}x{height} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}")
        return images


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
