"""Trains as a user does: runs of train.py, finished, stopped, killed and started again."""

import csv
import json
import math
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

import command_line
import models
import small
import train
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import distribution, evaluation, run_directory, summaries
from training.checkpoints import Checkpoints
from training.step import Trainer

ROOT = pathlib.Path(__file__).resolve().parents[1]
EPOCHS, STEPS = 14, 112
CYCLE_ENDS = [38, 75, 112]  # Of three cycles.
SMALL = f"--model=small --dataset=synthetic --batch_size=50 --num_epochs={EPOCHS} --num_cycles=3 --log_every=4"
SMALL += " --learning_rate=0.03 --precision=float32"
KILL_SEED = int(os.environ.get("KILL_SEED", 0))
ON_GPU = bool(tf.config.list_physical_devices("GPU"))  # Whose kernels do not repeat a run to the bit.


def rows(run_dir):
    """metrics.csv, as the rows of training and those of validation."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        every = list(csv.DictReader(file))
    return [row for row in every if row["loss"]], [row for row in every if row["validation_cross_entropy"]]


def cosine(step, learning_rate, cycle_steps):
    """The paper's learning rate, in its own words."""
    return learning_rate / 2 * (math.cos(math.pi * ((step - 1) % cycle_steps) / cycle_steps) + 1)


def variables(path):
    """A checkpoint's variables by name, but for the one that says how long training took."""
    reader = tf.train.load_checkpoint(str(path))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names if not name.startswith("seconds/")}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.tobytes() == other[name].tobytes(), name


def files(run_dir):
    """Each file of a run with its size and time of change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in run_dir.rglob("*") if path.is_file()}


def assert_same_metrics(one, other):
    if ON_GPU:
        assert [row[:2] for row in map(str.split, one.open())] == [row[:2] for row in map(str.split, other.open())]
    else:
        assert one.read_bytes() == other.read_bytes()


def train_until(start_script, flags, step, signum, delay=0.0):
    """Starts tests/small.py, and sends it a signal `delay` seconds after it reports a step.

    Returns its returncode, stdout and stderr.
    """
    process = start_script("tests/small.py", *flags)
    limit = threading.Timer(300, process.kill)
    limit.start()
    with process:
        lines, sent = [], False
        for line in process.stdout:
            lines.append(line)
            reported = re.search(r"\bstep (\d+)/", line)
            if reported and int(reported[1]) >= step and not sent:
                time.sleep(delay)
                process.send_signal(signum)
                sent = True
        outcome = process.wait(), "".join(lines), process.stderr.read()
    limit.cancel()
    return outcome


@pytest.fixture(scope="module")
def small_flags(small_data_dir):
    return [*SMALL.split(), f"--data_dir={small_data_dir}"]


@pytest.fixture(scope="module")
def run_small(run_main):
    """Runs tests/small.py in this process."""

    def run(*flags):
        with small.registered():
            return run_main("train.py", *flags)

    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, run_small, small_flags):
    """A run long enough to learn something."""
    path = tmp_path_factory.mktemp("uninterrupted")
    result = run_small(*small_flags, f"--run_dir={path}", "--tflite")
    assert (result.returncode, result.stderr) == (0, "")
    assert (path / "model_int8.tflite").exists()
    return path


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, start_script, run_small, small_flags):
    """The same run, twice killed, once asked to stop, then left alone: its directory and each start's outcome.

    The kills come at moments drawn from KILL_SEED. By then the run has written more than its last checkpoint knows of.
    """
    path = tmp_path_factory.mktemp("interrupted")
    flags = [*small_flags, f"--run_dir={path}"]
    rng = random.Random(KILL_SEED)
    kills = [(rng.randrange(*steps, 4), signal.SIGKILL, rng.uniform(0, 0.2)) for steps in ((4, 32), (36, 60))]
    signals = [*kills, (72, signal.SIGINT)]
    print(f"KILL_SEED={KILL_SEED}: (step, signal, delay) is", *signals)
    outcomes = [train_until(start_script, flags, *each) for each in signals]
    last = run_small(*flags)
    return path, [*outcomes, (last.returncode, last.stdout, last.stderr)]


def events(run_dir):
    """(writer, step, tag) of all that TensorBoard has of a run."""
    found = []
    for name in ("train", "validation"):
        records = tf.data.TFRecordDataset([str(path) for path in (run_dir / name).glob("events*")])
        for event in map(event_pb2.Event.FromString, records.as_numpy_iterator()):
            found += [(name, event.step, value.tag) for value in event.summary.value]
    return sorted(found)


def test_next_steps_are_quoted_for_the_shell(capsys):
    with command_line.defined("train"):
        train.FLAGS(["train.py", "--model=baseline", "--nofinal_scores", "--data_dir=my data"])
        train.print_next_steps(pathlib.Path("moved 2"))
    board, score, report = (shlex.split(line.partition(":")[2]) for line in capsys.readouterr().out.splitlines())
    assert board[-1] == "moved 2" and report[-1] == "--runs=moved 2"
    assert score[-3:] == ["--run_dir=moved 2", "--ten_crop", "--data_dir=my data"]


def test_run_directory(synthetic_run):
    config = json.loads((synthetic_run / "config.json").read_text())
    given = {"model": "baseline", "dataset": "synthetic", "num_epochs": 1, "num_cycles": 1, "batch_size": 400}
    assert config.items() >= {**given, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4}.items()

    evaluation = json.loads((synthetic_run / "evaluation.json").read_text())
    assert evaluation["split"] == "validation" and evaluation["images"] == 1000
    assert 0 <= evaluation["top_1"] <= evaluation["top_5"] <= 1

    assert (synthetic_run / "checkpoints/ckpt-10.index").exists()
    assert len(list((synthetic_run / "checkpoints/snapshots").glob("snapshot-*.index"))) == 1
    assert (synthetic_run / "checkpoints/snapshots/snapshot-10.index").exists()
    for name in ("train", "validation"):
        assert list((synthetic_run / name).glob("events.out.tfevents.*"))
    assert (synthetic_run / "model.keras").is_file()
    assert (synthetic_run / "saved_model/saved_model.pb").is_file()
    assert not list(synthetic_run.rglob("*partial*"))


def test_metrics(synthetic_run):
    training, validation = rows(synthetic_run)
    assert [row["step"] for row in training] == [str(step) for step in range(1, 11)]
    assert [(row["step"], row["epoch"]) for row in validation] == [("10", "1")]
    for row in training:
        assert row["epoch"] == "1"
        assert float(row["learning_rate"]) == pytest.approx(cosine(int(row["step"]), 0.1, 10), rel=1e-5)
        assert 0 < float(row["cross_entropy"]) < float(row["loss"])
        assert 0 <= float(row["top_1"]) <= 1 and float(row["global_norm"]) > 0
    assert float(training[0]["cross_entropy"]) == pytest.approx(math.log(200), rel=0.2)
    evaluation = json.loads((synthetic_run / "evaluation.json").read_text())
    assert evaluation["step"] == 10
    # Evaluation is of the exported network, whose batch normalization and dtype may round otherwise.
    for name, tolerance in (("cross_entropy", 1e-4), ("top_1", 1e-3), ("top_5", 1e-3)):
        assert float(validation[0][f"validation_{name}"]) == pytest.approx(evaluation[name], abs=tolerance)


def test_cycles_need_not_be_whole_steps(uninterrupted):
    training, validation = rows(uninterrupted)
    assert [int(row["step"]) for row in training] == list(range(4, STEPS + 1, 4))
    assert [(int(row["step"]), int(row["epoch"])) for row in validation] == [(8 * n, n) for n in range(1, EPOCHS + 1)]
    for row in training:
        assert int(row["epoch"]) == math.ceil(int(row["step"]) / 8)
        rate = cosine(int(row["step"]), 0.03, STEPS / 3)
        assert float(row["learning_rate"]) == pytest.approx(rate, rel=1e-5, abs=1e-9)
    snapshots = (uninterrupted / "checkpoints/snapshots").glob("snapshot-*.index")
    assert sorted(int(path.stem.removeprefix("snapshot-")) for path in snapshots) == CYCLE_ENDS


def test_a_cycle_that_ends_between_two_steps_is_kept_once(tmp_path, run_small, small_flags):
    """Of 6.67 steps, the first ends with the run of six; with more epochs, it ends after the seventh."""
    flags = [*small_flags, f"--run_dir={tmp_path}", "--batch_size=60", "--noexport", "--nofinal_scores"]
    for epochs, ends in ((1, ["snapshot-6"]), (2, ["snapshot-13", "snapshot-7"])):
        assert run_small(*flags, f"--num_epochs={epochs}", f"--num_cycles={epochs}").returncode == 0
        assert sorted(path.stem for path in (tmp_path / "checkpoints/snapshots").glob("snapshot-*.index")) == ends


def test_final_scores(uninterrupted, run_main, small_data_dir, tmp_path):
    """Each file is what evaluate.py writes of the run."""
    split_of = {"evaluation": "validation", "evaluation_ten_crop": "validation", "evaluation_train_ten_crop": "train"}
    for name, split in split_of.items():
        flags = [f"--run_dir={uninterrupted}", f"--data_dir={small_data_dir}", f"--split={split}"]
        flags += ["--images=10000"] * (split == "train") + ["--ten_crop"] * ("ten_crop" in name)
        with small.registered():
            result = run_main("evaluate.py", *flags, f"--output={tmp_path / name}.json")
        assert (result.returncode, result.stderr) == (0, "")
        expected = json.loads((tmp_path / f"{name}.json").read_text())
        written = json.loads((uninterrupted / f"{name}.json").read_text())
        assert written.pop("cross_entropy") == pytest.approx(expected.pop("cross_entropy"), rel=1e-5)
        assert written == expected


def test_provenance(interrupted):
    path, _ = interrupted
    starts = json.loads((path / "provenance.json").read_text())["starts"]
    steps = [start["step"] for start in starts]
    assert steps[0] == 0 and steps == sorted(set(steps)) and 72 <= steps[-1] < STEPS
    assert {(start["tensorflow"], start["keras"]) for start in starts} == {(tf.__version__, keras.__version__)}
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    assert {start["commit"] and start["commit"].removesuffix("-dirty") for start in starts} == {head}


def test_augmentation(tmp_path, run_small, assert_one_line, small_flags):
    """It changes the training and not the number of steps. A run keeps the flag."""
    losses = []
    for number, augmentation in enumerate(("ten_crop", "uniform", "all_crops")):
        flags = [*small_flags, f"--run_dir={tmp_path / str(number)}"]
        flags += ["--num_epochs=1", "--noexport", "--nofinal_scores"]
        assert run_small(*flags, f"--augmentation={augmentation}").returncode == 0
        training, _ = rows(tmp_path / str(number))
        assert [row["step"] for row in training] == ["4", "8"]
        losses.append(float(training[1]["cross_entropy"]))
    assert len(set(losses)) == 3
    assert json.loads((tmp_path / "2/config.json").read_text())["augmentation"] == "all_crops"
    assert_one_line(run_small(*flags), 1, "augmentation=all_crops, not ten_crop")


def test_excluded_images_are_not_trained_on(tmp_path, monkeypatch, run_small, assert_one_line, small_flags):
    """Their ids are in a file. A run keeps the flag, and the scores are on all images."""
    trained_on = []

    def record(split, *arguments):
        trained_on.append(split.ids)
        return train_batches(split, *arguments)

    train_batches = input_pipeline.train_batches
    monkeypatch.setattr(input_pipeline, "train_batches", record)
    flags = [*small_flags, f"--run_dir={tmp_path / 'run'}", "--num_epochs=1", "--noexport"]
    data_dir = next(flag.partition("=")[2] for flag in flags if flag.startswith("--data_dir"))
    with small.registered():
        every = input_pipeline.load("synthetic", data_dir).splits["train"].ids
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(every[::2]))
    assert run_small(*flags, f"--exclude={listed}").returncode == 0
    assert trained_on[0].tolist() == every[1::2].tolist()
    training, _ = rows(tmp_path / "run")
    assert training[-1]["step"] == str(len(every) // 2 // 50)
    assert json.loads((tmp_path / "run/evaluation_train_ten_crop.json").read_text())["images"] == len(every)
    assert "is finished" in run_small(*flags, f"--exclude={listed}").stdout
    assert_one_line(run_small(*flags), 1, f"exclude=listed.txt ({len(every) // 2} images")
    listed.write_text("nosuch.JPEG")
    assert_one_line(run_small(*flags, "--overwrite", f"--exclude={listed}"), 1, "no image is called 'nosuch.JPEG'")
    listed.write_text("")
    assert_one_line(run_small(*flags, "--overwrite", f"--exclude={listed}"), 1, "listed.txt is empty")
    assert (tmp_path / "run/metrics.csv").exists()
    assert_one_line(run_small(*flags, "--overwrite", f"--exclude={tmp_path / 'none'}"), 1, "none: No such file")


def test_flags_reach_the_training(tmp_path, monkeypatch, run_small, assert_one_line, small_flags):
    """Where each value differs from its default."""
    recorded = {}

    def record(model, mean_image, **settings):
        dropout = model.get_layer("dropout").rate
        recorded.update(settings, dropout=dropout, dtype=model.compute_dtype, weights=model.get_weights())
        raise UserError("recorded")

    monkeypatch.setattr("training.step.Trainer", record)
    flags = "--momentum=0 --nonesterov --weight_decay=0.001 --clip_norm=2.5 --sync_batch_norm --jit_compile --seed=7"
    flags += " --dropout=0.35 --precision=mixed_bfloat16"
    assert_one_line(run_small(*small_flags, *flags.split(), f"--run_dir={tmp_path}"), 1, "recorded")
    keras.utils.set_random_seed(7)
    with small.registered():
        expected = models.build("small", training=True).get_weights()
    assert_same_bits(dict(enumerate(recorded.pop("weights"))), dict(enumerate(expected)))
    assert recorded == {
        "dropout": 0.35,
        "dtype": "bfloat16",
        "learning_rate": 0.03,
        "cycle_steps": pytest.approx(STEPS / 3),
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.001,
        "clip_norm": 2.5,
        "sync_batch_norm": True,
        "jit_compile": True,
    }


def test_the_seed_orders_the_images(tmp_path, monkeypatch, run_small, assert_one_line, small_flags):
    def record(split, batch_size, seed, *_):
        raise UserError(f"batches of {batch_size} by seed {seed}")

    monkeypatch.setattr(input_pipeline, "train_batches", record)
    result = run_small(*small_flags, "--seed=7", f"--run_dir={tmp_path}")
    assert_one_line(result, 1, "batches of 50 by seed 7")


def test_time_leaves_out_a_pause(tmp_path, monkeypatch, run_small, small_flags):
    """By a clock that shows a second more after each step, and a thousand more after a pause in the second.

    Saving a snapshot takes a hundred, and does not count either. The check for divergence takes one, which counts: on a
    GPU, it waits for the steps.
    """
    clock, waited = [0.0], []
    train_step, check, save_snapshot = Trainer.train_step, Trainer.check, Checkpoints.save_snapshot

    def wait(self):
        clock[0] += 1
        waited.append(1)
        check(self)

    def save(self):
        save_snapshot(self)
        clock[0] += 100

    def step(self, *batch):
        train_step(self, *batch)
        clock[0] += 1
        if self.step == 2:
            clock[0] += 1000
            os.kill(os.getpid(), signal.SIGCONT)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(Trainer, "check", wait)
    monkeypatch.setattr(Checkpoints, "save_snapshot", save)
    result = run_small(*small_flags, f"--run_dir={tmp_path}", "--num_epochs=1", "--noexport", "--nofinal_scores")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "time.json").read_text())["seconds"] == 7 + len(waited)  # Of eight steps.


def test_learns(uninterrupted):
    """Without momentum it reaches 65% and 0.85, at a tenth of the learning rate 63% and 0.91."""
    assert json.loads((uninterrupted / "evaluation.json").read_text())["top_1"] > 0.85
    training, _ = rows(uninterrupted)
    assert np.mean([float(row["cross_entropy"]) for row in training[-2:]]) < 0.3


def test_stops_and_goes_on(interrupted):
    path, (*killed, (stopped, output, error), (ended, resumed, _)) = interrupted
    assert [status for status, *_ in killed] == 2 * [-signal.SIGKILL]
    assert stopped == 128 + signal.SIGINT
    assert error == ""
    step = int(re.search(r"stopped after step (\d+)", output)[1])
    assert 72 <= step < STEPS
    assert f"\n{step} of {STEPS} steps done" in resumed
    assert ended == 0
    training, validation = rows(path)
    assert [int(row["step"]) for row in training] == list(range(4, STEPS + 1, 4))
    assert [int(row["step"]) for row in validation] == list(range(8, STEPS + 1, 8))


def test_interrupted_run_has_every_event_once(uninterrupted, interrupted):
    path, _ = interrupted
    expected = events(uninterrupted)
    assert expected.count(("train", 92, "loss")) == expected.count(("validation", 80, "top_1")) == 1
    assert events(path) == expected


def test_stops_in_an_epochs_validation(tmp_path, monkeypatch, run_small, small_flags, uninterrupted):
    """The resumed run repeats that validation."""
    flags = [*small_flags, f"--run_dir={tmp_path}", "--noexport", "--nofinal_scores"]
    score = evaluation.score
    scored = []

    def interrupt(*args, **kwargs):
        scored.append(args)
        if len(scored) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*args, **kwargs)

    monkeypatch.setattr(evaluation, "score", interrupt)
    result = run_small(*flags)
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")
    assert "stopped after step 24" in result.stdout
    assert len(rows(tmp_path)[1]) == 2
    result = run_small(*flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_metrics(tmp_path / "metrics.csv", uninterrupted / "metrics.csv")
    assert events(tmp_path) == events(uninterrupted)


@pytest.mark.parametrize("moment", ["last validation", "final scores"])
def test_first_of_several_workers_stops_once_the_others_do_not_wait(
    tmp_path, monkeypatch, run_small, small_flags, moment
):
    monkeypatch.setattr(distribution, "has_several_workers", lambda strategy: True)
    monkeypatch.setattr(distribution, "is_chief", lambda strategy: True)
    monkeypatch.setattr(distribution, "any_worker", lambda strategy: lambda flag: False)
    score = evaluation.score
    scored = []

    def interrupt(*args, **kwargs):
        scored.append(args)
        if len(scored) == (1 if moment == "last validation" else 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*args, **kwargs)

    monkeypatch.setattr(evaluation, "score", interrupt)
    flags = [*small_flags, "--num_epochs=1", "--num_cycles=1", "--noexport", f"--run_dir={tmp_path}"]
    result = run_small(*flags)
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")
    assert len(rows(tmp_path)[1]) == 1 and not (tmp_path / "evaluation.json").exists()
    assert ("; scoring\n" in result.stdout) == (moment == "final scores")


def test_run_in_16_bits(tmp_path, run_small, small_flags):
    flags = [*small_flags, f"--run_dir={tmp_path}", "--precision=mixed_bfloat16", "--num_epochs=1"]
    result = run_small(*flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert "mixed_bfloat16" in result.stdout
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "mixed_bfloat16"
    training, _ = rows(tmp_path)
    assert math.log(10) - 1 < float(training[-1]["cross_entropy"]) < math.log(10)
    exported = keras.saving.load_model(tmp_path / "model.keras")
    assert {layer.dtype_policy.name for layer in exported.layers} == {"float32"}


def test_float16_has_its_loss_scale_in_tensorboard(tmp_path, monkeypatch, run_small, small_flags):
    """It is stopped after two steps: a CPU emulates float16."""
    append = summaries.Metrics.append

    def stop(self, **row):
        append(self, **row)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(summaries.Metrics, "append", stop)
    flags = ["--precision=mixed_float16", "--batch_size=4", "--log_every=1"]
    result = run_small(*small_flags, *flags, f"--run_dir={tmp_path}", "--overwrite")
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")
    assert "stopped after step 2: start again without --overwrite to resume" in result.stdout
    expected = {("train", step, tag) for step in (1, 2) for tag in ("loss", "loss_scale", "skipped_steps")}
    assert expected <= set(events(tmp_path))


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two checkpoints of the small network; and a function to give it more."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=1500k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield path, lambda: subprocess.run([*mount, "remount,size=600m", "tmpfs", path], check=True)
    subprocess.run(["umount", path], check=True)


def test_full_disk(small_disk, run_script, run_small, assert_one_line, small_flags, uninterrupted):
    disk, enlarge = small_disk
    flags = [*small_flags, f"--run_dir={disk / 'run'}"]
    result = run_script("tests/small.py", *flags, "--checkpoint_minutes=0")
    assert_one_line(result, 1, "No space left on device", str(disk), "start the same command again")
    steps = sorted(int(path.stem.removeprefix("ckpt-")) for path in (disk / "run/checkpoints").glob("*.index"))
    assert 1 <= len(steps) <= 2
    enlarge()
    result = run_small(*flags, "--noexport", "--nofinal_scores")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"\n{steps[-1]} of {STEPS} steps done" in result.stdout
    assert_same_metrics(disk / "run/metrics.csv", uninterrupted / "metrics.csv")
    assert not list((disk / "run/checkpoints").glob("*_temp*"))


def test_interrupted_run_is_the_same_to_the_bit(uninterrupted, interrupted):
    if ON_GPU:
        pytest.skip("only a CPU promises it")
    path, _ = interrupted
    name = f"checkpoints/ckpt-{STEPS}"
    expected = variables(uninterrupted / name)
    assert sum(key.startswith("accumulators/") for key in expected) >= 12  # Each weight's momentum.
    assert_same_bits(variables(path / name), expected)
    for cycle in CYCLE_ENDS:
        name = f"checkpoints/snapshots/snapshot-{cycle}"
        assert_same_bits(variables(path / name), variables(uninterrupted / name))
    for name in ("config.json", "metrics.csv", "evaluation.json", "evaluation_train_ten_crop.json"):
        assert (path / name).read_bytes() == (uninterrupted / name).read_bytes(), name


@pytest.mark.parametrize(
    "name, precision",
    [("alexnet", "float32"), ("small", "mixed_float16")],
)
def test_a_restored_trainer_goes_on_as_if_never_interrupted(tmp_path, name, precision):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 2, 56, 56, 3)).astype(np.uint8)
    crop_index = rng.integers(0, 10, (4, 2))
    labels = rng.integers(0, 10, (4, 2))
    mean_image = rng.uniform(100, 150, (64, 64, 3)).astype(np.float32)

    def build():
        keras.utils.set_random_seed(3)
        keras.config.set_dtype_policy(precision)
        settings = {"learning_rate": 0.01, "cycle_steps": 2.5, "momentum": 0.9, "weight_decay": 1e-4, "clip_norm": 10.0}
        try:
            with small.registered():
                return Trainer(models.build(name, training=True), mean_image, **settings)
        finally:
            keras.config.set_dtype_policy("float32")

    def train_steps(trainer, steps):
        for step in steps:
            trainer.train_step(images[step], crop_index[step], labels[step])

    with tf.device("CPU"):
        straight, again = build(), build()
        if precision == "mixed_float16":
            straight.loss_scale.assign(2.0**11)
        train_steps(straight, range(2))
        Checkpoints(tmp_path, straight).save(0.0)
        resumed = Checkpoints(tmp_path, again)
        resumed.restore(tmp_path)
        assert int(again.step) == resumed.step == 2
        train_steps(straight, range(2, 4))
        train_steps(again, range(2, 4))
    Checkpoints(tmp_path / "straight", straight).save(0.0)
    resumed.save(0.0)
    expected = variables(tmp_path / "straight/checkpoints/ckpt-4")
    assert_same_bits(variables(tmp_path / "checkpoints/ckpt-4"), expected)
    before = variables(tmp_path / "checkpoints/ckpt-2")
    changed = [name for name, value in expected.items() if before[name].tobytes() != value.tobytes()]
    assert len(changed) >= 2 * len(straight.model.trainable_weights), changed  # Weights and their momentum.
    assert float(again.loss_scale) == (2.0**11 if precision == "mixed_float16" else 1.0)


def test_refusals(tmp_path, run_main, assert_one_line, synthetic_run, synthetic_flags):
    flags = ["train.py", *synthetic_flags]
    kept = files(synthetic_run)
    results = [
        run_main(*command)
        for command in (
            [*flags, f"--run_dir={synthetic_run}", "--learning_rate=0.2", "--seed=1"],
            [*flags, f"--run_dir={synthetic_run}", "--noresume"],
            # Not logged before its first cycle ends.
            [*flags, f"--run_dir={tmp_path / 'diverged'}", "--learning_rate=1e30", "--log_every=10", "--num_cycles=2"],
            [*flags, f"--run_dir={tmp_path / 'large'}", "--batch_size=4001"],
            [*flags, f"--run_dir={tmp_path / 'short'}", "--num_cycles=11"],
            [*flags, f"--run_dir={tmp_path / 'archive'}", "--archive=x.zip"],
        )
    ]
    with run_directory.lock(tmp_path / "taken"):
        taken = run_main(*flags, f"--run_dir={tmp_path / 'taken'}")
    assert_one_line(taken, 1, "another process is writing to", "taken", "another folder")
    another, noresume, diverged, large, short, archive = results
    assert_one_line(another, 1, str(synthetic_run), "learning_rate=0.1, not 0.2", "seed=0, not 1", "another --run_dir")
    assert_one_line(noresume, 1, str(synthetic_run), "--noresume", "another --run_dir")
    assert files(synthetic_run) == kept
    assert_one_line(diverged, 1, "NaN or infinite at step 2", "--learning_rate")
    assert not list((tmp_path / "diverged").glob("checkpoints/ckpt*"))
    assert_one_line(large, 1, "--batch_size=4001", "4000 training images")
    assert_one_line(short, 1, "--num_cycles=11", "10 steps")
    assert_one_line(archive, 1, "remove archive=x.zip")
