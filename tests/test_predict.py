"""Classifies pictures as a user does."""

import csv
import json
import os
import pathlib
import re
import runpy
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import models
import predict
from deployment import pictures
from models import weights

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
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


def test_a_folder_with_pictures_of_many_kinds(run_main, synthetic_run, validation, tmp_path):
    """Those of a kind that Pillow cannot read are named; files that are no pictures are passed over.

    So is what macOS puts beside a picture.
    """
    names = ("a.JPG", "b.jfif", "c.tif", "d.webp", "e.bmp", "f.tga", "g.pgm")
    for name, image in zip(names, validation, strict=False):
        Image.fromarray(image).convert("L").save(tmp_path / name)
    for name in ("h.heic", "i.svg", "film.mpg", "letter.pdf", "model.h5", "notes", "notes.txt", "._a.JPG"):
        (tmp_path / name).write_text("contents")
    result = run_main("predict.py", f"--run_dir={synthetic_run}", f"--csv={tmp_path / 'out.csv'}", tmp_path)
    assert result.returncode == 1 and "7 of 9 pictures" in result.stdout
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [f"{tmp_path}/h.heic", f"{tmp_path}/i.svg"]
    assert [path for path, _ in read_csv(tmp_path / "out.csv")] == [str(tmp_path / name) for name in names]


def test_a_table_does_not_replace_a_picture(run_main, folder, synthetic_run, assert_one_line):
    """As in `--csv *.PNG`."""
    before = (folder / "0.PNG").read_bytes()
    result = run_main("predict.py", f"--run_dir={synthetic_run}", "--csv", folder / "0.PNG", folder / "2.PNG")
    assert_one_line(result, 1, "has the name of a picture")
    assert (folder / "0.PNG").read_bytes() == before


def test_weights_of_a_run_on_other_classes_are_refused(run_main, folder, synthetic_run, tmp_path, assert_one_line):
    run = tmp_path / "moved 2"
    run.mkdir()
    (run / "a.weights.h5").touch()
    shutil.copy(synthetic_run / "config.json", run)
    result = run_main("predict.py", folder, "--model=baseline", f"--weights={run}/a.weights.h5")
    assert_one_line(result, 1, f"use --run_dir='{run}'")


UPRIGHT = {  # By the meaning of the EXIF orientation: where the first row and the first column belong.
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.tif", "photo.webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_are_turned_upright(orientation, name, tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((64, 64), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name == "photo.jpg" else {"lossless": True}
    image.save(tmp_path / name, exif=exif, **options)
    difference = predict.read_picture(tmp_path / name) - UPRIGHT[orientation](np.asarray(image)).astype(int)
    assert np.abs(difference).max() <= (8 if name == "photo.jpg" else 0)


def test_damaged_exif_data_do_not_matter(tmp_path):
    image = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png", exif=b"Exif\0\0not EXIF data")
    np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.png"), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_scaled(channels, tmp_path):
    """As TensorFlow does."""
    image = RNG.integers(0, 2**16, (64, 64, channels), dtype=np.uint16)
    contents = tf.io.encode_png(image).numpy()
    (tmp_path / "a.png").write_bytes(contents)
    np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.png"), pictures.decode(contents))


def test_16_bits_of_other_formats(tmp_path):
    image = RNG.integers(0, 2**16, (64, 64), dtype=np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 64 64 65535\n" + image.astype(">u2").tobytes())
    Image.fromarray(image).save(tmp_path / "a.tif")
    for name in ("a.pgm", "a.tif"):
        np.testing.assert_array_equal(predict.read_picture(tmp_path / name), np.dstack(3 * [image // 256]))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.webp", "a.tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1"])
def test_kinds_of_pixels(mode, name, tmp_path):
    """In colours that each mode holds exactly, red, white and black but for grey; transparent ones keep theirs."""
    palette = np.array([(0, 0, 0), (255, 255, 255), (255, 0, 0) if mode not in ("L", "1") else (0, 0, 0)], np.uint8)
    image = palette[RNG.integers(0, 3, (64, 64))]
    pillow = Image.fromarray(image)
    if mode == "RGBA":
        pillow.putalpha(Image.fromarray(RNG.integers(1, 256, (64, 64), dtype=np.uint8)))
    else:
        pillow = pillow.quantize(3) if mode == "P" else pillow.convert(mode)
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    pillow.save(tmp_path / name, **options)
    np.testing.assert_array_equal(predict.read_picture(tmp_path / name), image)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cyan_magenta_yellow_and_black(name, tmp_path):
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / name)
    np.testing.assert_allclose(predict.read_picture(tmp_path / name), np.full((64, 64, 3), (255, 0, 0)), atol=2)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame(name, tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / name).n_frames == 2
    np.testing.assert_array_equal(predict.read_picture(tmp_path / name), np.asarray(frames[0]))


def test_a_large_photo_is_cut_and_resized(tmp_path):
    image = RNG.integers(0, 256, (130, 161, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.png"), pictures.resize(image))


def test_what_cannot_be_read(tmp_path):
    def reason(name, contents):
        (tmp_path / name).write_bytes(contents)
        return predict.read_picture(tmp_path / name)

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg", exif=exif)
    photo = (tmp_path / "whole.jpg").read_bytes()
    assert "not a picture" in reason("truncated.jpg", photo[: len(photo) // 2])
    assert "not a picture" in reason("damaged.jpg", photo.replace(b"\xff\xdb", b"\xff\xfe"))  # Without its tables.
    assert "not a picture" in reason("empty.jpg", b"")
    assert "200 million pixels" in reason("bomb.ppm", b"P6 20000 10001 255\n")
    Image.fromarray(np.zeros((64, 64), np.float32)).save(tmp_path / "floats.tif")
    assert "floats" in predict.read_picture(tmp_path / "floats.tif")


def test_the_example_is_recognised(run_main):
    """Its best five are those that the page shows, and docs/draw_example.py draws it."""
    page = (DOCS / "own_pictures.md").read_text()
    shown = page.partition("\ndocs/example.png\n")[2].partition("```")[0].splitlines()
    result = run_main("predict.py", DOCS / "example.png")
    assert (result.returncode, result.stderr) == (0, "")
    given = [LINE.fullmatch(line).groups() for line in result.stdout.splitlines()[1:]]
    for (percent, wnid, words), line in zip(given, shown, strict=True):
        expected_percent, *expected = LINE.fullmatch(line).groups()
        assert [wnid, words] == expected and float(percent) == pytest.approx(float(expected_percent), abs=0.1)
    assert given[0][2] == "school bus" and float(given[0][0]) > 99
    drawn = np.asarray(runpy.run_path(str(DOCS / "draw_example.py"))["draw"]()).astype(int)
    assert np.abs(drawn - np.asarray(Image.open(DOCS / "example.png"))).mean() < 0.5  # Pillow's versions may differ.


def test_every_way_gives_the_same(run_main, folder, synthetic_run, synthetic_data_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(synthetic_run, run)
    exported = run_main(
        "deployment.export",
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
    shutil.copytree(synthetic_run, tmp_path / "not finished", ignore=shutil.ignore_patterns("model.keras"))
    shutil.copy(synthetic_run / "model.keras", tmp_path / "model.tflite")
    picture = folder / "0.PNG"
    for status, arguments, words in (
        (1, [picture], ["the repository has no trained weights", "--run_dir"]),
        (1, [picture, "--model=resnet20"], ["no trained weights of 'resnet20'", "--run_dir"]),
        (2, [picture, "--weights=x.weights.h5"], ["needs --model"]),
        (2, [picture, "--model=googlenet", "--run_dir=run"], ["model", "run_dir"]),
        (1, [], ["name pictures"]),
        (1, [""], ["name pictures"]),
        (1, [picture, f"--run_dir={tmp_path / 'nosuch'}"], ["nosuch/model.keras does not exist"]),
        (
            1,
            [picture, f"--run_dir={tmp_path / 'not finished'}"],
            ["not finished/model.keras does not", f"deployment.export --run_dir='{tmp_path / 'not finished'}'"],
        ),
        (1, [picture, f"--saved_model={tmp_path / 'nosuch'}"], ["nosuch does not exist"]),
        (1, [picture, f"--tflite={tmp_path / 'nosuch.tflite'}"], ["nosuch.tflite"]),
        (1, [picture, f"--tflite={tmp_path / 'model.tflite'}"], ["model.tflite is damaged"]),
        (1, [picture, f"--run_dir={synthetic_run}", f"--csv={tmp_path}/no/out.csv"], ["out.csv", "No such file"]),
        (2, [picture, "--model=lenet"], ["--model"]),
        (2, [picture, f"--run_dir={synthetic_run}", "--saved_model=x"], ["run_dir", "saved_model"]),
    ):
        assert_one_line(run_main("predict.py", *arguments), status, "predict.py: ", *words)


def test_as_a_program(run_script, run_main, folder, tmp_path, synthetic_run, oracle, validation):
    """In a process of its own: it says nothing but its answers. Names of files need not be text of the terminal's."""
    names = (folder / os.fsdecode(b"caf\xe9.PNG"), folder / "你好.PNG")
    named = [(folder / f"{number}.PNG").rename(name) for number, name in zip((0, 2), names, strict=True)]
    named = [*named, f"--run_dir={synthetic_run}"]
    result = run_script("predict.py", *named, PYTHONIOENCODING="cp1252")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[::6] == [f"{folder}/caf\\udce9.PNG", f"{folder}/\\u4f60\\u597d.PNG"]
    for line, best in zip(lines[1::6], oracle(validation[[0, 2]]), strict=True):
        assert best[0][1] in line
    assert run_main("predict.py", *named, f"--csv={tmp_path / 'out.csv'}").returncode == 0
    for name in names:
        assert os.fsencode(name) in (tmp_path / "out.csv").read_bytes()
