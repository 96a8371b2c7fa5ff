"""The paper's cyclical learning rate (section 4.2.2) and the steps at which a run's epochs and cycles end."""

import bisect
import dataclasses
import functools
import math

import tensorflow as tf

ROUNDING = 1e-9  # So that a cycle that ends at a whole step does, although its length is not exact in binary.


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a run, its epochs and its learning rate's cycles. Steps are counted from 1."""

    num_epochs: int
    data_size: int
    batch_size: int
    num_cycles: int

    @property
    def num_steps(self) -> int:
        """The number of whole batches in the run's passes over the data."""
        return self.num_epochs * self.data_size // self.batch_size

    @functools.cached_property
    def epoch_ends(self) -> list[int]:
        """The last whole step of each epoch."""
        return [epoch * self.data_size // self.batch_size for epoch in range(1, self.num_epochs + 1)]

    @property
    def cycle_steps(self) -> float:
        """The length C of a cycle, num_iter / num_cycles, in steps. It need not be whole: the paper's is 781.25."""
        return self.num_epochs * self.data_size / self.batch_size / self.num_cycles

    @functools.cached_property
    def cycle_ends(self) -> list[int]:
        """The last step of each cycle, after which the learning rate restarts."""
        ends = (math.ceil(cycle * self.cycle_steps - ROUNDING) for cycle in range(1, self.num_cycles + 1))
        return [min(end, self.num_steps) for end in ends]

    def epoch(self, step: int) -> int:
        """Returns the epoch of a step, from 1."""
        return 1 + bisect.bisect_left(self.epoch_ends, step)


def cosine_cycles(step: tf.Tensor, learning_rate: float, cycle_steps: float) -> tf.Tensor:
    """Returns the learning rate of a step: L/2 * (cos(pi * ((step - 1) mod C) / C) + 1).

    It is Keras' `CosineDecayRestarts` with `t_mul=1`, in float64.

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
