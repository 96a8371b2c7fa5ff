"""The paper's cyclical learning rate (section 4.2.2) and the steps at which its cycles and epochs end."""

import math

import tensorflow as tf

ROUNDING = 1e-9  # So that a cycle that ends at a whole step does, although its length is not exact in binary.


def num_steps(num_epochs: int, data_size: int, batch_size: int) -> int:
    """Returns the number of whole batches in num_epochs passes over the data."""
    return num_epochs * data_size // batch_size


def epoch_ends(num_epochs: int, data_size: int, batch_size: int) -> list[int]:
    """Returns the last whole step of each epoch. Steps are counted from 1."""
    return [num_steps(epoch, data_size, batch_size) for epoch in range(1, num_epochs + 1)]


def cycle_steps(num_epochs: int, data_size: int, batch_size: int, num_cycles: int) -> float:
    """Returns the length C of a cycle in steps, num_iter / num_cycles. It need not be whole: the paper's is 781.25."""
    return num_epochs * data_size / batch_size / num_cycles


def cycle_ends(num_epochs: int, data_size: int, batch_size: int, num_cycles: int) -> list[int]:
    """Returns the last step of each cycle, after which the learning rate restarts. Steps are counted from 1."""
    length = cycle_steps(num_epochs, data_size, batch_size, num_cycles)
    last = num_steps(num_epochs, data_size, batch_size)
    return [min(math.ceil(cycle * length - ROUNDING), last) for cycle in range(1, num_cycles + 1)]


def cosine_cycles(step: tf.Tensor, learning_rate: float, cycle_steps: float) -> tf.Tensor:
    """Returns the learning rate of a step: L/2 * (cos(pi * ((step - 1) mod C) / C) + 1).

    It is Keras' `CosineDecayRestarts` with `t_mul=1`, in float64. `Trainer` also counts steps that loss scaling skips,
    which a schedule of Keras' optimizer would not.

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
