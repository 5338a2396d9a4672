"""IndRNN: the layer for whole sequences, with a fused recurrence.

Same weights and same mathematics as `keras.layers.RNN(IndRNNCell(...))`. Axis
letters: B batch, T time, F input features, N units.
"""

import inspect

import keras
from keras import ops

from ind_rnn_cell import IndRNNCell, _check_bools, _check_state
from ind_rnn_recurrence import (
    ACTIVATION_GRADIENTS,
    dilated_recurrence,
    fused_step,
    recurrence,
)
from reset_rnn import ResetRNN, _zeros_where


def _cell_property(name):
    return property(lambda layer: getattr(layer.cell, name))


LAYER_OPTIONS = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
)


class ElementwiseRNN(ResetRNN):
    """What IndRNN, IndyLSTM and IndyGRU share: a layer with a fused recurrence.

    A subclass names its cell, which has `step_type` and `project`.
    """

    cell_type = None
    implementation = "auto"

    units = _cell_property("units")
    activation = _cell_property("activation")
    use_bias = _cell_property("use_bias")
    kernel_initializer = _cell_property("kernel_initializer")
    recurrent_initializer = _cell_property("recurrent_initializer")
    bias_initializer = _cell_property("bias_initializer")
    kernel_regularizer = _cell_property("kernel_regularizer")
    recurrent_regularizer = _cell_property("recurrent_regularizer")
    bias_regularizer = _cell_property("bias_regularizer")
    kernel_constraint = _cell_property("kernel_constraint")
    recurrent_constraint = _cell_property("recurrent_constraint")
    bias_constraint = _cell_property("bias_constraint")
    dropout = _cell_property("dropout")
    recurrent_dropout = _cell_property("recurrent_dropout")
    seed = _cell_property("seed")

    def __init__(self, arguments):
        """`arguments`: all of a subclass, by name; Keras' own in "kwargs"."""
        kwargs = arguments["kwargs"]
        of_layer = {name: arguments[name] for name in LAYER_OPTIONS}
        _check_bools(**of_layer)
        of_cell = inspect.signature(self.cell_type).parameters.keys()
        super().__init__(
            self.cell_type(
                **{name: arguments[name] for name in of_cell - {"kwargs"}},
                dtype=kwargs.get("dtype"),
                trainable=kwargs.get("trainable", True),
                name="cell",
            ),
            activity_regularizer=arguments["activity_regularizer"],
            **of_layer,
            **kwargs,
        )

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

    def call(
        self,
        sequences,
        initial_state=None,
        mask=None,
        training=False,
        reset=None,
        sequences_mask=None,
    ):
        name = "`initial_state`"
        if initial_state is None and self.stateful:
            name, initial_state = "The state of a stateful layer", self.states
        if initial_state is not None:
            _check_state(
                name,
                initial_state,
                self.units,
                "sequences",
                sequences,
                count=len(keras.tree.flatten(self.state_size)),
            )
        return super().call(
            # Integers, as in LSTM
            ops.cast(sequences, self.compute_dtype),
            initial_state=initial_state,
            mask=mask,
            training=training,
            reset=reset,
            sequences_mask=sequences_mask,
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """The seam of `keras.layers.RNN`: (last output, outputs, states)."""
        cell = self.cell
        if sequences.shape[1] == 1:
            return self._one_step(sequences, initial_state, mask, training)
        step = None if self.unroll else fused_step(cell)
        if step is None:
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        mask, reset = mask
        if self.go_backwards:
            sequences, mask, reset = (
                None if x is None else ops.flip(x, axis=1)
                for x in (sequences, mask, reset)
            )
        if training and cell.dropout > 0:
            sequences *= cell.get_dropout_mask(sequences[:, 0, :])[:, None]
        a, (u, b) = cell.project(sequences)
        if training and cell.recurrent_dropout > 0:
            kept = cell.get_recurrent_dropout_mask(initial_state[0])
            u = tuple(x * ops.stop_gradient(kept) for x in u)
        h, states = recurrence(
            a,
            (u, b),
            initial_state,
            step=step,
            implementation=self.implementation,
            mask=mask,
            reset=reset,
        )
        outputs = h
        if mask is not None:
            # Keras' rule: outputs before the first unmasked step are zeros.
            if not self.zero_output_for_mask:
                mask = ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0
            outputs = ops.where(mask[:, :, None], h, ops.zeros_like(h))
        return outputs[:, -1], outputs, states

    def _one_step(self, sequences, states, mask, training):
        """`inner_loop` without a loop: half the time of an eager step."""
        mask, reset = mask
        if reset is not None:
            states = _zeros_where(reset, states)
        before = states
        output, states = self.cell(sequences[:, 0], states, training=training)
        if mask is not None:
            states = [ops.where(mask, *x) for x in zip(states, before)]
            output = ops.where(mask, output, ops.zeros_like(output))
        return output, output[:, None], [*states]

    def get_config(self):
        config = super().get_config()
        del config["cell"]
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


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndRNN(ElementwiseRNN):
    """An IndRNN over whole sequences.

        h_t = activation(x_t @ kernel + recurrent_kernel * h_{t-1} + bias)

    It equals `keras.layers.RNN(IndRNNCell(...))` in outputs, states and first
    gradients, in a fraction of the time. One matrix product projects all time
    steps, and one compiled loop with its own backward pass runs the recurrence.
    XLA compiles it once for every shape. If T is unknown, and eagerly, it
    compiles for every power of two instead. Source: arXiv 1803.04831, section
    3.

    Keras' own, slower loop runs with `unroll=True` (which also has second
    gradients), in exports, when functions run eagerly, on other backends than
    TensorFlow and JAX, and with an activation that is a layer, draws random
    numbers, reads variables or outer tensors, or calls back into Python. Other
    activations of your own are traced once for each layer, like a
    `tf.function`: values that they read from Python are read then.

    Weights: those of `IndRNNCell`, in the attribute `cell`.

    Arguments:
        units, activation, use_kernel, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer, kernel_regularizer,
        recurrent_regularizer, bias_regularizer, kernel_constraint,
        recurrent_constraint, bias_constraint, recurrent_min_abs,
        dropout, recurrent_dropout, seed:
            As in `IndRNNCell`.
        recurrent_max_abs: As in `IndRNNCell`, but by default "auto": 2^(1/T),
            with which a state at most doubles over T steps, and 1.0 where T is
            unknown. Pass a number if weights move between networks of
            different T.
        activity_regularizer: Regularizer of the output. Default: None.
        return_sequences: Whether to return h_t of all steps rather than of
            the last one. Default: False.
        return_state: Whether to return the last state too. Default: False.
        go_backwards: Whether to read the sequence from its end. Outputs come
            in the order of reading. Default: False.
        stateful: Whether each batch continues from the final state of the
            batch before. Default: False.
        unroll: Whether to unroll Keras' loop, for short T. Default: False.
        zero_output_for_mask: Whether a masked step returns zeros rather than
            the output before it. Default: False.
        implementation: "sequential" is a loop over the steps. "parallel", for
            "relu" and "linear", is an exact scan in O(log T) dependent steps.
            "auto" is parallel on a GPU where that is possible. Default:
            "auto".
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: (B, N), or a list of it. Default: zeros.
        mask: (B, T), false or 0 where a step is skipped. Default: None.
        training: Whether to apply dropout. Default: False.
        reset: (B, T), true at the first step of each sequence, if a row holds
            several. There the state starts from zeros; see `ResetRNN` of
            `reset_rnn.py`. Default: None.

    Returns:
        (B, N), or (B, T, N) with `return_sequences`; with `return_state` also
        the state, (B, N).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range;
            sequences, a state, a mask or resets have a wrong shape.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((784, 1)),
        ...     IndRNN(128, return_sequences=True),
        ...     IndRNN(128),
        ...     keras.layers.Dense(10)])
        >>> model.count_params()
        18314
    """

    cell_type = IndRNNCell

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
        recurrent_max_abs="auto",
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
        **kwargs,
    ):
        super().__init__(locals())
        _check_implementation(implementation, self.activation, unroll)
        self.implementation = implementation

    use_kernel = _cell_property("use_kernel")
    recurrent_min_abs = _cell_property("recurrent_min_abs")
    recurrent_max_abs = _cell_property("recurrent_max_abs")

    def call_dilated(self, sequences, dilation, training=False):
        """All outputs with recurrences from h_{t-d} to h_t, for `DilatedRNN`.

        Returns:
            (B, T, N). None with dropout, with activations of your own, and
            where Keras' loop has to run.
        """
        cell = self.cell
        step = None if self.unroll else fused_step(cell)
        if step is None or step.activation not in ACTIVATION_GRADIENTS:
            return None
        if training and (cell.dropout > 0 or cell.recurrent_dropout > 0):
            return None
        a, weights = cell.project(ops.cast(sequences, self.compute_dtype))
        return dilated_recurrence(
            a,
            keras.tree.map_structure(lambda w: ops.tile(w, dilation), weights),
            dilation,
            step=step,
            implementation=self.implementation,
        )

    def get_config(self):
        return {**super().get_config(), "implementation": self.implementation}


def _check_implementation(implementation, activation, unroll):
    if implementation not in ("auto", "sequential", "parallel"):
        raise ValueError(
            '`implementation` must be "auto", "sequential" or "parallel", '
            f"got {implementation!r}"
        )
    if implementation != "parallel":
        return
    if activation not in (keras.activations.relu, keras.activations.linear):
        raise ValueError(
            '`implementation="parallel"` needs `activation` to be '
            f'"relu" or "linear", got {activation!r}'
        )
    if unroll:
        raise ValueError(
            '`implementation="parallel"` cannot be unrolled, got `unroll=True`'
        )
