"""Several devices train as one: logical CPUs in one process, and processes that talk over loopback."""

import contextlib
import csv
import json
import math
import pathlib
import socket
import threading

import pytest
import tensorflow as tf

from tiny_imagenet.errors import UserError
from training import distribution

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NO_GPU = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "-1"}
STEPS = 20
FLAGS = "--model=baseline --dataset=synthetic --num_epochs=1 --num_cycles=1 --batch_size=200 --log_every=1"
FLAGS += " --learning_rate=0.01"  # At 0.1 the first steps enlarge a difference of rounding a thousandfold.

# A few steps of a small network with batch normalisation, a float16 step that overflows among them.
SMALL = """
import sys
import training
import json
import pathlib
import keras, numpy as np, tensorflow as tf
from training import distribution
from training.step import Trainer

devices, precision, sync_batch_norm = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
strategy = distribution.get_strategy("mirrored")
assert strategy.num_replicas_in_sync == devices
keras.utils.set_random_seed(0)
keras.config.set_dtype_policy(precision)
with strategy.scope():
    inputs = keras.Input((56, 56, 3))
    x = keras.layers.Conv2D(8, 5, strides=4, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(x))
    trainer = Trainer(model, np.full((64, 64, 3), 120, np.float32), learning_rate=0.1, cycle_steps=50.0,
                      momentum=0.9, weight_decay=1e-2, clip_norm=0.5, sync_batch_norm=sync_batch_norm)
    if precision == "mixed_float16":
        trainer.optimizer.dynamic_scale.assign(2.0**24)

rng = np.random.default_rng(0)
losses, norms = [], []
for step in range(20):
    labels = rng.integers(0, 4, 8)
    images = rng.integers(0, 60 + 60 * labels[:, None, None, None], (8, 56, 56, 3)).astype(np.uint8)
    which = rng.integers(0, 10, 8).astype(np.int32)
    def parts(values):
        size = 8 // devices
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[size * context.replica_id_in_sync_group :][:size]))
    trainer.train_step(parts(images), parts(which), parts(labels))
    means = trainer.means()
    trainer.reset_means()
    losses.append(means["loss"])
    norms.append(means["global_norm"])
for weight in model.weights:
    first, *others = strategy.experimental_local_results(weight.value)
    assert all(np.array_equal(first, other) for other in others), weight.path
weights = [value for weight in model.weights for value in weight.numpy().ravel().tolist()]
print(json.dumps({"loss": losses, "norm": norms, "weights": weights, "skipped": int(trainer.skipped.numpy())}))
"""

# train.py on a machine with two devices.
TWO_DEVICES = """
import runpy
import training
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
runpy.run_module("train", run_name="__main__")
"""


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory, run_script):
    """Runs `SMALL` on so many devices."""
    script = tmp_path_factory.mktemp("small") / "small.py"
    script.write_text(SMALL)

    def run(devices, precision="float32", sync_batch_norm=True):
        result = run_script(script, devices, precision, sync_batch_norm, **NO_GPU)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def one_device(on_devices):
    return on_devices(1)


def test_two_devices_train_as_one(one_device, on_devices):
    two = on_devices(2)
    assert min(one_device["norm"]) < 0.5 < max(one_device["norm"])  # So that some steps are clipped, and some are not.
    for name in ("loss", "norm", "weights"):
        assert two[name] == pytest.approx(one_device[name], rel=1e-4, abs=1e-4)


def test_batch_norm_of_each_device_alone_is_another_network(one_device, on_devices):
    two = on_devices(2, sync_batch_norm=False)
    assert two["loss"][0] != pytest.approx(one_device["loss"][0], abs=1e-4)
    assert two["loss"][-1] < two["loss"][0]


def test_two_devices_skip_a_step_together_in_float16(one_device, on_devices):
    two = on_devices(2, "mixed_float16")
    losses = [loss for loss in two["loss"] if not math.isnan(loss)]  # A skipped step has none.
    assert 0 < two["skipped"] < 15
    assert len(losses) == 20 - two["skipped"]
    assert losses[-1] < losses[0] - 0.1


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [*range(1, STEPS + 1), STEPS]
    return [float(row["loss"] or row["validation_loss"]) for row in rows]


@pytest.fixture(scope="module")
def flags(synthetic_data_dir):
    return [*FLAGS.split(), f"--data_dir={synthetic_data_dir}"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, run_script, flags):
    """The losses of a run on one device."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    result = run_script("train.py", *flags, f"--run_dir={run_dir}")
    assert result.returncode == 0, result.stderr
    return losses(run_dir)


def test_run_on_two_devices(tmp_path, run_script, flags, expected):
    script = tmp_path / "two_devices.py"
    script.write_text(TWO_DEVICES)
    run_dir = tmp_path / "run"
    result = run_script(script, *flags, "--distribute=mirrored", f"--run_dir={run_dir}", **NO_GPU)
    assert result.returncode == 0, result.stderr
    assert losses(run_dir) == pytest.approx(expected, abs=1e-4)
    assert (run_dir / "saved_model/saved_model.pb").exists()


@pytest.fixture
def workers(start_script):
    """Starts two workers, which talk over loopback, with the same flags."""

    @contextlib.contextmanager
    def start(flags):
        sockets = [socket.socket() for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]}
        for each in sockets:
            each.close()
        tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
        processes = [start_script("train.py", *flags, TF_CONFIG=json.dumps(task), **NO_GPU) for task in tasks]
        limits = [threading.Timer(300, process.kill) for process in processes]
        for limit in limits:
            limit.start()
        try:
            yield processes
        finally:
            for process, limit in zip(processes, limits, strict=True):
                limit.cancel()
                process.kill()
                process.communicate()

    return start


def test_two_workers_train_as_one_though_one_is_lost(tmp_path, workers, flags, expected):
    flags = [*flags, f"--run_dir={tmp_path}", "--checkpoint_minutes=0"]
    with workers(flags) as (chief, other):
        for line in chief.stdout:
            if f"step 5/{STEPS}" in line:
                other.kill()
                break
        _, error = chief.communicate()
    assert chief.returncode == 1
    assert error.splitlines()[-1].startswith("train.py: another worker was lost: start all workers again"), error
    assert "Traceback" not in error

    with workers(flags) as (chief, other):
        output, error = chief.communicate()
        other_output, other_error = other.communicate()
    assert chief.returncode == 0, error
    assert other.returncode == 0, other_error
    done = int(output.split(f" of {STEPS} steps done")[0].split()[-1])
    assert 4 <= done < STEPS
    assert f"\n{done} of {STEPS} steps done" in other_output
    assert losses(tmp_path) == pytest.approx(expected, abs=1e-4)
    assert (tmp_path / "saved_model/saved_model.pb").exists()


@pytest.mark.parametrize("config", ["{", "[]", '{"cluster": 3}', "", '{"cluster": {"ps": ["localhost:1"]}}'])
def test_no_cluster(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match="TF_CONFIG"):
        distribution.get_strategy("multi_worker")


def test_workers_that_cannot_be_reached(monkeypatch):
    def fail():
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server\nmore")

    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["localhost:1", "localhost:2"]}}')
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fail)
    with pytest.raises(UserError, match="TF_CONFIG names .Could not start gRPC server.: check its addresses"):
        distribution.get_strategy("auto")


def test_one_device_needs_no_strategy(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = distribution.get_strategy("none")
    assert strategy is tf.distribute.get_strategy()
    assert distribution.is_chief(strategy)
    assert distribution.any_worker(strategy)([]) is False
    assert distribution.any_worker(strategy)([15]) is True
