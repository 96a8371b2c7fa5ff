"""Reports on run directories that write_run made, whose tables are known, and on the mistakes of a real run."""

import csv
import dataclasses
import json
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest

from training import run_directory

OBJECT_SIZE = {f"object_size.{kind}" for kind in ("csv", "md", "png", "svg")}
TABLES = {f"{table}.{kind}" for table in ("table_3", "epochs", "table_4") for kind in ("csv", "md")}
FIGURES = {f"figure_{number}.{kind}" for number in (5, 6, 7) for kind in ("png", "svg")}


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_reports_beside_the_runs(run_main, write_run, write_object_size, tmp_path):
    write_run("a", num_epochs=2)
    write_run("b", rows=4, model="alexnet")
    write_object_size(tmp_path / "a", 40.0)
    (tmp_path / "empty").mkdir()

    result = run_main("report.py", "--runs", tmp_path / "a", tmp_path / "b", tmp_path / "empty")

    assert (result.returncode, result.stderr.count("\n")) == (0, 1), result.stderr
    assert "empty" in result.stderr
    out = tmp_path / "report"
    assert {path.name for path in out.iterdir()} == TABLES | FIGURES | OBJECT_SIZE
    for text in ("Table 3", "Table 4", "33.04", "not finished; so far 1 of 2 epochs, top-1 10.00", f"written to {out}"):
        assert text in result.stdout
    for name in FIGURES:
        if name.endswith("svg"):
            assert xml.etree.ElementTree.parse(out / name).getroot().tag.endswith("svg")
        else:
            assert matplotlib.image.imread(out / name).shape[1] == 1020  # 3.4 inches.
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("snapshots.md", "figure_6_variants.png"):
        (out / name).write_text("of an earlier report")

    again = run_main("report.py", f"--runs={tmp_path}/[abr]*")  # With the report itself.

    assert (again.returncode, again.stderr, again.stdout) == (0, "", result.stdout)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first  # To the byte.


def test_the_default_folder_is_beside_all_of_the_runs(run_main, write_run, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_run(f"{folder}/run")
    result = run_main("report.py", f"--runs={tmp_path}/?/run")
    assert result.returncode == 0 and (tmp_path / "report" / "table_3.md").exists()
    result = run_main("report.py", f"--runs={tmp_path}/x/run", f"--out={tmp_path}/a/out")
    assert result.returncode == 0 and (tmp_path / "a" / "out" / "table_3.md").exists()
    assert not (tmp_path / "x" / "report").exists()


def test_reports_on_what_train_writes(run_main, synthetic_run, tmp_path):
    result = run_main("report.py", f"--runs={synthetic_run}", f"--out={tmp_path}")
    assert (result.returncode, result.stderr) == (0, "")
    (row,) = read_csv(tmp_path / "table_3.csv")
    evaluation = json.loads((synthetic_run / "evaluation.json").read_text())
    assert float(row["validation top-1, centre crop"]) == pytest.approx(100 * evaluation["top_1"], rel=1e-5)
    assert "dataset=synthetic" in row["run"] and row["the paper's validation"] == ""
    (row,) = read_csv(tmp_path / "table_4.csv")
    assert float(row["images per second"]) > 0


def test_mistakes_of_a_run(run_main, synthetic_run, synthetic_data_dir, tmp_path):
    out = tmp_path / "mistakes"
    result = run_main("report.py", f"--mistakes={synthetic_run}", f"--data_dir={synthetic_data_dir}", f"--out={out}")
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
    assert f"{len(wrong):,} of 1,000 predictions are wrong" in result.stdout
    shares = [float(row["the other's probability"]) for row in wrong]
    assert shares == sorted(shares, reverse=True)
    both = [int(row["both"]) for row in read_csv(out / "confused_pairs.csv")]
    assert both == sorted(both, reverse=True) and sum(both) == len(wrong)
    assert [int(row["images, of each class"]) for row in read_csv(out / "detail.csv")] == [200] * 5
    sizes = read_csv(out / "object_size.csv")
    assert [int(row["images"]) for row in sizes] == [200] * 5
    assert np.mean([float(row["top-1"]) for row in sizes]) == pytest.approx(100 * top_1)
    assert {path.name for path in out.glob("object_size.*")} == OBJECT_SIZE
    known = [path for pattern in run_directory.MISTAKES for path in tmp_path.glob(pattern)]
    assert sorted(known) == sorted(out.iterdir())
    for name in ("figure_8.png", "confusion.png", "object_size.png"):
        assert matplotlib.image.imread(out / name).std() > 0.05


def test_an_out_that_is_a_file_is_found_before_scoring(
    run_main, assert_one_line, synthetic_run, synthetic_data_dir, tmp_path
):
    (tmp_path / "file").touch()
    data, out = f"--data_dir={synthetic_data_dir}", f"--out={tmp_path}/file"
    result = run_main("report.py", f"--mistakes={synthetic_run}", data, out)
    assert_one_line(result, 1, "file: File exists")
    assert "scoring" not in result.stdout


def test_the_mistakes_of_a_run_in_training_need_a_folder_of_their_own(
    run_main, assert_one_line, synthetic_run, synthetic_data_dir, tmp_path
):
    """In the run, they would be taken for those of its end."""
    for part in ("config.json", "classes.json", "checkpoints"):
        (tmp_path / part).symlink_to(synthetic_run / part)
    with run_directory.lock(tmp_path):
        result = run_main("report.py", f"--mistakes={tmp_path}", f"--data_dir={synthetic_data_dir}")
    assert_one_line(result, 1, "another process is writing to", "use another folder")
    assert "scoring" not in result.stdout


def test_mistakes_of_shipped_weights(run_main, assert_one_line, synthetic_data_dir, tmp_path, monkeypatch):
    import models
    from models import weights
    from tiny_imagenet import input_pipeline

    synthetic = input_pipeline.load("synthetic", str(synthetic_data_dir))
    few = dataclasses.replace(synthetic, splits={"validation": synthetic.splits["validation"].sample(20, seed=0)})
    wnids = weights.classes()["wnids"]
    few = dataclasses.replace(few, wnids=wnids[::-1])  # As of an archive with its classes in another order.
    asked_for = []
    monkeypatch.setattr(input_pipeline, "load", lambda dataset, *_: asked_for.append(dataset) or few)
    monkeypatch.setattr(input_pipeline, "load_boxes", lambda *_: np.tile([0.0, 0.0, 0.5, 1.0], (20, 1)))
    monkeypatch.chdir(tmp_path)

    result = run_main("report.py", "--mistakes=squeezenet")

    assert (result.returncode, result.stderr) == (0, "")
    assert asked_for == ["full"] and "written to mistakes\n" in result.stdout
    network, split = models.build("squeezenet", weights="tiny_imagenet"), few.splits["validation"]
    crops = (split.images[:, 4:60, 4:60] - few.mean_image[4:60, 4:60]) / 64
    best = network.predict(crops, verbose=0).argmax(axis=1)
    wrong = sum(wnids[label] != few.wnids[own] for label, own in zip(best, split.labels, strict=True))
    assert wrong > 10  # The network knows Tiny ImageNet's classes only.
    assert len(read_csv(tmp_path / "mistakes/mistakes.csv")) == wrong
    areas = [row["area (% of the picture)"] for row in read_csv(tmp_path / "mistakes/object_size.csv")]
    assert areas == ["50.0 to 50.0"] * 5

    first = read_csv(tmp_path / "mistakes/mistakes.csv")[0]
    row = split.ids.tolist().index(first["image"])
    assert (first["label"], first["other"]) == (few.wnids[split.labels[row]], wnids[best[row]])

    (tmp_path / "squeezenet").mkdir()  # A run goes before a network of its name.
    assert "squeezenet is not a run" in run_main("report.py", "--mistakes=squeezenet").stderr
    monkeypatch.setattr(weights, "index", lambda: {"resnet20": {}})
    refused = run_main("report.py", "--mistakes=alexnet")
    assert_one_line(refused, 1, "there are weights of resnet20", "--mistakes=RUN_DIR")


def test_refusals(run_main, assert_one_line, write_run, synthetic_run, tmp_path):
    run = write_run()
    (tmp_path / "empty").mkdir()
    mistakes = [
        (["--runs=nosuch/*"], ["nosuch/*", "no such directory"]),
        ([f"--runs={run}", f"--out={run}/config.json"], ["config.json"]),
        ([f"--mistakes={run}"], [str(run), "train first"]),
        ([f"--mistakes={tmp_path}/empty"], ["is not a run"]),
        ([f"--mistakes={synthetic_run}", "--archive=x.zip"], ["remove archive=x.zip"]),
    ]
    for arguments, words in mistakes:
        assert_one_line(run_main("report.py", *arguments), 1, "report.py: ", *words)
