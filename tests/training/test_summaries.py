"""What TensorBoard shows of a run, asked of TensorBoard itself; metrics.csv's rows; and what a terminal shows."""

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

import small
from tiny_imagenet.errors import UserError
from training import summaries

TAGS = {
    "train": {"loss", "cross_entropy", "top_1", "global_norm", "learning_rate", "images_per_second"},
    "validation": {"cross_entropy", "top_1", "top_5"},
}


@pytest.fixture(scope="module")
def ask(synthetic_run):
    """Asks TensorBoard, running on `synthetic_run`, for a path below its own; returns the answer's bytes."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={synthetic_run}", "--host=127.0.0.1", "--port=0"]
    pipe = subprocess.PIPE
    # In a session of its own, so that whatever it starts ends with it.
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def end():
        os.killpg(process.pid, signal.SIGKILL)

    limit = threading.Timer(180, end)
    limit.start()
    try:
        address = None
        lines = []
        while address is None:
            lines.append(process.stdout.readline())
            assert lines[-1], f"TensorBoard ended: {lines}"
            address = re.search(r"http://127\.0\.0\.1:\d+/", lines[-1])

        def ask(path, **body):
            headers = {"Content-Type": "application/json"}
            url = f"{address[0]}data/plugin/{path}"
            request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=60) as response:
                return response.read()

        deadline = time.monotonic() + 60  # It reads the events in a thread of its own.
        while set(json.loads(ask("scalars/tags"))) < TAGS.keys() and time.monotonic() < deadline:
            time.sleep(0.2)
        yield ask
    finally:
        limit.cancel()
        if process.poll() is None:
            end()
        process.communicate()


def test_scalars(ask, synthetic_run):
    tags = json.loads(ask("scalars/tags"))
    assert {run: set(names) for run, names in tags.items()} == TAGS

    def points(run, tag):
        return {step: value for _, step, value in json.loads(ask(f"scalars/scalars?run={run}&tag={tag}"))}

    with (synthetic_run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for tag in TAGS["train"] - {"images_per_second"}:
        expected = {int(row["step"]): float(row[tag]) for row in rows if row[tag]}
        assert points("train", tag) == pytest.approx(expected, rel=1e-6)
    for tag in TAGS["validation"]:
        expected = {int(row["step"]): float(row[f"validation_{tag}"]) for row in rows if row[f"validation_{tag}"]}
        assert points("validation", tag) == pytest.approx(expected, rel=1e-6)
    speed = points("train", "images_per_second")
    assert speed.keys() == set(range(1, 11)) and min(speed.values()) > 0


def test_images(ask, synthetic_data_dir):
    """A grid of 64 crops, each of which is one of the ten of a training image."""
    (image,) = json.loads(ask("images/images?run=train&tag=augmented%20training%20images&sample=0"))
    grid = tf.io.decode_png(ask(f"images/individualImage?{image['query']}")).numpy()
    assert grid.shape == (448, 448, 3)
    (path,) = synthetic_data_dir.rglob("train_images.npy")
    images = np.load(path)
    for row, column in ((0, 0), (0, 1), (3, 6), (7, 7)):
        tile = grid[row * 56 : row * 56 + 56, column * 56 : column * 56 + 56]
        places = [(y, x) for y in (0, 8) for x in (0, 8)] + [(4, 4)]
        crops = [images[:, y : y + 56, x : x + 56] for y, x in places]
        assert any((crop == tile[:, ::mirror]).all((1, 2, 3)).any() for crop in crops for mirror in (1, -1))


def test_flags(ask, synthetic_run):
    (text,) = json.loads(ask("text/text?run=train&tag=flags"))
    cells = re.findall(r"<td>(.*?)</td>", text["text"])
    config = json.loads((synthetic_run / "config.json").read_text())
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {name: str(value) for name, value in config.items()}


def test_hparams(ask, synthetic_run):
    status = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    body = {"allowedStatuses": status, "colParams": [], "startIndex": 0, "sliceSize": 10, "includeMetrics": True}
    answer = json.loads(ask("hparams/session_groups", experimentName="", **body))
    (group,) = answer["sessionGroups"]
    assert group["name"] == synthetic_run.name
    assert group["hparams"] == json.loads((synthetic_run / "config.json").read_text())
    evaluation = json.loads((synthetic_run / "evaluation.json").read_text())
    measured = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert measured == pytest.approx({name: evaluation[name] for name in TAGS["validation"]}, rel=1e-6)


def test_metrics_goes_on_after_the_last_step_that_was_saved(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = summaries.Metrics(path, 0)
    for step in (10, 20, 30):
        metrics.append(step=step, epoch=1, loss=step / 7)
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write("40,1,0.05,5.2")  # A run killed while it wrote.
    metrics = summaries.Metrics(path, 20)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    metrics.append(step=30, epoch=1, loss=30 / 7)
    assert path.read_bytes() == whole
    with path.open(newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [10 / 7, 20 / 7, 30 / 7]


def test_means_of_an_epoch(tmp_path):
    """They weight each row by its steps, and leave out one whose steps were all skipped."""
    metrics = summaries.Metrics(tmp_path / "metrics.csv", 0)
    for step, epoch, loss in ((4, 1, 9.0), (8, 2, 3.0), (10, 2, 6.0), (14, 2, float("nan")), (15, 3, 9.0)):
        metrics.append(step=step, epoch=epoch, loss=loss, top_1=loss / 10)
    assert metrics.epoch_means(2) == pytest.approx({"loss": 4.0, "top_1": 0.4})
    # A worker that is not the first has no rows of the steps before it resumed.
    resumed = summaries.Metrics(tmp_path / "other.csv", 4)
    for step, loss in ((8, 3.0), (10, 6.0)):
        resumed.append(step=step, epoch=2, loss=loss, top_1=loss / 10)
    assert resumed.epoch_means(2) == pytest.approx({"loss": 4.0, "top_1": 0.4})


def test_metrics_forgets_a_validation_that_is_to_be_done_again(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = summaries.Metrics(path, 0)
    for step in (10, 20):
        metrics.append(step=step, epoch=step // 10, loss=1.5)
        metrics.append(step=step, epoch=step // 10, validation_cross_entropy=2.5)
    whole = path.read_bytes()
    summaries.Metrics(path, 20)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("content", ["", "step,loss\n1,2\n", ",".join(summaries.FIELDS) + "\nten,1,,,,,,,,\n", "\0"])
def test_damaged_metrics(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UserError, match="metrics.csv is damaged"):
        summaries.Metrics(path, 20)
    assert path.read_text() == content


def events(folder):
    """(step, tag) of all events of a writer, in order of the files' names."""
    records = tf.data.TFRecordDataset([str(path) for path in sorted(folder.glob("events*"))]).as_numpy_iterator()
    found = [event_pb2.Event.FromString(record) for record in records]
    return [(event.step, value.tag) for event in found for value in event.summary.value]


def test_tensorboard_goes_on_after_the_last_step_that_was_saved(tmp_path):
    board = summaries.TensorBoard(tmp_path, 0)
    for step in (10, 20, 30):
        board.scalars("train", step, loss=1.0)
        board.scalars("validation", step, top_1=0.5)
    board.flush()
    (file,) = (tmp_path / "train").iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # A run killed while it wrote.
    board = summaries.TensorBoard(tmp_path, 20)
    board.scalars("validation", 20, top_1=0.5)
    board.scalars("train", 30, loss=1.0)
    board.flush()
    assert events(tmp_path / "train") == [(10, "loss"), (20, "loss"), (30, "loss")]
    assert events(tmp_path / "validation") == [(10, "top_1"), (20, "top_1")]
    summaries.TensorBoard(tmp_path, 0).flush()
    assert events(tmp_path / "train") == []


@contextlib.contextmanager
def terminal(columns):
    """A terminal of so many columns: the file to write to, and the list that what it shows is added to."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = []

    def read():
        with contextlib.suppress(OSError):  # Linux' way to say that the other end is closed.
            while data := os.read(ours, 4096):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as file:
        yield file, shown
    reader.join()
    os.close(ours)


def test_no_bar_without_an_output():
    with contextlib.redirect_stdout(None):
        progress = summaries.Progress(0, 10, 8)
        progress.draw(1, 1, 0.1, 5.3, 0.005, 100.0)
        progress.say("a line")
        progress.close()


@pytest.fixture
def flags_of_40_steps(small_data_dir, tmp_path):
    flags = "--model=small --dataset=synthetic --batch_size=50 --num_epochs=5 --num_cycles=1 --precision=float32"
    return [*flags.split(), f"--data_dir={small_data_dir}", f"--run_dir={tmp_path / 'run'}"]


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_shows_progress_in_one_line(run_main, flags_of_40_steps, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with terminal(columns) as (file, shown), small.registered():
        result = run_main("train.py", *flags_of_40_steps, "--log_every=1", "--noexport", terminal=file)
    assert result.returncode == 0
    text = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", b"".join(shown).decode())
    drawn = []
    for line in text.split("\n"):
        *overwritten, stays = line.removesuffix("\r").split("\r")
        drawn += filter(str.strip, overwritten)
        assert "validation top-1" not in " ".join(overwritten)
        if "validation top-1" in stays:
            assert re.search(r"epoch \d", stays)
    assert text.count("validation top-1") == 5
    assert text.count("\n") < 20  # Of 40 steps.
    assert len(drawn) >= 3 and len(set(drawn)) >= 3
    assert max(map(len, drawn)) <= columns
    assert columns < 80 or any("\N{FULL BLOCK}" in line for line in drawn)
    assert all(re.search(r"\d+/40\b|^scoring", line) for line in drawn), drawn


def test_progress_without_a_terminal_is_plain_lines(run_main, flags_of_40_steps):
    with small.registered():
        result = run_main("train.py", *flags_of_40_steps, "--log_every=4", "--noexport", "--nofinal_scores")
    assert (result.returncode, result.stderr) == (0, "")
    assert not re.search(r"[\r\x1b]", result.stdout)
    steps = [line for line in result.stdout.splitlines() if re.search(r"\bstep \d+/40\b", line)]
    assert [int(re.search(r"\bstep (\d+)/", line)[1]) for line in steps] == list(range(4, 41, 4))
    assert all(re.search(r"\bloss \d+\.\d+", line) for line in steps)


def test_tensorboard_that_cannot_be_written(tmp_path):
    (tmp_path / "train").write_text("")
    with pytest.raises(UserError, match="cannot write to .*train .*another --run_dir"):
        summaries.TensorBoard(tmp_path, 0)
