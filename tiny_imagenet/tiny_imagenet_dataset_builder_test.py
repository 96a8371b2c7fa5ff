"""Tests the Tiny ImageNet builder in TFDS' own way."""

import tensorflow_datasets.testing as tfds_test

from tiny_imagenet import tiny_imagenet_dataset_builder

# dummy_data/tiny-imagenet-200.zip was drawn by synthetic.write_archive with these counts.
_CONFIG = tiny_imagenet_dataset_builder.TinyImagenetConfig(
    name="dummy", num_classes=2, train_per_class=3, validation_per_class=2, test_images=3
)


class TinyImagenetTest(tfds_test.DatasetBuilderTestCase):
    DATASET_CLASS = tiny_imagenet_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = [_CONFIG]
    SPLITS = {"train": 6, "validation": 4, "test": 3}
    DL_DOWNLOAD_RESULT = "tiny-imagenet-200.zip"


if __name__ == "__main__":
    tfds_test.test_main()
