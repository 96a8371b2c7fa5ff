"""Fuzzes the archive: whatever happens to its bytes, it is read as it was, or refused in one line that names it."""

import os
import pathlib
import random
import re
import struct
import tracemalloc
import zipfile

import pytest
import tensorflow as tf

from tiny_imagenet import synthetic
from tiny_imagenet.archive import OFFICIAL_WNIDS, Archive
from tiny_imagenet.errors import UserError

COUNTS = {"num_classes": 3, "train_per_class": 4, "validation_per_class": 2, "test_images": 5}
ROOT = "tiny-imagenet-200/"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The bytes of a whole small archive."""
    path = tmp_path_factory.mktemp("archive") / "small.zip"
    synthetic.write_archive(path, **COUNTS)
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Its files by their names below the root."""
    path = tmp_path_factory.mktemp("archive") / "small.zip"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        return {name.removeprefix(ROOT): archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def content(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "small.zip"
    path.write_bytes(data)
    return read(path)


def write_zip(path, files, **kwargs):
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, data in files.items():
            archive.writestr(ROOT + name, data)
    return path


def read(path):
    """All that an archive holds."""
    archive = Archive(path)
    index = archive.index(**COUNTS)
    images = [image.file for split in index.splits.values() for image in split]
    return index, archive.read_images(images)


def refused(path):
    """Reads an archive; returns why it was refused, or None and what it holds."""
    try:
        return None, read(path)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path)) and message.isprintable() and len(message) < 1000, repr(message)
        return message, None


def check_refused(path, words):
    message, _ = refused(path)
    assert message and re.search(words, message), message


def test_cut_short_anywhere(data, tmp_path):
    path = tmp_path / "a.zip"
    rng = random.Random(0)
    for size in [0, 1, 21, 22, 100, len(data) - 1, *(rng.randrange(len(data)) for _ in range(30))]:
        path.write_bytes(data[:size])
        check_refused(path, "incomplete")


@pytest.mark.parametrize("place", ["anywhere", "names, sizes and offsets"])
def test_flipped_bits(place, data, content, tmp_path):
    """The zip's checksums leave nothing to chance in the files; its directory at the end is where readers stumble."""
    path = tmp_path / "a.zip"
    rng = random.Random(0)
    start = 0 if place == "anywhere" else data.index(b"PK\1\2")
    same = 0
    for _ in range(150):
        spoilt = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            spoilt[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        message, found = refused(path)
        same += message is None
        assert message or found == content
    assert same < 100


def test_parts_lost_doubled_and_overwritten(data, content, tmp_path):
    path = tmp_path / "a.zip"
    rng = random.Random(0)
    for _ in range(60):
        first, last = sorted(rng.randrange(len(data)) for _ in range(2))
        middle = rng.choice([b"", data[first:last] * 2, bytes(last - first), rng.randbytes(last - first)])
        path.write_bytes(data[:first] + middle + data[last:])
        message, found = refused(path)
        assert message or found == content


@pytest.mark.parametrize("table", ["wnids.txt", "words.txt", "val/val_annotations.txt", "boxes"])
def test_spoilt_tables(table, files, content, tmp_path):
    """Lines lost, doubled, swapped between columns, of noise and of great length."""
    name = max(name for name in files if name.endswith("_boxes.txt")) if table == "boxes" else table
    path = tmp_path / "a.zip"
    rng = random.Random(0)
    noise = [
        b"",
        b"\n",
        b"\0\0",
        b"\xff\xfe",
        b"\t\t\t\t\t",
        b"-1",
        b"9" * 5000,
        b"../../x",
        b"x" * 10**5,
        b"\x1b[2J\r",
    ]
    for _ in range(60):
        lines = files[name].split(b"\n")
        number = rng.randrange(len(lines) - 1)
        columns = lines[number].split(b"\t")
        columns[rng.randrange(len(columns))] = rng.choice(noise)
        lines[number : number + 1] = rng.choice([[], [lines[number]] * 2, [b"\t".join(columns)], [rng.choice(noise)]])
        write_zip(path, files | {name: b"\n".join(lines)})
        message, found = refused(path)
        if message is None:  # A box may have been moved, and the words of a class that is not used, or their wording.
            assert found[1] == content[1] and found[0].wnids == content[0].wnids
    for all_of_it in (b"", b"\n\n", bytes(100), rng.randbytes(1000), "x".encode("utf-16")):
        write_zip(path, files | {name: all_of_it})
        check_refused(path, "wnids.txt|words.txt|annotations.txt|boxes.txt")


def test_spoilt_images_in_a_folder(files, tmp_path):
    """No checksum protects these: what is decoded has the right size, what is not is named."""
    for name, data in files.items():
        (tmp_path / ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ROOT / name).write_bytes(data)
    path = tmp_path / ROOT / "test/images/test_3.JPEG"
    whole = path.read_bytes()
    rng = random.Random(0)
    damaged = 0
    for _ in range(60):
        spoilt = bytearray(whole)
        for _ in range(rng.choice([1, 5])):
            spoilt[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        spoilt = bytes(spoilt[: rng.choice([len(whole), rng.randrange(len(whole))])])
        path.write_bytes(spoilt)
        message, found = refused(tmp_path)
        assert message is None or "test_3.JPEG" in message
        damaged += message is not None
        if message is None:
            assert tf.io.decode_jpeg(spoilt).shape[:2] == (64, 64)
    assert 20 < damaged < 60


def test_links(files, tmp_path):
    """Linked images are read; circles, devices, pipes and folders in place of files end."""
    root = tmp_path / "unpacked"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    expected = read(root)
    (root / "circle").symlink_to(root)
    (root / "another").symlink_to(root)
    image = root / "test/images/test_3.JPEG"
    image.rename(tmp_path / "elsewhere.JPEG")
    image.symlink_to(tmp_path / "elsewhere.JPEG")
    assert read(root) == expected
    for make, words in [
        (lambda: image.symlink_to("nowhere"), "test_3.JPEG is not a file"),
        (lambda: image.symlink_to("test_3.JPEG"), "test_3.JPEG is not a file"),
        (lambda: image.symlink_to("/dev/zero"), "test_3.JPEG is not a file"),
        (lambda: os.mkfifo(image), "test_3.JPEG is not a file"),
    ]:
        image.unlink()
        make()
        check_refused(root, words)
    os.mkfifo(tmp_path / "pipe")
    check_refused(tmp_path / "pipe", "neither a file nor a folder")
    check_refused(pathlib.Path("/dev/zero"), "neither a file nor a folder")


def test_a_link_in_a_zip_is_not_followed(files, tmp_path):
    path = write_zip(tmp_path / "a.zip", {name: data for name, data in files.items() if "test_3" not in name})
    link = zipfile.ZipInfo(f"{ROOT}test/images/test_3.JPEG")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    check_refused(path, "test_3.JPEG is not a JPEG")


def bomb(tmp_path, files, name, size, declared=None, compression=zipfile.ZIP_DEFLATED):
    """An archive whose file `name` is `size` zeros after what it was, and says that it has `declared` bytes."""
    path = write_zip(tmp_path / "a.zip", {each: data for each, data in files.items() if each != name})
    with zipfile.ZipFile(path, "a", compression) as archive, archive.open(ROOT + name, "w") as stream:
        stream.write(files[name])
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))
    if declared is not None:
        data = bytearray(path.read_bytes())
        entry = data.rindex((ROOT + name).encode()) - 46
        data[entry + 24 : entry + 28] = struct.pack("<I", declared)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("declared", [None, 100, 2**32 - 2])
@pytest.mark.parametrize("name", ["words.txt", "wnids.txt", "test/images/test_3.JPEG"])
def test_bombs(name, declared, files, tmp_path):
    path = bomb(tmp_path, files, name, 2**27, declared)
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        check_refused(path, f"{name} (is larger than|cannot be read)")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded(compression, files, tmp_path):
    check_refused(bomb(tmp_path, files, "wnids.txt", 2**20, None, compression), "other than deflate")


def test_deflated_archives_are_read(files, content, tmp_path):
    assert read(write_zip(tmp_path / "a.zip", files, compression=zipfile.ZIP_DEFLATED)) == content


def test_an_image_that_claims_to_be_huge(files, tmp_path):
    name = "test/images/test_3.JPEG"
    data = bytearray(files[name])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 12000, 12000)
    check_refused(write_zip(tmp_path / "a.zip", files | {name: bytes(data)}), "test_3.JPEG has 12000x12000 pixels")


@pytest.mark.parametrize("name", ["test/images/a\nb.JPEG", "test/images/\x1b[2J.JPEG"])
def test_names_that_break_lines(name, files, tmp_path):
    changed = {each: data for each, data in files.items() if "test_3" not in each} | {
        name: files["test/images/test_3.JPEG"]
    }
    check_refused(write_zip(tmp_path / "a.zip", changed), "is not the name of an image")
    check_refused(write_zip(tmp_path / "a.zip", files | {f"../{name}": b""}), "points outside")


@pytest.fixture
def index_of(tmp_path):
    """Reads an archive of 200 classes whose wnids.txt has these lines. Its images are empty: nothing reads them."""

    def index(wnids):
        names = {wnid: f"{wnid}_0.JPEG" for wnid in sorted(wnids)}
        files = {"wnids.txt": "\n".join(wnids), "words.txt": "\n".join(f"{wnid}\tword {wnid}" for wnid in names)}
        for wnid, name in names.items():
            files[f"train/{wnid}/images/{name}"] = ""
            files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{name}\t0\t0\t63\t63"
            files[f"val/images/{name}"] = ""
        files["val/val_annotations.txt"] = "\n".join(f"{name}\t{wnid}\t0\t0\t63\t63" for wnid, name in names.items())
        path = write_zip(tmp_path / "archive.zip", files)
        return Archive(path).index(num_classes=200, train_per_class=1, validation_per_class=1, test_images=0)

    return index


def test_the_order_of_the_lines_of_wnids_does_not_matter(index_of):
    official = index_of(OFFICIAL_WNIDS)
    assert official.wnids == OFFICIAL_WNIDS
    for image in official.splits["train"] + official.splits["validation"]:
        assert f"{OFFICIAL_WNIDS[image.label]}_0.JPEG" in image.file
    for other in (sorted(OFFICIAL_WNIDS), OFFICIAL_WNIDS[::-1]):
        assert index_of(other) == official


def test_other_classes_keep_the_order_of_wnids(index_of):
    wnids = [f"n9000{number:04d}" for number in reversed(range(200))]
    assert index_of(wnids).wnids == wnids
