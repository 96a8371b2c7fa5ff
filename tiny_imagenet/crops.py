"""The crops of the paper's augmentation (section 4.2.1) and the normalization that goes with them (section 3).

A 64x64 image has 81 crops of 56x56 pixels, at the offsets (y, x) from (0, 0) to (8, 8), and 81 mirrored left-right. The
number of a crop is `9 y + x`, and 81 more if it is mirrored.
"""

import numpy as np
import tensorflow as tf

from tiny_imagenet.archive import IMAGE_SIZE

CROP_SIZE = 56
OFFSETS = IMAGE_SIZE - CROP_SIZE + 1  # 9 in each direction.
NUM_CROPS = 2 * OFFSETS**2
CENTRE = OFFSETS**2 // 2
SCALE = 64.0  # About the standard deviation of the training set's pixels.

_FIVE = (0, OFFSETS - 1, OFFSETS * (OFFSETS - 1), OFFSETS**2 - 1, CENTRE)
TEN_CROPS = (*_FIVE, *(OFFSETS**2 + number for number in _FIVE))
"""The paper's ten crops: the four corners and the centre, then the same, mirrored."""


def slice_crop(images: np.ndarray | tf.Tensor, number: int) -> np.ndarray | tf.Tensor:
    """Takes the same crop of every image: (..., 64, 64, C) to (..., 56, 56, C); of an array, a view."""
    mirrored, offset = divmod(number, OFFSETS**2)
    y, x = divmod(offset, OFFSETS)
    crops = images[..., y : y + CROP_SIZE, x : x + CROP_SIZE, :]
    return crops[..., ::-1, :] if mirrored else crops


def mirror(crops: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Mirrors some of the crops left-right.

    Args:
      crops: (N, H, W, 3), of any dtype.
      mirrored: (N,) integers: 1 for the crops to mirror, 0 for the others.
    """
    # As one tall image: tf.reverse has a kernel for one image of 3 channels that is faster than the one for a batch.
    tall = tf.reshape(crops, [-1, *crops.shape[2:]])
    both = tf.stack([crops, tf.reshape(tf.reverse(tall, [1]), tf.shape(crops))], axis=1)
    return tf.gather(both, mirrored, batch_dims=1)


def ten_crops(images: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Takes the paper's ten crops of every image: (..., 64, 64, C) to (10, ..., 56, 56, C)."""
    stack = tf.stack if tf.is_tensor(images) else np.stack
    return stack([slice_crop(images, number) for number in TEN_CROPS])


def every_crop(image: np.ndarray) -> np.ndarray:
    """Takes all crops of an image, by their numbers: (64, 64, C) to (162, 56, 56, C)."""
    return np.stack([slice_crop(image, number) for number in range(NUM_CROPS)])


def normalize(crops: tf.Tensor, mean_crops: tf.Tensor) -> tf.Tensor:
    """Subtracts from each crop the same crop of the mean image, and scales.

    The paper subtracts the mean image before the crop. Here the crop comes first, so that images travel as uint8.

    Args:
      crops: (N, 56, 56, 3), of any dtype.
      mean_crops: (N, 56, 56, 3) float32, or (56, 56, 3) if all crops are the same one.

    Returns:
      (N, 56, 56, 3) float32.
    """
    return (tf.cast(crops, tf.float32) - mean_crops) / SCALE
