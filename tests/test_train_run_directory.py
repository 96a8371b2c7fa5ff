"""What train.py does with what it finds in --run_dir: nothing, a failed start, a run, or another program's files."""

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

import small
from training import distribution


@pytest.fixture(scope="module")
def run_small(run_main):
    """Runs a program with the network and the data of tests/small.py."""

    def run(*command):
        with small.registered():
            return run_main(*command)

    return run


@pytest.fixture(scope="module")
def small_flags(small_data_dir):
    """For steps of 40 of 400 images, ten an epoch."""
    flags = "--model=small_without_dropout --dataset=synthetic --num_epochs=1 --num_cycles=1 --batch_size=40"
    flags += f" --log_every=1 --nofinal_scores --precision=float32 --data_dir={small_data_dir}"
    return flags.split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_small, small_flags):
    """The directory of a finished run. Tests only read it."""
    path = tmp_path_factory.mktemp("finished") / "small"
    result = run_small("train.py", *small_flags, f"--run_dir={path}")
    assert (result.returncode, result.stderr) == (0, "")
    return path


@pytest.fixture
def train(run_small, small_flags, tmp_path):
    """Trains in tmp_path/run."""

    def train(*flags):
        return run_small("train.py", *small_flags, f"--run_dir={tmp_path / 'run'}", "--noexport", *flags)

    return train


def config(run_dir):
    return json.loads((run_dir / "config.json").read_text())


def steps(run_dir):
    return [int(line.split(",")[0]) for line in (run_dir / "metrics.csv").read_text().splitlines()[1:]]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def test_a_failed_first_start_does_not_block_the_next(train, assert_one_line, tmp_path):
    (tmp_path / "run/my_temp").mkdir(parents=True)  # Files of other names do not matter.
    (tmp_path / "run/my_temp/notes.txt").write_text("mine")
    assert_one_line(train("--learning_rate=1e30"), 1, "NaN or infinite at step 2", "lower --learning_rate")
    assert not list(tmp_path.glob("run/checkpoints/ckpt*"))
    result = train("--learning_rate=0.05", "--seed=1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\n0 of 10 steps done" in result.stdout
    assert (config(tmp_path / "run")["learning_rate"], config(tmp_path / "run")["seed"]) == (0.05, 1)
    assert steps(tmp_path / "run") == [*range(1, 11), 10]
    records = tf.data.TFRecordDataset([str(path) for path in tmp_path.glob("run/train/events*")]).as_numpy_iterator()
    losses = [event.step for event in map(event_pb2.Event.FromString, records) if "loss" in str(event)]
    assert len(losses) == len(set(losses))  # None of the failed start's.
    assert (tmp_path / "run/my_temp/notes.txt").read_text() == "mine"


def test_overwrite_starts_anew_and_removes_only_the_run(train, finished):
    others = ("notes.txt", "train/events.out.tfevents.1.other", "checkpoints/best.h5")
    for name in others:
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_text("mine")
    (finished / "mistakes").mkdir()
    for name in ("object_size.csv", "figure_8.png"):
        (finished / "mistakes" / name).touch()
    result = train("--overwrite", "--seed=3")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\n0 of 10 steps done" in result.stdout
    assert config(finished)["seed"] == 3 and steps(finished) == [*range(1, 11), 10]
    removed = ("saved_model", "model.keras", "mistakes")
    assert not any((finished / name).exists() for name in removed)
    assert [(finished / name).read_text() for name in others] == ["mine"] * len(others)


def test_a_refused_overwrite_removes_nothing(train, assert_one_line, finished):
    before = contents(finished)
    assert_one_line(train("--overwrite", "--batch_size=401"), 1, "--batch_size=401")
    assert contents(finished) == before


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "name",
    ["train/events.out.tfevents.1.other", "checkpoints/ckpt-3.index", "metrics.csv", "saved_model/x", "config.json"],
)
def test_another_programs_files_are_left_alone(train, assert_one_line, tmp_path, name, flags):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"architectures": ["Bert"]}')
    assert_one_line(train(*flags), 1, str(tmp_path / "run" / name.split("/")[0]))
    found = contents(tmp_path / "run")
    assert found.pop(pathlib.Path(name)) == b'{"architectures": ["Bert"]}'
    assert found.keys() <= {pathlib.Path(".lock")}


def test_a_finished_run_says_so_at_once(train, finished):
    before = contents(finished)
    result = train("--export")
    assert (result.returncode, result.stderr) == (0, "")
    for word in (
        "is finished",
        "--num_epochs",
        f"tensorboard --logdir {finished}",
        f"report.py --runs={finished}",
    ):
        assert word in result.stdout
    assert "scoring" not in result.stdout and contents(finished) == before


def test_a_finished_run_that_lacks_its_export_gets_it(train, finished):
    (finished / "model.keras").unlink()
    assert "is finished" in train().stdout  # --noexport
    result = train("--export")
    assert result.returncode == 0 and "is finished" not in result.stdout
    assert (finished / "model.keras").exists()


def test_a_finished_run_that_lacks_its_final_scores_gets_them(train, finished):
    result = train("--final_scores")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\n10 of 10 steps done" in result.stdout
    assert json.loads((finished / "evaluation_train_ten_crop.json").read_text())["images"] == 400
    assert "is finished" in train("--final_scores").stdout


def test_a_kill_before_the_time_is_written_does_not_lose_it(train, finished):
    path = finished / "time.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"seconds": 1.0, "steps": 5, "device": "CPU"}))
    assert train("--export").returncode == 0
    assert json.loads(path.read_text()) == whole


def test_a_finished_run_that_lacks_its_centre_crop_score_gets_it(train, finished):
    scores = (finished / "evaluation.json").read_text()
    (finished / "evaluation.json").unlink()
    assert "is finished" not in train().stdout
    assert (finished / "evaluation.json").read_text() == scores


@pytest.mark.parametrize("result", ["time.json", "evaluation.json", "model.keras", "saved_model"])
def test_what_is_left_of_a_run_is_not_trained_over(train, assert_one_line, finished, result):
    for path in finished.iterdir():
        if path.name not in ("config.json", "metrics.csv", result):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    before = contents(finished)
    assert_one_line(train("--seed=1"), 1, "a run without checkpoints", "--overwrite")
    assert contents(finished) == before


@pytest.mark.parametrize("flags", [("--export",), ("--seed=1",)])
def test_a_run_without_its_checkpoints_is_not_taken_for_another(train, assert_one_line, finished, flags):
    shutil.rmtree(finished / "checkpoints")
    before = contents(finished)
    assert_one_line(train(*flags), 1, "a run without checkpoints", "--overwrite")
    assert contents(finished) == before


def test_evaluations_do_not_change_what_is_finished(train, run_small, finished, small_data_dir, monkeypatch):
    monkeypatch.chdir(finished / "saved_model")
    for what in ("--run_dir=..", "--saved_model=."):
        assert run_small("evaluate.py", what, f"--data_dir={small_data_dir}").returncode == 0
    assert (finished / "evaluation_saved_model.json").exists()
    assert "is finished" in train("--export").stdout


def test_a_run_gets_more_epochs_with_cycles_of_the_same_length(train, assert_one_line, finished):
    assert_one_line(train("--num_epochs=2", "--num_cycles=1", "--seed=1"), 1, "seed=0, not 1")
    made = ("model_int8.tflite", "evaluation_model_int8.json", "compressed.weights.h5", "mistakes/classes.md")
    outdated = [finished / name for name in (*made, "model.keras", "saved_model")]
    (finished / "mistakes").mkdir()
    for name in made:
        (finished / name).touch()
    result = train("--num_epochs=2", "--num_cycles=2")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\n10 of 20 steps done" in result.stdout
    assert steps(finished) == [*range(1, 11), 10, *range(11, 21), 20]
    rates = [
        float(line.split(",")[2])
        for line in (finished / "metrics.csv").read_text().splitlines()[1:]
        if ",,," not in line
    ]
    assert rates[10:] == pytest.approx(rates[:10])
    assert (config(finished)["num_epochs"], config(finished)["num_cycles"]) == (2, 2)
    assert not any(path.exists() for path in outdated)
    assert json.loads((finished / "evaluation.json").read_text())["step"] == 20


def test_cycles_of_another_length_must_be_asked_for(train, run_small, assert_one_line, finished, small_flags):
    flags = [flag for flag in small_flags if not flag.startswith("--num_cycles")]  # The default is 5.
    result = run_small("train.py", *flags, "--num_epochs=2", f"--run_dir={finished}")
    assert_one_line(result, 1, "1 cycles in 1 epochs", "--num_cycles=2 to keep their length")
    result = train("--num_epochs=2", "--num_cycles=1", "--log_every=5")  # Which may change.
    assert result.returncode == 0 and "\n10 of 20 steps done" in result.stdout
    assert steps(finished) == [*range(1, 11), 10, 15, 20, 20]
    ends = (finished / "checkpoints/snapshots").glob("snapshot-*.index")
    assert sorted(path.stem for path in ends) == ["snapshot-10", "snapshot-20"]


def test_nokeep_snapshots_and_noexport_save_room(train, tmp_path):
    assert train("--nokeep_snapshots").returncode == 0
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not {"snapshot-10.index", "saved_model", "model.keras"} & names and "ckpt-10.index" in names


@pytest.mark.parametrize("kept", ["float32", "mixed_bfloat16"])
def test_a_resumed_run_keeps_its_precision(train, tmp_path, finished, kept):
    """By default, whatever the machine's own would be."""
    changed = config(finished) | {"precision": kept}
    (finished / "config.json").write_text(json.dumps(changed))
    result = train("--precision=auto", "--num_epochs=2", "--num_cycles=2")
    assert result.returncode == 0 and f"in {kept} on" in result.stdout
    assert config(finished)["precision"] == kept


def test_finished_run_is_exported_again(tmp_path, monkeypatch, run_small, trained, small_flags):
    """By deployment/export.py, and by the run's own command, which evaluates again too; neither trains.

    So another machine that does it is no device of the run's time.
    """
    monkeypatch.setattr(distribution, "describe_devices", lambda strategy: "another machine")
    paths = tmp_path / "export", tmp_path / "same_command"
    for path in paths:
        shutil.copytree(trained, path, ignore=shutil.ignore_patterns("saved_model", "*.keras", "evaluation.json"))
    data_flag = small_flags[-1]
    commands = ["deployment.export", data_flag], ["train.py", *small_flags]
    for command, path in zip(commands, paths, strict=True):
        result = run_small(*command, f"--run_dir={path}")
        assert (result.returncode, result.stderr) == (0, "")
        assert "export" in result.stdout and "step 10/10" not in result.stdout
    expected = keras.saving.load_model(trained / "model.keras").get_weights()
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    serve = tf.saved_model.load(str(trained / "saved_model")).signatures["serving_default"]
    probabilities = serve(images=tf.constant(images))["probabilities"].numpy()
    for path in paths:
        assert (path / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()
        weights = keras.saving.load_model(path / "model.keras").get_weights()
        assert all(map(np.array_equal, weights, expected))
        serve = tf.saved_model.load(str(path / "saved_model")).signatures["serving_default"]
        np.testing.assert_allclose(serve(images=tf.constant(images))["probabilities"], probabilities, rtol=1e-5)
    starts = json.loads((paths[1] / "provenance.json").read_text())["starts"]
    assert starts[-1]["device"] == "another machine"
    assert json.loads((paths[1] / "time.json").read_text()) == json.loads((trained / "time.json").read_text())
    assert not (paths[0] / "evaluation.json").exists()
    assert (paths[1] / "evaluation.json").read_bytes() == (trained / "evaluation.json").read_bytes()
