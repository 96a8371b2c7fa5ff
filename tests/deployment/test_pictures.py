"""Decoding and resizing, beside Pillow's."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deployment import pictures

RNG = np.random.default_rng(0)


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def blurred_noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (1000, 70), (64, 100), (65, 64), (40, 50), (1, 30)])
def test_resizes_the_square_in_the_middle_as_pillow_does(size):
    """On noise, of which too sharp or too blurred a kernel makes other values; in a range that needs no clipping."""
    image = Image.fromarray(RNG.integers(64, 192, (size[1], size[0], 3), dtype=np.uint8))
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((64, 64), Image.LANCZOS)
    resized = pictures.resize(np.asarray(image)).numpy()
    assert resized.shape == (64, 64, 3) and resized.dtype == np.uint8
    difference = np.abs(resized.astype(int) - np.asarray(expected))
    assert difference.max() <= 2  # Pillow rounds between the two axes.


def test_an_image_of_the_data_sets_size_stays_as_it_is():
    image = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.resize(image), image)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP"])
def test_decodes_without_loss(format):
    image = blurred_noise(30, 20)
    options = {"lossless": True} if format == "WEBP" else {}
    image = image.quantize(64).convert("RGB") if format == "GIF" else image
    try:
        decoded = pictures.decode(encode(image, format, **options))
    except tf.errors.InvalidArgumentError:
        assert format == "WEBP"  # TensorFlow decodes it from 2.20 on.
        pytest.skip("this TensorFlow does not decode WebP")
    np.testing.assert_array_equal(decoded, np.asarray(image))


def test_decodes_jpegs_nearly_as_pillow_does():
    contents = encode(blurred_noise(120, 80), "JPEG", quality=95, subsampling=0)
    difference = np.abs(pictures.decode(contents).numpy() - np.asarray(Image.open(io.BytesIO(contents))).astype(int))
    assert difference.mean() < 3 and difference.max() <= 12  # TensorFlow's DCT is the fast one.


def test_decodes_grey_and_transparent_pictures_and_the_first_frame():
    grey = blurred_noise(30, 20).convert("L")
    np.testing.assert_array_equal(pictures.decode(encode(grey, "PNG")), np.asarray(grey.convert("RGB")))
    transparent = np.dstack([np.asarray(blurred_noise(30, 20)), np.full((20, 30), 77, np.uint8)])
    decoded = pictures.decode(encode(Image.fromarray(transparent), "PNG"))
    np.testing.assert_array_equal(decoded, transparent[..., :3])
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    decoded = pictures.decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(decoded, np.full((20, 30, 3), (255, 0, 0)))


@pytest.mark.parametrize(
    "mode, format", [("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("L", "GIF"), ("CMYK", "JPEG"), ("L", "JPEG")]
)
def test_decodes_other_kinds_as_pillow_does(mode, format):
    contents = encode(blurred_noise(120, 80).convert(mode), format)
    expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
    difference = np.abs(pictures.decode(contents).numpy() - expected.astype(int))
    assert difference.max() <= (12 if format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_bmp_of_8_bits_is_refused(mode):
    """TensorFlow takes the indices of its palette for grey."""
    with pytest.raises(tf.errors.InvalidArgumentError):
        pictures.decode(encode(blurred_noise(30, 20).convert(mode), "BMP"))


@pytest.mark.parametrize("contents", [b"", b"not a picture", b"\xff\xd8\xff\xe0 not a JPEG", b"GIF89a"])
def test_what_is_no_picture(contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        pictures.decode(contents)
