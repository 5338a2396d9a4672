"""IndRNN: the layer for whole sequences, with a fused recurrence.

Same weights and same mathematics as `keras.layers.RNN(IndRNNCell(...))`. Axis
letters: B batch, T time, F input features, N units.
"""

import keras
from keras import ops

from ind_rnn_cell import IndRNNCell, _check_bools, _check_known

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import (
        xla_dynamic_update_slice,
    )
else:
    tf = None


def _of_cell(name):
    return property(lambda layer: getattr(layer.cell, name))


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndRNN(keras.layers.RNN):
    """An IndRNN over whole sequences.

        h_t = activation(x_t @ kernel + recurrent_kernel * h_{t-1} + bias)

    Equals `keras.layers.RNN(IndRNNCell(...))` in outputs, states and first
    gradients, at a fraction of its time: one matrix product projects all time
    steps, and one compiled loop, with a written backward pass, runs the
    recurrence. Keras' own loop takes over where that cannot be: with
    `unroll=True` (which also has gradients of gradients), an activation that
    is a layer or has weights, functions run eagerly, or another backend. The
    loop is compiled anew for every shape. Source: arXiv 1803.04831, section 3.

    Weights: those of `IndRNNCell`, in the attribute `cell`.

    Arguments:
        units, activation, use_kernel, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer, kernel_regularizer,
        recurrent_regularizer, bias_regularizer, kernel_constraint,
        recurrent_constraint, bias_constraint, recurrent_min_abs,
        recurrent_max_abs, dropout, recurrent_dropout, seed:
            As in `IndRNNCell`.
        activity_regularizer: Regularizer of the output. Default: None.
        return_sequences: Whether to return h_t of every step rather than of
            the last one. Default: False.
        return_state: Whether to return the last state too. Default: False.
        go_backwards: Whether to read the sequence from its end; outputs come
            in the order of reading. Default: False.
        stateful: Whether a batch starts from the state in which the one
            before it ended. Default: False.
        unroll: Whether to unroll Keras' loop, for short T. Default: False.
        zero_output_for_mask: Whether a masked step returns zeros rather than
            the output before it. Default: False.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: (B, N), or a list of it. Default: zeros.
        mask: (B, T), false where a step is to be skipped. Default: None.
        training: Whether to apply dropout. Default: False.

    Returns:
        (B, N), or (B, T, N) with `return_sequences`; with `return_state` also
        the state, (B, N).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range, or
            sequences have a wrong shape.

    Example:
        >>> bound = 2 ** (1 / 784)
        >>> model = keras.Sequential([
        ...     keras.Input((784, 1)),
        ...     IndRNN(128, recurrent_max_abs=bound, return_sequences=True),
        ...     IndRNN(128, recurrent_max_abs=bound),
        ...     keras.layers.Dense(10)])
        >>> model.count_params()
        18314
    """

    def __init__(
        self,
        units,
        activation="relu",
        use_kernel=True,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        recurrent_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        recurrent_min_abs=0.0,
        recurrent_max_abs=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        seed=None,
        return_sequences=False,
        return_state=False,
        go_backwards=False,
        stateful=False,
        unroll=False,
        zero_output_for_mask=False,
        **kwargs,
    ):
        cell = IndRNNCell(
            units,
            activation=activation,
            use_kernel=use_kernel,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            recurrent_min_abs=recurrent_min_abs,
            recurrent_max_abs=recurrent_max_abs,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            seed=seed,
            dtype=kwargs.get("dtype"),
            trainable=kwargs.get("trainable", True),
            name="ind_rnn_cell",
        )
        flags = {
            "return_sequences": return_sequences,
            "return_state": return_state,
            "go_backwards": go_backwards,
            "stateful": stateful,
            "unroll": unroll,
            "zero_output_for_mask": zero_output_for_mask,
        }
        _check_bools(**flags)
        _check_known(
            keras.regularizers.get, activity_regularizer=activity_regularizer
        )
        super().__init__(
            cell, activity_regularizer=activity_regularizer, **flags, **kwargs
        )

    units = _of_cell("units")
    activation = _of_cell("activation")
    use_kernel = _of_cell("use_kernel")
    use_bias = _of_cell("use_bias")
    kernel_initializer = _of_cell("kernel_initializer")
    recurrent_initializer = _of_cell("recurrent_initializer")
    bias_initializer = _of_cell("bias_initializer")
    kernel_regularizer = _of_cell("kernel_regularizer")
    recurrent_regularizer = _of_cell("recurrent_regularizer")
    bias_regularizer = _of_cell("bias_regularizer")
    kernel_constraint = _of_cell("kernel_constraint")
    recurrent_constraint = _of_cell("recurrent_constraint")
    bias_constraint = _of_cell("bias_constraint")
    recurrent_min_abs = _of_cell("recurrent_min_abs")
    recurrent_max_abs = _of_cell("recurrent_max_abs")
    dropout = _of_cell("dropout")
    recurrent_dropout = _of_cell("recurrent_dropout")
    seed = _of_cell("seed")

    def build(self, sequences_shape, initial_state_shape=None):
        if len(sequences_shape) != 3:
            raise ValueError(
                "`sequences` must have shape (batch, time, features), "
                f"got {tuple(sequences_shape)}"
            )
        super().build(sequences_shape, initial_state_shape)
        self.input_spec = keras.layers.InputSpec(
            shape=(None, None, sequences_shape[-1])
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """The seam of `keras.layers.RNN`: (last output, outputs, states)."""
        shapes = [tuple(state.shape) for state in initial_state]
        if [shape[1:] for shape in shapes] != [(self.units,)]:
            raise ValueError(
                "`initial_state` must be one tensor of shape "
                f"(batch, {self.units}), got {shapes}"
            )
        if self.unroll or not _can_fuse(self.cell):
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        cell = self.cell
        if training and cell.dropout > 0:
            sequences *= cell.get_dropout_mask(sequences[:, 0, :])[:, None]
        dropout = None
        if training and cell.recurrent_dropout > 0:
            dropout = ops.stop_gradient(
                cell.get_recurrent_dropout_mask(initial_state[0])
            )
        if mask is not None:
            mask = ops.cast(keras.tree.flatten(mask)[0], "bool")
            mask = mask[:, :, 0] if len(mask.shape) == 3 else mask
            mask = ops.broadcast_to(mask, ops.shape(sequences)[:2])  # (B, T)
            mask = ops.flip(mask, axis=1) if self.go_backwards else mask
        h = _recurrence(
            cell.project(sequences),
            cell.bounded_recurrent_kernel,
            cell.bias,
            initial_state[0],
            activation=cell.activation,
            dropout=dropout,
            mask=mask,
            backwards=self.go_backwards,
        )
        outputs = h
        if mask is not None:
            # Keras' rule: outputs before the first unmasked step are zeros.
            if not self.zero_output_for_mask:
                mask = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
            outputs = ops.where(mask[:, :, None], h, ops.zeros_like(h))
        return outputs[:, -1], outputs, [h[:, -1]]

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        return {**self.cell.get_config(), **config}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _can_fuse(cell):
    if tf is None or tf.config.functions_run_eagerly():
        return False
    if cell.activation in _PULLBACKS:
        return True
    if isinstance(cell.activation, keras.layers.Layer):
        return False
    with tf.GradientTape() as tape:
        cell.activation(tf.zeros((1, cell.units), cell.compute_dtype))
    return not tape.watched_variables()


def _recurrence(a, u, b, h0, **options):
    """h_t = activation(a_t + u * h_{t-1} + b) for every t, differentiable.

    Arguments:
        a: (B, T, N).
        u: (N,).
        b: (N,), or None.
        h0: (B, N).
        activation: A function.
        dropout: (B, N), a factor of h_{t-1}; or None.
        mask: (B, T) in the order of reading, false where h_t = h_{t-1}; or
            None.
        backwards: Whether a is read from its end.

    Returns:
        h of shape (B, T, N), in the order of reading.
    """
    b = tf.zeros(a.shape[-1:], a.dtype) if b is None else b
    # Tensors, for variables may change before the backward pass.
    u, b, h0 = map(tf.convert_to_tensor, (u, b, h0))
    h0 = tf.broadcast_to(h0, [tf.shape(a)[0], a.shape[-1]])
    # What the backward pass need not know of a is not kept for it.
    kept = () if options["activation"] in _PULLBACKS else (a,)

    @tf.custom_gradient
    def recurrence(*arguments):
        result = _forward(*map(tf.stop_gradient, arguments), **options)
        result.set_shape(a.shape)
        # h, the result as the tape knows it, is not yet there in forward mode.
        return result, lambda g: backward(
            g, result if h is None else h, u, b, h0, *kept
        )

    @tf.custom_gradient
    def backward(*arguments):
        def second(*_):
            raise NotImplementedError(
                "The fused recurrence of IndRNN has first gradients in "
                "reverse mode only: for others pass `unroll=True`"
            )

        return _backward(*map(tf.stop_gradient, arguments), **options), second

    h = None
    h = recurrence(a, u, b, h0)
    return h


def _compiled(function):
    return tf and tf.function(
        function, jit_compile=True, autograph=False, reduce_retracing=True
    )


@_compiled
def _forward(a, u, b, h0, *, activation, dropout, mask, backwards):
    length = tf.shape(a)[1]
    u = u if dropout is None else u * dropout

    def step(t, h, out):
        s = length - 1 - t if backwards else t
        new = activation(_at(a, s) + u * h + b)
        h = new if mask is None else tf.where(_at(mask, t), new, h)
        return t + 1, h, _put(out, t, h)

    return tf.while_loop(
        lambda t, *_: t < length, step, (0, h0, tf.zeros_like(a))
    )[2]


@_compiled
def _backward(g, h, u, b, h0, a=None, *, activation, dropout, mask, backwards):
    """The gradients of a, u, b and h0, from g, that of h.

    With g_t what reaches h_t directly and through h_{t+1}, and
    z_t = a_t + u * h_{t-1} + b:

        delta_t = activation'(z_t) * g_t        the gradient of a_t
        du = sum over B, T of delta_t * h_{t-1}
        db = sum over B, T of delta_t
    """
    length = tf.shape(h)[1]
    v = u if dropout is None else u * dropout
    # delta_t takes the place of g_t: one array less to move. With a mask, XLA
    # would copy the whole array in every step.
    in_place = mask is None

    def step(t, delta, skipped, da, du, db):
        h_t = _at(h, t)
        du += tf.cast(delta * h_t, du.dtype)
        g_t = _at(da if in_place else g, t) + v * delta + skipped
        if a is None:
            delta = _PULLBACKS[activation](h_t, g_t)
        else:
            s = length - 1 - t if backwards else t
            previous = tf.where(t > 0, _at(h, tf.maximum(t - 1, 0)), h0)
            z = _at(a, s) + v * previous + b
            with tf.GradientTape() as tape:
                tape.watch(z)
                new = activation(z)
            delta = tape.gradient(new, z, g_t, unconnected_gradients="zero")
        if mask is not None:
            delta = tf.where(_at(mask, t), delta, tf.zeros_like(delta))
            skipped = tf.where(_at(mask, t), tf.zeros_like(g_t), g_t)
        db += tf.cast(delta, db.dtype)
        return t - 1, delta, skipped, _put(da, t, delta), du, db

    zeros = tf.zeros_like(h0)
    skipped = tf.zeros((), h0.dtype) if mask is None else zeros
    # Sums over B and T do not fit into half precision.
    total = tf.zeros_like(h0, tf.float64 if h0.dtype.size > 4 else tf.float32)
    _, delta, skipped, da, du, db = tf.while_loop(
        lambda t, *_: t >= 0,
        step,
        (
            length - 1,
            zeros,
            skipped,
            g if in_place else tf.zeros_like(g),
            total,
            total,
        ),
    )
    da = tf.reverse(da, [1]) if backwards else da
    dh0 = v * delta + skipped
    du += tf.cast(delta * h0, du.dtype)
    if dropout is not None:
        du *= tf.cast(dropout, du.dtype)
    du = tf.cast(tf.reduce_sum(du, axis=0), u.dtype)
    db = tf.cast(tf.reduce_sum(db, axis=0), b.dtype)
    return da, du, db, dh0


def _at(x, t):
    """x[:, t] of (B, T, N), or x[:, t, None] of (B, T)."""
    return x[:, t] if x.shape.rank == 3 else x[:, t, None]


def _put(x, t, value):
    """x with x[:, t] = value, in place where XLA can."""
    return xla_dynamic_update_slice(x, value[:, None], [0, t, 0])


# activation: (its value h, gradient g that reaches h) -> gradient of its input
_PULLBACKS = {
    keras.activations.relu: lambda h, g: tf.where(h > 0, g, tf.zeros_like(g)),
    keras.activations.tanh: lambda h, g: g * (1 - h * h),
    keras.activations.sigmoid: lambda h, g: g * h * (1 - h),
    keras.activations.linear: lambda h, g: g,
}
