"""Tiny ImageNet as a TFDS dataset."""

import dataclasses
import io
import os
from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds
from tensorflow_datasets.core.download import downloader

from tiny_imagenet import preparation, synthetic
from tiny_imagenet.archive import IMAGE_SIZE, Archive
from tiny_imagenet.errors import DISK_FULL, UserError
from tiny_imagenet.index import Image, read_index

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_BATCH = 500


@dataclasses.dataclass(eq=False)
class TinyImagenetConfig(tfds.core.BuilderConfig):
    """The size of a complete archive; the defaults are those of the real data.

    Attributes:
      num_classes: Number of classes.
      train_per_class: Number of training images per class.
      validation_per_class: Number of validation images per class.
      test_images: Number of test images.
      synthetic: Whether code draws the images, so that no archive is needed.
    """

    num_classes: int = 200
    train_per_class: int = 500
    validation_per_class: int = 50
    test_images: int = 10_000
    synthetic: bool = False

    def counts(self) -> dict[str, int]:
        """Returns the four numbers by name: the arguments of read_index."""
        return {
            "num_classes": self.num_classes,
            "train_per_class": self.train_per_class,
            "validation_per_class": self.validation_per_class,
            "test_images": self.test_images,
        }


def with_words(info: tfds.core.DatasetInfo) -> tfds.core.DatasetInfo:
    """Returns a copy of the description of a prepared dataset in which the names of the labels are words.

    `tfds.show_examples` and `tfds.as_dataframe` show the names of labels. With the copy they show the first of the
    words of each class, such as "goldfish". The names in `info` remain WordNet ids, such as "n01443537".

    Args:
      info: From `tfds.load(..., with_info=True)`, or of a builder.

    Raises:
      ValueError: if the dataset is not prepared, so its words are not known yet.
    """
    if "words" not in info.metadata:
        raise ValueError(f"{info.full_name} is not prepared: call download_and_prepare() of its builder first")
    names = [words.split(",")[0] for words in info.metadata["words"]]
    features = {**info.features, "label": tfds.features.ClassLabel(names=names)}
    identity = tfds.core.DatasetIdentity(
        name=info.name,
        version=info.version,
        data_dir=info.data_dir,
        module_name=info.module_name,
        config_name=info.config_name,
        config_description=info.config_description,
        release_notes=info.release_notes,
    )
    return tfds.core.DatasetInfo(
        builder=identity,
        description=info.description,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=info.supervised_keys,
        homepage=info.homepage,
        citation=info.citation,
        metadata=info.metadata,
        split_dict=info.splits,
    )


class Builder(tfds.core.GeneratorBasedBuilder):
    """Tiny ImageNet: 200 classes of 64x64 images.

    Args:
      archive: Path of a copy of tiny-imagenet-200.zip, or of its unpacked folder, to read instead of downloading
        it. Its content is checked, not its checksum.
      data_dir: As of every TFDS builder: the folder for prepared data, by default the environment variable
        TFDS_DATA_DIR, else ~/tensorflow_datasets.
      **kwargs: The other arguments of every TFDS builder (config, version).

    Raises:
      UserError: if `archive` is given for synthetic data, or the home folder that `data_dir` refers to is not known.
        download_and_prepare raises it if the archive is missing or damaged, if the download fails, or if the data
        cannot be written.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        TinyImagenetConfig(name="full", description="The images of the challenge."),
        TinyImagenetConfig(
            name="synthetic",
            description="Shapes drawn by code, in the layout of the archive, for a machine without the data.",
            train_per_class=20,
            validation_per_class=5,
            test_images=500,
            synthetic=True,
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "full"

    def __init__(
        self, *, archive: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None, **kwargs
    ):
        super().__init__(data_dir=data_dir and os.path.expanduser(data_dir), **kwargs)
        root = os.fspath(self.data_dir_root)
        if root.startswith("~"):  # TFDS would make a folder of this name.
            remedy = "pass --data_dir=PATH (in Python, data_dir=PATH), or set HOME or TFDS_DATA_DIR to an absolute path"
            raise UserError(f"{root}: the home folder is not known: {remedy}")
        if archive is not None and self.builder_config.synthetic:
            raise UserError(f"{self.builder_config.name} data needs no archive: remove archive={archive}")
        self._archive = archive

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"archive": self._archive}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._archive = state["archive"]

    def download_and_prepare(self, **kwargs) -> None:
        """Prepares the data as TFDS does, in one process at a time. It removes what killed processes left behind."""
        if self.data_path.exists() or "://" in self.data_dir:  # A bucket has no locks.
            super().download_and_prepare(**kwargs)
            return
        with preparation.lock(self.data_dir):
            if self.data_path.exists():  # Another process prepared it meanwhile.
                self.info.read_from_directory(self.data_dir)
            super().download_and_prepare(**kwargs)

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
        index = read_index(archive, **self.builder_config.counts())
        # TFDS saves the ids and words with the prepared data, and restores them from there.
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
        # TFDS retries for over three minutes before it reports that there is no network. None of its public options
        # changes that.
        retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
        try:
            path = dl_manager.download(_URL)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            # The remedy is the same for all other failures: no network, an HTTP error, a wrong checksum.
            reason = " ".join(str(error).split())
            remedy = "give your own copy with --archive=PATH (in Python, archive=PATH), or use the synthetic dataset"
            raise UserError(f"cannot download {_URL}: {remedy} ({reason})") from error
        finally:
            downloader.MAX_RETRIES = retries
        return Archive(path)

    def _generate_examples(self, archive: Archive, images: list[Image]) -> Iterator[tuple[str, dict]]:
        """Yields (file, example) of each image, after checking that it is a complete JPEG of the right size."""
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
