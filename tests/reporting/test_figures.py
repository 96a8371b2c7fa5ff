"""What the figures draw of run directories whose curves are known."""

import numpy as np
import pytest

from reporting import figures, runs, writing

TEN_CROP = {"split": "validation", "images": 10000, "top_1": 0.25, "top_5": 0.5, "ten_crop": True, "snapshots": 1}


def groups(pattern):
    return runs.group(runs.find_runs([str(pattern)]))


def labelled(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_each_group_has_its_own_line(write_run, tmp_path):
    write_run("a", files={"evaluation_ten_crop.json": TEN_CROP})
    write_run("b", rows=4, num_cycles=1)
    write_run("c", model="resnet20")
    write_run("d", model="plain20", rows=0)  # It has nothing to draw.
    figure = figures.figure_6(groups(tmp_path / "?"))
    a, b, c = lines = labelled(figure).values()
    assert [line.get_label() for line in lines][0] == "baseline, num_epochs=2"
    assert b.get_label() == "baseline, num_epochs=2, num_cycles=1 (1 of 2 epochs)"
    assert a.get_ydata().tolist() == pytest.approx([10, 20]) and b.get_ydata().tolist() == pytest.approx([10])
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert {star.get_color(): star.get_ydata()[0] for star in stars} == {a.get_color(): 33.04, c.get_color(): 55.40}
    (ten_crop,) = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert ten_crop.get_ydata().tolist() == pytest.approx([20, 25]) and ten_crop.get_color() == a.get_color()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["1", "2", "ten\ncrops", "paper"]


def test_figure_6_shows_the_papers_networks_and_another_figure_the_rest(write_run, tmp_path):
    write_run("a", model="alexnet", num_epochs=10)
    write_run("b", model="alexnet", num_epochs=10, num_cycles=1)
    write_run("c", model="alexnet", num_epochs=10, augmentation="uniform")
    write_run("d", model="alexnet", num_epochs=10)  # Of the same settings and seed, as an older version trained it.
    write_run("e", model="googlenet", num_epochs=10)
    write_run("f", model="plain20", num_epochs=10)
    write_run("g", model="resnet20", num_epochs=10)
    write_run("h", model="squeezenet", num_epochs=10)
    all_groups = groups(tmp_path / "?")
    named = [name.partition(" (1")[0].partition(" (2")[0] for name in labelled(figures.figure_6(all_groups))]
    assert named == ["alexnet", "googlenet", "resnet20"]
    assert len(labelled(figures.figure_7(all_groups))) == 3
    variants = figures.figure_6_variants(all_groups)
    panels = [
        [text.get_text().partition(" (2 of")[0] for text in axes.get_legend().get_texts()] for axes in variants.axes
    ]
    assert panels == [
        ["alexnet", "alexnet, num_cycles=1", "alexnet, augmentation=uniform", "alexnet (d)"],
        ["resnet20", "plain20"],
        ["squeezenet"],
    ]
    assert figures.figure_6_variants(groups(tmp_path / "[aeg]")) is None
    others = groups(tmp_path / "[bf]")
    assert len(labelled(figures.figure_6(others))) == 2 and figures.figure_6_variants(others) is None


def test_the_precision_is_no_variant(write_run, tmp_path):
    write_run("a", num_epochs=10)
    write_run("b", num_epochs=10, precision="mixed_bfloat16")
    assert [group.is_papers for group in groups(tmp_path / "?")] == [True, True]


def test_seeds_are_one_line_with_a_band(write_run, tmp_path):
    write_run("a")
    b = write_run("b", seed=1)
    write_run("c", seed=2, rows=4)  # It is not finished, so it is not shown.
    text = (b / "metrics.csv").read_text()
    (b / "metrics.csv").write_text(text.replace(",0.2,0.4", ",0.3,0.4"))
    figure = figures.figure_6(groups(tmp_path / "?"))
    (line,) = labelled(figure).values()
    assert line.get_ydata().tolist() == pytest.approx([10, 25])
    (band,) = figure.axes[0].collections
    assert {(x, round(y)) for x, y in band.get_paths()[0].vertices.tolist()} == {(1, 10), (2, 20), (2, 30)}
    assert len(figures.figure_7(groups(tmp_path / "?")).axes[0].collections) == 1


def test_figure_7_is_the_cross_entropy_and_not_the_loss(write_run):
    raw, smoothed = figures.figure_7(groups(write_run())).axes[0].lines
    assert raw.get_ydata().tolist() == pytest.approx([4.5, 4, 3.8, 3.3, 2.8, 2.6])
    assert smoothed.get_ydata() == pytest.approx(figures.smooth(raw.get_ydata()))
    assert raw.get_color() == smoothed.get_color()


def test_figure_5_has_a_line_for_each_schedule(write_run, tmp_path):
    write_run("a")
    write_run("b", model="alexnet", rows=4)
    write_run("c", num_cycles=1)
    lines = labelled(figures.figure_5(groups(tmp_path / "?")))
    assert list(lines) == [f"{cycles} in 2 epochs, from 0.1, batches of 256" for cycles in ("5 cycles", "1 cycle")]
    assert [line.get_ydata().tolist() for line in lines.values()] == [[0.1] * 6] * 2
    write_run("d", num_epochs=10)  # With the paper's settings, so that the others are variants.
    (label,) = labelled(figures.figure_5(groups(tmp_path / "?")))
    assert label == "5 cycles in 10 epochs, from 0.1, batches of 256"


def test_more_groups_than_colours_stay_apart(write_run, tmp_path):
    for cycles in range(1, 10):
        write_run(f"run_{cycles}", num_cycles=cycles)
    lines = labelled(figures.figure_7(groups(tmp_path / "*"))).values()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 9


def test_object_size():
    fifths = [
        {"quintile": "1", "area": "0.1 to 9.0", "images": 50},
        {"quintile": "2", "area": "9.0 to 99.0", "images": 50},
    ]
    rows = [fifths[0] | {"alexnet": 50.0, "resnet20": 60.0}, fifths[1] | {"alexnet": 70.0, "resnet20": None}]
    figure = figures.object_size(rows)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.1\N{EN DASH}9.0", "9.0\N{EN DASH}99.0"]
    alexnet, resnet20 = axes.containers
    assert [alexnet.get_label(), resnet20.get_label()] == ["alexnet", "resnet20"]
    assert alexnet.lines[0].get_ydata().tolist() == [50, 70]
    (bars,) = alexnet.lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx([100 * end for end in writing.wilson(0.5, 50)])
    assert resnet20.lines[0].get_ydata().tolist() == [60]
    assert figures.object_size([]) is None


def test_smoothing():
    assert figures.smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert figures.smooth(np.array([1.0, 2.0]))[1] == pytest.approx((0.8 * 1 + 2) / 1.8)
