"""The tables of run directories whose scores are known."""

import csv
import statistics

import pytest

from reporting import runs, tables, writing

PLAIN = {"split": "validation", "images": 10000, "top_1": 0.2, "top_5": 0.4, "ten_crop": False, "snapshots": 1}
FILES = {
    "evaluation.json": PLAIN,
    "evaluation_ten_crop.json": PLAIN | {"top_1": 0.25, "top_5": 0.5, "ten_crop": True},
    "evaluation_train_ten_crop.json": PLAIN | {"split": "train", "top_1": 0.35, "ten_crop": True},
}
RESULTS = {
    "training top-1, ten crops": 35,
    "validation top-1, centre crop": 20,
    "validation top-1, ten crops": 25,
    "validation top-5, ten crops": 50,
}


INTERVALS = ("95% interval, centre crop", "95% interval, ten crops")


def groups(folder):
    return runs.group(runs.find_runs([str(folder)]))


def row_of(table_of, folder):
    (row,) = table_of(groups(folder)).rows
    return row


def test_table_3(write_run):
    row = row_of(tables.table_3, write_run(files=FILES))
    assert {key: row[key] for key in RESULTS} == pytest.approx(RESULTS)
    assert (row["the paper's training"], row["the paper's validation"]) == (34.40, 33.04)
    assert (row["run"], row["epochs"], row["seeds"], row["note"]) == ("baseline, num_epochs=2", 2, 1, "")
    assert (row["95% interval, centre crop"], row["95% interval, ten crops"]) == ("19.23 to 20.80", "24.16 to 25.86")
    columns = list(row)
    paper = columns.index("the paper's validation")
    assert columns[paper - 2] == "validation top-1, centre crop" and columns[paper + 1] == "validation top-1, ten crops"


def test_validation_by_epoch(write_run):
    run = write_run()
    assert [row["baseline, num_epochs=2"] for row in tables.epochs(groups(run)).rows] == pytest.approx([10, 20])
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(line for line in lines if not line.startswith("12,1,,")))
    assert [row["baseline, num_epochs=2"] for row in tables.epochs(groups(run)).rows] == [None, pytest.approx(20)]


def test_a_missing_file_leaves_its_cell_empty(write_run):
    row = row_of(tables.table_3, write_run(files={"evaluation.json": PLAIN}))
    assert {key for key in RESULTS if row[key] is None} == {key for key in RESULTS if "ten crops" in key}
    assert row["95% interval, ten crops"] is None and row["95% interval, centre crop"]


@pytest.mark.parametrize("rows, epochs", [(0, 0), (2, 0), (3, 1), (5, 1)])
def test_a_run_cut_short_is_no_result(write_run, rows, epochs):
    files = FILES | {"evaluation_snapshots_2.json": PLAIN | {"snapshots": 2}}
    files["evaluation_model.json"] = PLAIN | {"file": "model.tflite", "bytes": 4000}
    run = write_run(rows=rows, files=files)
    row = row_of(tables.table_3, run)
    assert [row[key] for key in (*RESULTS, *INTERVALS, "seeds")] == [None] * 7
    assert row["note"] == f"not finished; so far {epochs} of 2 epochs{', top-1 10.00' * epochs}"
    assert row_of(tables.table_4, run)["note"] == "not finished"
    assert tables.snapshots(groups(run)).rows == []
    row = row_of(tables.compression, run)
    assert (row["bytes"], row["top-1"], row["top-1 lost"], row["note"]) == (4000, None, None, "not finished")


def test_seeds_share_a_row(write_run, tmp_path):
    shares = [0.2, 0.22, 0.27]
    for seed, top_1 in enumerate(shares):
        write_run(f"seed_{seed}", seed=seed, files={"evaluation.json": PLAIN | {"top_1": top_1}})
    write_run("seed_3", seed=3, rows=4, files={"evaluation.json": PLAIN | {"top_1": 0.9}})
    table = tables.table_3(groups(tmp_path / "*"))
    (row,) = table.rows
    expected = (100 * statistics.mean(shares), 100 * statistics.stdev(shares))
    assert row["validation top-1, centre crop"] == pytest.approx(expected)
    assert row["seeds"] == 3 and row["note"].startswith("seed 3 not finished")
    writing.write(table, tmp_path)
    assert "| 23.00 ± 3.61 |" in (tmp_path / "table_3.md").read_text()
    assert "23.00 ± 3.61" in writing.terminal(table)
    with (tmp_path / "table_3.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    column = "validation top-1, centre crop"
    assert (line[column], line[f"{column}, s.d."]) == ("23", "3.60555")


def test_epochs(write_run, tmp_path):
    write_run("done")
    write_run("under_way", rows=4, model="resnet20", num_epochs=3)
    table = tables.epochs(groups(tmp_path / "*"))
    assert list(table.rows[0]) == ["epoch", "baseline, num_epochs=2", "resnet20, num_epochs=3 (1 of 3 epochs)"]
    assert [tuple(row.values()) for row in table.rows] == [(1, 10, 10), (2, 20, None), (3, None, None)]


def test_table_4(write_run):
    timed = {"seconds": 900.0, "steps": 1953, "device": "a CPU"}
    row = row_of(tables.table_4, write_run("timed", files={"time.json": timed}))
    assert row["images per second"] == pytest.approx(1953 * 256 / 900)
    assert row["hours for 10 epochs"] == pytest.approx(10 * 100000 / (1953 * 256 / 900) / 3600)
    assert (row["device"], row["note"]) == ("a CPU", "")
    assert row["parameters"] == 13_054_504 and row["the paper's hours"] is None
    row = row_of(tables.table_4, write_run("untimed", model="alexnet"))
    assert (row["hours for 10 epochs"], row["device"], row["the paper's hours"]) == (None, "", 19)


def test_snapshots(write_run):
    files = FILES | {
        "evaluation_snapshots_2.json": PLAIN | {"top_1": 0.23, "snapshots": 2},
        "evaluation_snapshots_10.json": PLAIN | {"top_1": 0.24, "snapshots": 10, "ten_crop": True},
        "evaluation_snapshots_2_synthetic.json": PLAIN | {"top_1": 0.9, "snapshots": 2, "dataset": "synthetic"},
    }
    two, ten = tables.snapshots(groups(write_run(files=files))).rows
    assert (two["cycles"], two["crops"], ten["cycles"], ten["crops"]) == (2, 1, 10, 10)
    assert (two["last weights, top-1"], two["average, top-1"], two["added"]) == pytest.approx((20, 23, 3))
    assert (ten["last weights, top-1"], ten["added"]) == pytest.approx((25, -1))


def test_compression(write_run):
    files = FILES | {
        "evaluation_model.json": PLAIN | {"file": "model.tflite", "bytes": 4000},
        "evaluation_compressed.json": PLAIN | {"top_1": 0.19, "file": "compressed.weights.h5", "bytes": 1000},
    }
    rows = tables.compression(groups(write_run("both", files=files))).rows
    assert [(row["file"], row["bytes"]) for row in rows] == [
        ("compressed.weights.h5", 1000),
        ("model.tflite", 4000),
    ]
    assert [row["top-1 lost"] for row in rows] == pytest.approx([1, 0])
    others = ({"ten_crop": True}, {"split": "train"}, {"dataset": "synthetic"})
    for number, other in enumerate(others):
        files[f"evaluation_{number}.json"] = PLAIN | {"file": "x.weights.h5", "bytes": 1000} | other
    files["evaluation_old.json"] = PLAIN | {"bytes": 1000}  # It does not say of which file.
    assert tables.compression(groups(write_run("others", files=files))).rows == rows
    del files["evaluation.json"]
    assert {row["top-1 lost"] for row in tables.compression(groups(write_run("no_own", files=files))).rows} == {None}
    assert tables.compression(groups(write_run("neither"))).rows == []


def test_object_size(write_run, write_object_size, tmp_path):
    fifths = {"quintile by area": "1 (smallest)", "area (% of the picture)": "0.1 to 20.0", "images": 2000}
    write_object_size(write_run("a", model="resnet20"), 40.0)
    write_object_size(write_run("b", model="resnet20", seed=1), 44.0)
    write_object_size(write_run("c", model="googlenet"), 38.5)
    write_object_size(write_run("d", model="vgg16", rows=4), 90.0)  # It is not finished.
    write_object_size(write_run("e", model="vgg16", dataset="synthetic"), 90.0)
    write_run("f", model="squeezenet")
    table = tables.object_size(groups(tmp_path / "?"))
    (row,) = table.rows
    names = ["googlenet, num_epochs=2", "resnet20, num_epochs=2"]
    assert list(row) == [*fifths, *names] and {key: row[key] for key in fifths} == fifths
    assert row[names[0]] == 38.5 and row[names[1]] == pytest.approx((42, 8**0.5))
    assert tables.object_size(groups(tmp_path / "f")).rows == []
