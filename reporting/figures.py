"""The paper's Figures 5 to 8, the accuracy by the object's size, and a confusion matrix."""

import pathlib
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import models
from reporting.runs import Group
from reporting.tables import percent
from reporting.writing import Row, mean, over_seeds, wilson

COLUMN = 3.4  # Inches: one of two columns on a page.
STYLE = {
    "font.size": 8,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "svg.hashsalt": "tiny-imagenet-cnns",  # The same figure is the same bytes.
}
# Okabe and Ito's colour-blind-safe palette, without its yellow, which is faint on white.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = "osD^vPX<>"
LINES = ("-", "--", ":", "-.")
SMOOTHING = 0.8

Curve = tuple[np.ndarray, np.ndarray]


def style_of(number: int) -> dict:
    """The colour, marker and kind of line of a group by its place: after the last colour, the lines are dashed."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


def axes_of(xlabel: str, ylabel: str) -> Axes:
    """The axes of a new figure, one column wide."""
    axes = Figure(figsize=(COLUMN, 2.3)).subplots()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return axes


def draw(axes: Axes, curves: list[Curve], **style: object) -> None:
    """Draws the mean over seeds, with a band from the lowest to the highest. Skips curves without points."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return
    x = curves[0][0]
    y = np.array([np.interp(x, *curve) for curve in curves])
    axes.plot(x, y.mean(axis=0), **style)
    if len(curves) > 1:
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style["color"], alpha=0.25, linewidth=0)


def legend(axes: Axes) -> Figure:
    """Puts a legend below the axes and makes the figure as high as it needs."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 52) for label in labels]
    columns = 2 if max(map(len, labels), default=0) <= 24 else 1
    lines = sum(1 + label.count("\n") for label in labels)
    axes.figure.set_size_inches(COLUMN, 2.3 + 0.15 * -(-lines // columns))
    if labels:
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return axes.figure


def figure_5(groups: list[Group]) -> Figure:
    """The learning rate of the paper's networks by step: a line for each schedule, as the longest run recorded it."""
    axes = axes_of("step", "learning rate")
    schedules = {}
    for group in papers(groups):
        cycles, epochs, rate, batch = (
            group.config.get(key) for key in ("num_cycles", "num_epochs", "learning_rate", "batch_size")
        )
        label = f"{cycles} cycle{'s' * (cycles != 1)} in {epochs} epochs, from {rate}, batches of {batch}"
        schedules.setdefault((label, group.config["dataset"]), []).extend(group.runs)
    for number, ((label, _), runs) in enumerate(schedules.items()):
        longest = max(runs, key=lambda run: run.training["step"].max(initial=0))
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        draw(axes, [(longest.training["step"], longest.training["learning_rate"])], label=label, **style)
    axes.set_ylim(bottom=0)
    return legend(axes)


def draw_epochs(axes: Axes, groups: list[Group]) -> None:
    """Draws the validation top-1 by epoch, by the centre crop; then the final one by ten crops, and the paper's."""
    last = max(group.config["num_epochs"] for group in groups)
    at_ten_crops, at_paper = 1.15 * last, 1.32 * last
    ticks = {epoch: f"{epoch:.0f}" for epoch in MaxNLocator(5, integer=True).tick_values(0, last) if 0 < epoch <= last}
    levels = {}
    for number, group in enumerate(groups):
        style = style_of(number)
        curves = [(run.validation["epoch"], 100 * run.validation["validation_top_1"]) for run in group.shown]
        draw(axes, curves, label=group.label, markevery=max(1, len(curves[0][0]) // 10), **style)
        ten_crop = mean(over_seeds(percent(run, "evaluation_ten_crop") for run in group.finished))
        if ten_crop is not None:
            end = np.mean([values[-1] for _, values in curves])
            x = [group.config["num_epochs"], at_ten_crops]
            axes.plot(x, [end, ten_crop], **style | {"linestyle": ":", "linewidth": 0.6, "markevery": [1]})
            ticks[at_ten_crops] = "ten\ncrops"
        if group.published.validation_top_1:
            levels.setdefault(group.network, (group.published.validation_top_1, style["color"]))
    for network, (top_1, colour) in levels.items():
        axes.plot([0, at_paper], [top_1] * 2, color=colour, lw=0.5, ls=(0, (6, 6)), alpha=0.7, zorder=0)
        axes.plot(at_paper, top_1, "*", color=colour, markersize=7)
        axes.annotate(network, (at_paper, top_1), xytext=(5, -2), textcoords="offset points", fontsize=6)
        ticks[at_paper] = "paper"
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlim(0, 1.05 * max(ticks))
    axes.set_ylim(bottom=0)


def papers(groups: list[Group]) -> list[Group]:
    """The paper's networks with the paper's settings; all groups if there are none."""
    return [group for group in groups if group.is_papers] or groups


def figure_6(groups: list[Group]) -> Figure:
    """The paper's networks by epoch; see `draw_epochs`."""
    axes = axes_of("epoch", "validation top-1 (%)")
    draw_epochs(axes, papers(groups))
    return legend(axes)


def figure_6_variants(groups: list[Group]) -> Figure | None:
    """The groups that Figure 6 leaves out, beside those of the same builder that it shows. None if there are none.

    Each builder has a panel: `resnet20` and `plain20` share one.
    """
    panels, shown = {}, papers(groups)
    for group in groups:
        builder = models.REGISTRY[group.network].builder
        panels.setdefault(getattr(builder, "func", builder), []).append(group)  # `func`: of a functools.partial.
    panels = [panel for panel in panels.values() if any(group not in shown for group in panel)]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(COLUMN * columns, rows * (2.3 + 0.12 * max(map(len, panels)))))
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number, xlabel="epoch", ylabel="validation top-1 (%)")
        draw_epochs(axes, panel)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.25), fontsize=6, frameon=False)
    return figure


def object_size(rows: list[Row]) -> Figure | None:
    """The top-1 by the area of the object's box, with Wilson's 95% intervals. None without rows.

    Args:
      rows: The fifth of the images, its range of areas and its number of images, and then the top-1 of each network.
    """
    if not rows:
        return None
    _, area, images, *networks = rows[0]
    axes = axes_of("area of the object's box (% of the picture)", "validation top-1 (%)")
    for number, network in enumerate(networks):
        points = [
            (place, mean(row[network]), row[images]) for place, row in enumerate(rows) if row[network] is not None
        ]
        x, top_1, counts = (np.array(values) for values in zip(*points, strict=True))
        ends = 100 * np.array([wilson(share / 100, count) for share, count in zip(top_1, counts, strict=True)])
        error = np.abs(ends.T - top_1)
        axes.errorbar(x + 0.04 * number, top_1, error, label=network, capsize=2, elinewidth=0.6, **style_of(number))
    axes.set_xticks(range(len(rows)), [row[area].replace(" to ", "\N{EN DASH}") for row in rows], fontsize=7)
    axes.set_ylim(bottom=0)
    return legend(axes)


def smooth(values: np.ndarray) -> np.ndarray:
    """The exponential moving average with its start corrected, as in TensorBoard and Adam: (R,) to (R,)."""
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        averages.append(average / (1 - SMOOTHING**count))
    return np.array(averages)


def figure_7(groups: list[Group]) -> Figure:
    """The cross-entropy of the paper's networks' batches by step: each row of metrics.csv, thin, and smoothed."""
    axes = axes_of("step", "training cross-entropy")
    for number, group in enumerate(papers(groups)):
        style = {key: value for key, value in style_of(number).items() if key != "marker"}
        curves = []
        for run in group.shown:
            known = np.isfinite(run.training["cross_entropy"])  # NaN: all steps of the row were skipped.
            curves.append((run.training["step"][known], run.training["cross_entropy"][known]))
        if len(curves) == 1:
            axes.plot(*curves[0], color=style["color"], linewidth=0.4, alpha=0.5)
        draw(axes, [(steps, smooth(values)) for steps, values in curves], label=group.label, **style)
    return legend(axes)


def write(figure: Figure | None, name: str, out: pathlib.Path) -> None:
    """Writes a figure as NAME.png and as NAME.svg; removes both if there is none."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = out / f"{name}.{kind}"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            figure.savefig(path, metadata=metadata)


def contact_sheet(images: list[np.ndarray], titles: list[str], columns: int = 6) -> Figure:
    """Images side by side, each below its title."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.2 * columns, 1.5 * max(rows, 1)), layout="constrained")
    for number, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image)
        axes.set_title(title, fontsize=7)
        axes.axis("off")
    return figure


def confusion_figure(confusion: np.ndarray, wnids: list[str]) -> Figure:
    """The share of each class's images predicted as each class, by WordNet id, which puts related classes together.

    Args:
      confusion: (C, C) ints; see `reporting.mistakes.confusion_matrix`.
      wnids: The WordNet id of each class.
    """
    order = np.argsort(wnids)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(4.5, 3.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares[np.ix_(order, order)], cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="none")
    axes.set_xlabel("predicted class, by WordNet id")
    axes.set_ylabel("true class, by WordNet id")
    figure.colorbar(image, label="share of the true class's images")
    return figure
