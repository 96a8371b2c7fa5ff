"""Shared layers: a convolution, batch normalization with TensorFlow's fused kernel, and the two in sequence."""

from collections.abc import Iterator

import keras
import tensorflow as tf
from keras import layers

# oneDNN's bfloat16 kernel takes 8 to 40 times as long if the number of channels is no multiple of this.
BFLOAT16_CHANNELS = 16
# Its bfloat16 gradient of a kernel takes twice as long as it should on feature maps so narrow, or narrower.
NARROW = 7
SIDE_BY_SIDE = 4


def bfloat16_on_cpu(layer: keras.Layer) -> bool:
    """Returns whether oneDNN computes a layer in bfloat16."""
    return layer.compute_dtype == "bfloat16" and not tf.config.list_logical_devices("GPU")


@keras.saving.register_keras_serializable("tiny_imagenet")
class Conv2D(layers.Conv2D):
    """Keras' convolution, with a faster gradient of its kernel in bfloat16 on a CPU.

    The kernel's gradient is the sum of the gradients of the single images. For narrow feature maps, it is computed on
    four images placed side by side, with zeros between them. The arguments are those of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs, kernel):
        batch, _, width, _ = inputs.shape
        if (
            not bfloat16_on_cpu(self)
            or not width
            or width > NARROW
            or not batch
            or batch % SIDE_BY_SIDE
            or (self.padding, self.strides, self.dilation_rate, self.groups) != ("same", (1, 1), (1, 1), 1)
        ):
            return super().convolution_op(inputs, kernel)
        return narrow_convolution(inputs, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def narrow_convolution(inputs: tf.Tensor, kernel: tf.Tensor):
    """`tf.nn.conv2d(inputs, kernel, 1, "SAME")`, for batches of a multiple of four."""
    options = dict(strides=[1, 1, 1, 1], padding="SAME")

    def side_by_side(images):
        batch, height, width, channels = images.shape
        gap = kernel.shape[1] // 2
        images = tf.pad(images, [[0, 0], [0, 0], [0, gap], [0, 0]])
        images = tf.reshape(images, [batch // SIDE_BY_SIDE, SIDE_BY_SIDE, height, width + gap, channels])
        images = tf.transpose(images, [0, 2, 1, 3, 4])
        return tf.reshape(images, [batch // SIDE_BY_SIDE, height, SIDE_BY_SIDE * (width + gap), channels])

    def gradients(upstream):
        of_inputs = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=inputs.shape, filter=kernel, out_backprop=upstream, **options
        )
        of_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=side_by_side(inputs), filter_sizes=kernel.shape, out_backprop=side_by_side(upstream), **options
        )
        return of_inputs, of_kernel

    return tf.raw_ops.Conv2D(input=inputs, filter=kernel, **options), gradients


@keras.saving.register_keras_serializable("tiny_imagenet")
class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalization, computed by one fused kernel forward and one backward.

    Keras 3 computes it by a dozen elementwise operations in float32, with a cast before and after. `FusedBatchNormV3`
    reads and writes 16-bit activations as they are, and computes in float32 inside. On a CPU,
    Grappler fuses a ReLU that follows. There, bfloat16 channels are padded to a multiple of 16, for speed.

    The moving variance averages the unbiased batch variance, as in Keras 2 and PyTorch.

    What the kernel does not support falls back to Keras' own computation, whose moving variance averages the biased
    batch variance: inputs that are not (N, H, W, C) with `axis=-1`, float64, masks, batch renormalization, statistics
    that are synchronized over replicas, and layers without `center` or `scale`.

    Args:
      momentum: Momentum of the moving averages. The default is that of the paper's reference [11].
      **kwargs: As for `keras.layers.BatchNormalization`.
    """

    def __init__(self, momentum: float = 0.9, **kwargs):
        super().__init__(momentum=momentum, **kwargs)

    def call(self, inputs, training=None, mask=None):
        training = bool(training and self.trainable)
        if (
            len(inputs.shape) != 4
            or self.axis not in (-1, 3)
            or not (self.center and self.scale)
            or mask is not None
            or (training and self.synchronized)
            or getattr(self, "renorm", False)
            or self.compute_dtype == "float64"
        ):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        extra = -channels % BFLOAT16_CHANNELS if bfloat16_on_cpu(self) else 0

        def pad(tensor):
            return tf.pad(tensor, [[0, 0]] * (len(tensor.shape) - 1) + [[0, extra]]) if extra else tensor

        moving_mean, moving_variance = self.moving_mean.value, self.moving_variance.value
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=pad(inputs),
            scale=pad(self.gamma.value),
            offset=pad(self.beta.value),
            mean=[] if training else pad(moving_mean),
            variance=[] if training else pad(moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            for moving, value in ((moving_mean, mean), (moving_variance, variance)):
                moving.assign(moving * self.momentum + value[:channels] * (1 - self.momentum))
        return tf.slice(outputs, [0] * 4, [-1, -1, -1, channels]) if extra else outputs


def conv_bn(x: keras.KerasTensor, filters: int, kernel_size: int, strides: int = 1, *, name: str) -> keras.KerasTensor:
    """A convolution with "same" padding and no bias, then batch normalization.

    Args:
      x: (N, H, W, C).
      filters: The number of output channels.
      kernel_size: The height and width of the kernel.
      strides: The stride, vertical and horizontal.
      name: The convolution's name; the batch normalization is `{name}_bn`.

    Returns:
      (N, ceil(H / strides), ceil(W / strides), filters).
    """
    conv = Conv2D(
        filters, kernel_size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return BatchNormalization(name=f"{name}_bn")(conv(x))


def conv_bn_relu(
    x: keras.KerasTensor, filters: int, kernel_size: int, strides: int = 1, *, name: str
) -> keras.KerasTensor:
    """`conv_bn`, then a ReLU called `{name}_relu`."""
    return layers.ReLU(name=f"{name}_relu")(conv_bn(x, filters, kernel_size, strides, name=name))


def flatten_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Yields the layers of a network, and those of the models nested in it, in order."""
    for layer in model.layers:
        yield from flatten_layers(layer) if isinstance(layer, keras.Model) else (layer,)


def to_plain_keras(model: keras.Model) -> keras.Model:
    """Copies a network into a float32 model of built-in Keras layers only, which loads without this project."""
    plain_kinds = {Conv2D: layers.Conv2D, BatchNormalization: layers.BatchNormalization}

    def plain(layer):
        if isinstance(layer, keras.Model):  # Keras before 3.14 clones the layers of one level alone.
            return keras.models.clone_model(layer, clone_function=plain, recursive=True)
        if layer.name.startswith("convert_to_tensor"):  # `whole_model` leaves one, which an .h5 file cannot hold.
            return lambda x: x
        if not isinstance(layer, keras.Layer):  # An operation, such as that of x + y.
            return type(layer).from_config(layer.get_config())
        config = layer.get_config() | {"dtype": "float32"}
        if "synchronized" in config:
            config["synchronized"] = False  # Training on several devices sets it.
        return plain_kinds.get(type(layer), type(layer)).from_config(config)

    copy = keras.models.clone_model(model, clone_function=plain, recursive=True)
    copy.set_weights(model.get_weights())
    return copy
