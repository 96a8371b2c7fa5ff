"""Tiny ImageNet as a TFDS dataset."""

import dataclasses
import errno
import io
import os
from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds
from tensorflow_datasets.core.download import downloader

from tiny_imagenet import synthetic
from tiny_imagenet.archive import IMAGE_SIZE, Archive, Image

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_BATCH = 500


@dataclasses.dataclass(eq=False)
class TinyImagenetConfig(tfds.core.BuilderConfig):
    """What an archive must hold to be whole; the defaults are the real data's.

    Attributes:
        num_classes: classes.
        train_per_class: training images of each class.
        validation_per_class: validation images of each class.
        test_images: test images.
        synthetic: whether the images are drawn by code, with no archive.
    """

    num_classes: int = 200
    train_per_class: int = 500
    validation_per_class: int = 50
    test_images: int = 10_000
    synthetic: bool = False

    def counts(self) -> dict[str, int]:
        """Returns the four counts by name."""
        return {
            "num_classes": self.num_classes,
            "train_per_class": self.train_per_class,
            "validation_per_class": self.validation_per_class,
            "test_images": self.test_images,
        }


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet: 200 classes of 64x64 images.

    Args:
        archive: a copy of tiny-imagenet-200.zip, or the folder that it unpacks to, to read in place of a download. It
            is checked by content, not by checksum.
        **kwargs: as for every TFDS builder (data_dir, config, version).

    Raises:
        ValueError: `archive` is given for synthetic data. From download_and_prepare: the archive is damaged.
        FileNotFoundError: from download_and_prepare: the archive, or a file in it, is missing.
        ConnectionError: from download_and_prepare: the download failed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        TinyImagenetConfig(name="full", description="The images of the challenge."),
        TinyImagenetConfig(
            name="synthetic",
            description="Shapes drawn by code in the archive's layout, for a machine without the data.",
            train_per_class=20,
            validation_per_class=5,
            test_images=500,
            synthetic=True,
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "full"

    def __init__(self, *, archive: str | os.PathLike | None = None, **kwargs):
        super().__init__(**kwargs)
        if archive is not None and self.builder_config.synthetic:
            raise ValueError(f"config {self.builder_config.name} draws its own images: leave archive={archive} out")
        self._archive = archive
        self._original_state["archive"] = archive  # what a pickled builder is built again from

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=self.builder_config.num_classes),
                    "id": tfds.features.Text(),
                    "bbox": tfds.features.BBoxFeature(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        archive = self._open(dl_manager)
        index = archive.index(**self.builder_config.counts())
        # The ids and words come from the archive; TFDS saves them with the prepared data and restores them from there.
        self.info.features["label"].names = index.wnids
        self.info.metadata["words"] = index.words
        return {split: self._generate_examples(archive, images) for split, images in index.splits.items()}

    def _open(self, dl_manager: tfds.download.DownloadManager) -> Archive:
        if self.builder_config.synthetic:
            file = io.BytesIO()
            synthetic.write_archive(file, **self.builder_config.counts())
            return Archive(file, name="synthetic archive")
        if self._archive is not None:
            return Archive(self._archive)
        # TFDS calls an unreachable host for over three minutes; whoever has no network should hear of it sooner.
        retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
        try:
            path = dl_manager.download(_URL)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Whatever else stopped it (no network, an HTTP error, a wrong checksum), the way out is the same.
            reason = " ".join(str(error).split())
            remedy = "pass --archive=PATH for a copy that you have, or --dataset=synthetic"
            raise ConnectionError(f"cannot download {_URL}: {remedy} ({reason})") from error
        finally:
            downloader.MAX_RETRIES = retries
        return Archive(path)

    def _generate_examples(self, archive: Archive, images: list[Image]) -> Iterator[tuple[str, dict]]:
        """Yields (file, example), having checked that the file is a whole JPEG of the right size."""
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            encoded = archive.read_images([image.file for image in batch])
            for image, data in zip(batch, encoded, strict=True):
                yield (
                    image.file,
                    {
                        "image": data,
                        "label": image.label,
                        "id": image.file.rpartition("/")[2],
                        "bbox": tfds.features.BBox(*image.box),
                    },
                )
