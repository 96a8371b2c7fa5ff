import numpy as np
import pytest
import tensorflow as tf

from tiny_imagenet import crops

# The paper's ten, by NumPy slices: corners and centre, then the same mirrored left-right.
CORNERS = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]


def sliced(image, y, x, mirrored):
    part = image[y : y + 56, x : x + 56]
    return part[:, ::-1] if mirrored else part


TEN = [(*corner, mirrored) for mirrored in (False, True) for corner in CORNERS]


def images(number, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (number, 64, 64, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", [np.asarray, tf.constant])
def test_ten_crops_are_slices(kind, dtype):
    batch = images(3, dtype)
    expected = [[sliced(image, *crop) for image in batch] for crop in TEN]
    assert crops.ten_crops(batch).dtype == dtype
    np.testing.assert_array_equal(crops.ten_crops(batch), expected)
    np.testing.assert_array_equal([crops.slice_crop(kind(batch), number) for number in crops.TEN_CROPS], expected)


def test_every_crop_is_at_its_offset():
    (image,) = images(1)
    every = [(y, x, mirrored) for mirrored in (False, True) for y in range(9) for x in range(9)]
    np.testing.assert_array_equal(crops.every_crop(image), [sliced(image, *crop) for crop in every])
    assert [every[number] for number in crops.TEN_CROPS] == TEN
    assert every[crops.CENTRE] == (4, 4, False)


def test_mirroring_is_left_right():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, :, :32] = 255  # Bright on the left.
    mirrored = crops.slice_crop(image, crops.TEN_CROPS[9])[0]
    assert (mirrored[:, :28] == 0).all()
    assert (mirrored[:, 28:] == 255).all()


def test_normalize_subtracts_the_mean_image_before_the_crop():
    mean = np.random.default_rng(1).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    batch = images(10)
    expected = [sliced((image - mean) / 64, *crop) for crop, image in zip(TEN, batch.astype(np.float32), strict=True)]
    taken = np.stack([crops.slice_crop(image, crop) for crop, image in zip(crops.TEN_CROPS, batch, strict=True)])
    np.testing.assert_allclose(crops.normalize(taken, crops.ten_crops(mean)), expected, atol=1e-6)
