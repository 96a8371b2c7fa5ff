"""results/ and the README's table of it."""

import pathlib
import re

import pytest

from models import weights
from reporting import paper, runs, tables, writing

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
TABLES = (tables.table_3, tables.epochs, tables.table_4, tables.snapshots, tables.compression, tables.object_size)


@pytest.fixture(scope="module")
def groups():
    return runs.group(runs.find_runs([f"{RESULTS}/*"]))


def markdown_tables(page):
    """The tables of a page, each a list of rows by the column's name."""
    found = []
    for text in re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def test_every_run_is_finished(groups):
    assert groups and all(run.finished for group in groups for run in group.runs)


@pytest.mark.parametrize("table_of", TABLES, ids=lambda table_of: table_of.__name__)
def test_tables_are_those_of_the_runs(groups, tmp_path, table_of):
    table = table_of(groups)
    names = {f"{table.name}.md", f"{table.name}.csv"}
    assert names & {path.name for path in RESULTS.iterdir()} == (names if table.rows else set())
    if table.rows:
        writing.write(table, tmp_path)
        for name in names:
            assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), name


def test_table_of_the_exclusion(tmp_path):
    found = runs.group(runs.find_runs([f"{RESULTS}/exclusion/*"]))
    assert len(found) == 5 and all(run.finished for group in found for run in group.runs)
    writing.write(tables.table_3(found), tmp_path)
    for name in ("table_3.md", "table_3.csv"):
        assert (tmp_path / name).read_text() == (RESULTS / "exclusion" / name).read_text(), name


def test_readme_has_the_numbers_of_the_runs(groups):
    """Its first table has the paper's networks, with the paper's figure and both of ours as in Table 3."""
    rows = {row["run"]: row for row in tables.table_3(groups).rows}
    columns = ("the paper's validation", "validation top-1, centre crop", "validation top-1, ten crops")
    readme, *_ = markdown_tables(ROOT / "README.md")
    _, *header = readme[0]
    assert header == ["the paper", "centre crop", "ten crops"]
    found = {name: numbers for name, *numbers in (row.values() for row in readme)}
    assert found == {name: [writing.cell(rows[name][column]) for column in columns] for name in paper.RESULTS}


@pytest.mark.parametrize("name", weights.index())
def test_shipped_weights_are_of_the_best_run(name, groups):
    """Their scores in weights/index.json are those of a run in results/, and no run of the network is better."""
    entry = weights.index()[name]
    of_network = [run for group in groups if group.network == name for run in group.runs]
    scores = {run.name: run.evaluations["evaluation_ten_crop"] for run in of_network}
    own = scores[entry["run"]]
    assert (entry["ten_crop_top_1"], entry["step"]) == (own["top_1"], own["step"])
    assert entry["ten_crop_top_1"] == max(score["top_1"] for score in scores.values())


@pytest.mark.parametrize("name", weights.index())
def test_accuracy_by_object_size_is_of_the_shipped_weights(name, groups):
    """The mean over the fifths is the run's top-1, but for the rounding of the weights to float16."""
    run_of = {run.name: run for group in groups for run in group.runs}
    run = run_of[weights.index()[name]["run"]]
    assert [row["images"] for row in run.object_size] == [2000] * 5
    mean = sum(row["top-1"] for row in run.object_size) / 5
    assert mean == pytest.approx(100 * run.evaluations["evaluation"]["top_1"], abs=0.2)


def test_results_page_names_every_run(groups):
    page = (RESULTS / "README.md").read_text()
    for group in groups:
        for run in group.runs:
            assert f"`{run.name}`" in page
