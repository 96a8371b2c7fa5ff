import pytest

from tiny_imagenet.errors import UserError
from training import runs, summaries


def test_finds_runs(write_run, tmp_path, capsys):
    for name in ("b", "a"):
        write_run(name)
    write_run("c", model="alexnet")
    (tmp_path / "table_3.md").touch()
    found = runs.find_runs([f"{tmp_path}/*", f"{tmp_path}/a/"])
    assert [run.name for run in found] == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    (tmp_path / "copies").mkdir()
    write_run("copies/a")
    names = [run.name for run in runs.find_runs([f"{tmp_path}/a", f"{tmp_path}/copies/*"])]
    assert names == [f"{tmp_path}/a", f"{tmp_path}/copies/a"]


def test_a_torn_last_line_is_left_out(write_run):
    run = write_run()
    with (run / "metrics.csv").open("a") as file:
        file.write("30,3,0.1,2.")
    assert runs.read_run(run, "run").progress == "2 of 2"
    (run / "metrics.csv").write_text("step,epo")
    assert runs.read_run(run, "run").progress == "0 of 2"


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", '{"model": "baseline", "dataset": "full"}'),
        ("config.json", '{"model": "baseline", "dataset": "half", "num_epochs": 2, "batch_size": 256}'),
        ("metrics.csv", "step,epoch\n1,1\n"),
        ("metrics.csv", b"\xff\xfe\n"),
        ("metrics.csv", f"{','.join(summaries.FIELDS)}\n1,1,0.1\n2,1,0.1,5,5,0,1,,,\n"),
        ("metrics.csv", f"{','.join(summaries.FIELDS)}\n1,1,0.1,five,5,0,1,,,\n"),
        ("metrics.csv", f"{','.join(summaries.FIELDS)}\n2,1,0.1,5,5,0,1,,,\n1,1,0.1,5,5,0,1,,,\n"),
        ("time.json", "[]"),
        ("time.json", '{"seconds": "many", "steps": 1, "device": "a CPU"}'),
    ],
)
def test_damaged_files_are_named(write_run, file, content):
    path = write_run() / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{path} (is damaged|names no model)"):
        runs.find_runs([str(path.parent)])
