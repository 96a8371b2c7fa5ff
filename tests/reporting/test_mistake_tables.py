"""The tables of confused classes."""

import numpy as np
import pytest

from reporting import mistake_tables


def test_tables_of_pairs_and_classes():
    confusion, wnids, words = np.array([[5, 3, 0], [1, 6, 0], [2, 0, 4]]), ["n1", "n2", "n3"], ["cat", "dog", "cow"]
    pairs = [list(row.values()) for row in mistake_tables.pair_rows(confusion, wnids, words)]
    assert pairs == [["cat", "n1", "dog", "n2", 3, 1, 4], ["cat", "n1", "cow", "n3", 0, 2, 2]]
    classes = [list(row.values()) for row in mistake_tables.class_rows(confusion, wnids, words)]
    assert classes == [
        ["n2", "dog", 7, pytest.approx(600 / 7), "cat", 1],
        ["n3", "cow", 6, pytest.approx(400 / 6), "cat", 2],
        ["n1", "cat", 8, pytest.approx(500 / 8), "dog", 3],
    ]
