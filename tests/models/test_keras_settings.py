"""Keras' settings in a user's home or environment change no network."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from models import keras_settings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import {first}  # noqa: F401
import keras
import models
import numpy as np

print(keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon())
for name in ("baseline", "resnet20"):
    model = models.build(name)
    print(sum(weight.numpy().size for weight in model.trainable_weights), model.dtype_policy.name)
images = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3))
logits = models.build("squeezenet", weights="tiny_imagenet").predict(models.preprocess_input(images), verbose=0)
print(logits.dtype, *logits[:, :3].ravel().round(3))
"""
OTHER = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.5, "backend": "numpy"}


def run(tmp_path, settings, first, **environment):
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
        | {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
        | environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the program prints with Keras' own defaults."""
    result = run(tmp_path_factory.mktemp("home"), {}, "models")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_defaults(expected):
    settings, baseline, resnet20, logits = expected.splitlines()
    assert settings == "tensorflow channels_last float32 1e-07"
    assert baseline.split() == ["13054504", "float32"] and resnet20.split() == ["11279112", "float32"]
    assert logits.startswith("float32 ")


@pytest.mark.parametrize("first", ["models", "training"])
def test_settings_of_the_user_change_nothing(tmp_path, expected, first):
    """Whether the library is used alone or by a program, which imports `training` and Keras first."""
    result = run(tmp_path, OTHER, first, KERAS_BACKEND="numpy")
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


def test_keras_imported_with_another_backend(monkeypatch):
    """Whose packages need not be installed for this test."""
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ImportError, match="its backend torch.*: import models before keras, or set .*KERAS_BACKEND"):
        importlib.reload(keras_settings)
