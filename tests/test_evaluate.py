"""Evaluates as a user does, and by NumPy, the small network and data of tests/small.py."""

import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import command_line
import evaluate
import small
from deployment import export
from models import weights
from tiny_imagenet.errors import UserError
from training import checkpoints, evaluation, step

IMAGES = 200  # Of validation.
TOLERATED = 1  # Of them, whose class may turn on rounding.


@pytest.fixture(scope="module", autouse=True)
def small_network(synthetic_run):
    """Adds the small network. The run of conftest.py is made before, with data of its own."""
    with small.registered():
        yield


@pytest.fixture(scope="module")
def data_flags(small_data_dir):
    return [f"--data_dir={small_data_dir}"]


@pytest.fixture(scope="module")
def two_snapshots(tmp_path_factory, small_run):
    """A copy of the run with a second snapshot, whose kernels are other ones; its networks in that order."""
    path = tmp_path_factory.mktemp("two_snapshots") / "run"
    shutil.copytree(small_run / "checkpoints", path / "checkpoints")
    shutil.copy(small_run / "config.json", path)
    first, second = (checkpoints.load_model(path)[0] for _ in range(2))
    random = np.random.default_rng(0)
    for weight in second.trainable_weights:
        weight.assign(weight + np.std(weight) * random.normal(size=weight.shape))
    settings = {"learning_rate": 0.1, "cycle_steps": 10.0, "momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1.0}
    trainer = step.Trainer(second, np.zeros((64, 64, 3), np.float32), **settings)
    trainer.step.assign(16)
    checkpoints.Checkpoints(path, trainer).save_snapshot()
    return path, [first, second]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run_main, small_run, two_snapshots, data_flags):
    """Of each way to evaluate the run: its evaluation.json, its predictions' lines and its standard output."""
    folder = tmp_path_factory.mktemp("evaluated")
    ways = {
        "run": ["--run_dir={}", "--batch_size=99"],
        "saved_model": ["--saved_model={}/exported", "--dataset=synthetic"],
        "ten_crop": ["--run_dir={}", "--ten_crop", "--batch_size=99"],
        "snapshots": ["--run_dir={}", "--snapshots=2"],
        "snapshots_ten_crop": ["--run_dir={}", "--snapshots=2", "--ten_crop", "--batch_size=99"],
        "test": ["--run_dir={}", "--split=test"],
    }
    evaluated = {}
    for name, flags in ways.items():
        # evaluation.json is written beside the weights: each way has a folder of its own.
        (folder / name).mkdir()
        for part in ("config.json", "checkpoints", "saved_model"):
            run = two_snapshots[0] if "snapshots" in name and part == "checkpoints" else small_run
            (folder / name / part.replace("saved_model", "exported")).symlink_to(run / part)
        flags = [flag.format(folder / name) for flag in flags]
        predictions = f"--predictions={folder / name / 'predictions.txt'}"
        result = run_main("evaluate.py", *data_flags, *flags, predictions)
        assert (result.returncode, result.stderr) == (0, ""), name
        how = {"run": "", "saved_model": "_exported"}
        how |= {"snapshots": "_snapshots_2", "snapshots_ten_crop": "_snapshots_2_ten_crop"}
        path = folder / name / f"evaluation{how.get(name, f'_{name}')}.json"
        scores = json.loads(path.read_text()) if path.exists() else None
        lines = (folder / name / "predictions.txt").read_text().splitlines()
        evaluated[name] = scores, lines, result.stdout
    return evaluated


@pytest.fixture(scope="module")
def oracle(small_run, small_data_dir):
    """The network's softmax for each of the ten crops of each validation image, (10, 200, 10), and the labels."""
    whole = keras.saving.load_model(small_run / "model.keras")
    network = keras.Model(whole.get_layer("normalization").output, whole.get_layer("logits").output)
    return softmaxes(network, small_data_dir)


@pytest.fixture(scope="module")
def snapshots_oracle(two_snapshots, small_data_dir):
    """The same, but the mean of the two snapshots' softmaxes."""
    # Without the auxiliary head.
    networks = [keras.Model(model.inputs, model.get_layer("logits").output) for model in two_snapshots[1]]
    (first, labels), (second, _) = (softmaxes(network, small_data_dir) for network in networks)
    assert np.abs(first - second).max() > 0.02
    return (first + second) / 2, labels


def softmaxes(model, small_data_dir):
    folder = next(small_data_dir.rglob("validation_images.npy")).parent
    images, labels = np.load(folder / "validation_images.npy"), np.load(folder / "validation_labels.npy")
    mean_image = np.load(folder / "train_images.npy").mean(axis=0)
    normalized = ((images - mean_image) / 64).astype(np.float32)
    softmaxes = []
    for y, x in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
        crops = normalized[:, y : y + 56, x : x + 56]
        for inputs in (crops, crops[:, :, ::-1]):
            logits = model.predict(inputs, batch_size=100, verbose=0).astype(np.float64)
            softmaxes.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return np.stack(softmaxes), labels


@pytest.fixture(scope="module")
def wnids(small_data_dir):
    return next(small_data_dir.rglob("label.labels.txt")).read_text().split()


def ids(small_data_dir, split):
    return np.load(next(small_data_dir.rglob(f"{split}_ids.npy")))


@pytest.mark.parametrize("way", ["run", "saved_model", "ten_crop", "snapshots", "snapshots_ten_crop"])
def test_scores_are_numpys(evaluated, oracle, snapshots_oracle, small_data_dir, wnids, way):
    scores, lines, _ = evaluated[way]
    softmaxes, labels = snapshots_oracle if "snapshots" in way else oracle
    softmax = softmaxes.mean(axis=0) if "ten_crop" in way else softmaxes[8]
    best = np.argsort(-softmax, axis=1)[:, :5]
    assert scores["top_1"] == pytest.approx((best[:, 0] == labels).mean(), abs=TOLERATED / IMAGES)
    assert scores["top_5"] == pytest.approx((best == labels[:, None]).any(axis=1).mean(), abs=TOLERATED / IMAGES)
    assert scores["cross_entropy"] == pytest.approx(-np.log(softmax[range(IMAGES), labels]).mean(), rel=1e-4)
    predicted = dict(line.split() for line in lines)
    expected = {id: wnids[label] for id, label in zip(ids(small_data_dir, "validation"), best[:, 0], strict=True)}
    assert predicted.keys() == expected.keys()
    assert sum(predicted[id] != wnid for id, wnid in expected.items()) <= TOLERATED


@pytest.mark.parametrize("way", ["run", "saved_model", "ten_crop", "snapshots", "snapshots_ten_crop"])
def test_evaluation_json(evaluated, way):
    scores, _, stdout = evaluated[way]
    how = {"ten_crop": "ten_crop" in way, "snapshots": 2 if "snapshots" in way else 1}
    expected = {"dataset": "synthetic", "split": "validation", "images": IMAGES, **how}
    assert scores.items() >= expected.items()
    assert scores["step"] == (None if way == "saved_model" else 8)
    assert scores.keys() == {*expected, "cross_entropy", "top_1", "top_5", "step"}
    assert f"{scores['top_1']:.2%}" in stdout and f"{scores['top_5']:.2%}" in stdout


def test_as_a_program(tmp_path, run_script, synthetic_run, synthetic_data_dir):
    """In a process of its own, it says nothing on standard error."""
    scores = tmp_path / "scores.json"
    flags = [f"--run_dir={synthetic_run}", f"--data_dir={synthetic_data_dir}", f"--output={scores}"]
    result = run_script("evaluate.py", *flags)
    assert (result.returncode, result.stderr) == (0, "")
    expected = json.loads((synthetic_run / "evaluation.json").read_text())
    cross_entropy = pytest.approx(expected["cross_entropy"], rel=1e-5)
    assert json.loads(scores.read_text()) == expected | {"cross_entropy": cross_entropy}


def test_saved_model_scores_as_its_run_did(evaluated, small_run):
    trained = json.loads((small_run / "evaluation.json").read_text())
    for way in ("run", "saved_model"):
        scores, _, _ = evaluated[way]
        assert (scores["top_1"], scores["top_5"]) == (trained["top_1"], trained["top_5"])
        assert scores["cross_entropy"] == pytest.approx(trained["cross_entropy"], rel=1e-4)
    assert evaluated["ten_crop"][0]["cross_entropy"] != pytest.approx(trained["cross_entropy"], rel=1e-4)


@pytest.fixture(scope="module")
def reversed_flags(tmp_path_factory, small_data_dir):
    """For the same data with its classes in the reverse order."""
    return [f"--data_dir={small.reverse_classes(small_data_dir, tmp_path_factory.mktemp('reversed'))}"]


@pytest.mark.parametrize(
    "way",
    [
        "--run_dir={}",
        "--saved_model={}/saved_model --dataset=synthetic",
        "--model=small --weights={}/w.weights.h5 --dataset=synthetic",
    ],
)
def test_the_order_of_the_datas_classes_does_not_matter(tmp_path, run_main, small_run, data_flags, reversed_flags, way):
    for part in ("config.json", "classes.json", "checkpoints", "saved_model"):
        (tmp_path / part).symlink_to(small_run / part)
    weights.save(export.inference_model(checkpoints.load_model(small_run)[0]), tmp_path / "w.weights.h5")
    results = []
    for of_data in (data_flags, reversed_flags):
        outputs = [tmp_path / "scores.json", tmp_path / "predictions.txt"]
        flags = [*way.format(tmp_path).split(), f"--output={outputs[0]}", f"--predictions={outputs[1]}"]
        result = run_main("evaluate.py", *of_data, *flags)
        assert (result.returncode, result.stderr) == (0, "")
        results.append([output.read_text() for output in outputs])
    assert results[0] == results[1]


def test_data_of_other_classes(tmp_path, run_main, assert_one_line, small_run, small_data_dir):
    data = f"--data_dir={small.reverse_classes(small_data_dir, tmp_path, 'n8')}"
    for network in (
        [f"--run_dir={small_run}"],
        [f"--saved_model={small_run}/saved_model"],
        ["--model=squeezenet", "--weights=tiny_imagenet", "--dataset=synthetic"],
    ):
        result = run_main("evaluate.py", data, *network, f"--output={tmp_path / 'scores.json'}")
        assert_one_line(result, 1, "different classes", "the data that the network was trained on")


def test_predictions_of_the_test_images(evaluated, small_run, small_data_dir, wnids):
    scores, lines, stdout = evaluated["test"]
    assert scores is None and re.fullmatch(r"written to \S+\n", stdout)
    assert [line.split()[0] for line in lines] == [f"test_{number}.JPEG" for number in range(50)]
    assert all(re.fullmatch(r"test_\d+\.JPEG n\d{8}", line) for line in lines)
    assert {line.split()[1] for line in lines} <= set(wnids)

    images = np.load(next(small_data_dir.rglob("test_images.npy")))
    serve = tf.saved_model.load(str(small_run / "saved_model")).signatures["serving_default"]
    served = serve(images=tf.constant(images))["wnids"].numpy()[:, 0].astype(str)
    predicted = dict(line.split() for line in lines)
    different = [predicted[id] != wnid for id, wnid in zip(ids(small_data_dir, "test"), served, strict=True)]
    assert sum(different) <= TOLERATED


def test_tflite_files_score_as_their_run_did(tmp_path, run_main, small_run, data_flags, reversed_flags):
    """To rounding in float32; in 8 bits to a few images, and in few more than a quarter of the bytes."""
    shutil.copy(small_run / "classes.json", tmp_path)
    (tmp_path / "config.json").symlink_to(small_run / "config.json")
    (tmp_path / "checkpoints").symlink_to(small_run / "checkpoints")
    exported = run_main("deployment.export", *data_flags, "--tflite", f"--run_dir={tmp_path}")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert not list(tmp_path.glob("*.partial"))
    flags = ["--batch_size=99"]  # The dataset is that of the run that they are in.
    trained = json.loads((small_run / "evaluation.json").read_text())
    sizes = []
    for name, of_data in (("model", data_flags), ("model_int8", reversed_flags)):  # The classes' order does not matter.
        result = run_main("evaluate.py", *of_data, *flags, f"--tflite={tmp_path / name}.tflite")
        assert (result.returncode, result.stderr) == (0, ""), name
        scores = json.loads((tmp_path / f"evaluation_{name}.json").read_text())
        sizes.append(scores["bytes"])
        assert scores["bytes"] == (tmp_path / f"{name}.tflite").stat().st_size
        assert scores.keys() == {*trained, "file", "bytes"}
        assert f"{scores['top_1']:.2%}" in result.stdout and str(scores["bytes"]) in result.stdout
        tolerated = 0.02 if name == "model_int8" else TOLERATED / IMAGES
        assert scores["top_1"] == pytest.approx(trained["top_1"], abs=tolerated)
        assert scores["top_5"] == pytest.approx(trained["top_5"], abs=tolerated)
        assert scores["cross_entropy"] == pytest.approx(trained["cross_entropy"], rel=1e-4 if name == "model" else 0.02)
    assert sizes[1] < 0.3 * sizes[0]


def test_weights_score_as_their_run_did(tmp_path, run_main, assert_one_line, small_run, evaluated, data_flags):
    """In float16, to rounding."""
    path = tmp_path / "half.weights.h5"
    weights.save(export.inference_model(checkpoints.load_model(small_run)[0]), path)
    flags = [*data_flags, "--dataset=synthetic", "--model=small", f"--weights={path}"]
    for crops, way, name in ([], "run", ""), (["--ten_crop"], "ten_crop", "_ten_crop"):
        result = run_main("evaluate.py", *flags, *crops)
        assert (result.returncode, result.stderr) == (0, "")
        scores = json.loads((tmp_path / f"evaluation_half.weights{name}.json").read_text())
        expected, *_ = evaluated[way]
        assert (scores["file"], scores["bytes"]) == ("half.weights.h5", path.stat().st_size)
        assert scores["top_1"] == pytest.approx(expected["top_1"], abs=TOLERATED / IMAGES)
        assert scores["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-3)
    wrong = [*data_flags, "--dataset=synthetic", "--model=alexnet", f"--weights={path}"]
    assert_one_line(run_main("evaluate.py", *wrong), 1, "half.weights.h5", "it belongs to small")


def test_sample_of_the_training_images(tmp_path, run_main, small_run, small_data_dir, data_flags):
    """It is drawn as that of train.py, and the scores are those of NumPy on it."""
    flags = [*data_flags, f"--run_dir={small_run}", "--split=train", "--images=300"]
    scores = []
    for number, batch_size in enumerate((300, 77)):
        output, predictions = tmp_path / f"{number}.json", tmp_path / f"{number}.txt"
        files = f"--output={output}", f"--predictions={predictions}"
        result = run_main("evaluate.py", *flags, f"--batch_size={batch_size}", *files)
        assert (result.returncode, result.stderr) == (0, "")
        scores.append(json.loads(output.read_text()))
    assert (scores[0]["split"], scores[0]["images"]) == ("train", 300)
    assert scores[0]["cross_entropy"] == pytest.approx(scores[1]["cross_entropy"])
    result = run_main("evaluate.py", *flags, f"--output={tmp_path / '0.json'}", "--predictions=-")
    assert result.stdout == (tmp_path / "0.txt").read_text()
    lines = result.stdout.splitlines()
    predicted = dict(line.split() for line in lines)
    drawn = np.random.default_rng(evaluation.SAMPLE_SEED).choice(400, 300, replace=False)
    assert predicted.keys() == set(ids(small_data_dir, "train")[drawn])
    labels = np.load(next(small_data_dir.rglob("train_labels.npy")))
    names = next(small_data_dir.rglob("label.labels.txt")).read_text().split()
    of_id = dict(zip(ids(small_data_dir, "train"), labels, strict=True))
    right = np.mean([names[of_id[id]] == wnid for id, wnid in predicted.items()])
    assert scores[0]["top_1"] == pytest.approx(right)


def test_scores_of_other_images_have_a_file_of_their_own(two_snapshots, run_main, data_flags):
    path, _ = two_snapshots
    assert run_main("evaluate.py", *data_flags, f"--run_dir={path}", "--split=train").returncode == 0
    assert json.loads((path / "evaluation_train_images_all.json").read_text())["images"] == 400
    few = ["--split=train", "--images=300"]
    assert run_main("evaluate.py", *data_flags, f"--run_dir={path}", *few).returncode == 0
    assert json.loads((path / "evaluation_train_images_300.json").read_text())["images"] == 300


def test_scores_of_shipped_weights_are_named_after_the_network(tmp_path):
    """They go to the working directory, and those of other weights beside their file."""
    shipped = weights.FOLDER / "squeezenet.weights.h5"
    for flag, folder in (("tiny_imagenet", pathlib.Path()), (str(tmp_path / shipped.name), tmp_path)):
        path = shipped if flag == "tiny_imagenet" else tmp_path / shipped.name
        with command_line.defined("evaluate"):
            evaluate.FLAGS(["evaluate.py", "--model=squeezenet", f"--weights={flag}"])
            assert evaluate.score_file(path) == folder / "evaluation_squeezenet.weights.json"


def test_a_run_below_a_folder_with_a_pattern_s_characters(tmp_path, run_main, small_run, data_flags, monkeypatch):
    (tmp_path / "x[1]").mkdir()
    shutil.copytree(small_run, tmp_path / "x[1]/run")
    monkeypatch.chdir(tmp_path / "x[1]")
    for what in ("--run_dir=run", "--saved_model=run/saved_model"):
        result = run_main("evaluate.py", what, *data_flags, "--output=scores.json")
        assert (result.returncode, result.stderr) == (0, "")


def test_devices_and_links_can_be_written(tmp_path):
    """Their folder need not be writable: only root may write to /dev."""
    evaluate.check_writable("/dev/null", "output")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    evaluate.check_writable(tmp_path / "link", "output")
    (tmp_path / "broken").symlink_to(tmp_path / "no/file")
    with pytest.raises(UserError, match="cannot write .*/broken: pass --output"):
        evaluate.check_writable(tmp_path / "broken", "output")


def test_refusals(tmp_path, run_main, assert_one_line, small_run, data_flags):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_checkpoint").mkdir()
    config = {"model": "baseline", "dataset": "synthetic"}
    (tmp_path / "no_checkpoint/config.json").write_text(json.dumps(config))
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    shutil.copytree(small_run / "saved_model", tmp_path / "cut")
    (tmp_path / "cut/saved_model.pb").write_bytes((tmp_path / "cut/saved_model.pb").read_bytes()[:1000])
    (tmp_path / "damaged.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(1000))
    mistakes = [
        (1, [f"--run_dir={tmp_path / 'empty'}"], ["empty", "is not a run"]),
        (1, [f"--run_dir={tmp_path / 'no_checkpoint'}"], ["no_checkpoint", "train first"]),
        (1, [f"--saved_model={tmp_path / 'nosuch'}", "--dataset=synthetic"], ["nosuch does not exist", "--run_dir"]),
        (1, [f"--saved_model={small_run}", "--dataset=synthetic"], ["is not a SavedModel", "--run_dir"]),
        (1, [f"--saved_model={small_run}/model.keras", "--dataset=synthetic"], ["model.keras is not a SavedModel"]),
        (1, [f"--saved_model={tmp_path / 'cut'}", "--dataset=synthetic"], ["cut is damaged", "deployment.export"]),
        (
            1,
            [f"--saved_model={tmp_path / 'other'}", "--dataset=synthetic"],
            ["other", "is not of this project"],
        ),
        (1, [f"--tflite={tmp_path / 'nosuch.tflite'}", "--dataset=synthetic"], ["nosuch.tflite"]),
        (1, [f"--tflite={tmp_path / 'damaged.tflite'}", "--dataset=synthetic"], ["damaged.tflite", "is damaged"]),
        (1, [f"--saved_model={tmp_path}/no/such", "--dataset=synthetic"], ["no/such does not exist"]),
        (1, [f"--run_dir={small_run}", f"--output={tmp_path}"], [f"cannot write {tmp_path}", "--output"]),
        (1, [f"--run_dir={small_run}", f"--predictions={tmp_path}/no/such"], ["cannot write", "no/such"]),
        (1, [f"--run_dir={small_run}", "--snapshots=2"], ["holds 1 snapshot", "--snapshots=2"]),
        (1, [f"--run_dir={small_run}", "--archive=x.zip"], ["remove archive=x.zip"]),
        (1, ["--weights=x.weights.h5", "--model=baseline", "--dataset=synthetic"], ["x.weights.h5 does not exist"]),
        (2, [f"--saved_model={tmp_path / 'empty'}", "--ten_crop"], ["evaluate.py: ", "--run_dir"]),
        (2, ["--weights=x.weights.h5"], ["needs --model"]),
        (2, [f"--run_dir={small_run}", "--model=baseline"], ["needs --weights"]),
        (2, [f"--run_dir={small_run}", "--dataset=full"], ["--dataset", "a run has its own"]),
        (1, ["--weights=tiny_imagenet", "--model=vgg16"], ["no trained weights of 'vgg16'"]),
        (2, [f"--run_dir={small_run}", "--images=100"], ["--images", "needs --split=train"]),
    ]
    for status, flags, words in mistakes:
        result = run_main("evaluate.py", *data_flags, *flags)
        assert_one_line(result, status, *words)
        assert result.stdout == ""
    assert list((tmp_path / "empty").iterdir()) == [] and not (tmp_path / "nosuch").exists()
