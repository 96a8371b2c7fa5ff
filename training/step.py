"""The training step: the paper's loss, loss scaling, clipping and optimizer, on one batch."""

import math
import pathlib

import keras
import tensorflow as tf

import models
from models.layers import flatten_layers
from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training import schedule

AUXILIARY_WEIGHT = 0.3
SCALE_GROWTH_STEPS = 2000
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
    return tf.add_n([tf.nn.l2_loss(weight) for weight in model.trainable_weights if weight.name.endswith("kernel")])


class Trainer(tf.Module):
    """A network in training: the state that a step reads and writes, which a checkpoint holds.

    Build it in the scope of a `tf.distribute` strategy to train on all of the strategy's replicas together.

    The momentum is that of TensorFlow 1's `MomentumOptimizer` and of PyTorch's SGD, with the learning rate outside the
    accumulator: `a = m a + g`, then `w -= rate (g + m a)` (Nesterov) or `w -= rate a`. Keras' SGD has the rate inside.
    The two differ where the rate changes, most of all at the restart of a cycle.

    Where activations are float16, the loss is scaled as by Keras' `LossScaleOptimizer`: the scale starts at 2^15,
    doubles after 2,000 steps with finite gradients, and halves after a step without, which changes nothing else.

    Args:
      model: The network, built for training.
      mean_image: (64, 64, 3) float32, the mean of the training images.
      learning_rate: The rate at the start of each cosine cycle.
      cycle_steps: The length of a cycle in steps; need not be whole.
      momentum: Of SGD.
      nesterov: Whether the momentum is Nesterov's.
      weight_decay: The loss includes this times sum(w^2)/2 over the kernels.
      clip_norm: Gradients are clipped to this global norm.
      sync_batch_norm: Whether replicas share batch statistics. If not, each normalizes by its own, and the moving
        averages are the mean over the replicas.
      jit_compile: Whether XLA compiles the loss and its gradients. Not with `sync_batch_norm` on several replicas.

    Attributes:
      model: The network.
      accumulators: The momentum's accumulators, one for each trainable variable.
      loss_scale: The factor that keeps gradients within float16's range, float32; 1 unless activations are float16.
      finite_steps: The number of steps with finite gradients since the loss scale changed, int64.
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
        sync_batch_norm: bool = False,
        jit_compile: bool = False,
    ):
        super().__init__()
        self._strategy = tf.distribute.get_strategy()
        self._float16 = model.compute_dtype == "float16"
        self.model = model
        self.accumulators = [_variable(tf.zeros(v.shape, v.dtype)) for v in model.trainable_variables]
        self.loss_scale = _variable(2.0**15 if self._float16 else 1.0, tf.float32)
        self.finite_steps = _variable(0, tf.int64)
        self.step = _variable(0, tf.int64)
        self.skipped = _variable(0, tf.int64)
        self.totals = _variable(tf.zeros(6, tf.float64))
        self.diverged = _variable(0, tf.int64)
        self.not_finite = _variable(0, tf.int64)
        self._mean_crops = crops.every_crop(mean_image)
        self._learning_rate = learning_rate
        self._cycle_steps = cycle_steps
        self._momentum = momentum
        self._nesterov = nesterov
        self._weight_decay = weight_decay
        self._clip_norm = clip_norm
        self._average_statistics = self._strategy.num_replicas_in_sync > 1 and not sync_batch_norm
        self._statistics = [v.value for v in model.non_trainable_weights if v.name.startswith("moving_")]
        self._dropout_seeds = [v.value for v in model.non_trainable_variables if v.name == "seed_generator_state"]
        for layer in flatten_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = sync_batch_norm and self._strategy.num_replicas_in_sync > 1
        if jit_compile:
            self._loss_and_gradients = tf.function(self._loss_and_gradients, jit_compile=True)

    def learning_rate(self, step) -> tf.Tensor:
        """Returns the learning rate of a step, counted from 1; see `schedule.cosine_cycles`."""
        return schedule.cosine_cycles(step, self._learning_rate, self._cycle_steps)

    @tf.function
    def train_step(self, images: tf.Tensor, crop_index: tf.Tensor, labels: tf.Tensor) -> None:
        """Does one step of SGD.

        With several replicas, each argument holds one value per replica.

        Args:
          images: Crops, (N, 56, 56, 3) uint8.
          crop_index: Which crop each is, (N,) int64; see `tiny_imagenet/crops.py`.
          labels: (N,) int64.
        """
        self.step.assign_add(1)
        measured = self._strategy.run(self._replica_step, args=(images, crop_index, labels))
        measured = self._strategy.experimental_local_results(measured)[0]  # All replicas return the same.
        loss, norm = measured[0], measured[-1]
        skipped = tf.constant(False)
        if self._float16:
            skipped = ~tf.math.is_finite(norm)
            self._update_loss_scale(skipped)
        counted = tf.where(skipped, tf.zeros(5), tf.concat([measured, [1.0]], axis=0))
        self.totals.assign_add(tf.cast(tf.concat([counted, [1.0]], axis=0), tf.float64))
        diverged = (self.diverged == 0) & ~tf.reduce_all(tf.math.is_finite(counted))
        self.diverged.assign(tf.where(diverged, self.step, self.diverged))
        self.not_finite.assign((self.not_finite + 1) * tf.cast(~tf.math.is_finite(loss), tf.int64))
        self.skipped.assign_add(tf.cast(skipped, tf.int64))

    def _replica_step(self, images: tf.Tensor, crop_index: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Does one replica's part of a step. All replicas end with the same weights.

        Returns:
          (4,) float32: loss, cross-entropy, top-1 and the global norm of the gradients before they are clipped.
        """
        context = tf.distribute.get_replica_context()
        # A mask is a function of the seed and the step, like everything random here, and of the replica.
        for seed in self._dropout_seeds:
            replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
            number = tf.cast(self.step, seed.dtype) * replicas + tf.cast(replica, seed.dtype)
            seed.assign(tf.stack([seed[0], number]))
        statistics = [tf.identity(variable) for variable in self._statistics]
        inputs = crops.normalize(images, tf.gather(self._mean_crops, crop_index))
        measured, gradients = self._loss_and_gradients(inputs, labels)
        if context.num_replicas_in_sync > 1:
            measured, gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, (measured, gradients))
        gradients, norm = tf.clip_by_global_norm(gradients, self._clip_norm)
        self._update_weights(gradients, tf.math.is_finite(norm))
        self._update_statistics(statistics, tf.math.is_finite(norm))
        return tf.concat([measured, [norm]], axis=0)

    def _loss_and_gradients(self, inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns loss, cross-entropy and top-1, (3,) float32, and the gradients of the trainable variables."""
        with tf.GradientTape() as tape:
            logits, *auxiliary_logits = tf.nest.flatten(self.model(inputs, training=True))
            cross_entropy = _cross_entropy(labels, logits)
            loss = cross_entropy + self._weight_decay * l2_loss(self.model)
            for head in auxiliary_logits:
                loss += AUXILIARY_WEIGHT * _cross_entropy(labels, head)
            scaled_loss = loss * self.loss_scale if self._float16 else loss
        gradients = tape.gradient(scaled_loss, self.model.trainable_variables)
        if self._float16:
            gradients = [gradient / self.loss_scale for gradient in gradients]
        top_1 = tf.reduce_mean(tf.cast(tf.argmax(logits, -1) == labels, tf.float32))
        return tf.stack([loss, cross_entropy, top_1]), gradients

    def _update_weights(self, gradients: list[tf.Tensor], finite: tf.Tensor) -> None:
        """Applies the gradients, by TensorFlow's own kernel for SGD with momentum."""
        rate, momentum = self.learning_rate(self.step), tf.constant(self._momentum, tf.float32)
        if self._float16:  # With these values, the kernel changes nothing. A branch would make a GPU wait for the host.
            rate, momentum = tf.where(finite, rate, 0.0), tf.where(finite, momentum, 1.0)
            gradients = [tf.where(finite, gradient, 0.0) for gradient in gradients]
        for variable, accumulator, gradient in zip(
            self.model.trainable_variables, self.accumulators, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.value.handle,
                accum=accumulator.handle,
                lr=rate,
                grad=gradient,
                momentum=momentum,
                use_nesterov=self._nesterov,
            )

    def _update_statistics(self, before: list[tf.Tensor], finite: tf.Tensor) -> None:
        """Averages the replicas' moving statistics, and takes back those of a step that was skipped."""
        if not self._statistics:
            return
        after = [tf.identity(variable) for variable in self._statistics]
        if self._average_statistics:  # By one exchange for all of them.
            sizes = [math.prod(value.shape) for value in after]
            context = tf.distribute.get_replica_context()
            mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.concat(after, axis=0))
            after = tf.split(mean, sizes)
        if self._float16:
            after = [tf.where(finite, new, old) for new, old in zip(after, before, strict=True)]
        if self._average_statistics or self._float16:
            for variable, value in zip(self._statistics, after, strict=True):
                variable.assign(value)

    def _update_loss_scale(self, skipped: tf.Tensor) -> None:
        """Halves the loss scale after a step that was skipped, and doubles it after many that were not."""
        finite_steps = (self.finite_steps + 1) * tf.cast(~skipped, tf.int64)
        double = finite_steps == SCALE_GROWTH_STEPS
        factor = tf.where(skipped, 0.5, tf.where(double, 2.0, 1.0))
        self.loss_scale.assign(self.loss_scale * factor)
        self.finite_steps.assign(finite_steps * tf.cast(~double, tf.int64))

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


def create_trainer(config: dict, mean_image, cycle_steps: float, jit_compile: bool = False) -> Trainer:
    """Builds the network that a config.json names and its trainer, in the scope of the current strategy.

    Sets Keras' random seed and its dtype policy, which the network keeps.

    Args:
      config: The configuration.
      mean_image: (64, 64, 3) float32, the mean of the training images.
      cycle_steps: The length of a cycle of the learning rate in steps.
      jit_compile: Whether XLA compiles the loss and its gradients.
    """
    keras.utils.set_random_seed(config["seed"])
    keras.config.set_dtype_policy(config["precision"])
    options = {"dropout": config["dropout"]} if config["dropout"] else {}
    return Trainer(
        models.build(config["model"], training=True, **options),
        mean_image,
        learning_rate=config["learning_rate"],
        cycle_steps=cycle_steps,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        clip_norm=config["clip_norm"],
        sync_batch_norm=config["sync_batch_norm"],
        jit_compile=jit_compile,
    )


def _variable(value, dtype: tf.DType | None = None) -> tf.Variable:
    return tf.Variable(value, dtype=dtype, trainable=False)


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
