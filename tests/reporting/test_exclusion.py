"""The choice of training images to leave out, by two real runs on synthetic images."""

import numpy as np
import pytest

import small
from reporting import mistakes
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation

FLAGS = "--model=small --dataset=synthetic --batch_size=50 --num_epochs=1 --num_cycles=1 --learning_rate=0.03"


@pytest.fixture
def run(run_main):
    def registered(*arguments):
        with small.registered():
            return run_main(*arguments)

    return registered


def test_images_are_judged_by_the_network_that_did_not_see_them(tmp_path, run, assert_one_line, small_data_dir):
    choose = ["reporting.exclusion", f"--data_dir={small_data_dir}", "--dataset=synthetic", f"--out={tmp_path}"]
    assert run(*choose).returncode == 0
    with small.registered():
        data = input_pipeline.load("synthetic", str(small_data_dir))
    split = data.splits["train"]
    halves = [set((tmp_path / f"half_{number}.txt").read_text().split()) for number in (1, 2)]
    assert [len(half) for half in halves] == [len(split) // 2] * 2 and halves[0] | halves[1] == set(split.ids)
    assert_one_line(run(*choose), 1, "half_1 is not trained yet", "--exclude=")

    margins = {}
    for number, half in enumerate(halves, start=1):
        run_dir = tmp_path / f"half_{number}"
        flags = [*FLAGS.split(), f"--data_dir={small_data_dir}", f"--run_dir={run_dir}", f"--exclude={run_dir}.txt"]
        assert run("train.py", *flags, "--noexport", "--nofinal_scores").returncode == 0
        if number == 1:
            for part, kept in (("time.json", "is not finished"), ("config.json", "was not trained with --exclude")):
                text = (run_dir / part).read_text()
                (run_dir / part).write_text(text.replace("finished_step", "step").replace("200 images", "199 images"))
                assert_one_line(run(*choose), 1, f"half_1 {kept}")
                (run_dir / part).write_text(text)
        with small.registered():
            model, _ = checkpoints.load_model(run_dir)
        probabilities = evaluation.predict(evaluation.classifier(model, data.mean_image), split)
        margin = dict(zip(split.ids.tolist(), mistakes.margins(probabilities, split.labels), strict=True))
        margins |= {id: margin[id] for id in half}
    result = run(*choose, "--percent=10")
    assert (result.returncode, result.stderr) == (0, "")
    worst, chance = ((tmp_path / f"{name}.txt").read_text().split() for name in ("worst", "random"))
    assert len(set(worst)) == len(set(chance)) == len(split) // 10 and set(worst) != set(chance)
    limit = np.sort(list(margins.values()))[len(worst)]
    assert all(margins[id] <= limit + 1e-5 for id in worst)
