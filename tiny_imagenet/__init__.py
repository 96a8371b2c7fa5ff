"""Tiny ImageNet: a TFDS dataset, registered by importing this package, and its input pipeline."""

from tiny_imagenet import tiny_imagenet_dataset_builder as tiny_imagenet_dataset_builder
