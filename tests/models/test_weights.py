"""Weight files, and `models.build` with the arguments of keras.applications."""

import hashlib
import json
import re

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import weights
from tiny_imagenet.index import LABELS

ANY_SIZE = ["googlenet", "resnet20", "plain20", "squeezenet", "squeezenet_simple_bypass", "squeezenet_complex_bypass"]


def randomise(model):
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":  # Dropout's seeds are integers.
            weight.assign(random.uniform(0.01, 0.1, weight.shape))
    return model


def rounded(model):
    """The weights that are not Dropout's seeds, in float16."""
    return [np.float16(weight.numpy()) for weight in model.weights if weight.dtype == "float32"]


@pytest.fixture(scope="module")
def trained():
    return randomise(models.build("googlenet"))


@pytest.fixture(scope="module")
def file(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("weights") / "googlenet.weights.h5"
    weights.save(trained, path)
    return path


@pytest.fixture
def shipped(file, tmp_path, monkeypatch):
    """The repository's weights as they were if googlenet's alone were there."""
    (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "index.json").write_text(
        json.dumps({"googlenet": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}})
    )
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path / file.name


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_file_is_in_float16_and_small(file, trained):
    dtypes = set()
    with h5py.File(file) as content:
        content.visititems(lambda _, item: dtypes.add(str(item.dtype)) if isinstance(item, h5py.Dataset) else None)
    assert dtypes == {"float16"} | ({"uint32"} if len(trained.weights) != len(rounded(trained)) else set())
    assert file.stat().st_size < 2.5 * trained.count_params()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_keras_loads_the_file(file, trained):
    model = models.build("googlenet")
    model.load_weights(file)
    assert equal(rounded(model), rounded(trained)) and not equal(model.get_weights(), trained.get_weights())


def test_a_classifier_on_the_features_is_loaded_as_it_was_saved(tmp_path):
    features = models.build("googlenet", include_top=False, pooling="avg")
    classifier = keras.Model(features.input, keras.layers.Dense(10)(features.output))
    classifier.save(tmp_path / "classifier.keras")
    images = np.random.default_rng(0).normal(size=(2, 56, 56, 3)).astype(np.float32)
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_array_equal(loaded(images), classifier(images))


@pytest.mark.parametrize("value", [1e5, np.nan])
def test_weights_beyond_float16_are_not_saved(tmp_path, value):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(value))(inputs))
    with pytest.raises(ValueError, match="float16"):
        weights.save(model, tmp_path / "dense.weights.h5")
    assert not [*tmp_path.iterdir()]


def test_build_with_a_file(file, trained):
    model = models.build("googlenet", weights=str(file))
    assert equal(rounded(model), rounded(trained))
    with_heads = models.build("googlenet", weights=file, training=True)
    assert len(with_heads.outputs) == 3
    own = keras.Model(with_heads.input, with_heads.outputs[0])
    assert equal(rounded(own), rounded(trained))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("nosuch.weights.h5", None, "nosuch.weights.h5 does not exist"),
        ("imagenet", None, "neither 'tiny_imagenet' nor a .weights.h5 file"),
        ("broken.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "broken.weights.h5 is damaged"),
    ],
)
def test_build_with_a_bad_file(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        models.build("baseline", weights=tmp_path / name if "." in name else name)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_build_with_the_weights_of_another_network(file):
    with pytest.raises(ValueError, match="does not fit squeezenet"):
        models.build("squeezenet", weights=file)


def test_build_with_shipped_weights(shipped, trained):
    assert equal(rounded(models.build("googlenet", weights="tiny_imagenet")), rounded(trained))


@pytest.mark.parametrize("name", weights.index())
def test_shipped_networks_compute_what_they_did_when_they_were_shipped(name):
    """To rounding: kernels for AVX2, AVX-512 and AMX, and Eigen's, differ by up to 1e-5."""
    network = models.build(name, weights="tiny_imagenet")
    assert weights.sample_logits(network) == pytest.approx(weights.index()[name]["logits"], abs=1e-3)


def test_shipped_weights_that_are_not_there(shipped):
    with pytest.raises(ValueError, match="no trained weights of 'baseline': there are weights of googlenet"):
        models.build("baseline", weights="tiny_imagenet")
    shipped.write_bytes(shipped.read_bytes()[:-1])
    with pytest.raises(ValueError, match="missing or damaged"):
        models.build("googlenet", weights="tiny_imagenet")
    shipped.unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        models.build("googlenet", weights="tiny_imagenet")
    shipped.with_name("index.json").write_text("{}")
    with pytest.raises(ValueError, match="the repository has none yet"):
        models.build("googlenet", weights="tiny_imagenet")


def test_shipped_weights_have_200_classes(shipped):
    with pytest.raises(ValueError, match="num_classes=200 or include_top=False, not num_classes=10"):
        models.build("googlenet", weights="tiny_imagenet", num_classes=10)
    model = models.build("googlenet", weights="tiny_imagenet", num_classes=10, include_top=False)
    assert model.output_shape == (None, 7, 7, 320)


def test_features(file, trained):
    images = np.random.default_rng(1).normal(size=(2, 56, 56, 3)).astype(np.float32)
    expected = keras.Model(trained.input, trained.get_layer("inception9").output)(images).numpy()
    by = {
        pooling: models.build("googlenet", weights=file, include_top=False, pooling=pooling, input_shape=shape)(images)
        for pooling, shape in ((None, (56, 56, 3)), ("avg", (None, None, 3)), ("max", (None, None, 3)))
    }
    assert by[None].shape == expected.shape == (2, 7, 7, 320)
    np.testing.assert_allclose(by[None], expected, rtol=0.02, atol=0.02 * expected.std())  # float16 beside float32.
    np.testing.assert_allclose(by["avg"], np.mean(by[None], axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(by["max"], np.max(by[None], axis=(1, 2)), rtol=1e-4)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_features_are_a_map_of_what_the_top_takes(name):
    """What follows it pools, drops, flattens or classifies, and convolves only to classify."""
    features = models.build(name, include_top=False).output
    assert len(features.shape) == 4
    full = models.build(name)
    names = [layer.name for layer in full.layers]
    last = names.index(models.REGISTRY[name].features)
    top = full.layers[last + 1 :]
    convolutions = [layer for layer in top if isinstance(layer, keras.layers.Conv2D)]
    assert all(layer.filters == 200 for layer in convolutions)


@pytest.mark.parametrize("include_top, pooling", [(True, "avg"), (False, "mean")])
def test_pooling_that_does_not_fit(include_top, pooling):
    with pytest.raises(ValueError, match="'avg' or 'max' with include_top=False"):
        models.build("baseline", include_top=include_top, pooling=pooling)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_networks_with_global_pooling_take_any_size(name):
    size = models.build(name, input_shape=(64, 80, 3), num_classes=3)
    assert size.output_shape == (None, 3)
    varying = models.build(name, input_shape=(None, None, 3))
    assert varying.input_shape == (None, None, None, 3) and varying.output_shape == (None, 200)
    assert varying.count_params() == models.build(name).count_params()


@pytest.mark.parametrize("name", sorted(models.REGISTRY.keys() - ANY_SIZE))
def test_networks_with_dense_layers_take_one_size(name):
    with pytest.raises(ValueError, match=r"\(56, 56, 3\), not \(64, 64, 3\)"):
        models.build(name, input_shape=(64, 64, 3))


def test_preprocess_input():
    mean = np.load(weights.FOLDER / "mean_image.npy")
    assert mean.shape == (64, 64, 3) and mean.dtype == np.float32
    random = np.random.default_rng(2)
    for size, expected in (((64, 64), mean), ((56, 56), mean[4:60, 4:60]), ((30, 40), mean.mean(axis=(0, 1)))):
        images = random.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        given = models.preprocess_input(images)
        assert given.dtype == np.float32
        np.testing.assert_array_equal(models.preprocess_input(images[0]), given[0])
        np.testing.assert_allclose(given, (images.astype(np.float64) - expected) / 64, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (56, 56), (30, 40), (64, 56)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_preprocess_input_takes_what_keras_applications_do(size, dtype):
    """An array, a tensor, a tensor whose size is not known, and `keras.Input`, of known size or not."""
    images = np.random.default_rng(3).integers(0, 256, (3, *size, 3)).astype(dtype)
    expected = models.preprocess_input(images)
    given = {"tensor": models.preprocess_input(tf.constant(images))}
    dataset = tf.data.Dataset.from_tensor_slices(images)
    given["map"] = np.stack(list(dataset.map(models.preprocess_input).as_numpy_iterator()))
    given["batches"] = np.concatenate(list(dataset.batch(2).map(models.preprocess_input).as_numpy_iterator()))
    unknown = tf.TensorSpec((None, None, 3), dtype)
    dataset = tf.data.Dataset.from_generator(lambda: images, output_signature=unknown)
    given["map of unknown sizes"] = np.stack(list(dataset.map(models.preprocess_input).as_numpy_iterator()))
    for shape in ((*size, 3), (None, None, 3)):
        inputs = keras.Input(shape, dtype=dtype)
        outputs = models.preprocess_input(inputs)
        assert outputs.shape == (None, *shape)
        given[f"Input of {shape}"] = keras.Model(inputs, outputs)(images)
    for name, result in given.items():
        assert result.dtype == np.float32, name
        np.testing.assert_array_equal(result, expected, name)


def test_a_model_with_preprocess_input_is_loaded_as_it_was_saved(tmp_path):
    """In mixed precision too, where pixels stay in float32."""
    images = np.random.default_rng(4).uniform(0, 255, (2, 56, 56, 3)).astype(np.float32)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((56, 56, 3))
        keras.Model(inputs, models.preprocess_input(inputs)).save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), models.preprocess_input(images))


def test_decode_predictions():
    probabilities = np.full((2, 200), 0.001, np.float32)
    probabilities[0, [3, 199]] = 0.2, 0.4
    probabilities[1, 0] = 0.5
    decoded = models.decode_predictions(probabilities, top=2)
    named = weights.classes()
    expected = [[(199, 0.4), (3, 0.2)], [(0, 0.5), (1, 0.001)]]
    assert decoded == [
        [(named["wnids"][i], named["words"][i], float(np.float32(share))) for i, share in row] for row in expected
    ]
    assert [len(row) for row in models.decode_predictions(probabilities)] == [5, 5]
    assert [len(row) for row in models.decode_predictions(probabilities, top=1000)] == [200, 200]
    for shape in ((200,), (2, 100)):
        with pytest.raises(ValueError, match=r"\(N, 200\), not"):
            models.decode_predictions(np.zeros(shape))


def test_classes():
    classes = weights.classes()
    assert classes.keys() == {"wnids", "words"}
    assert len(classes["words"]) == len(set(classes["wnids"])) == 200
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes["wnids"])
    assert classes["wnids"] == LABELS
    assert classes["words"][classes["wnids"].index("n01443537")] == "goldfish, Carassius auratus"
