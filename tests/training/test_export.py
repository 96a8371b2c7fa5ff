"""The exported model, used as a stranger uses it: with TensorFlow and Keras, and nothing of this project."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import small
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation, export

STRANGER = """
import sys

for name in ("flags", "models", "tiny_imagenet", "train", "evaluate", "training"):
    sys.modules[name] = None  # Importing it fails.

import keras
import numpy as np
import tensorflow as tf

run_dir, file = sys.argv[1:]
given = np.load(file)
jpegs = [tf.io.encode_jpeg(image, quality=95).numpy() for image in given["images"]]
grey = [tf.io.encode_jpeg(image[..., :1], quality=95).numpy() for image in given["images"]]
decoded = np.stack([tf.io.decode_jpeg(jpeg, channels=3) for jpeg in jpegs + grey])

model = keras.saving.load_model(f"{run_dir}/model.keras", safe_mode=True)
loaded = tf.saved_model.load(f"{run_dir}/saved_model")
results = {"decoded": decoded, "logits": model.predict(given["crops"], verbose=0)}
answers = {
    "images": loaded.signatures["serving_default"](images=tf.constant(decoded)),
    "jpegs": loaded.signatures["serve_jpeg"](jpegs=tf.constant(jpegs + grey)),
    "one": loaded.signatures["serving_default"](images=tf.constant(decoded[:1])),
}
for name, answer in answers.items():
    for key, value in answer.items():
        results[f"{name}_{key}"] = value.numpy().astype("U") if value.dtype == tf.string else value.numpy()

np.savez(file, **results)
"""


@pytest.fixture(scope="module")
def data(synthetic_data_dir):
    return input_pipeline.load("synthetic", str(synthetic_data_dir))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, synthetic_run, data):
    """What a process without the project had from the run's files for six images, as JPEGs in colour and in grey."""
    elsewhere = tmp_path_factory.mktemp("stranger")
    images = np.asarray(data.splits["validation"].images[:6])
    mean_image = np.asarray(data.splits["train"].images).mean(axis=0)
    crops = ((images - mean_image)[:, 4:60, 4:60] / 64).astype(np.float32)
    np.savez(elsewhere / "file.npz", images=images, crops=crops)
    command = [sys.executable, "-c", STRANGER, str(synthetic_run), "file.npz"]
    result = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return dict(np.load(elsewhere / "file.npz"))


def test_answers(stranger):
    for name, number in (("images", 12), ("jpegs", 12), ("one", 1)):
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
    """Six in colour, six of one channel."""
    for name in ("probabilities", "wnids", "words"):
        np.testing.assert_array_equal(stranger[f"jpegs_{name}"], stranger[f"images_{name}"])


def test_names_are_those_of_the_five_most_probable_classes(stranger, synthetic_data_dir):
    (labels,) = synthetic_data_dir.rglob("label.labels.txt")
    wnids = np.array(labels.read_text().split())
    words = np.array(json.loads(labels.with_name("metadata.json").read_text())["words"])
    best = np.argsort(-stranger["images_probabilities"], axis=1)[:, :5]
    np.testing.assert_array_equal(stranger["images_wnids"], wnids[best])
    np.testing.assert_array_equal(stranger["images_words"], words[best])


def test_model_keras_gives_the_logits(stranger, synthetic_run, data):
    logits = stranger["logits"]
    assert logits.shape == (6, 200)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    serve = tf.saved_model.load(str(synthetic_run / "saved_model")).signatures["serving_default"]
    images = tf.constant(np.asarray(data.splits["validation"].images[:6]))
    np.testing.assert_allclose(serve(images=images)["probabilities"], softmax, rtol=1e-3, atol=1e-6)


def test_equals_the_classifier_of_the_checkpoint(stranger, synthetic_run, data):
    model, _ = checkpoints.load_model(synthetic_run)
    expected = evaluation.classifier(model, data.mean_image)(tf.constant(stranger["decoded"]))
    np.testing.assert_allclose(stranger["images_probabilities"], expected, rtol=1e-4, atol=1e-7)


def test_auxiliary_heads_are_left_out(tmp_path, data):
    """And what an earlier export wrote is replaced."""
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model/left_over").touch()
    (tmp_path / "model.keras").touch()
    trained = small.network(auxiliary_head=True)
    for head in ("logits", "auxiliary"):  # Zero at first.
        kernel = trained.get_layer(head).kernel
        kernel.assign(tf.random.stateless_normal(kernel.shape, (0, 0)))
    with small.registered():
        export.export(export.inference_model(trained), data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "saved_model"]
    assert not (tmp_path / "saved_model/left_over").exists()

    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
    assert any(layer["class_name"] == "BatchNormalization" for layer in layers)
    assert {layer["module"] for layer in layers} == {"keras.layers"}  # So it loads without this project.
    network = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert network.output_shape == (None, 10)
    assert network.count_params() < trained.count_params()
    assert not any("auxiliary" in layer.name for layer in network.layers)
    shapes = tf.train.load_checkpoint(str(tmp_path / "saved_model/variables/variables")).get_variable_to_shape_map()
    stored = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.startswith("_CHECKPOINTABLE"))
    assert network.count_params() <= stored < network.count_params() + 100  # Each weight once.

    images = tf.constant(np.asarray(data.splits["validation"].images[:2]))
    expected = evaluation.classifier(trained, data.mean_image)(images)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    np.testing.assert_allclose(serve(images=images)["probabilities"], expected, rtol=1e-3, atol=1e-6)
