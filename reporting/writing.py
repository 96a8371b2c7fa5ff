"""A table: what its cells hold, and how it is written and printed."""

import csv
import math
import pathlib
import statistics
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)
HEADER_WIDTH = 10  # Characters; a longer header takes several lines on the terminal.


class Spread(NamedTuple):
    """The mean over seeds and their standard deviation."""

    mean: float
    deviation: float


Value = float | int | str | Spread | None
Row = dict[str, Value]


class Table(NamedTuple):
    """A table, its rows with the same keys, and a note to print below it."""

    name: str
    title: str
    rows: list[Row]
    note: str = ""


def over_seeds(values: Iterable[float | None]) -> float | Spread | None:
    """The one value, or the mean and standard deviation (n - 1) of several; None if any is missing."""
    values = list(values)
    if not values or None in values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values)) if len(values) > 1 else values[0]


def mean(value: float | Spread | None) -> float | None:
    return value.mean if isinstance(value, Spread) else value


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a share that was measured on a number of images."""
    squared = NORMAL_95**2 / images
    centre = share + squared / 2
    half = NORMAL_95 * math.sqrt(share * (1 - share) / images + squared / images / 4)
    return (centre - half) / (1 + squared), (centre + half) / (1 + squared)


def interval(percent: float | Spread | None, images: int) -> str | None:
    """Wilson's 95% score interval of a percentage, as text; of the mean over several seeds."""
    if percent is None:
        return None
    return "{:.2f} to {:.2f}".format(*(100 * end for end in wilson(mean(percent) / 100, images)))


def cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, Spread):
        return f"{value.mean:.2f} ± {value.deviation:.2f}"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def plain(rows: list[Row]) -> list[dict[str, Value]]:
    """The rows of a CSV file: a column with standard deviations is followed by one of theirs."""

    def number(value):
        return f"{value:.6g}" if isinstance(value, float) else value

    spread = {key for row in rows for key, value in row.items() if isinstance(value, Spread)}
    lines = []
    for row in rows:
        line = {}
        for key, value in row.items():
            line[key] = number(mean(value))
            if key in spread:
                line[f"{key}, s.d."] = number(value.deviation) if isinstance(value, Spread) else None
        lines.append(line)
    return lines


def write(table: Table, out: pathlib.Path, listed: int | None = None) -> None:
    """Writes a table as NAME.csv and, its first `listed` rows, as NAME.md; removes both if it has no rows."""
    if not table.rows:
        for suffix in ("csv", "md"):
            (out / f"{table.name}.{suffix}").unlink(missing_ok=True)
        return
    lines = plain(table.rows)
    with (out / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    header = list(table.rows[0])
    rows = [header, ["---"] * len(header), *(map(cell, row.values()) for row in table.rows[:listed])]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    note = f"\n{table.note}\n" if table.note else ""
    (out / f"{table.name}.md").write_text(text + note, encoding="utf-8")


def terminal(table: Table, listed: int | None = None) -> str:
    """The first `listed` rows as aligned text, without empty columns; notes on rows are below."""
    rows = table.rows[:listed]
    columns = []
    for key in rows[0]:
        cells = [cell(row[key]) for row in rows]
        if key != "note" and any(cells):
            left = any(isinstance(row[key], str) and row[key] for row in rows)
            columns.append((textwrap.wrap(key, max(HEADER_WIDTH, *map(len, cells))), cells, left))
    height = max(len(header) for header, _, _ in columns)
    padded = []
    for header, cells, left in columns:
        texts = [""] * (height - len(header)) + header + cells
        width = max(map(len, texts))
        padded.append([text.ljust(width) if left else text.rjust(width) for text in texts])
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    rule = "-" * max(map(len, lines))
    notes = [f"{next(iter(row.values()))}: {row['note']}" for row in rows if row.get("note")]
    notes = [*dict.fromkeys(notes), *textwrap.wrap(table.note, 100)]
    return "\n".join([table.title, rule, *lines[:height], rule, *lines[height:], rule, *notes])
