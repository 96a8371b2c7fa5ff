"""Tiny ImageNet: a TFDS dataset, registered by importing this package, and its input pipeline."""

from tiny_imagenet.tiny_imagenet_dataset_builder import with_words as with_words
