"""TFLite's files, beside the network that they are from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deployment import tflite
from models import build
from tiny_imagenet.errors import UserError
from tiny_imagenet.input_pipeline import Split, TinyImageNet
from training import evaluation

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
RANDOM = np.random.default_rng(0)
MEAN = RANDOM.uniform(100, 150, (64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    """Images of one colour each with some noise, so that a network without training tells them apart."""
    colours = RANDOM.integers(30, 226, (60, 1, 1, 3))
    images = (colours + RANDOM.integers(-30, 30, (60, 64, 64, 3))).astype(np.uint8)
    train = Split(images, np.zeros(60, np.int64), np.arange(60).astype(str))
    return TinyImageNet({"train": train}, MEAN, [], [])


@pytest.fixture(scope="module")
def network():
    """One whose logits differ: it has no training."""
    keras.utils.set_random_seed(0)
    model = build("squeezenet")
    conv10 = model.get_layer("conv10")
    conv10.kernel.assign(tf.random.stateless_normal(conv10.kernel.shape, (0, 0), stddev=0.1))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network, data):
    """A folder with both files."""
    folder = tmp_path_factory.mktemp("tflite")
    (folder / "model.tflite").write_text("of an earlier export")
    tflite.export(network, data, folder)
    return folder


def interpret(path):
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter


def test_writes_both_files_and_nothing_else(exported):
    assert sorted(path.name for path in exported.iterdir()) == ["model.tflite", "model_int8.tflite"]


def test_float_file_gives_the_networks_probabilities(exported, network, data):
    images = data.splits["train"].images[:5]
    expected = evaluation.classifier(network, MEAN)(images)
    classify = tflite.classifier(exported / "model.tflite")
    np.testing.assert_allclose(classify(images), expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(classify(images[:2]), expected[:2], rtol=1e-3, atol=1e-7)  # Another batch size.


def test_int8_file_gives_nearly_the_same(exported, network, data):
    images = data.splits["train"].images
    expected = np.log(evaluation.classifier(network, MEAN)(images))
    given = np.log(tflite.classifier(exported / "model_int8.tflite")(images))
    assert np.abs(given - expected).mean() < 0.1 * expected.std()


def test_int8_file_is_in_integers(exported, network):
    """All but the logits as they leave; and takes pixels as they are. A weight takes a byte, and the rest is little."""
    interpreter = interpret(exported / "model_int8.tflite")
    kinds = [detail["dtype"] for detail in interpreter.get_tensor_details() if detail["name"]]
    assert kinds.count(np.float32) == 1
    (images,) = interpreter.get_input_details()
    assert images["dtype"] == np.uint8 and images["quantization"] == (1.0, 0)
    assert network.count_params() < (exported / "model_int8.tflite").stat().st_size < 1.2 * network.count_params()


def test_calibrates_by_images_drawn_evenly(data):
    images = tflite.calibration_images(data)
    assert len(images) == 60 and {(image.shape, image.dtype.name) for image in images} == {((1, 64, 64, 3), "float32")}
    for image, original in zip(images, data.splits["train"].images, strict=True):
        np.testing.assert_array_equal(image[0, 4:60, 4:60], original[4:60, 4:60])
        assert (image.min(), image.max()) == (0, 255)
    many = Split(np.broadcast_to(np.uint8(7), (1000, 64, 64, 3)), np.zeros(1000, np.int64), np.zeros(1000, str))
    assert len(tflite.calibration_images(TinyImageNet({"train": many}, MEAN, [], []))) == tflite.CALIBRATION_IMAGES


def test_damaged_files(exported, tmp_path):
    whole = (exported / "model_int8.tflite").read_bytes()
    size = len(whole)
    for content in (b"", b"TFL3", whole[:1000], whole[: size // 2], whole[:-1], bytes(size), b"not a model" * 100):
        (tmp_path / "broken.tflite").write_bytes(content)
        with pytest.raises(UserError, match="broken.tflite is damaged, or was not written by this project"):
            tflite.classifier(tmp_path / "broken.tflite")
    with pytest.raises(FileNotFoundError):
        tflite.classifier(tmp_path / "nosuch.tflite")


def test_another_programs_file(tmp_path):
    module = tf.Module()
    double = tf.function(lambda x: {"logits": 2 * x}, input_signature=[tf.TensorSpec((None, 3), tf.float32, "images")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([double.get_concrete_function()], module)
    (tmp_path / "other.tflite").write_bytes(converter.convert())
    with pytest.raises(UserError, match="other.tflite is damaged, or was not written by this project"):
        tflite.classifier(tmp_path / "other.tflite")
