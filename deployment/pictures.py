"""Pictures of any size, made into images of 64x64 pixels as those of Tiny ImageNet were."""

import tensorflow as tf

from tiny_imagenet import crops


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP, GIF (its first frame) or, where TensorFlow can, WebP file, for the SavedModel.

    TensorFlow decodes no WebP file with transparency or animation. BMP files of 8 bits are refused, as it ignores their
    palette.

    Args:
      contents: The bytes of the file, a scalar string.

    Returns:
      (H, W, 3) uint8. Grey is repeated, and transparency is left out. The EXIF orientation is not applied.

    Raises:
      tf.errors.InvalidArgumentError: if it is no such file, or a damaged one.
    """
    padded = tf.strings.join([contents, b"\0" * 30])  # It may be shorter than the header of a BMP file.
    mark, bits = tf.strings.substr(padded, 0, 2), tf.strings.substr(padded, 28, 2)
    tf.debugging.Assert((mark != b"BM") | (bits != b"\x08\x00"), ["a BMP file with a palette"])
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def resize(image: tf.Tensor) -> tf.Tensor:
    """Cuts out the square in the middle, as large as fits, and resizes it to 64x64 pixels, with antialiasing.

    Apart from rounding at the edges, this equals resizing the shorter side to 64 and taking the centre. The dataset was
    made in this order, by SciPy's imresize (github.com/jcjohnson/tiny-imagenet). Its images are as sharp as without
    antialiasing, so the kernel here is the sharpest: Lanczos.

    Args:
      image: (H, W, 3) uint8.

    Returns:
      (64, 64, 3) uint8. An image of 64x64 pixels is returned as it is.
    """
    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    square = image[top : top + side, left : left + side]
    size = (crops.IMAGE_SIZE, crops.IMAGE_SIZE)
    resized = tf.image.resize(square, size, tf.image.ResizeMethod.LANCZOS3, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
