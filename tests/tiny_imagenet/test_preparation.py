"""Preparation when it is killed, when processes compete, on a full disk or without permission."""

import errno
import fcntl
import hashlib
import json
import mmap
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import portalocker
import pytest
import tensorflow_datasets as tfds

from tiny_imagenet import input_pipeline, preparation, tiny_imagenet_dataset_builder
from tiny_imagenet.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COUNTS = {"num_classes": 10, "train_per_class": 20, "validation_per_class": 5, "test_images": 50}


def load(data_dir):
    return input_pipeline.load("synthetic", str(data_dir))


def make_small():
    """Returns a context in which the synthetic data set is small."""
    configs = tiny_imagenet_dataset_builder.Builder.BUILDER_CONFIGS
    return mock.patch.dict(vars(next(config for config in configs if config.name == "synthetic")), COUNTS)


@pytest.fixture(scope="module", autouse=True)
def small():
    with make_small():
        yield


def prepare_in_process(data_dir, log, how="here"):
    """What a process of its own runs: its standard error and how it went are written to the file `log`."""
    sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115
    make_small().start()
    try:
        if how == "by tfds.load":
            tfds.disable_progress_bar()
            tfds.load("tiny_imagenet/synthetic", data_dir=data_dir)
        else:
            load(data_dir)
        print("done", file=sys.stderr)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


@pytest.fixture(scope="module")
def start():
    """Starts prepare_in_process in a process that need not import TensorFlow first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_imagenet.input_pipeline"])

    def start(*args):
        process = context.Process(target=prepare_in_process, args=args)
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data_dir that was prepared undisturbed. Tests only read it."""
    path = tmp_path_factory.mktemp("whole")
    load(path)
    return path


def folder(data_dir):
    return data_dir / "tiny_imagenet" / "synthetic" / "1.0.0"


def digests(data_dir):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder(data_dir) / "decoded").iterdir()
    }


def leftovers(data_dir):
    return [path for path in data_dir.rglob("*") if "incomplete" in path.name or ".tmp." in path.name]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


KILLED_WHEN = {
    "the lock is there": lambda path: (folder(path).parent / "prepare.lock").exists(),
    "TFDS began": lambda path: list(path.glob("tiny_imagenet/synthetic/incomplete.*")),
    "the shards are there": lambda path: folder(path).exists(),
    "it decodes": lambda path: list(folder(path).glob("decoded.incomplete.*/train_images.npy")),
    "it decodes validation": lambda path: list(folder(path).glob("decoded.incomplete.*/validation_images.npy")),
}


def test_killed_at_any_moment_then_whole(start, whole, tmp_path):
    """The same folder through all the kills, so that what each leaves behind is met by the next."""
    rng = random.Random(0)
    killed = 0
    for condition in KILLED_WHEN.values():
        process = start(tmp_path, tmp_path / "log")
        wait_for(lambda: condition(tmp_path) or not process.is_alive())  # noqa: B023
        time.sleep(rng.choice([0, rng.uniform(0, 0.1)]))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        if (folder(tmp_path) / "decoded").exists():
            assert digests(tmp_path) == digests(whole)
            shutil.rmtree(folder(tmp_path))
    assert killed >= 3
    load(tmp_path)
    assert digests(tmp_path) == digests(whole)
    assert not leftovers(tmp_path)
    assert "Error" not in (tmp_path / "log").read_text()


def test_only_the_next_download_removes_what_a_killed_one_left(tmp_path):
    partial = tmp_path / "downloads" / "cs231n.stanf.edu_tiny-imagenet-200x.zip.tmp.0123"
    partial.mkdir(parents=True)
    with preparation.lock(folder(tmp_path)):  # Of synthetic data: another process may be downloading.
        assert partial.exists()
    with preparation.lock(tmp_path / "tiny_imagenet" / "full" / "1.0.0"):
        assert not partial.exists()


def test_two_at_once(start, whole, tmp_path):
    folder(tmp_path).parent.mkdir(parents=True)
    with open(folder(tmp_path).parent / "prepare.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        logs = [tmp_path / "first", tmp_path / "second"]
        processes = [start(tmp_path, log) for log in logs]
        wait_for(lambda: all(log.exists() and "\n" in log.read_text() for log in logs))
        assert not folder(tmp_path).exists()
    for process in processes:
        process.join(60)
    for log in logs:
        *told, done = log.read_text().splitlines()
        assert set(told) == {f"waiting for another process to prepare the data in {folder(tmp_path).parent}"}
        assert done == "done"
    assert digests(tmp_path) == digests(whole)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("second", ["here", "by tfds.load"])
def test_tfds_load_at_the_same_time(second, start, whole, tmp_path):
    """It takes the same lock, so that nobody removes its temporary folder."""
    first = start(tmp_path, tmp_path / "first", "by tfds.load")
    wait_for(lambda: KILLED_WHEN["TFDS began"](tmp_path) or not first.is_alive())
    assert first.is_alive()
    if second == "here":
        load(tmp_path)
    else:
        examples, info = tfds.load("tiny_imagenet/synthetic", split="train", data_dir=tmp_path, with_info=True)
        assert len(examples) == 200
        assert info.metadata["words"] and info.features["label"].names[0].startswith("n9")
        load(tmp_path)
    first.join(60)
    assert (tmp_path / "first").read_text().splitlines()[-1] == "done"
    assert digests(tmp_path) == digests(whole)
    assert not leftovers(tmp_path)


def test_a_killed_process_lets_the_lock_go(start, tmp_path):
    first, log = start(tmp_path, tmp_path / "first"), tmp_path / "second"
    wait_for(lambda: KILLED_WHEN["TFDS began"](tmp_path))
    os.kill(first.pid, signal.SIGSTOP)
    second = start(tmp_path, log)
    wait_for(lambda: log.exists() and "waiting for another process" in log.read_text())
    first.kill()
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    second.join(60)
    assert log.read_text().endswith("done\n")


def test_without_locks(monkeypatch, tmp_path):
    def lock(*_):
        raise portalocker.LockException("No locks available")

    monkeypatch.setattr(portalocker, "lock", lock)
    others = folder(tmp_path).parent / "incomplete.ABCDEF_1.0.0"
    others.mkdir(parents=True)
    assert len(load(tmp_path).splits["train"]) == 200
    assert others.exists()  # It may be in the making.


def check_full(data_dir, reason):
    message = f"^cannot prepare the data in {data_dir}.*{reason}.*1.7 GB.*--data_dir$"
    with pytest.raises(UserError, match=message) as caught:
        load(data_dir)
    assert "\n" not in str(caught.value)
    assert not leftovers(data_dir)
    assert not (folder(data_dir) / "decoded").exists()


@pytest.mark.parametrize("limit", [1000, 100_000, 700_000, 2_450_000])
def test_no_room_by_a_limit(limit, tmp_path):
    """The shards of train take 540 kB, its images 2,458 kB: the last two limits are met while decoding."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        check_full(tmp_path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    load(tmp_path)


@pytest.fixture
def mount(tmp_path):
    mounted = []

    def mount(options):
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("size", ["64k", "400k", "1m", "3m"])
def test_no_room_on_a_full_disk(size, mount):
    check_full(mount(f"size={size}"), "No space left on device")


def test_prepared_data_may_be_read_only(mount, whole):
    disk = mount("size=20m")
    shutil.copytree(whole, disk, dirs_exist_ok=True)
    (folder(disk).parent / "prepare.lock").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert len(load(disk).splits["train"]) == 200


def test_a_read_only_place(mount):
    with pytest.raises(UserError, match="Read-only .*not prepared there yet; give a --data_dir that can be written"):
        load(mount("size=1m,ro"))


def test_a_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not prepared there yet; give a --data_dir that can be written"):
        load(tmp_path / "file" / "data")


WITHOUT_A_HOME_FOLDER = """
import os, pwd, runpy, sys

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown
os.environ.pop("HOME", None)
os.environ.pop("TFDS_DATA_DIR", None)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="IPython needs a home folder there, where it is installed")
def test_without_a_home_folder(tmp_path, assert_one_line):
    """As in a container that runs as a user without a name: TFDS' default folder is ~/tensorflow_datasets."""
    command = [sys.executable, "-c", WITHOUT_A_HOME_FOLDER, str(REPOSITORY / "train.py")]
    command += ["--model=baseline", "--dataset=synthetic"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert_one_line(result, 1, "train.py: ~/tensorflow_datasets: the home folder is not known: pass --data_dir=PATH")
    assert not (tmp_path / "~").exists()


def test_prepared_data_gets_no_lock_file(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path).parent / "prepare.lock").unlink()
    load(tmp_path)
    assert not (folder(tmp_path).parent / "prepare.lock").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENODEV, "No such device"), PermissionError(errno.EACCES, "denied")])
def test_a_place_that_cannot_be_mapped(error, whole, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    expected = load(whole)
    assert isinstance(expected.splits["train"].images, np.memmap)
    monkeypatch.setattr(mmap, "mmap", refuse)
    data = load(whole)
    assert not isinstance(data.splits["train"].images, np.memmap)
    np.testing.assert_array_equal(data.splits["train"].images, expected.splits["train"].images)


def npz(data):
    return b"PK\x03\x04" + data[4:]


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "validation_ids.npy", "mean_image.npy"])
@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:50], lambda data: b"\0" * 200, npz, None],
    ids=["empty", "short", "header cut", "zeros", "npz", "missing"],
)
def test_damaged_arrays(name, spoil, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "decoded" / name
    data = path.read_bytes()
    path.unlink()
    if spoil:
        path.write_bytes(spoil(data))
    check_damaged(tmp_path, path.parent)


def test_deleted_arrays_are_prepared_again(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folder(tmp_path) / "decoded")
    load(tmp_path)
    assert digests(tmp_path) == digests(whole)


def check_damaged(data_dir, named):
    with pytest.raises(UserError, match="damaged .*: delete it, and it is prepared again$") as caught:
        load(data_dir)
    assert str(named) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [np.zeros(50, np.int32), np.zeros(49, np.int64), np.zeros((50, 1), np.int64)])
def test_another_array(array, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    np.save(folder(tmp_path) / "decoded" / "test_labels.npy", array)
    check_damaged(tmp_path, folder(tmp_path) / "decoded")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flipped_header_bits(whole, tmp_path):
    """Either the array as it was or one line: never another exception, never gigabytes for a shape that lies."""
    data = (folder(whole) / "decoded" / "validation_labels.npy").read_bytes()
    expected = preparation.read_array(folder(whole) / "decoded" / "validation_labels.npy", "int64", (50,))
    path = tmp_path / "validation_labels.npy"
    for bit in range(128 * 8):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        try:
            found = preparation.read_array(path, "int64", (50,))
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(found, expected)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("form", ["pickle", "npy of objects"])
def test_nothing_is_unpickled(form, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "decoded" / "test_ids.npy"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        np.save(path, np.array([Bomb()] * 50, object), allow_pickle=True)
    check_damaged(tmp_path, path.parent)
    assert not pathlib.Path("exploded").exists()


@pytest.mark.parametrize("file", ["dataset_info.json", "metadata.json", "label.labels.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\0{", b"{}"])
def test_damaged_info(file, content, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    check_damaged(tmp_path, tmp_path)


def test_truncated_labels(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "label.labels.txt"
    content = path.read_bytes().rstrip()
    path.unlink()
    path.write_bytes(content[:-1])
    check_damaged(tmp_path, tmp_path)


@pytest.mark.parametrize("spoil", [lambda data: data[:999], lambda data: data[:99] + b"x" + data[100:], None])
def test_damaged_shards(spoil, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(folder(tmp_path) / "decoded")
    [path] = folder(tmp_path).glob("*-train.tfrecord*")
    data = path.read_bytes()
    path.unlink()
    if spoil:
        path.write_bytes(spoil(data))
    check_damaged(tmp_path, folder(tmp_path))
    assert not leftovers(tmp_path)


def test_info_of_more_images_than_the_shards_hold(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["300"]
    path.write_text(json.dumps(info))
    check_damaged(tmp_path, folder(tmp_path))


def test_data_that_tfds_prepared_in_another_format(whole, tmp_path):
    """As `tfds build --file_format=array_record` does."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = folder(tmp_path) / "dataset_info.json"
    path.write_text(path.read_text().replace("tfrecord", "array_record"))
    assert len(load(tmp_path).splits["train"]) == 200  # The decoded arrays are there.
    shutil.rmtree(folder(tmp_path) / "decoded")
    with pytest.raises(UserError, match="prepared as array_record.*another --data_dir, or delete it") as caught:
        load(tmp_path)
    assert str(folder(tmp_path)) in str(caught.value) and "\n" not in str(caught.value)
