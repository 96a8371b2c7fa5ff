"""Batch normalisation by TensorFlow's fused kernel, which Keras 3 does not use."""

import keras
import tensorflow as tf


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer of (N, H, W, C) activations, as one kernel forward and one backward.

    Keras' own is a dozen elementwise operations in float32, whatever the activations are. This one reads and writes
    them in their own dtype and computes in float32 inside; a ReLU that follows becomes part of it. The moving variance
    is of the unbiased batch variance, as in Keras 2 and PyTorch. Statistics over several replicas are left to Keras.
    """

    def call(self, inputs, training=None, mask=None):
        training = bool(training and self.trainable)
        if len(inputs.shape) != 4 or training and self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        moving_mean, moving_variance = self.moving_mean.value, self.moving_variance.value
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[] if training else moving_mean,
            variance=[] if training else moving_variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            for moving, value in ((moving_mean, mean), (moving_variance, variance)):
                moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs
