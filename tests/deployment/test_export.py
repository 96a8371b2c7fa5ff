"""The exported model, used as a stranger uses it: with TensorFlow and Keras, and nothing of this project."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import models
import small
from deployment import export
from models import layers
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, run_directory

WITHOUT_THIS_PROJECT = """
import pathlib
import sys

for name in ("flags", "models", "tiny_imagenet", "train", "evaluate", "training"):
    sys.modules[name] = None  # Importing it fails.

import keras
import numpy as np
import tensorflow as tf

run_dir, file = sys.argv[1:]
given = np.load(file)
images = given["images"]
jpegs = [tf.io.encode_jpeg(image, quality=95).numpy() for image in images]
grey = [tf.io.encode_jpeg(image[..., :1], quality=95).numpy() for image in images]
decoded = np.stack([tf.io.decode_jpeg(jpeg, channels=3) for jpeg in jpegs + grey])
photos = [path.read_bytes() for path in sorted(pathlib.Path("photos").iterdir())]

model = keras.saving.load_model(f"{run_dir}/model.keras", safe_mode=True)
loaded = tf.saved_model.load(f"{run_dir}/saved_model")
serve, serve_jpeg = loaded.signatures["serving_default"], loaded.signatures["serve_jpeg"]
results = {"decoded": decoded, "keras": model.predict(images, verbose=0)}
answers = {
    "images": serve(images=tf.constant(decoded)),
    "jpegs": serve_jpeg(jpegs=tf.constant(jpegs + grey)),
    "one": serve(images=tf.constant(decoded[:1])),
    "pixels": serve(images=tf.constant(images)),
    "photos": serve_jpeg(jpegs=tf.constant(photos)),
    "resized": serve(images=tf.constant(given["resized"])),
}
for name, answer in answers.items():
    for key, value in answer.items():
        results[f"{name}_{key}"] = value.numpy().astype("U") if value.dtype == tf.string else value.numpy()

# A new head, trained on the layers below.
features = keras.Model(model.input, model.layers[-3].output)
head = keras.Sequential([features, keras.layers.Dense(2, activation="softmax")])
head.compile("sgd", "sparse_categorical_crossentropy")
before = features.get_weights()
head.fit(images, np.arange(len(images)) % 2, verbose=0)
results["trained"] = max(np.abs(a - b).max() for a, b in zip(before, features.get_weights()))

for name, call in {
    "narrow": lambda: serve(images=tf.zeros((2, 60, 64, 3), tf.uint8)),
    "single": lambda: serve(images=tf.zeros((64, 64, 3), tf.uint8)),
    "scalar": lambda: serve_jpeg(jpegs=tf.constant(jpegs[0])),
    "text": lambda: serve_jpeg(jpegs=tf.constant([b"not a picture"])),
    "keras_narrow": lambda: model(np.zeros((2, 60, 64, 3), np.uint8)),
}.items():
    try:
        call()
        results[f"error_{name}"] = ""
    except Exception as error:
        results[f"error_{name}"] = str(error)

np.savez(file, **results)
"""
SIZES = ((64, 64), (150, 90), (65, 200), (500, 333), (40, 50))
RNG = np.random.default_rng(0)


def smooth_noise(width, height):
    coarse = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.BICUBIC))


def pillow_resized(image):
    """The square in the middle, resized by Pillow."""
    image = Image.fromarray(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((64, 64), Image.LANCZOS))


@pytest.fixture(scope="module")
def data(synthetic_data_dir):
    return input_pipeline.load("synthetic", str(synthetic_data_dir))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, synthetic_run, data):
    """What a process without the project had from the run's files for six images, and for photos of several sizes."""
    elsewhere = tmp_path_factory.mktemp("stranger")
    images = np.asarray(data.splits["validation"].images[:6])
    photos = [smooth_noise(*size) for size in SIZES]
    (elsewhere / "photos").mkdir()
    for number, photo in enumerate(photos):
        for format in ("bmp", "png"):
            Image.fromarray(photo).save(elsewhere / f"photos/{number}.{format}")
    resized = np.repeat([pillow_resized(photo) for photo in photos], 2, axis=0)
    np.savez(elsewhere / "file.npz", images=images, resized=resized)
    command = [sys.executable, "-c", WITHOUT_THIS_PROJECT, str(synthetic_run), "file.npz"]
    result = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return dict(np.load(elsewhere / "file.npz"))


def test_answers(stranger):
    for name, number in (("images", 12), ("jpegs", 12), ("one", 1), ("photos", 10)):
        probabilities = stranger[f"{name}_probabilities"]
        assert probabilities.dtype == np.float32 and probabilities.shape == (number, 200)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        assert probabilities.min() >= 0
        assert stranger[f"{name}_wnids"].shape == stranger[f"{name}_words"].shape == (number, 5)
    assert len(np.unique(stranger["images_probabilities"], axis=0)) == 12
    np.testing.assert_allclose(stranger["one_probabilities"], stranger["images_probabilities"][:1], rtol=1e-4)


def test_signatures(synthetic_run):
    loaded = tf.saved_model.load(str(synthetic_run / "saved_model"))
    assert set(loaded.signatures) == {"serving_default", "serve_jpeg"}
    inputs = {
        "serving_default": {"images": tf.TensorSpec((None, 64, 64, 3), tf.uint8, "images")},
        "serve_jpeg": {"jpegs": tf.TensorSpec((None,), tf.string, "jpegs")},
    }
    for name, expected in inputs.items():
        signature = loaded.signatures[name]
        assert signature.structured_input_signature == ((), expected)
        outputs = {key: (spec.dtype, spec.shape.as_list()) for key, spec in signature.structured_outputs.items()}
        strings = (tf.string, [None, 5])
        assert outputs == {"probabilities": (tf.float32, [None, 200]), "wnids": strings, "words": strings}


def test_jpegs_are_the_same_as_their_pixels(stranger):
    """Of 64x64 pixels: six in colour, six of one channel."""
    for name in ("probabilities", "wnids", "words"):
        np.testing.assert_array_equal(stranger[f"jpegs_{name}"], stranger[f"images_{name}"])


def test_photos_of_any_size_are_resized_as_pillow_does(stranger):
    np.testing.assert_array_equal(stranger["photos_probabilities"][:2], stranger["resized_probabilities"][:2])  # 64x64
    np.testing.assert_allclose(stranger["photos_probabilities"], stranger["resized_probabilities"], atol=0.005)
    assert len(np.unique(stranger["resized_probabilities"].round(2), axis=0)) == len(SIZES)


@pytest.mark.parametrize("name", ["narrow", "single", "scalar", "keras_narrow"])
def test_wrong_shapes(stranger, name):
    assert "shape" in str(stranger[f"error_{name}"])


def test_what_is_no_picture(stranger):
    assert "Unknown image file format" in str(stranger["error_text"])


def test_names_are_those_of_the_five_most_probable_classes(stranger, synthetic_run, synthetic_data_dir):
    (labels,) = synthetic_data_dir.rglob("label.labels.txt")
    wnids = np.array(labels.read_text().split())
    words = np.array(json.loads(labels.with_name("metadata.json").read_text())["words"])
    best = np.argsort(-stranger["images_probabilities"], axis=1)[:, :5]
    np.testing.assert_array_equal(stranger["images_wnids"], wnids[best])
    np.testing.assert_array_equal(stranger["images_words"], words[best])
    assert json.loads((synthetic_run / "classes.json").read_text()) == {"wnids": [*wnids], "words": [*words]}


def test_model_keras_is_whole(stranger, synthetic_run, data):
    """It crops, normalizes and classifies as NumPy does with the layers of the network."""
    network, _ = checkpoints.load_model(synthetic_run)
    images = np.asarray(data.splits["validation"].images[:6])
    mean_image = np.asarray(data.splits["train"].images).mean(axis=0)
    crops = ((images - mean_image)[:, 4:60, 4:60] / 64).astype(np.float32)
    logits = network.predict(crops, verbose=0)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(stranger["keras"], softmax, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(stranger["keras"], stranger["pixels_probabilities"], rtol=1e-4, atol=1e-7)


def test_model_keras_can_be_trained_on(stranger):
    assert stranger["trained"] > 0


def test_layers_of_model_keras(synthetic_run):
    """The network's own, one by one and with their names, between Keras' crop and normalization and its softmax."""
    model = keras.saving.load_model(synthetic_run / "model.keras", safe_mode=True)
    network = [layer.name for layer in models.build("baseline").layers]
    assert [layer.name for layer in model.layers] == [
        "images",
        "centre_crop",
        "normalization",
        *network[1:],
        "probabilities",
    ]
    assert model.name == "baseline" and model.inputs[0].dtype == "uint8"
    assert model.get_layer("conv").output.shape == (None, 56, 56, 16)


@pytest.mark.parametrize("name", ["baseline", "squeezenet"])
def test_model_keras_can_be_saved_as_h5(tmp_path, name, data):
    """For converters that read no other format."""
    whole = export.whole_model(export.inference_model(models.build(name)), data.mean_image)
    whole.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras").save(tmp_path / "model.h5")
    images = np.asarray(data.splits["validation"].images[:6])
    expected = whole.predict(images, verbose=0)
    assert expected.std() > 0
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.h5").predict(images, verbose=0), expected)


def test_normalizes_exactly_as_in_training(data):
    network = layers.to_plain_keras(models.build("baseline"))
    whole = export.whole_model(network, data.mean_image)
    images = tf.constant(np.asarray(data.splits["validation"].images[:50]))
    normalized = keras.Model(whole.input, whole.get_layer("normalization").output)(images)
    crops = np.float32(images)[:, 4:60, 4:60]
    np.testing.assert_array_equal(normalized, (crops - data.mean_image[4:60, 4:60]) / np.float32(64))


def test_model_keras_holds_its_mean(synthetic_run):
    """Export to ONNX makes an input of each tensor that a function captures, if it is not a variable's."""
    model = keras.saving.load_model(synthetic_run / "model.keras")
    function = tf.function(model).get_concrete_function(tf.TensorSpec((None, 64, 64, 3), tf.uint8))
    assert {tensor.dtype for tensor in function.captured_inputs} == {tf.resource}


def test_equals_the_classifier_of_the_checkpoint(stranger, synthetic_run, data):
    model, _ = checkpoints.load_model(synthetic_run)
    expected = evaluation.classifier(model, data.mean_image)(tf.constant(stranger["decoded"]))
    np.testing.assert_allclose(stranger["images_probabilities"], expected, rtol=1e-4, atol=1e-7)


def test_auxiliary_heads_are_left_out(tmp_path, data):
    """And what an earlier export wrote is replaced."""
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model/left_over").touch()
    for name in ("model.keras", "classes.json"):
        (tmp_path / name).touch()
    trained = small.network(auxiliary_head=True)
    for head in ("logits", "auxiliary"):  # Zero at first.
        kernel = trained.get_layer(head).kernel
        kernel.assign(tf.random.stateless_normal(kernel.shape, (0, 0)))
    export.export(export.inference_model(trained), data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.json", "model.keras", "saved_model"]
    assert not (tmp_path / "saved_model/left_over").exists()

    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        kinds = json.loads(file.read("config.json"))["config"]["layers"]
    assert any(layer["class_name"] == "BatchNormalization" for layer in kinds)
    assert all(layer["module"].startswith("keras.") for layer in kinds)  # So it loads without this project.
    whole = export.load_keras(tmp_path)
    assert whole.output_shape == (None, 10)
    assert whole.count_params() < trained.count_params()
    assert not any("auxiliary" in layer.name for layer in whole.layers)
    shapes = tf.train.load_checkpoint(str(tmp_path / "saved_model/variables/variables")).get_variable_to_shape_map()
    others = ("_CHECKPOINTABLE", "wnids", "words")
    stored = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.startswith(others))
    assert whole.count_params() <= stored < whole.count_params() + 100  # Each weight once.

    images = tf.constant(np.asarray(data.splits["validation"].images[:2]))
    expected = evaluation.classifier(trained, data.mean_image)(images)
    serve = export.load_saved_model(tmp_path / "saved_model").signatures["serving_default"]
    np.testing.assert_allclose(serve(images=images)["probabilities"], expected, rtol=1e-3, atol=1e-6)
    # Called without `training`, its batch normalization uses the moving averages.
    np.testing.assert_allclose(whole(images), expected, rtol=1e-3, atol=1e-6)


def test_class_order_of_a_saved_model(synthetic_run, data):
    loaded = export.load_saved_model(synthetic_run / "saved_model")
    assert export.wnids_of_saved_model(loaded) == data.wnids
    assert export.wnids_of_saved_model(tf.Module()) is None


VARIABLES = "variables/variables.data-00000-of-00001"


def test_class_order_of_a_folder(tmp_path, data):
    assert export.wnids_of(tmp_path) is None
    export.write_classes(tmp_path, data)
    assert export.wnids_of(tmp_path) == data.wnids
    for damaged in (
        "{",
        "[]",
        '{"wnids": 5, "words": 5}',
        '{"wnids": [1], "words": ["a"]}',
        '{"wnids": ["n1"]}',
        '{"wnids": [], "words": []}',
        '{"wnids": ["n1", "n1"], "words": ["a", "b"]}',
    ):
        (tmp_path / "classes.json").write_text(damaged)
        with pytest.raises(UserError, match="classes.json is missing or damaged: delete it"):
            export.wnids_of(tmp_path)


@pytest.mark.parametrize(
    "file, size", [("saved_model.pb", 0), ("variables/variables.index", 0), (VARIABLES, 0), (VARIABLES, 10**4)]
)
def test_half_a_saved_model(synthetic_run, tmp_path, file, size):
    shutil.copytree(synthetic_run / "saved_model", tmp_path / "copy")
    os.truncate(tmp_path / "copy" / file, size)
    with pytest.raises(UserError, match="copy is damaged"):
        export.load_saved_model(tmp_path / "copy")


def test_exports_that_cannot_be_loaded(tmp_path):
    (tmp_path / "damaged").mkdir()
    for name in ("model.keras", "classes.json"):
        (tmp_path / "damaged" / name).write_text("{")
    (tmp_path / "old").mkdir()
    models.build("baseline").save(tmp_path / "old/model.keras")
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    for load, folder, message in (
        (export.load_keras, "nosuch", "model.keras does not exist"),
        (export.load_keras, "damaged", "model.keras is damaged"),
        (export.load_keras, "old", "older versions"),
        (export.load_classes, "nosuch", "classes.json is missing or damaged"),
        (export.load_classes, "damaged", "classes.json is missing or damaged"),
        (export.load_saved_model, "nosuch", "nosuch does not exist"),
        (export.load_saved_model, "old", "old is not a SavedModel"),
        (export.load_saved_model, "other", "is not of this project"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path / folder)


def test_refusals(tmp_path, run_main, assert_one_line, synthetic_run, synthetic_data_dir):
    assert_one_line(run_main("deployment.export", f"--run_dir={tmp_path / 'nosuch'}"), 1, "nosuch is not a run")
    assert not (tmp_path / "nosuch").exists()
    assert_one_line(run_main("deployment.export"), 2, "run_dir")
    for part in ("config.json", "checkpoints"):
        (tmp_path / part).symlink_to(synthetic_run / part)
    with run_directory.lock(tmp_path):
        result = run_main("deployment.export", f"--run_dir={tmp_path}", f"--data_dir={synthetic_data_dir}")
    assert_one_line(result, 1, "another process is writing to", "use another folder")
    assert not (tmp_path / "saved_model").exists()
