"""Executes the notebooks, as they are, on a small run, and checks the outputs that they are kept with."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
import tensorflow as tf

import small
from models import weights
from tiny_imagenet import input_pipeline, synthetic
from training import checkpoints, evaluation

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PROJECT = ("tiny_imagenet", "models", "training", "deployment", "reporting", "flags", "train", "evaluate", "report")
WORDS = {" ".join(cls) for cls in synthetic.CLASSES}


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, tmp_path: pathlib.Path, **variables) -> str:
    """Runs a notebook in a folder with some environment variables; returns the text that it printed."""
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment(tmp_path, **variables))  # Raises CellExecutionError where a cell does.
    return printed(notebook)


def environment(tmp_path: pathlib.Path, **variables) -> dict[str, str]:
    """Returns the environment for a notebook's kernel, with some variables."""
    parameters = ("PYTHONPATH", "PROJECT", "RUN_DIR", "MODEL", "IMAGES", "PICTURES", "REPOSITORY")
    environment = {name: value for name, value in os.environ.items() if name not in parameters}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "-1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    return environment | {name: str(value) for name, value in variables.items()}


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def figures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/jpeg" in output.get("data", ()) for output in outputs(notebook))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)


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


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> nbformat.NotebookNode:
    """A cell after which the repository's weights are untrained ones of the baseline."""
    folder = small.ship_untrained("baseline", tmp_path_factory.mktemp("weights"))
    lines = [
        "import pathlib, sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from models import weights",
        f"weights.FOLDER = pathlib.Path({str(folder)!r})",
    ]
    return nbformat.v4.new_code_cell("\n".join(lines))


@pytest.fixture
def no_weights() -> nbformat.NotebookNode:
    """A cell after which the repository has no weights."""
    lines = [f"import sys; sys.path.insert(0, {str(ROOT)!r})", "from models import weights", "weights.index = dict"]
    return nbformat.v4.new_code_cell("\n".join(lines))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_that_are_kept(path):
    """They are whole and small, without errors, without this machine's paths, and without images of Tiny ImageNet."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert {output.get("name", output.output_type) for output in outputs(notebook)} == {"stdout", "display_data"}
    assert figures(notebook) >= 1
    text = printed(notebook)
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert re.search(r"^pictures drawn by code$| on tiny_imagenet/synthetic$", text, re.MULTILINE)


def test_saved_model_of_a_run(synthetic_run, without_project, tmp_path):
    notebook = read("saved_model")
    notebook.cells.insert(0, project_is_hidden())

    text = execute(notebook, tmp_path, tmp_path, RUN_DIR=synthetic_run, PYTHONPATH=without_project)

    for name in PROJECT:
        assert f"{name} is hidden" in text
    for signature in ("serving_default", "serve_jpeg"):
        assert f"{signature}\n  takes" in text
    assert "pictures drawn by code" in text
    assert len(check_answers(text, ["red disc", "green square", "blue stripes"]) & WORDS) >= 5
    assert float(re.search(r"largest difference of a probability: (\S+)", text)[1]) < 1e-5
    assert "baseline: 13,056,584 parameters, (None, 64, 64, 3) -> (None, 200)" in text
    check_keras(text)
    assert figures(notebook) == 1


def test_saved_model_without_a_run(shipped, tmp_path):
    """From the repository's weights, on pictures of several formats and sizes."""
    images, _ = synthetic.draw(synthetic.CLASSES[0], 2, np.random.default_rng(0))
    (tmp_path / "a.JPEG").write_bytes(synthetic.encode(images[0], grey=True))
    (tmp_path / "b.png").write_bytes(tf.io.encode_png(np.tile(images[1], (2, 3, 1))).numpy())
    (tmp_path / "notes.txt").write_text("no picture")
    notebook = read("saved_model")
    notebook.cells.insert(0, shipped)

    text = execute(notebook, NOTEBOOKS, tmp_path, RUN_DIR=tmp_path / "none", IMAGES=tmp_path)

    assert "exported baseline with the weights that come with the repository" in text
    assert "drawn by code" not in text
    assert len(check_answers(text, ["a.JPEG", "b.png"]) & set(weights.classes()["words"])) >= 5
    check_keras(text)


def check_answers(text: str, names: list[str]) -> set[str]:
    """Checks the five classes of each picture; returns all words."""
    answers = re.findall(r"^ +([\d.]+)%  (.+)$", text, re.MULTILINE)
    assert len(answers) == 5 * len(names)
    for i, name in enumerate(names):
        assert f"\n{name}\n" in text
        five = answers[5 * i : 5 * i + 5]
        assert len({word for _, word in five}) == 5
        shares = [float(share) for share, _ in five]
        assert 0.5 <= shares[0] <= 100 and shares == sorted(shares, reverse=True)  # Of 200 classes.
    return {word for _, word in answers}


def check_keras(text: str) -> None:
    assert len(re.findall(r"^(?:red disc|green square|blue stripes): .+ [\d.]+%$", text, re.MULTILINE)) == 3


def test_without_a_run_and_without_weights(no_weights, tmp_path):
    """One line says what to do. A kernel executes all notebooks: it loads TensorFlow once."""
    client = nbclient.NotebookClient(read("saved_model"), timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
    with client.setup_kernel(env=environment(tmp_path, RUN_DIR=tmp_path / "none")):
        for name in ("saved_model", "fine_tune", "data_and_mistakes"):
            client.nb = read(name)
            reset = nbformat.v4.new_code_cell("%reset -f")  # What another notebook has defined.
            client.nb.cells[:0] = [reset, no_weights]
            with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
                for number, cell in enumerate(client.nb.cells):
                    client.execute_cell(cell, number)
            assert caught.value.ename == "SystemExit", name
            assert "RUN_DIR" in caught.value.evalue and "\n" not in caught.value.evalue
            (error,) = [output for output in outputs(client.nb) if output.output_type == "error"]
            assert len(error.traceback) <= 2 and "File " not in "".join(error.traceback)


def test_data_and_mistakes(synthetic_run, synthetic_data_dir, tmp_path):
    """On a copy of the data whose classes are in another order than the network's."""
    notebook = read("data_and_mistakes")
    data_dir = small.reverse_classes(synthetic_data_dir, tmp_path)

    text = execute(notebook, NOTEBOOKS, tmp_path, RUN_DIR=synthetic_run, DATA_DIR=data_dir)

    assert "baseline after 10 steps on tiny_imagenet/synthetic" in text
    assert "'train': 4000" in text and "200 classes" in text
    scores = json.loads((synthetic_run / "evaluation.json").read_text())
    assert f"1,000 validation images: top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}" in text
    rows = re.findall(r"^(\S.*?) +([\d.]+)% +(\S.*?) +([\d.]+)%$", text, re.MULTILINE)
    assert len(rows) == 10
    assert len({word for best, _, worst, _ in rows for word in (best, worst)} & WORDS) == 20
    assert all(float(best) >= float(worst) for _, best, _, worst in rows)
    model, _ = checkpoints.load_model(synthetic_run)
    data = input_pipeline.load("synthetic", str(synthetic_data_dir))
    labels = data.splits["validation"].labels
    classify = evaluation.classifier(model, data.mean_image)
    answers = evaluation.predict(classify, data.splits["validation"]).argmax(axis=1)
    accuracy = {words: 100 * np.mean(answers[labels == label] == label) for label, words in enumerate(data.words)}
    assert {float(share) - accuracy[words] for row in rows for words, share in (row[:2], row[2:])} == {0}
    assert len(re.findall(r"^ +\d+ times: .+ and .+$", text, re.MULTILINE)) == 10
    found = int(re.search(r"^([\d,]+) of 1,000 labels are possibly ambiguous$", text, re.MULTILINE)[1])
    quintiles = re.findall(r"^quintile \d.*? +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    for column in zip(*quintiles, strict=True):  # Each quintile has as many images.
        assert sum(map(float, column)) / 5 == pytest.approx(100 * scores["top_1"], abs=0.01)
    assert figures(notebook) == 5 + (found > 0)


def accuracies(text: str) -> list[float]:
    return [float(share) for share in re.findall(r"^epoch \d+: .* on validation ([\d.]+)%$", text, re.MULTILINE)]


def read_fine_tune(head_epochs: int, epochs: int) -> nbformat.NotebookNode:
    notebook = read("fine_tune")
    for cell in notebook.cells:
        numbers = f"HEAD_EPOCHS, EPOCHS = {head_epochs}, {epochs}"
        cell.source = cell.source.replace("HEAD_EPOCHS, EPOCHS = 5, 5", numbers)
    return notebook


def test_fine_tune_a_run(synthetic_run, tmp_path):
    notebook = read_fine_tune(1, 1)

    text = execute(notebook, NOTEBOOKS, tmp_path, RUN_DIR=synthetic_run)

    assert "pictures drawn by code" in text and "belonging to 5 classes" in text
    assert len(accuracies(text)) == 2
    assert "the same answers after loading: True" in text
    assert figures(notebook) == 2


def test_fine_tune_the_repository_s_weights(shipped, tmp_path):
    """On a folder of pictures of any size."""
    random = np.random.default_rng(0)
    for name, colour in (("dark", 30), ("bright", 220)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            picture = np.clip(random.normal(colour, 20, (80, 100 + number, 3)), 0, 255).astype(np.uint8)
            (tmp_path / "pictures" / name / f"{number}.png").write_bytes(tf.io.encode_png(picture).numpy())
    notebook = read_fine_tune(3, 1)
    notebook.cells.insert(0, shipped)
    variables = {"RUN_DIR": tmp_path / "none", "MODEL": "baseline", "PICTURES": tmp_path / "pictures"}

    text = execute(notebook, NOTEBOOKS, tmp_path, **variables)

    assert "belonging to 2 classes" in text and "drawn by code" not in text
    assert accuracies(text)[-1] > 90
    assert "the same answers after loading: True" in text


@pytest.mark.parametrize("name", ["data_and_mistakes", "fine_tune"])
def test_started_elsewhere(name, tmp_path, monkeypatch):
    """As by papermill: in any folder of the repository, or where PROJECT names it."""
    (cell,) = (cell.source for cell in read(name).cells if "PROJECT" in cell.source)
    monkeypatch.setattr(sys, "path", [])
    for folder, project in ((NOTEBOOKS, None), (ROOT, None), (ROOT / "docs", None), (tmp_path, ROOT)):
        monkeypatch.chdir(folder)
        monkeypatch.delenv("PROJECT", raising=False)
        if project:
            monkeypatch.setenv("PROJECT", str(project))
        exec(cell, {"os": os, "sys": sys})
        assert sys.path.pop(0) == str(ROOT)
    monkeypatch.delenv("PROJECT")
    with pytest.raises(SystemExit, match="set the environment variable PROJECT"):
        exec(cell, {"os": os, "sys": sys})


def test_colab(tmp_path):
    """The first cell, the same in all notebooks, clones the project, installs what it needs and goes to its folder."""
    cells = [next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code") for path in PATHS]
    assert len({cell.source for cell in cells}) == 1
    repository, installed = tmp_path / "repository", tmp_path / "installed"
    shutil.copytree(ROOT / "tiny_imagenet", repository / "tiny_imagenet")
    (repository / "notebooks").mkdir()
    (repository / "notebooks" / "README.md").touch()
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, repository)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "--message=test"]):
        subprocess.run(["git", "-C", str(repository), *command], check=True)
    (tmp_path / "content").mkdir()
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"),
        nbformat.v4.new_code_cell(cells[0].source),
        nbformat.v4.new_code_cell(cells[0].source),  # Running it again does nothing.
        nbformat.v4.new_code_cell("import os\nprint('in', os.getcwd(), REPOSITORY)"),
    ]
    pip = {"PIP_TARGET": installed, "PIP_NO_DEPS": 1, "PIP_NO_BUILD_ISOLATION": 0, "PIP_NO_INDEX": 1}  # 0 is for "no".

    text = execute(notebook, tmp_path / "content", tmp_path, REPOSITORY=repository, **pip)

    folder = (tmp_path / "content" / "tiny-imagenet" / "notebooks").resolve()
    assert f"in {folder} {repository}\n" in text
    assert (installed / "tiny_imagenet" / "checksums.tsv").exists()
