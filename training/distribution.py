"""Training on several devices, by TensorFlow's own strategies."""

import contextlib
import os
import pathlib
import platform
import re
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tiny_imagenet.errors import UserError


def get_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the training strategy. Several workers must call it before they use TensorFlow for anything else.

    Args:
      name: "mirrored" for this machine's GPUs, or its logical CPUs if it has none; "multi_worker" for the machines that
        the environment variable TF_CONFIG names; "none" for one device; "auto" for as many as there are.

    Raises:
      UserError: if TF_CONFIG is damaged, or names no cluster for "multi_worker", or its workers cannot be started.
    """
    gpus = tf.config.list_physical_devices("GPU")
    try:
        cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec().as_dict()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"TF_CONFIG names no cluster ({error}): see docs/distributed.md") from error
    workers = len(cluster.get("chief", [])) + len(cluster.get("worker", []))
    if name == "auto":
        name = "multi_worker" if workers > 1 else "mirrored" if len(gpus) > 1 else "none"
    if name == "multi_worker":
        if not workers:
            raise UserError("--distribute=multi_worker needs the variable TF_CONFIG: see docs/distributed.md")
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cannot connect the workers that TF_CONFIG names ({reason}): check its addresses, task and indices"
            ) from error
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether training is spread over several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


@contextlib.contextmanager
def report_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Raises UserError where TensorFlow's error in the `with` block means that another worker is gone."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if not has_several_workers(strategy):
            raise
        reason = error.message[:200]
        raise UserError(
            f"another worker was lost: start all workers again to resume from the last checkpoint ({reason})"
        ) from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process writes the run directory. With several workers, only the first does."""
    if not has_several_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def any_worker(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Returns a function that is True on all workers if the flag is set on any. All workers must call it together."""

    @tf.function
    def count(flag):
        def of_replica(flag):
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(flag))

        return strategy.experimental_local_results(strategy.run(of_replica, args=(flag,)))[0]

    return lambda flag: bool(count(tf.constant(float(bool(flag)))) > 0)


def on_device(batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Prefetches batches to the GPU, so that they are there when a step starts, as strategies of several devices do."""
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus or not isinstance(batches, tf.data.Dataset):
        return batches
    return batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name, buffer_size=2))


def on_every_device(
    function: Callable[[tf.Tensor], tf.Tensor], strategy: tf.distribute.Strategy
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Spreads a function of a batch, whose result has the batch's first axis, over the devices of one machine."""
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        return function
    devices = strategy.num_replicas_in_sync

    @tf.function(reduce_retracing=True)
    def on_each(batches):
        return strategy.run(lambda batch: function(batch), args=(batches,))

    def spread(batch):
        if len(batch) < devices:
            return function(batch)
        parts = np.array_split(batch, devices)
        batches = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )
        return tf.concat(strategy.experimental_local_results(on_each(batches)), axis=0)

    return spread


def cpu_cores() -> int:
    """Returns the number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """Returns a readable name of the devices: "2 x NVIDIA H100 80GB HBM3", or a CPU's name and cores."""
    replicas = strategy.num_replicas_in_sync
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        return f"{replicas} x {name}" if replicas > 1 else name
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {cpu_cores()} cores"
