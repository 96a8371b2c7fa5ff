"""The paper's ten-crop augmentation (section 4.2.1) and the normalisation that goes with it (section 3).

Crops 0 to 4 of a 64x64 image are its four 56x56 corners and its centre; crops 5 to 9 are the same, mirrored left-right.
The input pipeline slices crops with NumPy. In a TensorFlow graph, `crop` takes a different crop of each image with one
gather of pixels.
"""

import numpy as np
import tensorflow as tf

IMAGE_SIZE = 64
CROP_SIZE = 56
CENTRE = 4
SCALE = 64.0  # About the standard deviation of the training set's pixels.

_FAR, _MIDDLE = IMAGE_SIZE - CROP_SIZE, (IMAGE_SIZE - CROP_SIZE) // 2
CORNERS = ((0, 0), (0, _FAR), (_FAR, 0), (_FAR, _FAR), (_MIDDLE, _MIDDLE))
"""The top left pixel, (y, x), of crops 0 to 4, and of crops 5 to 9 before mirroring."""


def slice_crop(images: np.ndarray, which: int) -> np.ndarray:
    """Takes the same crop, 0 to 9, of every image, as a view: (..., 64, 64, C) to (..., 56, 56, C)."""
    y, x = CORNERS[which % 5]
    crops = images[..., y : y + CROP_SIZE, x : x + CROP_SIZE, :]
    return crops[..., ::-1, :] if which >= 5 else crops


_PIXELS = np.arange(IMAGE_SIZE**2, dtype=np.int32).reshape(IMAGE_SIZE, IMAGE_SIZE, 1)
TEN_CROPS = np.stack([slice_crop(_PIXELS, which).reshape(-1) for which in range(10)])
"""The pixels of each crop, as row-major positions in the image: (10, 56 * 56) int32."""


def crop(images: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Takes one of the ten crops of each image.

    Args:
      images: (N, 64, 64, 3) of any dtype.
      which: (N,) int32, the crop of each image, 0 to 9.

    Returns:
      (N, 56, 56, 3), of the images' dtype.
    """
    pixels = tf.reshape(images, (-1, IMAGE_SIZE**2, 3))
    pixels = tf.gather(pixels, tf.gather(TEN_CROPS, which), batch_dims=1)
    return tf.reshape(pixels, (-1, CROP_SIZE, CROP_SIZE, 3))


def normalise(crops: tf.Tensor, which: tf.Tensor, mean_image: np.ndarray) -> tf.Tensor:
    """Subtracts from each crop the same crop of the mean image, and scales.

    The paper subtracts the mean image before it crops. The result is the same, but here the pipeline's crops are uint8.

    Args:
      crops: (N, 56, 56, 3) uint8.
      which: (N,) int32, the number of each crop, 0 to 9.
      mean_image: (64, 64, 3) float32, the mean of the training images.

    Returns:
      (N, 56, 56, 3) float32.
    """
    mean_crops = crop(np.repeat(mean_image[None], 10, axis=0), tf.range(10))
    return (tf.cast(crops, tf.float32) - tf.gather(mean_crops, which)) / SCALE
