"""The paper's ten-crop augmentation (section 4.2.1) and the normalization that goes with it (section 3).

Crops 0 to 4 of a 64x64 image are its four 56x56 corners and its centre; crops 5 to 9 are the same, mirrored left-right.
"""

import numpy as np
import tensorflow as tf

from tiny_imagenet.archive import IMAGE_SIZE

CROP_SIZE = 56
CENTRE = 4
SCALE = 64.0  # About the standard deviation of the training set's pixels.

_FAR, _MIDDLE = IMAGE_SIZE - CROP_SIZE, (IMAGE_SIZE - CROP_SIZE) // 2
CORNERS = ((0, 0), (0, _FAR), (_FAR, 0), (_FAR, _FAR), (_MIDDLE, _MIDDLE))
"""The top left pixel, (y, x), of crops 0 to 4, and of crops 5 to 9 before mirroring."""


def slice_crop(images: np.ndarray | tf.Tensor, crop_index: int) -> np.ndarray | tf.Tensor:
    """Takes the same one of the ten crops of every image: (..., 64, 64, C) to (..., 56, 56, C); of an array, a view."""
    y, x = CORNERS[crop_index % 5]
    crops = images[..., y : y + CROP_SIZE, x : x + CROP_SIZE, :]
    return crops[..., ::-1, :] if crop_index >= 5 else crops


def ten_crops(images: np.ndarray) -> np.ndarray:
    """Takes all ten crops of every image: (..., 64, 64, C) to (10, ..., 56, 56, C)."""
    return np.stack([slice_crop(images, crop_index) for crop_index in range(10)])


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
