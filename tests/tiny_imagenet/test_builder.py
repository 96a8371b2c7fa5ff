"""Tests the builder from archive to examples, with archives whole and damaged."""

import pathlib
import pickle
import pwd
import re
import zipfile
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tiny_imagenet
from models import weights
from tiny_imagenet import synthetic, tiny_imagenet_dataset_builder
from tiny_imagenet.errors import UserError

COUNTS = {"num_classes": 3, "train_per_class": 4, "validation_per_class": 2, "test_images": 5}
ROOT = "tiny-imagenet-200/"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """The files of a whole small archive by their names below its root."""
    path = tmp_path_factory.mktemp("archive") / "small.zip"
    synthetic.write_archive(path, **COUNTS)
    with zipfile.ZipFile(path) as archive:
        return {name.removeprefix(ROOT): archive.read(name) for name in archive.namelist()}


@pytest.fixture
def make_builder(tmp_path) -> Callable[..., tfds.core.DatasetBuilder]:
    def make(
        archive: pathlib.Path | None, counts: dict[str, int] = COUNTS, folder: str = "data"
    ) -> tfds.core.DatasetBuilder:
        config = tiny_imagenet_dataset_builder.TinyImagenetConfig(name="small", **counts)
        return tfds.builder("tiny_imagenet", config=config, data_dir=tmp_path / folder, archive=archive)

    return make


def write_zip(path: pathlib.Path, files: Files, root: str = ROOT) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(root + name, data)
    return path


def write_zip_of_windows(path: pathlib.Path, files: Files) -> pathlib.Path:
    """Writes a zip file as some programs on Windows do: with backslashes in names, folders, and CR LF in text files."""
    with zipfile.ZipFile(path, "w") as archive:
        for folder in ("", "train/", "val/images/"):
            archive.writestr((ROOT + folder).replace("/", "\\"), b"")
        for name, data in files.items():
            if name.endswith(".txt"):
                data = data.replace(b"\n", b"\r\n")
            archive.writestr((ROOT + name).replace("/", "\\"), data)
    return path


def write_folder(path: pathlib.Path, files: Files) -> pathlib.Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def lines(data: bytes) -> list[list[str]]:
    return [line.split("\t") for line in data.decode().splitlines()]


def expected_examples(files: Files, split: str) -> dict[str, tuple[str, list[float]]]:
    """Returns each image's class and box by its name in the archive, read from the files by other code."""
    if split == "test":
        return {name: ("", [0, 0, 1, 1]) for name in files if name.startswith("test/")}
    if split == "validation":
        rows = {f"val/images/{row[0]}": row[1:] for row in lines(files["val/val_annotations.txt"])}
    else:
        tables = [(name.split("/")[1], data) for name, data in files.items() if name.endswith("_boxes.txt")]
        rows = {f"train/{wnid}/images/{row[0]}": [wnid, *row[1:]] for wnid, data in tables for row in lines(data)}
    boxes = {name: np.array(row[1:], int) for name, row in rows.items()}
    return {
        name: (row[0], [boxes[name][1] / 64, boxes[name][0] / 64, (boxes[name][3] + 1) / 64, (boxes[name][2] + 1) / 64])
        for name, row in rows.items()
    }


def for_image_folder(files: Files) -> Files:
    """Moves train/WNID/images/NAME.JPEG to train/WNID/NAME.JPEG."""
    return {re.sub("^(train/.*)images/", r"\1", name): data for name, data in files.items()}


def with_validation_folders(files: Files, below: str) -> Files:
    """Moves val/images/NAME.JPEG to val/WNID/NAME.JPEG, or to a folder below val/WNID."""
    moved = {f"val/images/{row[0]}": f"val/{row[1]}/{below}{row[0]}" for row in lines(files["val/val_annotations.txt"])}
    return {moved.get(name, name): data for name, data in files.items()}


@pytest.mark.parametrize(
    "form",
    [
        "zip",
        "zip of the root's content",
        "zip of Windows",
        "folder",
        "parent folder",
        "folder for ImageFolder",
        "folder with val/WNID",
        "folder with val/WNID/images",
    ],
)
def test_examples_are_the_archive_s(form, files, make_builder, tmp_path):
    if form == "zip of Windows":
        archive = write_zip_of_windows(tmp_path / "a.zip", files)
    elif form == "folder for ImageFolder":
        archive = write_folder(tmp_path / "unpacked", for_image_folder(files))
    elif form.startswith("folder with"):
        below = "images/" if form.endswith("images") else ""
        archive = write_folder(tmp_path / "unpacked", with_validation_folders(files, below))
    elif form.startswith("zip"):
        archive = write_zip(tmp_path / "a.zip", files, ROOT if form == "zip" else "")
    else:
        folder = write_folder(tmp_path / "unpacked" / ROOT, files)
        archive = folder if form == "folder" else folder.parent
    make_builder(archive).download_and_prepare()

    builder = make_builder(None)  # knows only what was saved
    wnids = files["wnids.txt"].decode().split()
    words = dict(lines(files["words.txt"]))
    names = builder.info.features["label"].names
    assert names == wnids != sorted(wnids)
    assert builder.info.metadata["words"] == [words[wnid] for wnid in wnids]
    for split in ("train", "validation", "test"):
        expected = expected_examples(files, split)
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        assert len(examples) == len(expected) == builder.info.splits[split].num_examples
        by_id = {example["id"].decode(): example for example in examples}
        for name, (wnid, box) in expected.items():
            example = by_id[name.rpartition("/")[2]]
            assert example["label"] == (wnids.index(wnid) if wnid else -1)
            np.testing.assert_allclose(example["bbox"], box, atol=1e-6)
            np.testing.assert_array_equal(example["image"], tf.io.decode_jpeg(files[name], channels=3))
            assert example["image"].shape == (64, 64, 3) and example["image"].dtype == np.uint8


def test_grey_jpegs_become_rgb(files, make_builder, tmp_path):
    name = "val/images/val_0.JPEG"
    picture = tf.io.decode_jpeg(files[name], channels=3).numpy()
    grey = synthetic.encode(picture, grey=True)
    assert tf.io.decode_jpeg(grey).shape == (64, 64, 1)
    builder = make_builder(write_zip(tmp_path / "a.zip", files | {name: grey}))
    builder.download_and_prepare()
    [image] = [
        example["image"]
        for example in tfds.as_numpy(builder.as_dataset(split="validation"))
        if example["id"] == b"val_0.JPEG"
    ]
    np.testing.assert_array_equal(image, np.repeat(tf.io.decode_jpeg(grey).numpy(), 3, axis=-1))


def test_directory_entries_and_finder_s_files_are_ignored(files, make_builder, tmp_path):
    extras = {"": b"", "train/": b"", "val/images/.DS_Store": b"x", "val/images/._val_0.JPEG": b"x"}
    path = write_zip(tmp_path / "a.zip", extras | files)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"__MACOSX/{ROOT}._wnids.txt", b"x")
    builder = make_builder(path)
    builder.download_and_prepare()
    assert builder.info.splits["validation"].num_examples == 6


def shards(builder: tfds.core.DatasetBuilder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in builder.data_path.glob("*.tfrecord*")}


def test_a_rearranged_copy_gives_the_same_shards(files, make_builder, tmp_path):
    """The keys, from which TFDS makes the order of the images, are those of the official archive."""
    builder = make_builder(write_zip(tmp_path / "a.zip", files))
    builder.download_and_prepare()
    expected = shards(builder)
    copies = {
        "windows": write_zip_of_windows(tmp_path / "windows.zip", files),
        "flat": write_zip(tmp_path / "flat.zip", for_image_folder(files)),
    }
    for name, path in copies.items():
        builder = make_builder(path, folder=name)
        builder.download_and_prepare()
        assert shards(builder) == expected, name


def test_a_copy_without_boxes(files, make_builder, tmp_path, caplog):
    """As for PyTorch's ImageFolder, whose folders hold images alone."""
    without = {name: data for name, data in for_image_folder(files).items() if not name.endswith("_boxes.txt")}
    path = write_folder(tmp_path / "unpacked", without)
    builder = make_builder(path)
    builder.download_and_prepare()
    assert f"{path} has no boxes of the training images" in caplog.text
    train, validation = (list(tfds.as_numpy(builder.as_dataset(split=split))) for split in ("train", "validation"))
    assert len(train) == 12
    assert all(example["bbox"].tolist() == [0, 0, 1, 1] for example in train)
    assert not any(example["bbox"].tolist() == [0, 0, 1, 1] for example in validation)


def test_the_order_of_wnids_txt_does_not_matter(files, make_builder, tmp_path):
    """The labels of an archive with the official classes are in the official order, which is that of the weights."""
    counts = {"num_classes": 200, "train_per_class": 1, "validation_per_class": 1, "test_images": 1}
    drawn = tmp_path / "drawn.zip"
    synthetic.write_archive(drawn, **counts)
    official = weights.classes()["wnids"]
    with zipfile.ZipFile(drawn) as archive:
        drawn_ids = archive.read(f"{ROOT}wnids.txt").decode().split()
        renamed = dict(zip(drawn_ids, official, strict=True))

        def rename(text: str) -> str:
            return re.sub(r"n9000\d{4}", lambda match: renamed[match.group()], text)

        files = {
            rename(name).removeprefix(ROOT): rename(archive.read(name).decode()).encode()
            if name.endswith(".txt")
            else archive.read(name)
            for name in archive.namelist()
        }
    assert files["wnids.txt"].decode().split() == official
    prepared = []
    for name, wnids in {"official": official, "sorted": sorted(official), "reversed": official[::-1]}.items():
        path = write_zip(tmp_path / f"{name}.zip", files | {"wnids.txt": "\n".join(wnids).encode()})
        builder = make_builder(path, counts, name)
        builder.download_and_prepare()
        assert builder.info.features["label"].names == official, name
        assert builder.info.metadata["words"][0] == dict(lines(files["words.txt"]))[official[0]]
        prepared.append(shards(builder))
    assert prepared[0] == prepared[1] == prepared[2]


def png_called_jpeg(files: Files) -> Files:
    return {"test/images/test_3.JPEG": tf.io.encode_png(np.zeros((64, 64, 3), np.uint8)).numpy()}


def wrong_size(files: Files) -> Files:
    return {"test/images/test_3.JPEG": tf.io.encode_jpeg(np.zeros((64, 60, 3), np.uint8)).numpy()}


def half_a_jpeg(files: Files) -> Files:
    data = files["test/images/test_3.JPEG"]
    return {"test/images/test_3.JPEG": data[: len(data) // 2]}


def unknown_id_in_annotations(files: Files) -> Files:
    table = lines(files["val/val_annotations.txt"])
    table[2][1] = "n00000000"
    return {"val/val_annotations.txt": "\n".join(map("\t".join, table)).encode()}


def other_class_in_annotations(files: Files) -> Files:
    table = lines(files["val/val_annotations.txt"])
    wnids = files["wnids.txt"].decode().split()
    table[2][1] = wnids[(wnids.index(table[2][1]) + 1) % 3]
    return {"val/val_annotations.txt": "\n".join(map("\t".join, table)).encode()}


def doubled_annotation(files: Files) -> Files:
    data = files["val/val_annotations.txt"]
    return {"val/val_annotations.txt": data + data.splitlines()[1] + b"\n"}


def missing_annotation(files: Files) -> Files:
    return {"val/val_annotations.txt": files["val/val_annotations.txt"].partition(b"\n")[2]}


def box_outside(files: Files) -> Files:
    table = lines(files["val/val_annotations.txt"])
    table[1][4] = "64"
    return {"val/val_annotations.txt": "\n".join(map("\t".join, table)).encode()}


def doubled_id(files: Files) -> Files:
    first, second, _ = files["wnids.txt"].split()
    return {"wnids.txt": b"\n".join([first, second, first])}


def missing_id(files: Files) -> Files:
    return {"wnids.txt": b"\n".join(files["wnids.txt"].split()[:2])}


def missing_words(files: Files) -> Files:
    wnid = files["wnids.txt"].split()[1]
    return {"words.txt": b"\n".join(line for line in files["words.txt"].splitlines() if not line.startswith(wnid))}


def one_training_image_less(files: Files) -> Files:
    return {max(name for name in files if name.startswith("train/") and name.endswith(".JPEG")): None}


def no_training_folder(files: Files) -> Files:
    wnid = files["wnids.txt"].decode().split()[0]
    return {name: None for name in files if name.startswith(f"train/{wnid}/")}


def no_boxes(files: Files) -> Files:
    return {min(name for name in files if name.endswith("_boxes.txt")): None}


def train_folder_of_no_class(files: Files) -> Files:
    return {"train/n00000000/images/n00000000_0.JPEG": b""}


def two_train_folders_of_no_class(files: Files) -> Files:
    return {f"train/n{number:08}/{number}.JPEG": b"" for number in (2, 0, 1)}


def image_in_both_places(files: Files) -> Files:
    name = min(name for name in files if name.startswith("train/") and name.endswith(".JPEG"))
    return {name.replace("images/", ""): files[name]}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (png_called_jpeg, UserError, "test/images/test_3.JPEG is not a JPEG"),
        (wrong_size, UserError, "test/images/test_3.JPEG has 60x64 pixels, not 64x64"),
        (half_a_jpeg, UserError, "test/images/test_3.JPEG is a damaged JPEG"),
        (unknown_id_in_annotations, UserError, "val_annotations.txt gives .* the class n00000000"),
        (other_class_in_annotations, UserError, "val_annotations.txt has [13] images of n9.*, not 2"),
        (doubled_annotation, UserError, "val_annotations.txt names val_1.JPEG more than once"),
        (missing_annotation, UserError, "val_annotations.txt does not name val_0.JPEG"),
        (box_outside, UserError, "val_annotations.txt line 2 .*val_1.JPEG"),
        (doubled_id, UserError, "wnids.txt names n9.* more than once"),
        (missing_id, UserError, "wnids.txt has 2 classes, not 3"),
        (missing_words, UserError, "words.txt has no words for n9"),
        (one_training_image_less, UserError, "train/n9.*/images has 3 images, not 4"),
        (no_training_folder, UserError, "train/n9.*/images has 0 images, not 4"),
        (train_folder_of_no_class, UserError, "train/n00000000/images holds images"),
        (two_train_folders_of_no_class, UserError, "train/n00000000/images holds images"),
        (image_in_both_places, UserError, "train/n9.*/images/n9.*JPEG occurs more than once"),
        (no_boxes, UserError, "train/n9.*/n9.*_boxes.txt is missing"),
        (lambda files: {"test/images/test_0.JPEG": None}, UserError, "test/images has 4 images, not 5"),
        (lambda files: {"val/images/val_1.JPEG": None}, UserError, "val/images has 5 images, not 6"),
        (lambda files: {"val/val_annotations.txt": None}, UserError, "val_annotations.txt is missing"),
        (lambda files: {"words.txt": None}, UserError, "words.txt is missing"),
        (lambda files: {"words.txt": b"\xff\xff"}, UserError, "words.txt is not UTF-8"),
        (lambda files: {"wnids.txt": None}, UserError, "wnids.txt is missing"),
        (lambda files: {"../outside.txt": b"x"}, UserError, "outside.txt.* points outside"),
    ],
)
def test_damage_is_named_and_leaves_nothing_behind(damage, error, message, files, make_builder, tmp_path):
    changed = {name: data for name, data in (files | damage(files)).items() if data is not None}
    path = write_zip(tmp_path / "a.zip", changed)
    check_fails(make_builder(path), error, message, path)


def test_goes_on_with_a_repaired_archive(files, make_builder, tmp_path):
    path = write_zip(tmp_path / "a.zip", files | half_a_jpeg(files))
    builder = make_builder(path)
    check_fails(builder, UserError, "is a damaged JPEG", path)
    write_zip(path, files)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 12


def check_fails(builder: tfds.core.DatasetBuilder, error: type[Exception], message: str, path: pathlib.Path) -> None:
    with pytest.raises(error, match=message) as caught:
        builder.download_and_prepare()
    assert type(caught.value) is error
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    folder = pathlib.Path(builder.data_dir)
    assert not folder.exists()
    assert [path.name for path in folder.parent.glob("*")] == ["prepare.lock"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"<html>404</html>", "not a zip file"),
        (lambda data: data[: len(data) // 2], "not a zip file, or an incomplete one"),
        (lambda data: data.replace(b"\xff\xd8\xff", b"\xff\xd8\x00", 1), "JPEG cannot be read .*CRC"),
    ],
)
def test_spoilt_zips(spoil, message, files, make_builder, tmp_path):
    path = write_zip(tmp_path / "a.zip", files)
    path.write_bytes(spoil(path.read_bytes()))
    check_fails(make_builder(path), UserError, message, path)


@pytest.mark.parametrize("name", ["/etc/x", "..\\x", "a/../../x", "C:\\x"])
def test_names_that_leave_the_archive_are_refused(name, files, make_builder, tmp_path):
    path = write_zip(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    check_fails(make_builder(path), UserError, "points outside the archive", path)


def test_a_name_that_is_there_twice(files, make_builder, tmp_path):
    path = write_zip(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"{ROOT}wnids.txt", b"x")
    check_fails(make_builder(path), UserError, "wnids.txt occurs more than once", path)


def test_missing_archives(make_builder, tmp_path):
    check_fails(make_builder(tmp_path / "no.zip"), UserError, "no such file or folder", tmp_path / "no.zip")
    (tmp_path / "empty").mkdir()
    check_fails(make_builder(tmp_path / "empty"), UserError, "no wnids.txt here", tmp_path / "empty")


def test_a_failed_download_says_what_to_pass_instead(monkeypatch, make_builder):
    monkeypatch.setattr(tiny_imagenet_dataset_builder, "_URL", "http://127.0.0.1:9/nothing-listens-here.zip")
    with pytest.raises(UserError, match="--archive=PATH.*synthetic dataset") as caught:
        make_builder(None).download_and_prepare()
    assert "\n" not in str(caught.value)


def test_synthetic_takes_no_archive(tmp_path):
    with pytest.raises(UserError, match="remove archive=x.zip"):
        tfds.builder("tiny_imagenet/synthetic", data_dir=tmp_path, archive="x.zip")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds.builder("tiny_imagenet/synthetic", data_dir="~/x").data_dir_root == tmp_path / "x"


def test_without_a_home_folder(tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r" ~/x: the home folder is not known: pass --data_dir=PATH .* TFDS_DATA_DIR"):
        tfds.load("tiny_imagenet/synthetic", data_dir="~/x")
    assert not list(tmp_path.iterdir())


def test_configs_and_pickling(tmp_path):
    full = tfds.builder("tiny_imagenet", data_dir=tmp_path, archive="x.zip")
    assert full.info.full_name == "tiny_imagenet/full/1.0.0"
    assert full.builder_config.counts() == {
        "num_classes": 200,
        "train_per_class": 500,
        "validation_per_class": 50,
        "test_images": 10_000,
    }
    assert full.info.features["label"].num_classes == 200
    assert full.url_infos[tiny_imagenet_dataset_builder._URL].size == 248_100_043
    assert pickle.loads(pickle.dumps(full))._archive == "x.zip"


def test_words_in_the_displays_of_tfds(synthetic_data_dir, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    examples, info = tfds.load(
        "tiny_imagenet/synthetic", split="validation", data_dir=str(synthetic_data_dir), with_info=True
    )
    labels = [example["label"] for example in examples.take(3).as_numpy_iterator()]
    words = tiny_imagenet.with_words(info)
    figure = tfds.show_examples(examples, words, rows=1, cols=3)
    plt.close(figure)
    expected = [info.metadata["words"][label] for label in labels]
    assert [ax.get_xlabel() for ax in figure.axes] == [
        f"{name} ({label})" for name, label in zip(expected, labels, strict=True)
    ]
    assert words.splits["train"].num_examples == 4000 and words.metadata == info.metadata
    assert all(re.fullmatch(r"n9000\d{4}", name) for name in info.features["label"].names)

    pytest.importorskip("pandas")
    pytest.importorskip("jinja2")
    table = tfds.as_dataframe(examples.take(3), words)
    assert table["label"].tolist() == labels
    assert all(f"{label} ({name})" in table._repr_html_() for name, label in zip(expected, labels, strict=True))


def test_words_of_data_that_is_not_prepared(tmp_path):
    info = tfds.builder("tiny_imagenet/synthetic", data_dir=tmp_path).info
    with pytest.raises(ValueError, match=r"^tiny_imagenet/synthetic/1.0.0 is not prepared: call download_and_prepare"):
        tiny_imagenet.with_words(info)
