"""Reading run directories that write_run made, and putting them into groups."""

import json

import pytest

import command_line
import flags
from reporting import paper, runs
from tiny_imagenet.errors import UserError
from training import summaries

SCORES = {"split": "validation", "images": 1000, "top_1": 0.2, "top_5": 0.4, "ten_crop": False, "snapshots": 1}


def test_finds_runs(write_run, tmp_path, capsys):
    for name in ("b", "a"):
        write_run(name)
    write_run("c", model="alexnet")
    (tmp_path / "notes.md").touch()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "table_3.csv").touch()  # An earlier report.
    found = runs.find_runs([f"{tmp_path}/*", f"{tmp_path}/a/"])
    assert [run.name for run in found] == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    (tmp_path / "copies").mkdir()
    write_run("copies/a")
    names = [run.name for run in runs.find_runs([f"{tmp_path}/a", f"{tmp_path}/copies/*", f"{tmp_path}/copies"])]
    assert names == [f"{tmp_path}/a", f"{tmp_path}/copies/a"]
    assert capsys.readouterr().err == f"report.py: skipping {tmp_path}/copies: it has no config.json\n"


def test_a_torn_last_line_is_left_out(write_run):
    run = write_run()
    with (run / "metrics.csv").open("a") as file:
        file.write("30,3,0.1,2.")
    assert runs.read_run(run, "run").progress == "2 of 2 epochs"
    (run / "metrics.csv").write_text("step,epo")
    assert runs.read_run(run, "run").progress == "0 of 2 epochs"


@pytest.mark.parametrize("more", ["validation_loss,validation_top_5", "validation_cross_entropy,images_per_second"])
def test_only_the_columns_that_are_used_are_needed(write_run, more):
    run = write_run()
    lines = ["step,epoch,learning_rate,cross_entropy,validation_top_1," + more, "5,1,0.1,4.5,,,", "5,1,,,0.25,4,"]
    (run / "metrics.csv").write_text("\n".join([*lines, ""]))
    read = runs.read_run(run, "run")
    assert read.training["cross_entropy"].tolist() == [4.5] and read.validation["validation_top_1"].tolist() == [0.25]


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", '{"model": "baseline", "dataset": "full"}'),
        ("config.json", '{"model": "baseline", "dataset": "half", "num_epochs": 2, "batch_size": 256}'),
        ("metrics.csv", "step,epoch\n1,1\n"),
        ("metrics.csv", b"\xff\xfe\n"),
        ("metrics.csv", f"{','.join(summaries.FIELDS)}\n1,1,0.1\n2,1,0.1,5,5,0,1,,,\n"),
        ("metrics.csv", f"{','.join(summaries.FIELDS)}\n1,1,five{',' * (len(summaries.FIELDS) - 3)}\n"),
        ("metrics.csv", "step,epoch,learning_rate,cross_entropy,validation_top_1\n2,1,0.1,5,\n1,1,0.1,5,\n"),
        ("metrics.csv", "step,epoch,learning_rate,cross_entropy,validation_top_1\n2,,,,0.1\n"),
        ("time.json", "[]"),
        ("time.json", '{"seconds": "many", "steps": 1, "device": "a CPU"}'),
        ("evaluation_ten_crop.json", '{"top_1": 0.5}'),
        ("evaluation.json", json.dumps(SCORES | {"top_5": None})),
        ("mistakes/object_size.csv", "images,top-1\n3,4\n"),
        ("mistakes/object_size.csv", "quintile by area,area (% of the picture),images,top-1\n1,1 to 2,3\n"),
        ("mistakes/object_size.csv", "quintile by area,area (% of the picture),images,top-1\n1,1 to 2,3,high\n"),
    ],
)
def test_damaged_files_are_named(write_run, file, content):
    run = write_run()
    path = run / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{path} (is damaged|names no model)"):
        runs.find_runs([str(run)])


def names(patterns):
    return {group.name: [run.name for run in group.runs] for group in runs.group(runs.find_runs([str(patterns)]))}


def test_an_evaluation_of_an_earlier_step_is_skipped(write_run, capsys):
    files = {"evaluation.json": SCORES | {"step": 12}, "evaluation_other.json": SCORES | {"step": 24}}
    files["evaluation_stopped.json"] = SCORES | {"step": 25}  # Stopped before the step's row was due.
    folder = write_run(files=files)
    (run,) = runs.find_runs([str(folder)])
    assert list(run.evaluations) == ["evaluation_other", "evaluation_stopped"]
    problem = "it is of step 12, not 24; score the run again after training"
    assert capsys.readouterr().err == f"report.py: skipping {folder}/evaluation.json: {problem}\n"


def test_groups_differ_in_more_than_the_seed(write_run, tmp_path):
    write_run("a", model="resnet20", num_epochs=10)
    write_run("b", model="resnet20", num_epochs=10, seed=1, log_every=7)
    write_run("c", model="resnet20", num_epochs=10, num_cycles=1)
    write_run("d", model="resnet20", num_epochs=10, momentum=0.5, weight_decay=0)
    write_run("e", model="resnet20", num_epochs=10)  # The seed of a.
    write_run("f", model="alexnet", num_epochs=10, precision="mixed_bfloat16")
    write_run("g", model="alexnet", num_epochs=10)
    # No momentum: of neither kind.
    write_run("h", model="baseline_table1", num_epochs=10, momentum=0.0, nesterov=False)
    write_run("i", model="googlenet", num_epochs=10, dataset="synthetic", another_flag=True, off=False)
    assert names(tmp_path / "?") == {
        "baseline_table1": ["h"],
        "alexnet, precision=mixed_bfloat16": ["f"],
        "alexnet, precision=float32": ["g"],
        "googlenet, dataset=synthetic, another_flag=True": ["i"],
        "resnet20": ["a", "b"],
        "resnet20, num_cycles=1": ["c"],
        "resnet20, momentum=0.5, weight_decay=0": ["d"],
        "resnet20 (e)": ["e"],
    }


def test_the_settings_of_older_versions(write_run, tmp_path):
    write_run("a", all_crops=False, sync_batch_norm=True)
    write_run("b", seed=1)  # Before there was either.
    write_run("c", augmentation="ten_crop", dropout=None, seed=2)
    write_run("d", all_crops=True)
    write_run("e", augmentation="all_crops", seed=1)
    write_run("f", augmentation="uniform", dropout=0.5)
    write_run("g", augmentation="ten_crop", exclude="", seed=3)
    write_run("h", augmentation="ten_crop", exclude="worst.txt (5 images 0a1b2c3d)")
    assert names(tmp_path / "?") == {
        "baseline, num_epochs=2": ["a", "b", "c", "g"],
        "baseline, num_epochs=2, augmentation=all_crops": ["d", "e"],
        "baseline, num_epochs=2, augmentation=uniform, dropout=0.5": ["f"],
        "baseline, exclude=worst.txt (5 images 0a1b2c3d), num_epochs=2": ["h"],
    }


def test_the_settings_left_out_are_the_defaults_of_train():
    with command_line.defined("train"):
        assert {key: flags.FLAGS[key].default for key in paper.SETTINGS} == paper.SETTINGS


def test_images_per_second(write_run):
    timed = write_run(files={"time.json": {"seconds": 1000.0, "steps": 100, "device": "a CPU"}})
    assert runs.read_run(timed, "run").images_per_second == 25.6
    for number, files in enumerate([None, {"time.json": {"seconds": 0, "steps": 0, "device": "a CPU"}}]):
        untimed = write_run(f"untimed{number}", files=files or {})
        assert runs.read_run(untimed, "untimed").images_per_second is None
