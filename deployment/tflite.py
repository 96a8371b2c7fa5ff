"""The network as a TFLite file, in float32 and in 8 bits (the compression of the paper's section 2.5)."""

import contextlib
import pathlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from tiny_imagenet.input_pipeline import TinyImageNet
from training import evaluation
from training.distribution import cpu_cores
from training.files import replace_file
from training.stderr import quiet

FLOAT_FILE, INT8_FILE = "model.tflite", "model_int8.tflite"
CALIBRATION_IMAGES = 200
SIGNATURE = {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}


def export(model: keras.Model, data: TinyImageNet, run_dir: pathlib.Path) -> None:
    """Writes `model.tflite` and `model_int8.tflite` to the run directory, replacing older ones.

    Both take raw `images` (N, 64, 64, 3) uint8, do their own centre crop, mean and scale, and return `logits` (N, 200)
    float32, in the order of `classes.json`. They leave the softmax out: TFLite's 8-bit softmax has a resolution of
    1/256, which rounds most of the 200 probabilities to 0.

    In the second every weight and activation is an 8-bit integer, and the logits become floats at the very end. The
    scales of the activations are from training images (Jacob et al., arXiv:1712.05877).

    Args:
      model: From normalized crops, (N, 56, 56, 3) floats, to logits; all in float32.
      data: For its mean image, and for the training images to calibrate by.
      run_dir: Where to write.

    Raises:
      OSError: if they cannot be written.
    """
    mean_crop = tf.constant(crops.slice_crop(data.mean_image, crops.CENTRE))

    def logits(images):
        return {"logits": model(crops.normalize(crops.slice_crop(images, crops.CENTRE), mean_crop), training=False)}

    module = tf.Module()
    module.weights = [variable.value for variable in model.weights]

    def converter(dtype):
        images = tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), dtype, name="images")
        function = tf.function(logits).get_concrete_function(images)
        return tf.lite.TFLiteConverter.from_concrete_functions([function], module)

    with quiet():
        _write(run_dir / FLOAT_FILE, converter(tf.uint8).convert())
        quantised = converter(tf.float32)  # The converter creates the integer input. A cast would stay in floats.
        quantised.optimizations = [tf.lite.Optimize.DEFAULT]
        quantised.representative_dataset = lambda: ([images] for images in calibration_images(data))
        quantised.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        quantised.inference_input_type = tf.uint8
        _write(run_dir / INT8_FILE, quantised.convert())


def calibration_images(data: TinyImageNet) -> list[np.ndarray]:
    """Returns training images at even intervals over the split, each (1, 64, 64, 3) float32.

    Two corner pixels of each image are set to 0 and 255. The calibrated scale of the input is then 1, so the uint8
    input holds the pixel values themselves. The centre crop leaves these corners out.
    """
    train = data.splits["train"].images
    chosen = np.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).astype(int)
    images = train[chosen].astype(np.float32)
    images[:, 0, 0], images[:, -1, -1] = 0, 255
    return list(images[:, None])


def _write(path: pathlib.Path, content: bytes) -> None:
    with replace_file(path) as partial:
        partial.write_bytes(content)


def classifier(path: pathlib.Path) -> evaluation.Classifier:
    """A file that `export` wrote, as a classifier by the centre crop, on all of the CPU's cores.

    Raises:
      OSError: if it cannot be read.
      UserError: if it is damaged, or another program's.
    """
    content = path.read_bytes()
    # TensorFlow's own interpreter says that its successor is in another package.
    with _name_file_in_errors(path), quiet():
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=cpu_cores())
        if interpreter.get_signature_list() != SIGNATURE:
            raise ValueError("its signature is not from images to logits")
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner("serving_default")
        (images,), (logits,) = runner.get_input_details().values(), runner.get_output_details().values()
        kinds = (images["dtype"], *images["shape"][1:], logits["dtype"])
        if kinds != (np.uint8, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3, np.float32):
            raise ValueError("it does not turn (N, 64, 64, 3) uint8 to float32")

    def probabilities(images):
        with _name_file_in_errors(path):
            return tf.nn.softmax(runner(images=np.asarray(images))["logits"])

    return probabilities


@contextlib.contextmanager
def _name_file_in_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns what TFLite raises of a file that it cannot run into one error that names it."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        remedy = "export it again by python -m deployment.export --run_dir=RUN --tflite"
        raise UserError(f"{path} is damaged, or was not written by this project ({reason}): {remedy}") from error
