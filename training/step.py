"""The training step: the paper's loss, loss scaling, clipping and optimizer, on one batch."""

import math
import pathlib

import keras
import tensorflow as tf

from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training import schedule

AUXILIARY_WEIGHT = 0.3
# A loss scale that is too high overflows gradients; the loss itself is not scaled.
MAX_NOT_FINITE = 3  # Successive steps.
MAX_SKIPPED = 10  # Steps, if they are all steps since the last report.


def default_precision() -> str:
    """Returns the 16-bit policy that the hardware supports, or float32.

    That is mixed_float16 on a GPU (the paper's section 4.2.3), mixed_bfloat16 on a CPU with instructions for bfloat16,
    and float32 on any other.
    """
    if tf.config.list_physical_devices("GPU"):
        return "mixed_float16"
    return "mixed_bfloat16" if cpu_features() & {"avx512_bf16", "amx_bf16"} else "float32"


def cpu_features() -> set[str]:
    """Returns the CPU's feature flags as Linux names them; an empty set on other systems."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()


def l2_loss(model: keras.Model) -> tf.Tensor:
    """Returns sum(w^2) / 2 over the kernels, without biases and batch normalization's parameters."""
    return tf.add_n([tf.nn.l2_loss(weight) for weight in model.trainable_weights if weight.name == "kernel"])


class Trainer(tf.Module):
    """A network in training: the state that a step reads and writes, which a checkpoint holds.

    Build it in the scope of a `tf.distribute` strategy to train on all of the strategy's replicas together.

    Args:
      model: The network, built for training.
      mean_image: (64, 64, 3) float32, the mean of the training images.
      learning_rate: The rate at the start of each cosine cycle.
      cycle_steps: The length of a cycle in steps; need not be whole.
      momentum: Of SGD.
      nesterov: Whether the momentum is Nesterov's.
      weight_decay: The loss includes this times sum(w^2)/2 over the kernels.
      clip_norm: Gradients are clipped to this global norm.
      sync_batch_norm: Whether replicas share batch statistics.
      jit_compile: Whether XLA compiles the step. Only for a single replica.

    Attributes:
      model: The network.
      optimizer: SGD, wrapped in Keras' `LossScaleOptimizer` where activations are float16.
      step: The number of steps done, int64.
      skipped: The number of steps that changed nothing, as their gradients overflowed float16, int64.
      totals: (6,) float64, since the last `reset_means`: the sums of loss, cross-entropy, top-1 and global norm over
        the steps that were not skipped, the number of these steps, and the number of all steps.
      diverged: The first step, not skipped, with a loss or global norm that is not finite; 0 if there is none, int64.
      not_finite: The number of successive steps, up to the last, whose loss itself was not finite, int64.
    """

    def __init__(
        self,
        model: keras.Model,
        mean_image,
        *,
        learning_rate: float,
        cycle_steps: float,
        momentum: float,
        nesterov: bool = True,
        weight_decay: float,
        clip_norm: float,
        sync_batch_norm: bool = True,
        jit_compile: bool = False,
    ):
        super().__init__()
        self._strategy = tf.distribute.get_strategy()
        self.model = model
        self.optimizer = keras.optimizers.SGD(learning_rate, momentum=float(momentum), nesterov=nesterov)
        if model.compute_dtype == "float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(model.trainable_variables)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.totals = tf.Variable(tf.zeros(6, tf.float64), trainable=False)
        self.diverged = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.not_finite = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._mean_crops = crops.ten_crops(mean_image)
        self._learning_rate = learning_rate
        self._cycle_steps = cycle_steps
        self._weight_decay = weight_decay
        self._clip_norm = clip_norm
        self._sync_batch_norm = sync_batch_norm
        self._statistics = [variable.value for variable in model.non_trainable_weights]  # Batch normalization's.
        random = [layer for layer in model.layers if getattr(layer, "seed_generator", None) is not None]
        self._dropout_seeds = [layer.seed_generator.state for layer in random]
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = sync_batch_norm and self._strategy.num_replicas_in_sync > 1
        if jit_compile:
            self._replica_step = tf.function(self._replica_step, jit_compile=True)

    @property
    def loss_scale(self) -> tf.Tensor:
        """The factor that keeps the gradients within float16's range; 1 unless activations are float16."""
        return tf.convert_to_tensor(self.optimizer.scale_loss(1.0))

    def learning_rate(self, step) -> tf.Tensor:
        """Returns the learning rate of a step, counted from 1; see `schedule.cosine_cycles`."""
        return schedule.cosine_cycles(step, self._learning_rate, self._cycle_steps)

    @tf.function
    def train_step(self, images: tf.Tensor, crop_index: tf.Tensor, labels: tf.Tensor) -> None:
        """Does one step of SGD.

        With several replicas, each argument holds one value per replica.

        Args:
          images: Crops, (N, 56, 56, 3) uint8.
          crop_index: Which of the ten crops each is, (N,) int64.
          labels: (N,) int64.
        """
        self.step.assign_add(1)
        self.optimizer.learning_rate.assign(self.learning_rate(self.step))
        measured = self._strategy.run(self._replica_step, args=(images, crop_index, labels))
        measured, finite_loss = self._strategy.experimental_local_results(measured)[0]
        self.totals.assign_add(tf.cast(tf.concat([measured, [1.0]], axis=0), tf.float64))
        diverged = (self.diverged == 0) & ~tf.reduce_all(tf.math.is_finite(measured))
        self.diverged.assign(tf.where(diverged, self.step, self.diverged))
        self.not_finite.assign((self.not_finite + 1) * tf.cast(~finite_loss, tf.int64))
        self.skipped.assign_add(1 - tf.cast(measured[-1], tf.int64))

    def _replica_step(self, images: tf.Tensor, crop_index: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Does one replica's part of a step. All replicas end with the same weights.

        Returns:
          (5,) float32: loss, cross-entropy, top-1, global norm and 1, or zeros if the step was skipped; and whether the
          loss was finite.
        """
        context = tf.distribute.get_replica_context()
        replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
        # A mask is a function of the seed and the step, like everything random here, and of the replica.
        for seed in self._dropout_seeds:
            number = tf.cast(self.step, seed.dtype) * replicas + tf.cast(replica, seed.dtype)
            seed.assign(tf.stack([seed[0], number]))
        statistics = [tf.identity(variable) for variable in self._statistics]
        inputs = crops.normalize(images, tf.gather(self._mean_crops, crop_index))
        scale = self.loss_scale
        with tf.GradientTape() as tape:
            logits, *auxiliary_logits = tf.nest.flatten(self.model(inputs, training=True))
            cross_entropy = _cross_entropy(labels, logits)
            loss = cross_entropy + self._weight_decay * l2_loss(self.model)
            for head in auxiliary_logits:
                loss += AUXILIARY_WEIGHT * _cross_entropy(labels, head)
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.model.trainable_variables
        gradients = [gradient / scale for gradient in tape.gradient(scaled_loss, variables)]
        top_1 = tf.reduce_mean(tf.cast(tf.argmax(logits, -1) == labels, tf.float32))
        measured = tf.stack([loss, cross_entropy, top_1])
        if replicas > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
            measured = context.all_reduce(tf.distribute.ReduceOp.MEAN, measured)
        gradients, norm = tf.clip_by_global_norm(gradients, self._clip_norm)
        finite_loss = tf.math.is_finite(measured[0])
        measured = tf.concat([measured, [norm, 1.0]], axis=0)

        # Keras' global_clipnorm would clip each replica's gradients before it sums them, and would not return the norm.
        # LossScaleOptimizer divides by the scale again, and skips a step whose gradients are not finite. Keras'
        # optimizers sum the replicas' gradients again.
        self.optimizer.apply([gradient * (scale / replicas) for gradient in gradients], variables)

        if replicas > 1 and self._statistics and not self._sync_batch_norm:
            means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.identity(v) for v in self._statistics])
            for variable, mean in zip(self._statistics, means, strict=True):
                variable.assign(mean)
        if self.model.compute_dtype == "float16":
            finite = tf.math.is_finite(norm)
            measured = tf.where(finite, measured, 0.0)
            for variable, value in zip(self._statistics, statistics, strict=True):
                variable.assign(tf.where(finite, variable, value))
        return measured, finite_loss

    def means(self) -> dict[str, float]:
        """Returns the mean loss, cross-entropy, top-1 and global norm of the steps since the last `reset_means`.

        Skipped steps do not count. If all steps were skipped, the means are NaN.

        Raises:
          UserError: if training has diverged.
        """
        self.check()
        *sums, count, _ = self.totals.numpy().tolist()
        names = ("loss", "cross_entropy", "top_1", "global_norm")
        return {name: total / count if count else math.nan for name, total in zip(names, sums, strict=True)}

    def check(self) -> None:
        """Raises UserError if training has diverged."""
        remedy = "start again with --overwrite or another --run_dir, and a lower --learning_rate or --clip_norm"
        if self.diverged > 0:
            raise UserError(
                f"the loss or its gradients became NaN or infinite at step {self.diverged.numpy()}; {remedy}"
            )
        *_, count, steps = self.totals.numpy().tolist()
        if self.not_finite >= MAX_NOT_FINITE:
            first = self.step.numpy() - self.not_finite.numpy() + 1
            raise UserError(f"the loss became NaN or infinite at step {first}; {remedy}, or --precision=float32")
        if self.loss_scale < 1 or (steps >= MAX_SKIPPED and not count):
            skipped = f"{self.skipped.numpy()} of {self.step.numpy()} steps were skipped"
            raise UserError(f"the gradients overflow float16, {skipped}; {remedy}, or --precision=float32")

    def reset_means(self) -> None:
        self.totals.assign(tf.zeros_like(self.totals))


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
