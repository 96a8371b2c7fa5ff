import json

import h5py
import numpy as np
import pytest
import tensorflow as tf

import models
import small
from deployment import compress
from models import weights
from tiny_imagenet.errors import UserError
from training import checkpoints


@pytest.mark.parametrize("scale", [1e-3, 0.04, 3.0])
def test_step_size_is_the_best_power_of_two(scale):
    kernel = np.random.default_rng(0).normal(0, scale, 1000).astype(np.float32)
    step = compress.step_size(kernel)
    assert np.log2(step) == np.round(np.log2(step))

    def error(step):
        """Of the nearest of the 15 values, by distance."""
        values = step * np.arange(-7, 8)
        return np.square(np.abs(kernel[:, None] - values).min(axis=1)).mean()

    assert error(step) <= min(error(step / 2), error(step * 2))


def test_zero_kernel_stays_zero():
    kernel = np.zeros((3, 3), np.float32)
    np.testing.assert_array_equal(compress.quantize(kernel, compress.step_size(kernel)), kernel)


def test_squeezenet_is_smaller_than_half_a_megabyte(tmp_path):
    """With kernels of a normal distribution, which take more bits than trained ones, with their many small weights."""
    model, random = models.build("squeezenet"), np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.05, weight.shape))
        if weight.name == "kernel":
            weight.assign(compress.quantize(weight, compress.step_size(weight.numpy())))
    weights.save(model, tmp_path / "squeezenet.weights.h5")
    assert (tmp_path / "squeezenet.weights.h5").stat().st_size < 500_000


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_main, small_data_dir):
    """A trained run of the small network."""
    path = tmp_path_factory.mktemp("run") / "moved 2"
    flags = "--model=small --dataset=synthetic --batch_size=50 --num_epochs=12 --num_cycles=1 --learning_rate=0.03"
    flags += f" --precision=float32 --noexport --nofinal_scores --data_dir={small_data_dir}"
    with small.registered():
        result = run_main("train.py", *flags.split(), f"--run_dir={path}")
    assert (result.returncode, result.stderr) == (0, "")
    return path


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, run, run_main, small_data_dir):
    """The scores and the network of the compressed file without fine-tuning, and with four epochs of it.

    The images of these four have their classes in another order than those of the run.
    """
    reverse = small.reverse_classes(small_data_dir, tmp_path_factory.mktemp("data"))
    found = []
    for epochs, data_dir in ((0, small_data_dir), (4, reverse)):
        with small.registered():
            flags = [f"--run_dir={run}", f"--data_dir={data_dir}", f"--num_epochs={epochs}"]
            result = run_main("deployment.compress", *flags)
            assert (result.returncode, result.stderr) == (0, "")
            assert f"{(run / compress.FILE).stat().st_size:,} bytes" in result.stdout
            assert f" --weights='{run / compress.FILE}' --data_dir={data_dir}\n" in result.stdout
            assert not (run / "evaluation_compressed.weights.json").exists()  # Of the file before.
            flags = [f"--data_dir={small_data_dir}", "--dataset=synthetic", "--model=small"]
            assert run_main("evaluate.py", *flags, f"--weights={run / compress.FILE}").returncode == 0
            model = models.build("small", weights=run / compress.FILE)
        found.append((json.loads((run / "evaluation_compressed.weights.json").read_text()), model))
    return found


def kernels(model):
    """Those of the network without its auxiliary head."""
    found = [weight for weight in model.trainable_weights if weight.name == "kernel"]
    return [kernel for kernel in found if "auxiliary" not in kernel.path]


def test_kernels_have_15_values(run, compressed):
    with small.registered():
        trained, _ = checkpoints.load_model(run)
    for epochs, (_, model) in zip((0, 4), compressed, strict=True):
        for kernel, before in zip(kernels(model), kernels(trained), strict=True):
            step = compress.step_size(before.numpy())
            assert set(np.unique(kernel / step)) <= set(range(-7, 8))
            if epochs == 0:
                np.testing.assert_allclose(kernel, np.clip(np.round(before / step), -7, 7) * step)
            else:
                assert 0.01 < np.mean(kernel != compress.quantize(before, step)) < 0.9


def test_fine_tuned_file_is_small_and_as_good(run, compressed):
    scores = [scores for scores, _ in compressed]
    original = json.loads((run / "evaluation.json").read_text())
    assert scores[1]["cross_entropy"] < scores[0]["cross_entropy"]
    assert scores[1]["top_1"] > original["top_1"] - 0.05 > 0.4
    assert scores[1]["bytes"] < compressed[1][1].count_params()  # A byte each.


def test_hdf5_decodes_the_file(run, compressed):
    """By its own filters."""
    with h5py.File(run / compress.FILE) as file:
        dataset = file["layers/conv2d_1/vars/0"]
        assert (dataset.compression, dataset.shuffle) == ("gzip", True)
        kernel = compressed[1][1].get_layer("conv2").kernel
        np.testing.assert_array_equal(dataset[()], tf.cast(kernel, tf.float16))


def test_the_learning_rate_is_its_own(tmp_path, run, run_main, small_data_dir):
    """At a rate near zero, kernels are only rounded. The config.json is of version 1, which names fewer settings."""
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    config = json.loads((run / "config.json").read_text())
    for key in ("augmentation", "dropout", "exclude", "sync_batch_norm"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config | {"all_crops": False}))
    flags = [f"--run_dir={tmp_path}", f"--data_dir={small_data_dir}", "--learning_rate=1e-9"]
    with small.registered():
        result = run_main("deployment.compress", *flags)
        assert (result.returncode, result.stderr) == (0, "")
        trained, _ = checkpoints.load_model(run)
        model = models.build("small", weights=tmp_path / compress.FILE)
    for kernel, before in zip(kernels(model), kernels(trained), strict=True):
        np.testing.assert_array_equal(kernel, compress.quantize(before, compress.step_size(before.numpy())))


def test_refusals(tmp_path, write_run, run_main, assert_one_line):
    run = write_run(exclude="3 images 0123abcd")
    with pytest.raises(UserError, match="was trained with --exclude"):
        compress.compress(run, None, num_epochs=1, learning_rate=0.01)
    assert_one_line(run_main("deployment.compress", f"--run_dir={tmp_path}"), 1, "is not a run")
    assert_one_line(run_main("deployment.compress"), 2, "run_dir")
