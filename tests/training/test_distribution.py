"""Several devices train as one: logical CPUs in one process, and processes that talk over loopback."""

import contextlib
import csv
import json
import math
import os
import pathlib
import socket
import threading

import keras
import pytest
import tensorflow as tf

from tiny_imagenet.errors import UserError
from training import distribution

TESTS = pathlib.Path(__file__).resolve().parents[1]
NO_GPU = {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "-1"}
STEPS = 20
FLAGS = "--model=small_without_dropout --dataset=synthetic --num_epochs=1 --num_cycles=1 --batch_size=20 --log_every=1"
FLAGS += " --nofinal_scores"
# At a learning rate of 0.1, the first steps enlarge a difference of rounding.
FLAGS += " --learning_rate=0.01 --precision=float32 --sync_batch_norm"

# On two devices and on one: a few steps of a network with batch normalization, a float16 step that overflows among
# them; and the masks of dropout.
DEVICES = """
import training
import collections, json
import keras, numpy as np, tensorflow as tf
from models.layers import BatchNormalization
from tiny_imagenet import input_pipeline
from training import distribution, evaluation
from training.step import Trainer

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
STRATEGIES = {1: distribution.get_strategy("none"), 2: distribution.get_strategy("mirrored")}
SETTINGS = {"learning_rate": 0.1, "cycle_steps": 50.0, "momentum": 0.9, "weight_decay": 1e-2, "clip_norm": 0.5}
MEAN = np.full((64, 64, 3), 120, np.float32)
recorded = []  # The last batch.


def steps(trainer, strategy, numbers):
    '''Trains by a batch of eight for each number.'''
    for number in numbers:
        rng = np.random.default_rng(number)
        labels = rng.integers(0, 4, 8)
        images = rng.integers(0, 60 + 60 * labels[:, None, None, None], (8, 56, 56, 3)).astype(np.uint8)
        crop_index = rng.integers(0, 162, 8)
        size = 8 // strategy.num_replicas_in_sync
        batch = [
            strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(values[size * context.replica_id_in_sync_group :][:size]))
            for values in (images, crop_index, labels)]
        trainer.train_step(*batch)
        recorded[:] = [batch]
        yield


def train(devices, precision="float32", sync_batch_norm=True, jit_compile=False):
    strategy = STRATEGIES[devices]
    assert strategy.num_replicas_in_sync == devices
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    with strategy.scope():
        inputs = keras.Input((56, 56, 3))
        x = keras.layers.Conv2D(8, 5, strides=4, use_bias=False)(inputs)
        x = (keras.layers.BatchNormalization if sync_batch_norm else BatchNormalization)(momentum=0.5)(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        backbone = keras.Model(inputs, x)  # A network may hold other models.
        images = keras.Input((56, 56, 3))
        model = keras.Model(images, keras.layers.Dense(4, dtype="float32")(backbone(images)))
        trainer = Trainer(model, MEAN, sync_batch_norm=sync_batch_norm, jit_compile=jit_compile, **SETTINGS)
        if precision == "mixed_float16":
            trainer.loss_scale.assign(2.0**24)
    losses, norms = [], []
    for _ in steps(trainer, strategy, range(20)):
        means = trainer.means()
        trainer.reset_means()
        losses.append(means["loss"])
        norms.append(means["global_norm"])
    for weight in model.weights:
        first, *others = strategy.experimental_local_results(weight.value)
        assert all(np.array_equal(first, other) for other in others), weight.path
    weights = [value for weight in model.weights for value in weight.numpy().ravel().tolist()]
    batch = [value for value in recorded[-1]]
    graph = trainer.train_step.get_concrete_function(*batch).graph
    counts = collections.Counter(operation.type for operation in graph.get_operations())
    return {"loss": losses, "norm": norms, "weights": weights, "skipped": int(trainer.skipped.numpy()),
            "reductions": counts["CollectiveReduceV2"] / devices}


def masks(devices, seed, first, last):
    '''What dropout keeps in each step from first to last, on each device.'''
    strategy = STRATEGIES[devices]
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("float32")
    with strategy.scope():
        on_read = tf.VariableSynchronization.ON_READ
        kept = tf.Variable(tf.zeros(32), trainable=False, synchronization=on_read,
                           aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

        class Observed(keras.layers.Dropout):
            def call(self, inputs, training=None):
                outputs = super().call(inputs, training=training)
                kept.assign(tf.cast(outputs[0] != 0, tf.float32))
                return outputs

        inputs = keras.Input((56, 56, 3))
        x = keras.layers.GlobalAveragePooling2D()(inputs)
        x = keras.layers.Dense(32, kernel_initializer="zeros", bias_initializer="ones")(x)
        model = keras.Model(inputs, keras.layers.Dense(4)(Observed(0.5)(x)))
        trainer = Trainer(model, MEAN, **SETTINGS | {"learning_rate": 1e-9})
        trainer.step.assign(first)
    found = []
    for _ in steps(trainer, strategy, range(first, last)):
        found.append(["".join(str(int(value)) for value in each.numpy())
                      for each in strategy.experimental_local_results(kept)])
    return found


def probabilities(devices, images):
    model = keras.Sequential([keras.Input((56, 56, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)])
    classify = distribution.on_every_device(evaluation.classifier(model, MEAN), STRATEGIES[devices])
    split = input_pipeline.Split(images, np.zeros(len(images), np.int64), np.zeros(len(images), str))
    return evaluation.predict(classify, split, batch_size=9).tolist()


def scored(devices):
    '''By the weights of one network, in batches of 9, 9 and 1.'''
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    with STRATEGIES[devices].scope():
        return probabilities(devices, np.random.default_rng(0).integers(0, 256, (19, 64, 64, 3)).astype(np.uint8))


print(json.dumps({
    "scored by one": scored(1),
    "scored by two": scored(2),
    "one": train(1),
    "two": train(2),
    "not synchronized": train(2, sync_batch_norm=False),
    "compiled": train(2, sync_batch_norm=False, jit_compile=True),
    "float16": train(2, "mixed_float16"),
    "bfloat16": train(2, "mixed_bfloat16"),
    "one in bfloat16": train(1, "mixed_bfloat16"),
    "masks": masks(2, 0, 0, 4),
    "resumed": masks(2, 0, 2, 4),
    "another seed": masks(2, 1, 0, 4),
    "masks of one": masks(1, 0, 0, 4),
}))
"""

# tests/small.py on a machine with two devices.
TWO_DEVICES = """
import runpy, sys
import training
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory, run_script):
    """What `DEVICES` finds."""
    script = tmp_path_factory.mktemp("devices") / "devices.py"
    script.write_text(DEVICES)
    result = run_script(script, **NO_GPU)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_two_devices_train_as_one(on_devices):
    one, two = on_devices["one"], on_devices["two"]
    assert min(one["norm"]) < 0.5 < max(one["norm"])  # So that some steps are clipped, and some are not.
    for name in ("loss", "norm", "weights"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4)


def test_two_devices_train_as_one_in_16_bits(on_devices):
    """Rounding differs, by processor too, but far less than the result of devices that do not share statistics."""
    one, two = on_devices["one in bfloat16"], on_devices["bfloat16"]
    for name in ("loss", "norm", "weights"):
        others = math.dist(on_devices["one"][name], on_devices["not synchronized"][name])
        assert math.dist(one[name], two[name]) < 0.2 * others


def test_xla_compiles_the_steps_of_two_devices(on_devices):
    plain, compiled = on_devices["not synchronized"], on_devices["compiled"]
    for name in ("loss", "norm", "weights"):
        assert compiled[name] == pytest.approx(plain[name], rel=5e-3, abs=5e-3)


def test_two_devices_exchange_gradients_once(on_devices):
    """All gradients and what is measured in one exchange, all batch statistics in another."""
    assert on_devices["not synchronized"]["reductions"] == 2


def test_each_device_scores_its_part(on_devices):
    one, two = on_devices["scored by one"], on_devices["scored by two"]
    assert len(one) == len(two) == 19
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, abs=1e-6)


def test_batch_norm_of_each_device_alone_is_another_network(on_devices):
    two = on_devices["not synchronized"]
    assert two["loss"][0] != pytest.approx(on_devices["one"]["loss"][0], abs=1e-4)
    assert two["loss"][-1] < two["loss"][0]


def test_two_devices_skip_a_step_together_in_float16(on_devices):
    two = on_devices["float16"]
    losses = [loss for loss in two["loss"] if not math.isnan(loss)]  # A skipped step has none.
    assert 0 < two["skipped"] < 15
    assert len(losses) == 20 - two["skipped"]
    assert losses[-1] < losses[0] - 0.1


def test_dropout_is_a_function_of_seed_step_and_device(on_devices):
    """So a resumed run drops the same, and no two devices or steps do."""
    masks = on_devices["masks"]
    assert [len(step) for step in masks] == 4 * [2]
    several = [mask for name in ("masks", "another seed") for step in on_devices[name] for mask in step]
    assert len(set(several)) == 16
    assert all(8 <= mask.count("1") <= 24 for mask in several)
    assert on_devices["resumed"] == masks[2:]
    assert len({mask for (mask,) in on_devices["masks of one"]}) == 4


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [*range(1, STEPS + 1), STEPS]
    return [float(row["loss"] or row["validation_cross_entropy"]) for row in rows]


def assert_same(found, expected):
    assert found[:-1] == pytest.approx(expected[:-1], abs=1e-3)
    # Synchronized moving variances, Keras' own, are of the biased batch variance; the fused kernel's are unbiased.
    assert found[-1] == pytest.approx(expected[-1], abs=2e-3)


@pytest.fixture(scope="module")
def flags(small_data_dir):
    return [*FLAGS.split(), f"--data_dir={small_data_dir}"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, run_script, flags):
    """The losses of a run on one device."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    result = run_script("tests/small.py", *flags, f"--run_dir={run_dir}", **NO_GPU)
    assert result.returncode == 0, result.stderr
    return losses(run_dir)


def test_run_on_two_devices(tmp_path, run_script, flags, expected):
    script = tmp_path / "two_devices.py"
    script.write_text(TWO_DEVICES)
    run_dir = tmp_path / "run"
    program = [script, TESTS / "small.py"]
    result = run_script(*program, *flags, "--distribute=mirrored", "--deterministic", f"--run_dir={run_dir}", **NO_GPU)
    assert result.returncode == 0, result.stderr
    assert_same(losses(run_dir), expected)
    assert (run_dir / "saved_model/saved_model.pb").exists()
    exported = keras.saving.load_model(run_dir / "model.keras")
    synchronized = [layer.synchronized for layer in exported.layers if hasattr(layer, "synchronized")]
    assert synchronized and not any(synchronized)


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
        processes = [start_script("tests/small.py", *flags, TF_CONFIG=json.dumps(task), **NO_GPU) for task in tasks]
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
    assert error.splitlines()[-1].startswith("small.py: another worker was lost: start all workers again"), error
    assert "Traceback" not in error

    with workers(flags) as (chief, other):
        output, error = chief.communicate()
        other_output, other_error = other.communicate()
    assert chief.returncode == 0, error
    assert other.returncode == 0, other_error
    done = int(output.split(f" of {STEPS} steps done")[0].split()[-1])
    assert 4 <= done < STEPS
    assert f"\n{done} of {STEPS} steps done" in other_output
    assert_same(losses(tmp_path), expected)
    assert (tmp_path / "saved_model/saved_model.pb").exists()


def test_a_worker_that_is_asked_to_stop_stops_all(tmp_path, workers, flags):
    """At their next report, with a checkpoint."""
    with workers([*flags, f"--run_dir={tmp_path}", "--checkpoint_minutes=0", "--log_every=2"]) as (chief, other):
        for line in chief.stdout:
            if f"step 4/{STEPS}" in line:
                other.terminate()
                break
        output, error = chief.communicate()
        other_output, other_error = other.communicate()
    assert (chief.returncode, other.returncode) == (143, 143), error + other_error
    step = int(output.split("stopped after step ")[1].split(":")[0])
    assert step % 2 == 0 and 4 <= step < STEPS
    assert f"stopped after step {step}:" in other_output
    assert (tmp_path / f"checkpoints/ckpt-{step}.index").exists()


@pytest.mark.parametrize("config", ["{", "[]", '{"cluster": 3}', "", '{"cluster": {"ps": ["localhost:1"]}}'])
def test_no_cluster(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UserError, match="TF_CONFIG"):
        distribution.get_strategy("multi_worker")


@pytest.mark.parametrize("task", [None, {"type": "worker", "index": 2}, {"type": "wroker", "index": 0}])
def test_a_wrong_task(monkeypatch, task):
    config = {"cluster": {"worker": ["localhost:1", "localhost:2"]}} | ({"task": task} if task else {})
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(UserError, match="TF_CONFIG names .*check its addresses, task and indices"):
        distribution.get_strategy("auto")


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


@pytest.mark.parametrize("kind", [tf.errors.CancelledError, tf.errors.UnavailableError, tf.errors.AbortedError])
def test_a_lost_worker(kind, monkeypatch):
    """Among several workers these errors mean that one is gone; of a single one they are bugs."""
    strategy = tf.distribute.get_strategy()
    error = kind(None, None, "Socket closed")
    with pytest.raises(kind), distribution.report_lost_workers(strategy):
        raise error
    monkeypatch.setattr(distribution, "has_several_workers", lambda strategy: True)
    with pytest.raises(UserError, match="start all workers again.*Socket closed"):
        with distribution.report_lost_workers(strategy):
            raise error


def test_cores_are_those_of_the_process(monkeypatch):
    """A scheduler may give it fewer than the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert distribution.cpu_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert distribution.cpu_cores() == os.cpu_count()
