"""The trained weights that come with the repository, and weight files in float16.

`weights/index.json` says of each network which run its file is from, how that run scored, and the file's checksum.
"""

import hashlib
import json
import os
import pathlib
import zlib

import h5py
import keras
import numpy as np
import tensorflow as tf

from tiny_imagenet import crops

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "weights"
SHIPPED = "tiny_imagenet"
"""The value of the argument `weights` that stands for the repository's own."""
NUM_CLASSES = 200
TOP_K = 5  # Classes that a prediction names, unless told otherwise.


def index() -> dict[str, dict]:
    """Describes the weights that come with the repository, by the network's name: see `weights/README.md`.

    Raises:
      ValueError: if index.json is damaged.
    """
    path = FOLDER / "index.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it by git checkout") from error


def classes() -> dict[str, list[str]]:
    """Returns Tiny ImageNet's classes in the order of the logits: their "wnids", and their "words"."""
    return json.loads((FOLDER / "classes.json").read_text())


def mean_image() -> np.ndarray:
    """Returns the mean of the training images of Tiny ImageNet, (64, 64, 3) float32."""
    return np.load(FOLDER / "mean_image.npy")


@keras.saving.register_keras_serializable("tiny_imagenet")
def preprocess_input(images: np.ndarray | tf.Tensor | keras.KerasTensor) -> np.ndarray | tf.Tensor | keras.KerasTensor:
    """Normalizes images as in training: minus the mean of the training images, divided by 64.

    As in `keras.applications`, it takes arrays, tensors (also inside `tf.data.Dataset.map`) and `keras.Input`.

    Args:
      images: (H, W, 3) or (N, H, W, 3) pixels from 0 to 255, of any dtype. The mean image is subtracted from 64x64
        images, its centre crop from 56x56 images, and the mean colour from other sizes.

    Returns:
      The images in float32, of the same size and kind: 64x64 images are not cropped.
    """
    if isinstance(images, keras.KerasTensor):
        return keras.layers.Lambda(preprocess_input, dtype="float32")(images)
    mean = mean_image()
    of_size = {crops.IMAGE_SIZE: mean, crops.CROP_SIZE: crops.slice_crop(mean, crops.CENTRE)}
    colour = mean.mean(axis=(0, 1), keepdims=True)
    if tf.is_tensor(images):  # Its size may be unknown until it is computed.
        size = tf.shape(images)[-3:-1]
        cases = [(tf.reduce_all(size == side), lambda side=side: tf.constant(of_size[side])) for side in of_size]
        return crops.normalize(images, tf.case(cases, default=lambda: tf.constant(colour)))
    images = np.asarray(images, np.float32)
    height, width = images.shape[-3:-1]
    return (images - (of_size.get(height, colour) if height == width else colour)) / np.float32(crops.SCALE)


def best_classes(probabilities: tf.Tensor, named: dict[str, list[str]], top: int = TOP_K) -> dict[str, tf.Tensor]:
    """Names the most probable classes.

    Args:
      probabilities: (N, classes), or logits.
      named: The "wnids" and the "words" of the classes.
      top: How many classes to name for each image.

    Returns:
      "probabilities" as they are, and "wnids" and "words", (N, top) strings, the most probable class first.
    """
    best = tf.math.top_k(probabilities, min(top, len(named["wnids"]))).indices
    return {"probabilities": probabilities} | {name: tf.gather(named[name], best) for name in ("wnids", "words")}


def decode_predictions(predictions: np.ndarray, top: int = TOP_K) -> list[list[tuple[str, str, float]]]:
    """Names the best classes of each image, as the function of this name in `keras.applications` does.

    Args:
      predictions: (N, 200) logits or probabilities of Tiny ImageNet's classes.
      top: How many classes to return for each image.

    Returns:
      For each image, its best classes, the best first: (WordNet id, words, prediction).

    Raises:
      ValueError: if the shape of `predictions` is another.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or predictions.shape[1] != NUM_CLASSES:
        raise ValueError(f"predictions must be (N, {NUM_CLASSES}), not {predictions.shape}")
    return name_best(best_classes(predictions, classes(), top))


def name_best(best: dict[str, tf.Tensor]) -> list[list[tuple[str, str, float]]]:
    """Turns the result of `best_classes`, for each image, into a list of (WordNet id, words, probability)."""
    wnids, words = (np.char.decode(best[name].numpy().astype(bytes), "utf-8") for name in ("wnids", "words"))
    values = -np.sort(-np.asarray(best["probabilities"]), axis=1)[:, : wnids.shape[1]]
    rows = zip(wnids.tolist(), words.tolist(), values.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def best_network() -> str:
    """Returns the network whose weights come with the repository and score best on validation, by ten crops.

    Raises:
      ValueError: if the repository has no weights.
    """
    entries = index()
    if not entries:
        raise ValueError("the repository has no trained weights yet")
    return max(entries, key=lambda name: entries[name]["ten_crop_top_1"])


def find(name: str) -> pathlib.Path:
    """Returns the file of a network's shipped weights.

    Raises:
      ValueError: if there are none, or the file is missing or damaged.
    """
    entries = index()
    if name not in entries:
        there = f"there are weights of {', '.join(entries)}" if entries else "the repository has none yet"
        raise ValueError(f"there are no trained weights of {name!r}: {there}")
    path = FOLDER / f"{name}.weights.h5"
    if not path.exists() or checksum(path) != entries[name]["sha256"]:
        raise ValueError(f"{path} is missing or damaged: restore it by git checkout")
    return path


def load(model: keras.Model, weights: str | os.PathLike) -> None:
    """Loads the shipped weights of the network that the model is named after, or a `.weights.h5` file.

    Raises:
      ValueError: if there are none, or if they are damaged or do not fit the model.
    """
    path = find(model.name) if weights == SHIPPED else pathlib.Path(weights)
    if not path.name.endswith(".weights.h5"):
        raise ValueError(f"weights={str(weights)!r} are neither {SHIPPED!r} nor a .weights.h5 file")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with h5py.File(path) as file:  # Keras does not notice if a network has the same layers, connected otherwise.
            network = file.attrs.get("network", model.name)
        if network != model.name:
            raise ValueError(f"it belongs to {network}")
        model.load_weights(path)
    except Exception as error:  # Keras and h5py raise errors of many kinds.
        raise ValueError(f"{path} is damaged, or does not fit {model.name}: {' '.join(str(error).split())}") from error


def save(model: keras.Model, path: pathlib.Path) -> None:
    """Writes the weights in float16 to a `.weights.h5` file that Keras' own `load_weights` reads.

    Raises:
      ValueError: if a weight is beyond the range of float16.
    """
    full, partial = path.with_name("partial.float32.weights.h5"), path.with_name("partial.weights.h5")
    try:
        model.save_weights(full)
        with h5py.File(full) as source, h5py.File(partial, "w", libver=("v110", "v110")) as target:
            target.attrs["network"] = model.name

            def write(name, item):
                if isinstance(item, h5py.Dataset):
                    _write(target, name, item)

            source.visititems(write)
        os.replace(partial, path)
    finally:
        full.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def _write(target: h5py.File, name: str, source: h5py.Dataset) -> None:
    """Copies an array in float16, in one chunk with HDF5's filters "shuffle" and "gzip".

    The filters run here. HDF5's own gzip also looks for repetitions, which makes weights of few values a fifth larger.
    """
    value = source[()]
    if value.dtype == np.float32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float16)
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is beyond the range of float16")
    if value.nbytes <= 1024:  # The filters would make it larger.
        dataset = target.create_dataset(name, data=value, track_times=False)
    else:
        filters = {"chunks": value.shape, "compression": "gzip", "shuffle": True}
        dataset = target.create_dataset(name, value.shape, value.dtype, track_times=False, **filters)
        shuffled = value.reshape(-1).view(np.uint8).reshape(-1, value.itemsize).T.tobytes()
        gzip = zlib.compressobj(9, strategy=zlib.Z_RLE)
        dataset.id.write_direct_chunk((0,) * value.ndim, gzip.compress(shuffled) + gzip.flush())
    dataset.attrs.update(source.attrs)


def sample_logits(model: keras.Model) -> list[float]:
    """Returns a network's logits of three classes for each of two grids of random colours, to four decimals.

    `weights/index.json` holds those of each network as it was shipped, for a test to compare.
    """
    grids = np.random.default_rng(0).uniform(-2, 2, (2, 8, 8, 3)).repeat(7, axis=1).repeat(7, axis=2)
    with tf.device("CPU:0"):  # A GPU's TF32 is less exact.
        logits = np.asarray(model(grids.astype(np.float32)))
    return logits[:, ::80].ravel().astype(float).round(4).tolist()


def checksum(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
