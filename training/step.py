"""The training step: the paper's loss, loss scaling, clipping and optimizer, on one batch."""

import math

import keras
import tensorflow as tf

from tiny_imagenet import crops
from tiny_imagenet.errors import UserError
from training import schedule

AUXILIARY_WEIGHT = 0.3
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


def resolve_precision(precision: str) -> str:
    """What "auto" stands for: mixed_float16 where there is a GPU; float32 elsewhere, where float16 is emulated."""
    if precision != "auto":
        return precision
    return "mixed_float16" if tf.config.list_physical_devices("GPU") else "float32"


def l2_loss(model: keras.Model) -> tf.Tensor:
    """sum(w^2) / 2 over the kernels: neither biases nor batch normalisation's parameters."""
    return tf.add_n([tf.nn.l2_loss(weight) for weight in model.trainable_weights if weight.name == "kernel"])


class Trainer(tf.Module):
    """A network in training: everything that a step reads and writes, and so what a checkpoint holds.

    Attributes:
      model: The network, with its auxiliary heads.
      optimizer: SGD with momentum, under Keras' LossScaleOptimizer where activations are float16.
      step: Steps done, int64.
      skipped: Of these, the ones whose gradients were not finite in float16 and so changed nothing, int64.
      totals: Sums of loss, cross-entropy, top-1 and global norm since the last `reset_means`, and of how many steps.
      diverged: The first step whose loss or global norm was not finite, but for the skipped; 0 if none, int64.

    Built in the scope of a tf.distribute strategy, a step is of all its replicas together.
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
    ):
        super().__init__()
        self._strategy = tf.distribute.get_strategy()
        self.model = model
        self.sgd = keras.optimizers.SGD(learning_rate, momentum=momentum, nesterov=nesterov)
        self.optimizer = self.sgd
        if model.compute_dtype == "float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.sgd)
        self.optimizer.build(model.trainable_variables)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.totals = tf.Variable(tf.zeros(5, tf.float64), trainable=False)
        self.diverged = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._mean_image = mean_image
        self._learning_rate = learning_rate
        self._cycle_steps = cycle_steps
        self._weight_decay = weight_decay
        self._clip_norm = clip_norm
        self._sync_batch_norm = sync_batch_norm
        self._statistics = [variable.value for variable in model.non_trainable_weights]  # Batch normalisation's.
        dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
        self._dropout_seeds = [layer.seed_generator.state for layer in dropouts]
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = sync_batch_norm and self._strategy.num_replicas_in_sync > 1

    @property
    def loss_scale(self) -> tf.Tensor:
        """What the loss is multiplied by before its gradient is taken; 1 unless activations are float16."""
        if self.optimizer is self.sgd:
            return tf.constant(1.0)
        return tf.convert_to_tensor(self.optimizer.dynamic_scale)

    def learning_rate(self, step) -> tf.Tensor:
        """The learning rate of a step, counted from 1; see `schedule.cosine_cycles`."""
        return schedule.cosine_cycles(step, self._learning_rate, self._cycle_steps)

    @tf.function
    def train_step(self, images: tf.Tensor, which: tf.Tensor, labels: tf.Tensor) -> None:
        """One step of SGD.

        Args:
          images: Crops, (N, 56, 56, 3) uint8; of several replicas, to each its part, as for `which` and `labels`.
          which: (N,) int32, the one of the ten crops that each is.
          labels: (N,) int64.
        """
        self.step.assign_add(1)
        self.sgd.learning_rate.assign(self.learning_rate(self.step))
        measured = self._strategy.run(self._replica_step, args=(images, which, labels))
        measured = self._strategy.experimental_local_results(measured)[0]
        self.totals.assign_add(tf.cast(measured, tf.float64))
        diverged = (self.diverged == 0) & ~tf.reduce_all(tf.math.is_finite(measured))
        self.diverged.assign(tf.where(diverged, self.step, self.diverged))
        if self.optimizer is not self.sgd:
            self.skipped.assign_add(1 - tf.cast(measured[-1], tf.int64))

    def _replica_step(self, images: tf.Tensor, which: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """A replica's part of a step: the same weights at the end on all. Returns what `totals` adds up, (5,)."""
        context = tf.distribute.get_replica_context()
        replicas, replica = context.num_replicas_in_sync, context.replica_id_in_sync_group
        # A mask is a function of the seed and the step, like everything random here, and of the replica.
        for seed in self._dropout_seeds:
            number = tf.cast(self.step, seed.dtype) * replicas + tf.cast(replica, seed.dtype)
            seed.assign(tf.stack([seed[0], number]))
        statistics = [tf.identity(variable) for variable in self._statistics]
        inputs = crops.normalise(images, which, self._mean_image)
        scale = self.loss_scale
        with tf.GradientTape() as tape:
            logits, *auxiliary_logits = tf.nest.flatten(self.model(inputs, training=True))
            cross_entropy = _cross_entropy(labels, logits)
            loss = cross_entropy + self._weight_decay * l2_loss(self.model)
            for head in auxiliary_logits:
                loss += AUXILIARY_WEIGHT * _cross_entropy(labels, head)
            scaled_loss = scale * loss
        variables = self.model.trainable_variables
        gradients = [gradient / scale for gradient in tape.gradient(scaled_loss, variables)]
        top_1 = tf.reduce_mean(tf.cast(tf.argmax(logits, -1) == labels, tf.float32))
        measured = tf.stack([loss, cross_entropy, top_1])
        if replicas > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
            measured = context.all_reduce(tf.distribute.ReduceOp.MEAN, measured)
        gradients, norm = tf.clip_by_global_norm(gradients, self._clip_norm)
        measured = tf.concat([measured, [norm, 1.0]], axis=0)

        # LossScaleOptimizer divides by the scale once more, and leaves out a step whose gradients are not finite; and
        # Keras' optimizers add the replicas' gradients up once more.
        self.optimizer.apply([gradient * (scale / replicas) for gradient in gradients], variables)

        if replicas > 1 and self._statistics and not self._sync_batch_norm:
            means = context.all_reduce(tf.distribute.ReduceOp.MEAN, [tf.identity(v) for v in self._statistics])
            for variable, mean in zip(self._statistics, means, strict=True):
                variable.assign(mean)
        if self.optimizer is not self.sgd:
            finite = tf.math.is_finite(norm)
            measured = tf.where(finite, measured, 0.0)
            for variable, value in zip(self._statistics, statistics, strict=True):
                variable.assign(tf.where(finite, variable, value))
        return measured

    def means(self) -> dict[str, float]:
        """The mean loss, cross-entropy, top-1 and global norm of the steps since the last `reset_means`.

        Raises:
          UserError: if training has diverged.
        """
        remedy = "the last checkpoint is kept: in another --run_dir, try a lower --learning_rate or --clip_norm"
        if self.diverged > 0:
            raise UserError(f"the loss became NaN at step {self.diverged.numpy()}; {remedy}")
        if self.loss_scale < 1:
            steps = f"{self.skipped.numpy()} of {self.step.numpy()} steps were skipped"
            raise UserError(f"the gradients overflow float16 at any loss scale, {steps}; {remedy}, or float32")
        *sums, count = self.totals.numpy().tolist()
        names = ("loss", "cross_entropy", "top_1", "global_norm")
        return {name: total / count if count else math.nan for name, total in zip(names, sums, strict=True)}

    def reset_means(self) -> None:
        self.totals.assign(tf.zeros_like(self.totals))


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
