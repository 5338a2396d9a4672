"""Normalization of deep networks, at a fraction of the time of Keras' layers.

The layers here have the arguments, weights and results of Keras' own. On other
backends than TensorFlow, and for rare options, Keras' own code runs.

Batch normalization is scale * x + shift. The recurrence before it computes the
statistics, and the dense layer after it takes scale and shift into its kernel
and bias, so no pass over whole sequences is left. To do so, each layer attaches
to its output what it was made of (`_attach`). TensorFlow computes only what is
used.

Axis letters: B batch, T time, N features.
"""

import keras
from keras import ops

from ind_rnn_cell import _integer, _number
from ind_rnn_recurrence import _attach, _attached, _has_xla, _on_gpu

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@keras.saving.register_keras_serializable(package="ind_rnn")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, at a fraction of its time.

    Arguments, weights, results and weight files are the same. Over (B, T, N):

    - Training uses the statistics that `IndRNN(with_moments=True)` has already
      computed. After other layers it uses TensorFlow's fused kernel, for
      float32 and half precision.
    - In a `tf.function`, if only `Dense`, `Concatenate`, `Dropout` and
      `LastStep` of this module read its result scale * x + shift, it is not
      computed at all: `Dense` takes scale and shift into its kernel and bias.
      Not in half precision, and not on GPUs.

    Keras' own code runs with a mask, with `renorm` or `synchronized`, for other
    shapes, and on other backends than TensorFlow. Gradients with respect to
    weights and inputs are those of Keras. Those with respect to tensors between
    these layers are not, because the computation goes around them. If you need
    them, use Keras' layers and `with_moments=False`.

    Example:
        >>> BatchNormalization()(keras.ops.ones((2, 70, 3))).shape
        TensorShape([2, 70, 3])
    """

    def call(self, inputs, training=None, mask=None):
        if (
            tf is None
            or mask is not None
            or self.synchronized
            or getattr(self, "renorm", False)  # newer than Keras 3.8
            or len(inputs.shape) != 3
            or self.axis not in (-1, 2)
        ):
            return super().call(inputs, training=training, mask=mask)
        wide = keras.backend.result_type(inputs.dtype, "float32")
        units = inputs.shape[-1]
        gamma, beta = (ops.cast(w, wide) for w in _scale_and_shift(self, units))
        moments = self.moving_mean, self.moving_variance
        if training and self.trainable:
            moments = _attached(inputs, "moments")
            if moments is None and not _is_float32_or_half(inputs):
                return super().call(inputs, training=training)
            if moments is None:
                y, *moments = _fused_batch_norm(
                    inputs[:, :, None], gamma, beta, self.epsilon
                )
                self._update_running_statistics(*moments)
                return y[:, :, 0]
            self._update_running_statistics(*moments)
        mean, variance = (ops.cast(x, wide) for x in moments)
        scale = gamma * ops.rsqrt(variance + self.epsilon)
        shift = beta - mean * scale
        y = ops.cast(inputs, wide) * scale + shift
        return _affine(
            ops.cast(y, self.compute_dtype), inputs, scale, shift[None, None]
        )

    def _update_running_statistics(self, mean, variance):
        for moving, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            before = ops.cast(moving, value.dtype)
            mixed = self.momentum * before + (1 - self.momentum) * value
            moving.assign(ops.cast(ops.stop_gradient(mixed), moving.dtype))


# Batch normalization attaches to its output what it was made of. If nobody
# reads the output itself, TensorFlow does not compute it.


def _affine(y, x, scale, shift):
    """y, which is scale * x + shift.

    Arguments:
        y, x: (B, T, N).
        scale: (N,).
        shift: (1 or B, 1, N).
    """
    # Eagerly, y has been computed already. In half precision, and on GPUs,
    # which round float32 in matrix products, an x far from 0 would lose digits.
    if (
        not tf.executing_eagerly()
        and x.dtype in (tf.float32, tf.float64)
        and not _on_gpu(x)
    ):
        _attach(y, affine=(x, scale, shift))
    return y


@keras.saving.register_keras_serializable(package="ind_rnn")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` that takes over the normalization before it.

    Arguments, weights, results and weight files are the same. After a
    `BatchNormalization` of this module:

        (scale * x + shift) @ W + b = x @ (scale * W) + (shift @ W + b)

    An `IndRNN` after it, without kernel and bias of its own, adds the bias in
    its loop.
    """

    def call(self, inputs, training=None):
        if tf is None or tf.executing_eagerly():
            return super().call(inputs, training=training)
        x, kernel = inputs, ops.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        affine = _attached(inputs, "affine")
        if affine is not None:
            x, scale, shift = affine
            shift = ops.matmul(shift, kernel)
            kernel = scale[:, None] * kernel
            if shift.shape[0] == 1:
                shift = shift[0, 0]
            bias = shift if bias is None else shift + bias
        x = ops.matmul(x, kernel)
        if bias is None:
            y = x
        else:
            y = x + bias
            if len(bias.shape) == 1:
                _attach(y, sum=(x, bias))
        return y if self.activation is None else self.activation(y)

    def quantize(self, mode=None, type_check=True, **options):
        # Keras quantizes its own class alone, unless told not to look.
        return super().quantize(mode, type_check=False, **options)


@keras.saving.register_keras_serializable(package="ind_rnn")
class Dropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with one mask for all steps of a sequence.

    Arguments:
        rate, seed, **kwargs: As Keras'. The shape of the mask is (B, 1, N).

    Call arguments:
        inputs: (B, T, N).
        training: Whether to drop. Default: False.

    Returns:
        (B, T, N).

    Raises:
        ValueError: If inputs have another rank.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(rate, noise_shape=(None, 1, None), seed=seed, **kwargs)

    def call(self, inputs, training=False):
        if len(inputs.shape) != 3:
            raise ValueError(
                "`inputs` must have shape (batch, time, features), got "
                f"{tuple(inputs.shape)}"
            )
        if not training or self.rate == 0:
            return inputs
        ones = ops.ones_like(inputs[:, :1])
        factor = super().call(ones, training=True)
        # TensorFlow has forgotten the sizes of what it dropped.
        factor = ops.reshape(factor, ops.shape(ones))
        y = inputs * factor
        affine = _attached(inputs, "affine")
        if affine is None:
            return y
        x, scale, shift = affine
        return _affine(y, x * factor, scale, shift * factor)

    def get_config(self):
        config = super().get_config()
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable(package="ind_rnn")
class Concatenate(keras.layers.Concatenate):
    """`keras.layers.Concatenate` that passes normalizations on to `Dense`.

    Arguments and results are the same.
    """

    def call(self, inputs):
        y = super().call(inputs)
        affines = [_attached(x, "affine") for x in inputs]
        if self.axis != -1 or not any(affines):
            return y
        xs, scales, shifts = [], [], []
        for x, affine in zip(inputs, affines):
            if affine is None:
                ones = tf.ones(tf.shape(x)[-1:], x.dtype)
                affine = x, ones, tf.zeros_like(ones)[None, None]
            x, scale, shift = affine
            xs.append(x)
            scales.append(scale)
            shifts.append(shift)
        if any(shift.shape[0] != 1 for shift in shifts):
            shifts = [ops.zeros_like(y[:, :1, :1]) + each for each in shifts]
        return _affine(
            y,
            *(ops.concatenate(each, axis=-1) for each in (xs, scales, shifts)),
        )


@keras.saving.register_keras_serializable(package="ind_rnn")
class LastStep(keras.layers.Layer):
    """The last time step. Only this step is normalized, not all of them.

    Call arguments:
        inputs: (B, T, N).

    Returns:
        (B, N).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def compute_mask(self, inputs, mask=None):
        return None

    def call(self, inputs):
        affine = _attached(inputs, "affine")
        if affine is None:
            return inputs[:, -1]
        x, scale, shift = affine
        return x[:, -1] * scale + shift[:, 0]

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[2]


def _scale_and_shift(layer, units):
    """gamma and beta of one of Keras' layers, ones and zeros for none."""
    gamma = layer.gamma if layer.scale else ops.ones((units,))
    return gamma, layer.beta if layer.center else ops.zeros((units,))


def _is_float32_or_half(x):
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
    # The raw one, for `tf.compat.v1.nn.fused_batch_norm` raises epsilon.
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=ops.cast(gamma, "float32"),
        offset=ops.cast(beta, "float32"),
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
    )
    # The kernel's is that of a sample: divided by count - 1.
    count = tf.size(x, tf.int64) / tf.size(gamma, tf.int64)
    count = tf.cast(count, "float32")
    variance *= (count - 1) / count
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


@keras.saving.register_keras_serializable(package="ind_rnn")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization`, trained in about half of its time.

    Arguments, weights, results and weight files are the same. The fast path
    trains on (..., N) whose sizes are known, except the first. Keras' own code
    runs in float64, over other axes, on GPUs, and eagerly.

    Call arguments:
        inputs: (..., N).
        training: Whether gradients will be computed. Default: None.

    Example:
        >>> LayerNormalization()(keras.ops.ones((2, 70, 3))).shape
        TensorShape([2, 70, 3])
    """

    def call(self, inputs, training=None):
        last = len(inputs.shape) - 1
        if (
            training is not True
            or self.rms_scaling
            or self.axis not in ([-1], [last])
            or not _runs_compiled(inputs)
        ):
            return super().call(inputs)
        units = inputs.shape[-1]
        gamma, beta = _scale_and_shift(self, units)
        return _normalize_features(
            inputs, gamma, beta, epsilon=float(self.epsilon), centered=True
        )


@keras.saving.register_keras_serializable(package="ind_rnn")
class RMSNormalization(keras.layers.Layer):
    """Layer normalization without a mean.

        y = scale * x / sqrt(mean of x^2 over the features + epsilon)

    As `keras.layers.RMSNormalization` (new in Keras 3.9). Source: arXiv
    1910.07467, equation 4.

    Weights: scale (N,).

    Arguments:
        epsilon: A number >= 0. Default: 1e-6.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: (..., N).
        training: Whether gradients will be computed. Default: None.

    Returns:
        (..., N).

    Raises:
        ValueError, TypeError: If `epsilon` is no such number.

    Example:
        >>> RMSNormalization()(keras.ops.ones((2, 70, 3))).shape
        TensorShape([2, 70, 3])
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = _number("epsilon", epsilon)
        self.supports_masking = True

    def build(self, input_shape):
        self.scale = self.add_weight(
            (input_shape[-1],), "ones", autocast=False, name="scale"
        )

    def call(self, inputs, training=None):
        if training is True and _runs_compiled(inputs):
            return _normalize_features(
                inputs,
                self.scale,
                ops.zeros_like(self.scale),
                epsilon=self.epsilon,
                centered=False,
            )
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        x *= ops.rsqrt(square + self.epsilon) * ops.cast(self.scale, x.dtype)
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def _runs_compiled(x):
    """Whether `_normalize_features` pays, and can be."""
    return (
        _is_float32_or_half(x)
        and None not in x.shape[1:]
        and not tf.executing_eagerly()
        and _has_xla()
        and not _on_gpu(x)
    )


def _normalize_features(x, gamma, beta, *, epsilon, centered):
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over each row.

    A row are the N features of one step. Not `centered`: with 0 for the mean.
    Its two passes are programs of XLA's, in which matrix products take sums:
    XLA's own sums go number by number.

    Arguments:
        x: (..., N), float32 or half precision.
        gamma, beta: (N,).

    Returns:
        Like x.
    """

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        y, mean, scale = _forward(
            x, gamma, beta, epsilon=epsilon, centered=centered
        )
        return y, lambda g: _backward(
            g, x, gamma, mean, scale, centered=centered
        )

    return normalize(x, *(ops.cast(w, "float32") for w in (gamma, beta)))


def _compiled(function):
    """A program of XLA's for each shape, on TensorFlow."""
    if tf is None:
        return function
    return tf.function(function, jit_compile=True, autograph=False)


@_compiled
def _forward(x, gamma, beta, *, epsilon, centered):
    rows = _rows(x)
    mean = _mean(rows) if centered else tf.zeros((1, 1))
    rows -= mean
    scale = tf.math.rsqrt(_mean(rows * rows) + epsilon)
    y = rows * scale * gamma + beta
    return tf.reshape(tf.cast(y, x.dtype), tf.shape(x)), mean, scale


@_compiled
def _backward(g, x, gamma, mean, scale, *, centered):
    """The gradients of x, gamma and beta, from g, that of y.

    With n = (x - mean) * scale, and means over each row:

        dx = scale * (g * gamma - mean(g * gamma) - n * mean(g * gamma * n))
        dgamma = sum of g * n,    dbeta = sum of g, over all rows
    """
    rows, delta = _rows(x), _rows(g)
    n = (rows - mean) * scale
    product = delta * n
    one = tf.ones((1, tf.shape(rows)[0]))
    dx = delta * gamma - n * _mean(product, gamma)
    if centered:
        dx -= _mean(delta, gamma)
    dx = tf.reshape(tf.cast(dx * scale, x.dtype), tf.shape(x))
    return dx, (one @ product)[0], (one @ delta)[0]


def _rows(x):
    return tf.reshape(tf.cast(x, "float32"), (-1, x.shape[-1]))


def _mean(rows, weight=1.0):
    """The means of weight * rows over N, (R, 1)."""
    units = rows.shape[-1]
    return rows @ (tf.ones((units, 1)) * tf.reshape(weight, (-1, 1)) / units)


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
        if training and mask is None and _is_float32_or_half(inputs):
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
        """As batch normalization of T * N features, for which is a kernel."""
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
