"""How tables are printed, and their intervals."""

import pytest

from reporting import writing


@pytest.mark.parametrize("share, images", [(0.25, 10000), (0.5, 7), (0.99, 50)])
def test_wilsons_interval(share, images):
    """Its ends are the shares from which the measured one is 1.96 of their own standard errors away."""
    for end in writing.wilson(share, images):
        assert abs(share - end) == pytest.approx(1.959964 * (end * (1 - end) / images) ** 0.5, rel=1e-5)
    assert writing.wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)


def test_terminal_aligns_columns():
    keys = ("run", "top-1", "empty", "note")
    rows = [dict(zip(keys, row, strict=True)) for row in (("a", 9.5, None, "late"), ("bc", 10.25, None, ""))]
    lines = writing.terminal(writing.Table("t", "Title", [*rows, rows[0]], "Below.")).splitlines()
    assert lines[0] == "Title" and lines[2] == "run  top-1"
    assert lines[4:7] == ["a     9.50", "bc   10.25", "a     9.50"]
    assert lines[8:] == ["a: late", "Below."]
    assert len(writing.terminal(writing.Table("t", "Title", rows), 1).splitlines()) == 7
