import itertools
import math
from fractions import Fraction

import keras
import numpy as np
import pytest

from training import schedule

PAPER = schedule.Schedule(num_epochs=10, data_size=100_000, batch_size=256, num_cycles=5)


def test_cycle_of_the_paper():
    """C = num_iter / num_cycles, with num_iter = num_epochs * data_size / batch_size, is not a whole number."""
    assert PAPER.cycle_steps == 781.25


def test_remarks_of_the_paper():
    """L at the start of a cycle, L/2 midway, near 0 at its end."""
    start, midway, end = schedule.cosine_cycles([1, 1 + 100, 1 + 199], 0.1, 200.0).numpy()
    assert start == np.float32(0.1)
    assert midway == pytest.approx(0.05)
    assert 0 < end < 1e-5


def test_starts_again_with_each_cycle():
    steps = np.arange(1, 3907)
    rates = schedule.cosine_cycles(steps, 0.1, 781.25).numpy()
    restarts = steps[1:][np.diff(rates) > 0]
    np.testing.assert_array_equal(restarts, [783, 1564, 2345, 3126])
    np.testing.assert_array_equal(PAPER.cycle_ends, [*(restarts - 1), 3906])


def test_equals_keras_cosine_decay_restarts():
    oracle = keras.optimizers.schedules.CosineDecayRestarts(0.1, first_decay_steps=200, t_mul=1.0, m_mul=1.0)
    steps = np.arange(1, 1001)
    expected = [float(oracle(step - 1)) for step in steps]
    np.testing.assert_allclose(schedule.cosine_cycles(steps, 0.1, 200.0), expected, rtol=1e-4, atol=1e-7)


def test_epochs_end_at_whole_steps():
    ends = PAPER.epoch_ends
    assert ends == [390, 781, 1171, 1562, 1953, 2343, 2734, 3125, 3515, 3906]
    assert PAPER.num_steps == ends[-1]
    assert [PAPER.epoch(step) for step in (1, 390, 391, 781, 3906)] == [1, 1, 2, 2, 10]


def test_rounding_does_not_move_a_restart():
    """Against fractions, for cycles whose length is no binary fraction."""
    for num_epochs, data_size, batch_size, num_cycles in itertools.product(
        (1, 3, 10), (4000, 100_000), (50, 96), (3, 6, 7)
    ):
        run = schedule.Schedule(num_epochs, data_size, batch_size, num_cycles)
        exact = Fraction(num_epochs * data_size, batch_size * num_cycles)
        ends = [min(math.ceil(cycle * exact), run.num_steps) for cycle in range(1, num_cycles + 1)]
        assert run.cycle_ends == ends
        around = np.array([step for end in ends for step in (end - 1, end, end + 1)])
        expected = [0.05 * (math.cos(math.pi * float(Fraction(int(step) - 1) % exact / exact)) + 1) for step in around]
        np.testing.assert_allclose(schedule.cosine_cycles(around, 0.1, run.cycle_steps), expected, atol=1e-6)
