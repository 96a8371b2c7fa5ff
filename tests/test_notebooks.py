"""Executes the notebooks, as they are, on a small run."""

import json
import os
import pathlib
import re

import nbclient
import nbformat
import numpy as np
import pytest

from tiny_imagenet import synthetic

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PROJECT = ("tiny_imagenet", "models", "training", "reporting", "flags", "train", "evaluate", "report")
WORDS = {" ".join(cls) for cls in synthetic.CLASSES}


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, tmp_path: pathlib.Path, **variables) -> str:
    """Runs a notebook in a folder with some environment variables; returns the text that it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "IMAGES")}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "-1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    environment |= {name: str(value) for name, value in variables.items()}
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)  # Raises CellExecutionError where a cell does.
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def figures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", ()) for output in outputs)


@pytest.fixture
def without_project(tmp_path) -> pathlib.Path:
    """A folder for PYTHONPATH that hides the project even where it is installed."""
    folder = tmp_path / "without_project"
    folder.mkdir()
    for name in PROJECT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is hidden')\n")
    return folder


def project_is_hidden() -> nbformat.NotebookNode:
    lines = [
        "import importlib",
        f"for name in {PROJECT}:",
        "    try:",
        "        importlib.import_module(name)",
        "    except ImportError:",
        "        print(name, 'is hidden')",
    ]
    return nbformat.v4.new_code_cell("\n".join(lines))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_is_kept_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("source", ["drawn", "folder"])
def test_saved_model(source, synthetic_run, without_project, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "saved_model.ipynb", 4)
    notebook.cells.insert(0, project_is_hidden())
    variables = {"RUN_DIR": synthetic_run, "PYTHONPATH": without_project}
    names = ["red disc", "green square", "blue stripes"]
    if source == "folder":
        names = ["a.JPEG", "grey.jpg"]
        for i, name in enumerate(names):
            images, _ = synthetic.draw(synthetic.CLASSES[i], 1, np.random.default_rng(i))
            (tmp_path / name).write_bytes(synthetic.encode(images[0], grey=i == 1))
        variables["IMAGES"] = tmp_path

    text = execute(notebook, tmp_path, tmp_path, **variables)

    for name in PROJECT:
        assert f"{name} is hidden" in text
    for signature in ("serving_default", "serve_jpeg"):
        assert f"{signature}\n  takes" in text
    answers = re.findall(r"^ +([\d.]+)%  (.+)$", text, re.MULTILINE)
    assert len(answers) == 5 * len(names)
    for i, name in enumerate(names):
        assert f"\n{name}\n" in text
        five = answers[5 * i : 5 * i + 5]
        assert len({word for _, word in five} & WORDS) == 5
        shares = [float(share) for share, _ in five]
        assert 0.5 <= shares[0] <= 100 and shares == sorted(shares, reverse=True)  # Of 200 classes.
    assert "(None, 56, 56, 3) -> (None, 200)" in text
    assert figures(notebook) == 1


def test_data_and_mistakes(synthetic_run, synthetic_data_dir, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "data_and_mistakes.ipynb", 4)
    variables = {"RUN_DIR": synthetic_run, "DATA_DIR": synthetic_data_dir, "DATASET": "synthetic"}

    text = execute(notebook, NOTEBOOKS, tmp_path, **variables)

    assert "'train': 4000" in text and "200 classes" in text
    scores = json.loads((synthetic_run / "evaluation.json").read_text())
    assert f"1,000 validation images: top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}" in text
    rows = re.findall(r"^(\S.*?) +([\d.]+)% +(\S.*?) +([\d.]+)%$", text, re.MULTILINE)
    assert len(rows) == 10
    assert len({word for best, _, worst, _ in rows for word in (best, worst)} & WORDS) == 20
    assert all(float(best) >= float(worst) for _, best, _, worst in rows)
    assert len(re.findall(r"^ +\d+ times: .+ and .+$", text, re.MULTILINE)) == 10
    found = int(re.search(r"^([\d,]+) of 1,000 labels are possibly ambiguous$", text, re.MULTILINE)[1])
    fifths = re.findall(r"^fifth \d.*? +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    for column in zip(*fifths, strict=True):  # Each fifth has as many images.
        assert sum(map(float, column)) / 5 == pytest.approx(100 * scores["top_1"], abs=0.01)
    assert figures(notebook) == 5 + (found > 0)
