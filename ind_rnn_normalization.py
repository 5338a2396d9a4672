"""Batch normalization of sequences, at a fraction of the time of Keras' layer.

Axis letters: B batch, T time, N features.
"""

import keras
from keras import ops

from ind_rnn_cell import _integer, _number

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@keras.saving.register_keras_serializable(package="ind_rnn")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` by TensorFlow's fused kernel.

    Arguments, weights, results, gradients and weight files are the same. The
    kernel trains on (B, T, N) in float32 and half precision, on TensorFlow.
    Otherwise, and with a mask, `renorm` or `synchronized`, Keras' own code
    runs.

    Example:
        >>> BatchNormalization()(keras.ops.ones((2, 70, 3))).shape
        TensorShape([2, 70, 3])
    """

    def call(self, inputs, training=None, mask=None):
        if (
            not (training and self.trainable)
            or mask is not None
            or self.synchronized
            or getattr(self, "renorm", False)  # newer than Keras 3.8
            or len(inputs.shape) != 3
            or self.axis not in (-1, 2)
            or not _has_fused_kernel(inputs)
        ):
            return super().call(inputs, training=training, mask=mask)
        units = inputs.shape[-1]
        y, *statistics = _fused_batch_norm(
            ops.expand_dims(inputs, 2),  # A slice would cost its gradient.
            self.gamma if self.scale else ops.ones((units,)),
            self.beta if self.center else ops.zeros((units,)),
            self.epsilon,
        )
        for moving, value in zip(
            (self.moving_mean, self.moving_variance), statistics
        ):
            before = ops.cast(moving, value.dtype)
            mixed = self.momentum * before + (1 - self.momentum) * value
            moving.assign(ops.cast(mixed, moving.dtype))
        return ops.squeeze(y, 2)


def _has_fused_kernel(x):
    return tf is not None and x.dtype in (tf.float32, tf.float16, tf.bfloat16)


def _fused_batch_norm(x, gamma, beta, epsilon):
    """Batch normalization by TensorFlow's fused kernel.

    Arguments:
        x: (..., N), four axes, float32 or half precision.
        gamma, beta: (N,).
        epsilon: A number.

    Returns:
        gamma * (x - mean) / sqrt(variance + epsilon) + beta, like x; and mean
        and variance over all axes but the last, (N,), float32, without a
        gradient.
    """
    # The raw operation: `tf.compat.v1.nn.fused_batch_norm` raises epsilon.
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=ops.cast(gamma, "float32"),
        offset=ops.cast(beta, "float32"),
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
    )
    # The kernel divides by count - 1, Keras by count.
    count = tf.size(x, tf.int64) / tf.size(gamma, tf.int64)
    count = tf.cast(count, "float32")
    variance *= (count - 1) / count
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


@keras.saving.register_keras_serializable(package="ind_rnn")
class TimeStepBatchNormalization(keras.layers.Layer):
    """Batch normalization with separate statistics for each time step.

        y_t = gamma * (x_t - mean_t) / sqrt(variance_t + epsilon) + beta

    In training, mean_t and variance_t are those of step t in the batch.
    Otherwise they are running averages. Steps beyond `max_steps`, and steps
    that never occurred in training, use those of the last trained step before
    them. Source: arXiv 1910.06251, section on language models ("frame-wise").

    Weights: gamma (N,), beta (N,); not trainable: moving_mean and
    moving_variance (max_steps, N), trained (max_steps,).

    Arguments:
        max_steps: For how many steps to keep statistics, a positive integer.
        momentum: Of the running averages, in [0, 1). They start with the
            first batch that has the step. Default: 0.9.
        epsilon: Default: 1e-5.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: (B, T, N).
        training: Whether to take, and keep, the statistics of the batch.
            Default: False.
        mask: (B, T), false where a step does not count. Default: None.

    Returns:
        (B, T, N).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range, or
            inputs have a wrong shape.

    Example:
        >>> layer = TimeStepBatchNormalization(50)
        >>> layer(keras.ops.ones((2, 70, 3))).shape
        TensorShape([2, 70, 3])
    """

    def __init__(self, max_steps, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.max_steps = _integer("max_steps", max_steps, minimum=1)
        self.momentum = _number("momentum", momentum, below=1)
        self.epsilon = _number("epsilon", epsilon)
        self.supports_masking = True

    def build(self, input_shape):
        if len(input_shape) != 3:
            raise ValueError(
                "`inputs` must have shape (batch, time, features), got "
                f"{tuple(input_shape)}"
            )
        units = input_shape[-1]
        # Half precision cannot hold sums over a batch.
        self.wide = keras.backend.result_type(self.variable_dtype, "float32")
        self.gamma = self.add_weight((units,), "ones", name="gamma")
        self.beta = self.add_weight((units,), "zeros", name="beta")
        self.moving_mean, self.moving_variance, self.trained = (
            self.add_weight(
                shape,
                initializer,
                dtype=self.wide,
                trainable=False,
                autocast=False,
                name=name,
            )
            for name, shape, initializer in (
                ("moving_mean", (self.max_steps, units), "zeros"),
                ("moving_variance", (self.max_steps, units), "ones"),
                ("trained", (self.max_steps,), "zeros"),
            )
        )

    def call(self, inputs, training=False, mask=None):
        training = training and self.trainable
        if training and mask is None and _has_fused_kernel(inputs):
            return self._fused(inputs)
        x = ops.cast(inputs, self.wide)
        if training:
            mean, variance, count = self._batch_statistics(x, mask)
            self._update_running_statistics(mean, variance, count)
        else:
            mean, variance = self._running_statistics(ops.shape(x)[1])
        scale = self.gamma * ops.rsqrt(variance + self.epsilon)
        y = (x - mean) * ops.cast(scale, x.dtype)
        y += ops.cast(self.beta, x.dtype)
        return ops.cast(y, self.compute_dtype)

    def _fused(self, inputs):
        """Normalize T * N features, for which TensorFlow has a kernel."""
        batch, length, units = ops.shape(inputs)
        y, *statistics = _fused_batch_norm(
            ops.reshape(inputs, (batch, 1, 1, length * units)),
            ops.tile(self.gamma, (length,)),
            ops.tile(self.beta, (length,)),
            self.epsilon,
        )
        mean, variance = (ops.reshape(x, (length, units)) for x in statistics)
        count = ops.ones((length, 1)) * ops.cast(batch, "float32")
        self._update_running_statistics(mean, variance, count)
        return ops.reshape(y, (batch, length, units))

    def _batch_statistics(self, x, mask):
        """Of a batch: mean and variance (T, N), and how many count (T, 1)."""
        weight = ops.ones_like(x[:, :, :1])
        if mask is not None:
            mask = ops.cast(mask, "bool")[:, :, None]
            x = ops.where(mask, x, ops.zeros_like(x))  # NaN * 0 is NaN
            weight = ops.cast(mask, x.dtype)
        count = ops.sum(weight, axis=0)
        total = ops.maximum(count, 1)
        mean = ops.sum(weight * x, axis=0) / total
        variance = ops.sum(weight * ops.square(x - mean), axis=0) / total
        return mean, variance, count

    def _update_running_statistics(self, mean, variance, count):
        """Mix the statistics of a batch into the running ones."""
        now = self._pad_to_max_steps(count) > 0
        before = self.trained[:, None] > 0
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            # JAX's `where` takes no variables while it traces.
            old = ops.convert_to_tensor(moving)
            value = ops.stop_gradient(self._pad_to_max_steps(value))
            mixed = self.momentum * old + (1 - self.momentum) * value
            value = ops.where(before, mixed, value)
            moving.assign(ops.where(now, value, old))
        trained = ops.cast(now[:, 0], self.trained.dtype)
        self.trained.assign(ops.maximum(self.trained, trained))

    def _pad_to_max_steps(self, x):
        """x (T, N) cut off, or filled up with zeros, to `max_steps`."""
        x = x[: self.max_steps]
        missing = self.max_steps - ops.shape(x)[0]
        return ops.concatenate([x, ops.zeros((missing, x.shape[1]), x.dtype)])

    def _running_statistics(self, length):
        """The running mean and variance (T, N) of steps 0 ... T - 1."""
        steps = ops.arange(self.max_steps)
        trained = ops.where(self.trained > 0, steps, -1)
        # The last trained step up to each step; the first one, if none is.
        last = ops.max(ops.where(steps <= steps[:, None], trained, -1), axis=1)
        first = ops.argmax(self.trained)
        last = ops.where(last < 0, ops.cast(first, last.dtype), last)
        index = ops.minimum(ops.arange(length), self.max_steps - 1)
        index = ops.take(last, index)
        return (
            ops.take(self.moving_mean, index, axis=0),
            ops.take(self.moving_variance, index, axis=0),
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "max_steps": self.max_steps,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
