"""The README and docs/: their links, the flags and files that they name, and their Python blocks."""

import pathlib
import re

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_datasets.core import constants

import command_line
import models
from deployment import export
from models import weights
from tiny_imagenet import tiny_imagenet_dataset_builder

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md")]
for folder in ("docs", "results", "results/*/mistakes", "benchmarks/results", "weights", "tiny_imagenet", "notebooks"):
    PAGES += ROOT.glob(f"{folder}/*.md")
PROGRAMS = (
    "train",
    "evaluate",
    "predict",
    "report",
    "deployment.export",
    "deployment.compress",
    "deployment.ship",
    "reporting.exclusion",
)


def text(page):
    return page.read_text(encoding="utf-8")


def flags_of(program):
    """The names of a program's flags; none if it is not one of this project."""
    if program.startswith("benchmarks."):
        source = text(ROOT / f"{program.replace('.', '/')}.py")
        names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
        return names | ({"data_dir", "archive"} if "define_data_flags" in source else set())
    if program not in PROGRAMS:
        return set()
    with command_line.defined(program.rpartition(".")[2]) as names:
        return names


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Each relative link leads to a file, and its anchor to a heading."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`(?!\])", "", text(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_readme_links_every_page():
    readme = text(ROOT / "README.md")
    for page in ROOT.glob("docs/*.md"):
        assert f"(docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_in_commands_exist(page):
    """Each --flag of a command `python PROGRAM.py ...` or `python -m PROGRAM ...` is one of that program's."""
    commands = text(page).replace("\\\n", "")
    for program, rest in re.findall(r"python (?:-m )?(\w+(?:\.\w+)?)([^`#|\n]*)", commands):
        if own := flags_of(program.removesuffix(".py")):
            for name in re.findall(r"--(\w+)", rest):
                assert {name, name.removeprefix("no")} & {*own, "help"}, (program, name)


@pytest.mark.parametrize(
    "script, programs", [("reproduce", ("train", "report")), ("exclusion", ("train", "reporting.exclusion", "report"))]
)
def test_flags_in_scripts_exist(script, programs):
    own = set().union(*map(flags_of, programs))
    for name in re.findall(r"--([a-z]\w*)", text(ROOT / "results" / f"{script}.sh")):
        assert {name, name.removeprefix("no")} & {*own, "help"}, name


BLOCKS = [
    pytest.param(block, page, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL), start=1)
]


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory, synthetic_run):
    """A folder with the runs and the picture that the pages name."""
    folder = tmp_path_factory.mktemp("working_folder")
    (folder / "runs").mkdir()
    (folder / "runs" / "googlenet").symlink_to(synthetic_run)
    resnet20 = folder / "runs" / "resnet20"
    resnet20.mkdir()
    (resnet20 / "saved_model").symlink_to(synthetic_run / "saved_model")
    export.whole_model(models.build("resnet20"), weights.mean_image()).save(resnet20 / "model.keras")
    photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    (folder / "photo.jpg").write_bytes(tf.io.encode_jpeg(photo).numpy())
    return folder


@pytest.mark.parametrize("block, page", BLOCKS)
def test_python_block_runs(block, page, working_folder, synthetic_data_dir, monkeypatch):
    if "as_dataframe" in block:
        pytest.importorskip("pandas")
        pytest.importorskip("jinja2")
    if "onnx" in block:
        pytest.importorskip("tf2onnx")
    monkeypatch.chdir(working_folder)
    # The dataset is the synthetic one, and it is where TFDS looks by default.
    monkeypatch.setattr(tiny_imagenet_dataset_builder.Builder, "DEFAULT_BUILDER_CONFIG_NAME", "synthetic")
    monkeypatch.setattr(constants, "DATA_DIR", str(synthetic_data_dir))
    monkeypatch.setattr(plt, "show", plt.close)
    fit, short = keras.Model.fit, {"epochs": 1, "steps_per_epoch": 2, "validation_steps": 1}
    monkeypatch.setattr(keras.Model, "fit", lambda model, *args, **kwargs: fit(model, *args, **kwargs | short))
    exec(compile(block, str(page), "exec"), {"__name__": "__main__"})


def test_pages_have_python_blocks():
    assert len(BLOCKS) >= 5
