"""Classifies pictures as a user does."""

import csv
import json
import os
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps

import models
import predict
from models import weights

RNG = np.random.default_rng(0)
LINE = re.compile(r" *(\d+\.\d\d)%  (n\d{8})  (.+)")


@pytest.fixture(scope="module")
def validation(synthetic_data_dir):
    return np.load(next(synthetic_data_dir.rglob("validation_images.npy")), mmap_mode="r")


@pytest.fixture(scope="module")
def oracle(synthetic_run):
    """From images to their five most probable classes, each its id, words and probability, by Keras."""
    model = keras.saving.load_model(synthetic_run / "model.keras")
    classes = json.loads((synthetic_run / "classes.json").read_text())

    def best(images):
        probabilities = model.predict(np.stack(images), verbose=0)
        return [
            [(classes["wnids"][i], classes["words"][i], row[i]) for i in np.argsort(-row, kind="stable")[:5]]
            for row in probabilities
        ]

    return best


@pytest.fixture
def folder(tmp_path, validation):
    """A folder with seven pictures of 64x64 pixels, some in a folder of their own, and a file that is none."""
    (tmp_path / "photos/more").mkdir(parents=True)
    for number in range(7):
        Image.fromarray(validation[number]).save(tmp_path / "photos" / f"{'more/' * (number % 2)}{number}.PNG")
    (tmp_path / "photos/notes.txt").write_text("not a picture")
    return tmp_path / "photos"


def read_csv(path):
    """The rows of a table: the picture's path and its five best."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    fields = ("wnid", "words", "probability")
    return [(row["picture"], [[row[f"{name}_{rank}"] for name in fields] for rank in range(1, 6)]) for row in rows]


def assert_same(given, expected):
    for (wnid, words, probability), (expected_wnid, expected_words, expected_probability) in zip(
        given, expected, strict=True
    ):
        assert (wnid, words) == (expected_wnid, expected_words)
        assert float(probability) == pytest.approx(expected_probability, rel=1e-3, abs=1e-4)


def test_prints_the_best_five(run_main, folder, synthetic_run, validation, oracle):
    result = run_main("predict.py", folder / "0.PNG", f"--run_dir={synthetic_run}", folder / "more/1.PNG")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 12 and lines[::6] == [str(folder / "0.PNG"), str(folder / "more/1.PNG")]
    for start, expected in zip((1, 7), oracle(validation[:2]), strict=True):
        given = [LINE.fullmatch(line).groups() for line in lines[start : start + 5]]
        assert_same([(wnid, words, float(percent) / 100) for percent, wnid, words in given], expected)


@pytest.mark.parametrize("batch_size", [3, 250])
def test_a_folder_to_a_table(run_main, folder, synthetic_run, validation, oracle, batch_size, tmp_path):
    """With the pictures below it, each once, in the order of their names, and without its other files."""
    arguments = [f"--run_dir={synthetic_run}", f"--csv={tmp_path / 'out.csv'}", f"--batch_size={batch_size}"]
    result = run_main("predict.py", *arguments, folder, folder / "0.PNG")
    assert (result.returncode, result.stderr) == (0, "")
    assert "7 of 7 pictures" in result.stdout
    rows = read_csv(tmp_path / "out.csv")
    assert [path for path, _ in rows] == [str(folder / f"{n}.PNG") for n in (0, 2, 4, 6)] + [
        str(folder / f"more/{n}.PNG") for n in (1, 3, 5)
    ]
    for (_, given), expected in zip(rows, oracle(validation[[0, 2, 4, 6, 1, 3, 5]]), strict=True):
        assert_same(given, expected)


def test_what_is_no_picture_does_not_stop_the_others(run_main, folder, synthetic_run, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a JPEG")
    (tmp_path / "empty").mkdir()
    long = tmp_path / ("x" * 300)
    named = [folder / "notes.txt", folder, tmp_path / "nosuch.png", tmp_path / "empty", long]
    result = run_main("predict.py", f"--run_dir={synthetic_run}", f"--csv={tmp_path / 'out.csv'}", *named)
    assert result.returncode == 1 and "7 of 12 pictures" in result.stdout
    lines = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["predict.py", str(path)]
        for path in (folder / "notes.txt", folder / "broken.jpg", tmp_path / "nosuch.png", tmp_path / "empty", long)
    ]
    reasons = ("not a picture", "not a picture", "No such file", "no pictures", "File name too long")
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line
    assert len(read_csv(tmp_path / "out.csv")) == 7


def test_weights_of_a_run_on_other_classes_are_refused(run_main, folder, synthetic_run, tmp_path, assert_one_line):
    (tmp_path / "a.weights.h5").touch()
    shutil.copy(synthetic_run / "config.json", tmp_path)
    result = run_main("predict.py", folder, "--model=baseline", f"--weights={tmp_path}/a.weights.h5")
    assert_one_line(result, 1, f"use --run_dir={tmp_path}")


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_pillow_does(orientation, name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((161, 130), Image.BICUBIC)
    image.save(tmp_path / name, quality=100, subsampling=0, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / name))
    left, top = (upright.width - 130) // 2, (upright.height - 130) // 2
    expected = upright.crop((left, top, left + 130, top + 130)).resize((64, 64), Image.LANCZOS)
    difference = np.abs(predict.read_picture(tmp_path / name).astype(int) - np.asarray(expected))
    assert difference.mean() < 3 and difference.max() < 20  # The DCTs differ; upside down it is tens.


def test_every_way_gives_the_same(run_main, folder, synthetic_run, synthetic_data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(synthetic_run, run)
    exported = run_main(
        "train.py",
        "--model=baseline",
        "--export_only",
        "--tflite",
        f"--run_dir={run}",
        f"--data_dir={synthetic_data_dir}",
    )
    assert exported.returncode == 0, exported.stderr
    tables = {}
    for way in (f"--run_dir={run}", f"--saved_model={run}/saved_model", f"--tflite={run}/model.tflite"):
        result = run_main("predict.py", folder, way, f"--csv={tmp_path / 'out.csv'}")
        assert (result.returncode, result.stderr) == (0, ""), way
        tables[way] = read_csv(tmp_path / "out.csv")
    first, *others = tables.values()
    for other in others:
        for (path, given), (expected_path, expected) in zip(other, first, strict=True):
            assert path == expected_path
            assert_same(given, [(wnid, words, float(probability)) for wnid, words, probability in expected])


def test_shipped_weights(run_main, folder, tmp_path, monkeypatch, validation):
    """As they are once a network's weights are there; the classes and the mean image are there already."""
    keras.utils.set_random_seed(0)
    model = models.build("squeezenet")
    conv10 = model.get_layer("conv10")
    conv10.kernel.assign(RNG.normal(scale=0.1, size=conv10.kernel.shape))
    for name in ("classes.json", "mean_image.npy"):
        shutil.copy(weights.FOLDER / name, tmp_path)
    path = tmp_path / "squeezenet.weights.h5"
    weights.save(model, path)
    squeezenet = {"sha256": weights.checksum(path), "ten_crop_top_1": 0.5}
    index = {"vgg16": {"ten_crop_top_1": 0.4}, "squeezenet": squeezenet}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(weights, "FOLDER", tmp_path)

    result = run_main("predict.py", folder, f"--csv={tmp_path / 'out.csv'}")  # By the best network.
    assert (result.returncode, result.stderr) == (0, "")
    logits = model.predict((validation[:1, 4:60, 4:60] - weights.mean_image()[4:60, 4:60]) / 64, verbose=0)[0]
    _, given = read_csv(tmp_path / "out.csv")[0]
    best, classes = logits.argmax(), weights.classes()
    assert given[0][:2] == [classes["wnids"][best], classes["words"][best]]
    assert float(given[0][2]) == pytest.approx(np.exp(logits - np.log(np.exp(logits).sum()))[best], rel=0.05)

    shutil.copy(path, tmp_path / "other.weights.h5")
    flags = ["--model=squeezenet", f"--weights={tmp_path / 'other.weights.h5'}", f"--csv={tmp_path / 'other.csv'}"]
    assert run_main("predict.py", folder, *flags).returncode == 0
    assert (tmp_path / "other.csv").read_text() == (tmp_path / "out.csv").read_text()


def test_mistakes(run_main, folder, assert_one_line, synthetic_run, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "index", dict)
    shutil.copytree(synthetic_run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model.keras"))
    shutil.copy(synthetic_run / "model.keras", tmp_path / "model.tflite")
    picture = folder / "0.PNG"
    for status, arguments, words in (
        (1, [picture], ["the repository has no trained weights", "--run_dir"]),
        (1, [picture, "--model=resnet20"], ["no trained weights of 'resnet20'", "--run_dir"]),
        (2, [picture, "--weights=x.weights.h5"], ["needs --model"]),
        (2, [picture, "--model=googlenet", "--run_dir=run"], ["model", "run_dir"]),
        (1, [], ["name pictures"]),
        (1, [picture, f"--run_dir={tmp_path / 'nosuch'}"], ["nosuch/model.keras does not exist"]),
        (1, [picture, f"--run_dir={tmp_path / 'unfinished'}"], ["unfinished/model.keras", "--export_only"]),
        (1, [picture, f"--saved_model={tmp_path / 'nosuch'}"], ["nosuch does not exist"]),
        (1, [picture, f"--tflite={tmp_path / 'nosuch.tflite'}"], ["nosuch.tflite"]),
        (1, [picture, f"--tflite={tmp_path / 'model.tflite'}"], ["model.tflite is damaged"]),
        (1, [picture, f"--run_dir={synthetic_run}", f"--csv={tmp_path}/no/out.csv"], ["out.csv", "No such file"]),
        (2, [picture, "--model=lenet"], ["--model"]),
        (2, [picture, f"--run_dir={synthetic_run}", "--saved_model=x"], ["run_dir", "saved_model"]),
    ):
        assert_one_line(run_main("predict.py", *arguments), status, "predict.py: ", *words)


def test_as_a_program(run_script, run_main, folder, tmp_path, synthetic_run, oracle, validation):
    """In a process of its own: it says nothing but its answers."""
    picture = (folder / "0.PNG").rename(folder / os.fsdecode(b"caf\xe9.PNG"))  # Not UTF-8.
    result = run_script("predict.py", picture, f"--run_dir={synthetic_run}")
    assert (result.returncode, result.stderr) == (0, "")
    assert oracle(validation[:1])[0][0][1] in result.stdout.splitlines()[1]
    assert (
        run_main("predict.py", picture, f"--run_dir={synthetic_run}", f"--csv={tmp_path / 'out.csv'}").returncode == 0
    )
    assert os.fsencode(picture) in (tmp_path / "out.csv").read_bytes()
