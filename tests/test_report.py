"""Reports on a real run as a user does, and on run directories that write_run made, whose tables are known."""

import csv
import json
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest

import report

TRAINING_TOP_1 = (5 * 0.4 + 5 * 0.5 + 2 * 0.2) / 12  # Of the last epoch of what write_run writes.
FILES = {f"{table}.{kind}" for table in ("table_3", "table_4") for kind in ("md", "csv")}
FILES |= {f"figure_{number}.{kind}" for number in (5, 6, 7) for kind in ("png", "svg")}


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def one_row(table, folder):
    (row,) = table(report.find_runs([str(folder)]))
    return row


def test_reports_on_a_run(synthetic_run, run_script, write_run, tmp_path):
    """As the shell hands it over: several directories, then a flag."""
    evaluation = json.loads((synthetic_run / "evaluation.json").read_text())
    unfinished = write_run("unfinished", rows=4)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "a" / "out"

    result = run_script("report.py", "--runs", synthetic_run, unfinished, tmp_path / "empty", f"--out={out}")

    assert (result.returncode, result.stderr.count("\n")) == (0, 1), result.stderr
    assert "empty holds no config.json" in result.stderr
    assert {path.name for path in out.iterdir()} == FILES
    ours, cut = read_csv(out / "table_3.csv")
    assert (ours["run"], ours["epochs"], ours["note"]) == ("baseline", "1 of 1", "synthetic data")
    assert float(ours["validation top-1"]) == pytest.approx(100 * evaluation["top_1"])
    assert float(ours["validation top-5"]) == pytest.approx(100 * evaluation["top_5"])
    assert ours["the paper's validation"] == ""  # It has no synthetic data.
    rows = [row for row in read_csv(synthetic_run / "metrics.csv") if row["top_1"]]
    expected = 100 * np.mean([float(row["top_1"]) for row in rows])  # One a step.
    assert float(ours["training top-1"]) == pytest.approx(expected, rel=1e-5)
    assert (cut["run"], cut["epochs"], cut["validation top-1"]) == ("unfinished", "1 of 2", "")
    for name in FILES:
        if name.endswith("svg"):
            assert xml.etree.ElementTree.parse(out / name).getroot().tag.endswith("svg")
        elif name.endswith("png"):
            assert matplotlib.image.imread(out / name).shape[1] == 1020  # 3.4 inches.


def test_mistakes_of_a_run(synthetic_run, synthetic_data_dir, run_script, tmp_path):
    out = tmp_path / "out"
    result = run_script("report.py", f"--mistakes={synthetic_run}", f"--data_dir={synthetic_data_dir}", f"--out={out}")
    assert (result.returncode, result.stderr) == (0, "")
    top_1 = json.loads((synthetic_run / "evaluation.json").read_text())["top_1"]
    with (out / "confusion.csv").open(newline="") as file:
        (_, *wnids), *lines = csv.reader(file)
    confusion = np.array([line[1:] for line in lines], int)
    assert [line[0] for line in lines] == wnids and confusion.sum() == 1000
    assert confusion.trace() / 1000 == pytest.approx(top_1)
    assert np.mean([float(row["top-1"]) for row in read_csv(out / "classes.csv")]) == pytest.approx(100 * top_1)
    wrong = read_csv(out / "mistakes.csv")
    assert len(wrong) == 1000 - confusion.trace() and all(row["label"] != row["other"] for row in wrong)
    shares = [float(row["the other's probability"]) for row in wrong]
    assert shares == sorted(shares, reverse=True)
    both = [int(row["both"]) for row in read_csv(out / "confused_pairs.csv")]
    assert both == sorted(both, reverse=True) and sum(both) == len(wrong)
    assert [int(row["images, of each class"]) for row in read_csv(out / "detail.csv")] == [200] * 5
    for name in ("figure_8.png", "confusion.png"):
        assert matplotlib.image.imread(out / name).std() > 0.05


def test_refusals(run_scripts, assert_one_line, write_run, tmp_path):
    run = write_run()
    (tmp_path / "empty").mkdir()
    mistakes = [
        (["--runs=nosuch/*"], ["nosuch/*", "no such directory"]),
        ([f"--runs={run}", f"--out={run}/config.json"], ["config.json"]),
        ([f"--mistakes={run}"], [str(run), "train first"]),
        ([f"--mistakes={tmp_path}/empty"], ["is no run"]),
    ]
    results = run_scripts([["report.py", *flags] for flags, _ in mistakes])
    for result, (_, words) in zip(results, mistakes, strict=True):
        assert_one_line(result, 1, "report.py: ", *words)


def test_table_3(write_run):
    row = one_row(report.table_3, write_run(rows=6))
    assert row["training top-1"] == pytest.approx(100 * TRAINING_TOP_1)
    assert row["training difference"] == pytest.approx(100 * TRAINING_TOP_1 - 34.40)
    assert (row["validation top-1"], row["validation top-5"]) == pytest.approx((20, 40))
    assert row["validation difference"] == pytest.approx(20 - 33.04)
    assert (row["epochs"], row["note"]) == ("2 of 2", "")


@pytest.mark.parametrize("rows, epochs", [(0, 0), (2, 0), (3, 1), (5, 1)])
def test_a_run_cut_short_is_no_result(write_run, tmp_path, rows, epochs):
    runs = report.find_runs([str(write_run(rows=rows))])
    (row,) = report.table_3(runs)
    results = ("training top-1", "training difference", "validation top-1", "validation difference", "validation top-5")
    assert [row[key] for key in results] == [None] * 5
    assert row["epochs"] == f"{epochs} of 2" and row["note"].startswith("not finished")
    assert ("validation 10.00" in row["note"]) == (epochs == 1)
    assert report.table_4(runs)[0]["note"] == "not finished; not timed"
    assert report.figure_6(runs).axes[0].lines[0].get_label() == f"run ({epochs} of 2 epochs)"


def test_table_4_scales_to_ten_epochs(write_run):
    timed = {"seconds": 900.0, "steps": 1953, "device": "a CPU"}
    row = one_row(report.table_4, write_run("half", files={"time.json": timed}))
    assert row["hours for 10 epochs"] == pytest.approx(0.5)
    assert (row["device"], row["note"]) == ("a CPU", "time scaled from 1,953 steps to 3,906")
    assert row["parameters"] == 13_053_448 and row["the paper's hours"] is None
    row = one_row(report.table_4, write_run("whole", files={"time.json": timed | {"steps": 3906}}))
    assert (row["hours for 10 epochs"], row["note"]) == (0.25, "")
    row = one_row(report.table_4, write_run("untimed"))
    assert (row["hours for 10 epochs"], row["device"], row["note"]) == (None, None, "not timed")


def test_compression(write_run):
    plain = {"split": "validation", "ten_crop": False, "snapshots": 1}
    files = {
        "evaluation.json": plain | {"top_1": 0.25},
        "evaluation_model.json": plain | {"top_1": 0.25, "bytes": 4000},
        "evaluation_model_int8.json": plain | {"top_1": 0.24, "bytes": 1000},
    }
    rows = report.compression(report.find_runs([str(write_run("both", files=files))]))
    assert [(row["file"], row["bytes"]) for row in rows] == [("model.tflite", 4000), ("model_int8.tflite", 1000)]
    assert [row["accuracy lost"] for row in rows] == pytest.approx([0, 1])
    files["evaluation.json"] = plain | {"top_1": 0.26, "ten_crop": True}
    rows = report.compression(report.find_runs([str(write_run("ten_crop", files=files))]))
    assert [row["accuracy lost"] for row in rows] == [None, None]
    assert report.compression(report.find_runs([str(write_run("neither"))])) == []


def test_figures(write_run, tmp_path):
    write_run("a")
    write_run("b", rows=4)
    write_run("c", model="resnet20", num_epochs=3)
    runs = report.find_runs([f"{tmp_path}/?"])
    a, b, c, *stars = report.figure_6(runs).axes[0].lines
    assert a.get_ydata().tolist() == pytest.approx([10, 20]) and b.get_ydata().tolist() == pytest.approx([10])
    assert a.get_color() == b.get_color() != c.get_color() and a.get_marker() == b.get_marker() != c.get_marker()
    assert a.get_linestyle() != b.get_linestyle()
    ends = {star.get_markeredgecolor(): (star.get_xdata(), star.get_ydata()) for star in stars[:2]}
    assert ends == {a.get_color(): ([10], [33.04]), c.get_color(): ([10], [55.40])}
    raw, smoothed = report.figure_7(runs).axes[0].lines[:2]
    assert raw.get_ydata().tolist() == pytest.approx([4.5, 4, 3.8, 3.3, 2.8, 2.6])
    assert raw.get_color() == smoothed.get_color() == a.get_color()
    assert [line.get_label() for line in report.figure_5(runs).axes[0].lines] == ["a, b", "c"]


def test_seven_networks_have_seven_colours(write_run, tmp_path):
    for name in ("baseline", "alexnet", "googlenet", "resnet20", "plain20", "squeezenet", "vgg16"):
        write_run(name, model=name)
    lines = report.figure_7(report.find_runs([f"{tmp_path}/*"])).axes[0].lines[1::2]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 7


def test_smoothing():
    assert report.smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert report.smooth(np.array([1.0, 2.0]))[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


def test_the_same_runs_give_the_same_bytes(write_run, tmp_path):
    runs = report.find_runs([str(write_run())])
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with report.matplotlib.rc_context(report.STYLE):
            report.write_comparison(runs, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
