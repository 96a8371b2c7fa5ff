"""The paper's cyclical learning rate (section 4.2.2) and the steps at which its cycles and epochs end."""

import math

import tensorflow as tf

ROUNDING = 1e-9  # A cycle that ends at a whole step does so though its length is no binary fraction.


def num_steps(num_epochs: int, data_size: int, batch_size: int) -> int:
    """The whole batches in num_epochs passes over the data."""
    return num_epochs * data_size // batch_size


def epoch_ends(num_epochs: int, data_size: int, batch_size: int) -> list[int]:
    """The last whole step of each epoch, steps counted from 1."""
    return [num_steps(epoch, data_size, batch_size) for epoch in range(1, num_epochs + 1)]


def cycle_steps(num_epochs: int, data_size: int, batch_size: int, num_cycles: int) -> float:
    """The length C of a cycle in steps: num_iter / num_cycles, which need not be whole (781.25 in the paper)."""
    return num_epochs * data_size / batch_size / num_cycles


def cycle_ends(num_epochs: int, data_size: int, batch_size: int, num_cycles: int) -> list[int]:
    """The last step of each cycle, steps counted from 1: after it the learning rate starts again."""
    length = cycle_steps(num_epochs, data_size, batch_size, num_cycles)
    last = num_steps(num_epochs, data_size, batch_size)
    return [min(math.ceil(cycle * length - ROUNDING), last) for cycle in range(1, num_cycles + 1)]


def cosine_cycles(step: tf.Tensor, learning_rate: float, cycle_steps: float) -> tf.Tensor:
    """The learning rate of a step: L/2 * (cos(pi * ((step - 1) mod C) / C) + 1).

    Args:
      step: The step or steps, from 1.
      learning_rate: L, the rate at the start of each cycle.
      cycle_steps: C, the length of a cycle in steps.

    Returns:
      The rate, float32: L at a cycle's start, L/2 midway, near 0 at its end.
    """
    cycles = (tf.cast(step, tf.float64) - 1) / cycle_steps
    done = cycles - tf.floor(cycles + ROUNDING)
    return tf.cast(learning_rate / 2 * (tf.cos(math.pi * done) + 1), tf.float32)
