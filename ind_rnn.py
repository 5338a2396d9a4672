"""IndRNN: the layer for whole sequences, with a fused recurrence.

Same weights and same mathematics as `keras.layers.RNN(IndRNNCell(...))`. Axis
letters: B batch, T time, F input features, N units.
"""

import keras
import numpy as np
from keras import ops

from ind_rnn_cell import (
    IndRNNCell,
    _check_bools,
    _check_known,
    _check_state,
    _fits,
)
from ind_rnn_recurrence import _told, fused_activation, recurrence


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
    is a layer or no function of its argument alone, functions run eagerly, in
    exports, or on another backend than TensorFlow and JAX. The loop is
    compiled anew for every shape; where T is unknown, and eagerly from the
    third length on, for every power of two. Source: arXiv 1803.04831, section
    3.

    An activation of one's own is traced once for each layer, like a
    `tf.function`: what it reads from Python is read then. One that draws
    random numbers, reads variables or outer tensors, or calls back into
    Python takes Keras' loop.

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
        implementation: "sequential" for a loop over the steps; "parallel",
            with "relu" or "linear", for an exact scan in O(log T) dependent
            steps; or "auto", parallel on a GPU where that is possible.
            Default: "auto".
        with_moments: Whether training takes mean and variance of all outputs
            along, so that a `BatchNormalization` of `ind_rnn_normalization`
            that follows costs next to nothing. It needs `return_sequences`; in
            the sequential form alone, with more than one step, on TensorFlow,
            without a mask and `unroll`. Default: False.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: (B, N), or a list of it. Default: zeros.
        mask: (B, T), false or 0 where a step is to be skipped. Default: None.
        training: Whether to apply dropout. Default: False.

    Returns:
        (B, N), or (B, T, N) with `return_sequences`; with `return_state` also
        the state, (B, N).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range;
            sequences, a state or a mask have a wrong shape.

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
        kernel_initializer=None,
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
        implementation="auto",
        with_moments=False,
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
        _check_bools(**flags, with_moments=with_moments)
        if with_moments and not return_sequences:
            raise ValueError(
                "`with_moments=True` needs `return_sequences=True`, got "
                f"`return_sequences={return_sequences}`"
            )
        _check_known(
            keras.regularizers.get, activity_regularizer=activity_regularizer
        )
        if implementation not in ("auto", "sequential", "parallel"):
            raise ValueError(
                '`implementation` must be "auto", "sequential" or "parallel", '
                f"got {implementation!r}"
            )
        if implementation == "parallel":
            if cell.activation not in (
                keras.activations.relu,
                keras.activations.linear,
            ):
                raise ValueError(
                    '`implementation="parallel"` needs `activation` to be '
                    f'"relu" or "linear", got {activation!r}'
                )
            if unroll:
                raise ValueError(
                    '`implementation="parallel"` cannot be unrolled, got '
                    "`unroll=True`"
                )
        super().__init__(
            cell, activity_regularizer=activity_regularizer, **flags, **kwargs
        )
        self.implementation = implementation
        self.with_moments = with_moments

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
        if sequences_shape[-1] is None:
            raise ValueError(
                "`sequences` must have a known number of features, got shape "
                f"{tuple(sequences_shape)}"
            )
        self.cell.time_steps = sequences_shape[1]
        super().build(sequences_shape, initial_state_shape)
        self.input_spec = keras.layers.InputSpec(
            shape=(None, None, sequences_shape[-1])
        )

    def call(self, sequences, initial_state=None, mask=None, training=False):
        # Not in `inner_loop`: Keras reads the first step before that.
        if sequences.shape[1] == 0:
            raise ValueError(
                "`sequences` must have at least one time step, got shape "
                f"{tuple(sequences.shape)}"
            )
        name = "`initial_state`"
        if initial_state is None and self.stateful:
            name, initial_state = "The state of a stateful layer", self.states
        if initial_state is not None:
            _check_state(
                name, initial_state, self.units, "sequences", sequences
            )
        return super().call(
            # Integers, as in LSTM
            ops.cast(sequences, self.compute_dtype),
            initial_state=initial_state,
            mask=_time_mask(mask, sequences),
            training=training,
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """The seam of `keras.layers.RNN`: (last output, outputs, states)."""
        cell = self.cell
        if sequences.shape[1] == 1:
            return self._one_step(sequences, initial_state, mask, training)
        activation = None if self.unroll else fused_activation(cell)
        if activation is None:
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        if training and cell.dropout > 0:
            sequences *= cell.get_dropout_mask(sequences[:, 0, :])[:, None]
        dropout = None
        if training and cell.recurrent_dropout > 0:
            dropout = ops.stop_gradient(
                cell.get_recurrent_dropout_mask(initial_state[0])
            )
        if mask is not None and self.go_backwards:
            mask = ops.flip(mask, axis=1)
        projected, bias = cell.project(sequences), cell.bias
        if told := self._told_sum(sequences):
            projected, bias = told
        h = recurrence(
            projected,
            cell.bounded_recurrent_kernel,
            bias,
            initial_state[0],
            activation=activation,
            implementation=self.implementation,
            dropout=dropout,
            mask=mask,
            backwards=self.go_backwards,
            moments=self.with_moments and training,
        )
        outputs = h
        if mask is not None:
            # Keras' rule: outputs before the first unmasked step are zeros.
            if not self.zero_output_for_mask:
                mask = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
            outputs = ops.where(mask[:, :, None], h, ops.zeros_like(h))
        return outputs[:, -1], outputs, [h[:, -1]]

    def _one_step(self, sequences, initial_state, mask, training):
        """`inner_loop` without a loop."""
        x = sequences[:, 0]
        if told := self._told_sum(sequences):
            x = told[0][:, 0] + told[1]
        output, states = self.cell(x, initial_state, training=training)
        if mask is not None:
            states = [ops.where(mask, states[0], initial_state[0])]
            output = ops.where(mask, output, ops.zeros_like(output))
        return output, output[:, None], states

    def _told_sum(self, sequences):
        """A layer before this one may have left its bias to the loop."""
        if self.cell.use_kernel or self.cell.use_bias:
            return None
        return _told(sequences, "sum")

    def get_config(self):
        config = super().get_config()
        del config["cell"]
        config["implementation"] = self.implementation
        config["with_moments"] = self.with_moments
        if self.cell.trainable != self.trainable:
            config["cell_trainable"] = self.cell.trainable
        return {**self.cell.get_config(), **config}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        cell_trainable = config.pop("cell_trainable", None)
        layer = cls(**config)
        if cell_trainable is not None:
            layer.cell.trainable = cell_trainable
        return layer


def _time_mask(mask, sequences):
    """A mask as bools of shape (B, T), or None. As in dilated_rnn.py."""
    if isinstance(mask, (list, tuple)):
        # One mask for each input, as Keras has it, or numbers in lists.
        first = mask[0] if mask else None
        is_mask = first is None or len(getattr(first, "shape", ())) > 1
        mask = first if is_mask else np.array(mask)
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    expected = tuple(sequences.shape[:2])
    if len(mask.shape) == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if not _fits(mask.shape, expected):
        raise ValueError(
            f"`mask` must have shape (batch, time), here {expected}, got "
            f"{tuple(mask.shape)}"
        )
    # A size unknown until now must not be broadcast.
    return ops.cast(ops.reshape(mask, ops.shape(sequences)[:2]), "bool")
