"""Writes files so that a crash never leaves half of one; reads JSON; removes folders."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator


def is_written_in_place(path: str | os.PathLike) -> bool:
    """Returns whether a path is that of a device, such as /dev/null, or of a pipe, which cannot be replaced."""
    return os.path.exists(path) and not os.path.isfile(path)


@contextlib.contextmanager
def replace_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Replaces a file by what the `with` block writes to the yielded path, in one step.

    If the block raises an error, or the process or the machine dies, `path` is left as it was. The yielded path is
    beside `path` and has the same suffix. Of a link, the file that it points to is replaced. A device or a pipe is
    yielded itself.

    Raises:
      OSError: if the file cannot be written.
    """
    if is_written_in_place(path):
        yield path
        return
    path = pathlib.Path(os.path.realpath(path))
    # TensorBoard would read a name with "tfevents".
    partial = path.with_name(f"partial.{path.name}".replace("tfevents", "events"))
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_folder(path: pathlib.Path) -> None:
    """Removes a folder, if there is one; of a link to a folder, the link alone.

    Raises:
      OSError: if it cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: pathlib.Path) -> dict:
    """Returns the content of a JSON file; empty if there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
