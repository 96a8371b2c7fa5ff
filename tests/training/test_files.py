"""JSON files are read; a file is replaced in one step, or not at all; what is removed of a link to a folder."""

import os
import signal
import subprocess
import sys

import pytest

from training.files import read_json, remove_folder, replace_file


def test_replaces(tmp_path):
    path = tmp_path / "model.keras"
    for content in ("first", "second"):
        with replace_file(path) as partial:
            assert (partial.parent, partial.suffix) == (tmp_path, ".keras")
            partial.write_text(content)
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_keeps_the_old_file_if_the_new_one_cannot_be_written(tmp_path, error):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(type(error)), replace_file(path) as partial:
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    file, link = tmp_path / "file.json", tmp_path / "link.json"
    file.write_text("old")
    link.symlink_to(file)
    with replace_file(link) as partial:
        partial.write_text("new")
    assert link.is_symlink() and file.read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    """Such as /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    with replace_file(tmp_path / "pipe") as partial:
        assert partial == tmp_path / "pipe"
    assert (tmp_path / "pipe").is_fifo()


def test_a_partial_event_file_is_not_one_of_the_events(tmp_path):
    path = tmp_path / "events.out.tfevents.1.host.2.0.v2"
    path.write_text("old")
    with replace_file(path) as partial:
        partial.write_text("new")
        assert list(tmp_path.glob("events.out.tfevents.*")) == [path]


def test_two_files_can_be_replaced_at_once(tmp_path):
    with replace_file(tmp_path / "a.json") as one, replace_file(tmp_path / "b.json") as other:
        one.write_text("one")
        other.write_text("other")
    assert ((tmp_path / "a.json").read_text(), (tmp_path / "b.json").read_text()) == ("one", "other")


def test_keeps_the_old_file_if_the_process_is_killed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    code = "import os, pathlib, signal, sys\nsys.path.insert(0, sys.argv[1])\nfrom files import replace_file\n"
    code += "with replace_file(pathlib.Path(sys.argv[2])) as partial:\n"
    code += "    partial.write_text('ne')\n    os.kill(os.getpid(), signal.SIGKILL)"
    folder = os.path.dirname(sys.modules[replace_file.__module__].__file__)
    assert subprocess.run([sys.executable, "-c", code, folder, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replace_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_removes_a_folder_or_the_link_to_it(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "file").touch()
    link.symlink_to(folder)
    remove_folder(link)
    assert not os.path.lexists(link) and (folder / "file").exists()
    for _ in range(2):  # The second time, it is not there.
        remove_folder(folder)
        assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"'])
def test_a_damaged_json_file_is_read_as_empty(tmp_path, content):
    path = tmp_path / "time.json"
    assert read_json(path) == {}
    path.write_bytes(content)
    assert read_json(path) == {}
    path.write_text('{"steps": 3}')
    assert read_json(path) == {"steps": 3}
