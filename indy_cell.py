"""IndyLSTMCell and IndyGRUCell: gates whose recurrent weights are elementwise.

To copy them into a project, take ind_rnn_cell.py along.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from ind_rnn_cell import (
    TimeConstants,
    _check_bools,
    _check_state,
    _check_step,
    _integer,
    _number,
)


class LSTMStep(NamedTuple):
    """One step of an IndyLSTM: gates i, f, g, o and states h, c to h and c.

    A tuple of its activations, as `recurrence` of `ind_rnn_recurrence.py`
    takes it.
    """

    activation: Callable
    recurrent_activation: Callable

    def __call__(self, gates, states, weights):
        """With `weights` the tuples of u and b of each gate, (N,)."""
        h, c = states
        i, f, g, o = (a + u * h + b for a, u, b in zip(gates, *weights))
        c = self.recurrent_activation(f) * c + self.recurrent_activation(
            i
        ) * self.activation(g)
        return self.recurrent_activation(o) * self.activation(c), c


class GRUStep(NamedTuple):
    """One step of an IndyGRU: gates z, r, g and state h to h."""

    activation: Callable
    recurrent_activation: Callable

    def __call__(self, gates, states, weights):
        """The fourth b is added to u * h within g."""
        (h,) = states
        a_z, a_r, a_g = gates
        (u_z, u_r, u_g), (b_z, b_r, b_g, inner) = weights
        z = self.recurrent_activation(a_z + u_z * h + b_z)
        r = self.recurrent_activation(a_r + u_r * h + b_r)
        g = self.activation(a_g + b_g + r * (u_g * h + inner))
        return (z * h + (1 - z) * g,)


class _IndyCell:
    """What the two cells share: a mixin, before Keras' cell in the bases."""

    gates = None
    forget_gate = None  # its index among the gates
    step_type = None

    def __init__(self, arguments):
        """`arguments`: all of a subclass, by name; Keras' own in "kwargs"."""
        own = arguments.keys() - {"self", "kwargs", "__class__"}
        options = {name: arguments[name] for name in own} | arguments["kwargs"]
        options["units"] = _integer("units", options["units"], minimum=1)
        for name in ("dropout", "recurrent_dropout"):
            options[name] = _number(name, options[name], below=1)
        if options["seed"] is not None:
            options["seed"] = _integer("seed", options["seed"])
        if options["recurrent_initializer"] is None:
            uniform = keras.initializers.RandomUniform(-1.0, 1.0)
            options["recurrent_initializer"] = uniform
        if options["bias_initializer"] is None:
            options["bias_initializer"] = GateTimeConstants()
        super().__init__(**options)
        self.dropout_mask_count = None  # One mask for all gates.
        self.time_steps = None

    def build(self, input_shape):
        _check_step(input_shape)
        width = self.gates * self.units
        self.kernel = self.add_weight(
            shape=(input_shape[-1], width),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.recurrent_kernel = self.add_weight(
            shape=(width,),
            name="recurrent_kernel",
            initializer=self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def call(self, inputs, states, training=False):
        _check_step(inputs.shape)
        inputs = ops.cast(inputs, self.compute_dtype)  # integers, as in LSTM
        bare = not isinstance(states, (list, tuple))
        states = [states] if bare else states
        count = len(keras.tree.flatten(self.state_size))
        _check_state(
            "`states`", states, self.units, "inputs", inputs, count=count
        )
        if training and self.dropout > 0:
            inputs = inputs * self.get_dropout_mask(inputs)
        a, (u, b) = self.project(inputs)
        if training and self.recurrent_dropout > 0:
            mask = self.get_recurrent_dropout_mask(states[0])
            u = [x * mask for x in u]
        step = self.step_type(self.activation, self.recurrent_activation)
        states = step(ops.unstack(a, self.gates, axis=-2), states, (u, b))
        return states[0], states[0] if bare else [*states]

    def project(self, inputs):
        """W x of shape (..., G, N), for one step or for any number of them.

        Also the weights that each step takes: the factors of h and the biases
        of all gates, a tuple of (N,) each.
        """
        a = ops.matmul(inputs, self.kernel)
        a = ops.reshape(a, (*ops.shape(a)[:-1], self.gates, self.units))
        return a, (self._by_gate(self.recurrent_kernel), self._biases())

    def _initial_bias(self, shape, dtype=None):
        initializer = self.bias_initializer
        if not isinstance(initializer, GateTimeConstants):
            return initializer(shape, dtype=dtype)
        initializer = initializer.with_defaults(self.time_steps)
        values = initializer((self.units,), dtype)
        return self._with_forget_gates(ops.zeros(shape, dtype), values)

    def _with_forget_gates(self, bias, values):
        """The biases, but with these values, (N,), in the forget gates."""
        start = self.forget_gate * self.units
        flat = ops.reshape(bias, (-1,))
        parts = flat[:start], values, flat[start + self.units :]
        return ops.reshape(ops.concatenate(parts), bias.shape)

    def _by_gate(self, weight):
        weight = ops.reshape(weight, (self.gates, self.units))
        return tuple(ops.unstack(weight, self.gates))


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndyLSTMCell(_IndyCell, keras.layers.LSTMCell):
    """One step of an IndyLSTM: an LSTM with elementwise recurrent weights.

        i, f, o = sigmoid(x_t @ W + u * h_{t-1} + b), each with its own W, u, b
        g = tanh(x_t @ W + u * h_{t-1} + b)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    Source: arXiv 1903.08023, section 3. Same numbers as `keras.layers.LSTM`
    whose recurrent matrices are diagonal. The layer `IndyLSTM` of `indy.py`
    computes whole sequences of the same steps many times faster.

    Weights, with F input features and N units, of gates i, f, g, o in turn:
        kernel: (F, 4 N).
        recurrent_kernel: (4 N,).
        bias: (4 N,); absent with `use_bias=False`.

    Arguments:
        units: N, a positive integer.
        activation: Of g and c. Default: "tanh".
        recurrent_activation: Of i, f and o. Default: "sigmoid".
        use_bias: Default: True.
        kernel_initializer: Default: "lecun_uniform": each gate has the variance
            of its inputs, whatever N.
        recurrent_initializer: Default: None, uniform over [-1, 1].
        bias_initializer: Default: None, `GateTimeConstants()`.
        unit_forget_bias: Whether biases of f start with 1, as those of
            `keras.layers.LSTM` do. Default: False.
        kernel_regularizer, recurrent_regularizer, bias_regularizer,
        kernel_constraint, recurrent_constraint, bias_constraint:
            Default: None.
        dropout: Fraction of the inputs to drop, in [0, 1); one mask for all
            time steps and gates. Default: 0.0.
        recurrent_dropout: Fraction of h_{t-1} to drop, in [0, 1); one mask
            for all time steps and gates. Default: 0.0.
        seed: Integer seed of the dropout masks, or None. Default: None.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: (B, F).
        states: A list of h_{t-1} and c_{t-1}, (B, N).
        training: Whether to apply dropout. Default: False.

    Returns:
        h_t of shape (B, N), and the list of h_t and c_t.

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range, or
            inputs have a wrong shape.

    Example:
        >>> cell = IndyLSTMCell(8)
        >>> keras.layers.RNN(cell)(ops.ones((2, 5, 3))).shape
        TensorShape([2, 8])
    """

    gates = 4
    forget_gate = 1
    step_type = LSTMStep

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        kernel_initializer="lecun_uniform",
        recurrent_initializer=None,
        bias_initializer=None,
        unit_forget_bias=False,
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        seed=None,
        **kwargs,
    ):
        _check_bools(use_bias=use_bias, unit_forget_bias=unit_forget_bias)
        super().__init__(locals())

    def _bias_shape(self):
        return (4 * self.units,)

    def _initial_bias(self, shape, dtype=None):
        bias = super()._initial_bias(shape, dtype)
        if not self.unit_forget_bias:
            return bias
        return self._with_forget_gates(bias, ops.ones((self.units,), dtype))

    def _biases(self):
        if not self.use_bias:
            return (ops.zeros((self.units,), self.compute_dtype),) * 4
        return self._by_gate(self.bias)


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndyGRUCell(_IndyCell, keras.layers.GRUCell):
    """One step of an IndyGRU: a GRU with elementwise recurrent weights.

        z, r = sigmoid(x_t @ W + u * h_{t-1} + b), each with its own W, u, b
        g = tanh(x_t @ W + b + r * (u * h_{t-1} + b'))
        h_t = z * h_{t-1} + (1 - z) * g

    Same numbers as `keras.layers.GRU` whose recurrent matrices are diagonal.
    Source: TensorFlow 1's contrib.rnn.IndyGRUCell, after arXiv 1803.04831. The
    layer `IndyGRU` of `indy.py` computes whole sequences of the same steps
    many times faster.

    Weights, with F input features and N units, of gates z, r, g in turn:
        kernel: (F, 3 N).
        recurrent_kernel: (3 N,).
        bias: (2, 3 N), of inputs and of h; (3 N,) with `reset_after=False`;
            absent with `use_bias=False`.

    Arguments:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer, kernel_regularizer,
        recurrent_regularizer, bias_regularizer, kernel_constraint,
        recurrent_constraint, bias_constraint, dropout, recurrent_dropout,
        seed, **kwargs: As in `IndyLSTMCell`.
            The forget gate is z.
        reset_after: Whether there are biases of h, as in `keras.layers.GRU`.
            Default: True.

    Call arguments:
        inputs: (B, F).
        states: h_{t-1} of shape (B, N), or a list of it.
        training: Whether to apply dropout. Default: False.

    Returns:
        h_t of shape (B, N), and the new state: h_t, in a list if `states`
        was one.

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range, or
            inputs have a wrong shape.
    """

    gates = 3
    forget_gate = 0
    step_type = GRUStep

    def __init__(
        self,
        units,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        kernel_initializer="lecun_uniform",
        recurrent_initializer=None,
        bias_initializer=None,
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        seed=None,
        reset_after=True,
        **kwargs,
    ):
        _check_bools(use_bias=use_bias, reset_after=reset_after)
        super().__init__(locals())

    def _bias_shape(self):
        width = 3 * self.units
        return (2, width) if self.reset_after else (width,)

    def _biases(self):
        zeros = ops.zeros((self.units,), self.compute_dtype)
        if not self.use_bias:
            return (zeros,) * 4
        if not self.reset_after:
            return *self._by_gate(self.bias), zeros
        z, r, g = self._by_gate(self.bias[0])
        of_h = self._by_gate(self.bias[1])
        return z + of_h[0], r + of_h[1], g, of_h[2]


@keras.saving.register_keras_serializable(package="ind_rnn")
class GateTimeConstants(keras.initializers.Initializer):
    """Forget gate biases that keep a state for different numbers of steps.

        f = exp(-1 / tau),    tau log-uniform over [shortest, longest]

    where f is the forget gate at inputs of zero: a state falls to 1/e of itself
    in tau steps. As in `TimeConstants`, the values are quantiles in a random
    order. All other biases of the cell start with zeros. This is the
    default of IndyLSTM and IndyGRU, chosen by `benchmarks/drop_in.py`. The
    chrono initialization, arXiv 1804.11188, draws tau uniformly and also closes
    the input gates.

    Arguments:
        shortest: The shortest time constant, in steps, a number > 0. Default:
            0.5.
        longest: The longest one, a number >= `shortest`. Default: None, the
            number of time steps if the layer knows it, or 1000.
        seed: An integer, or None for another one in each instance. An instance
            has the same order each time. Default: None.

    Call arguments:
        shape: That of the biases of the forget gates, (N,).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range.

    Example:
        >>> bias = GateTimeConstants(longest=100)((64,))
        >>> f = ops.sigmoid(bias)
        >>> bool(ops.max(f) <= 0.991)
        True
    """

    def __init__(self, shortest=0.5, longest=None, seed=None):
        self._kept = TimeConstants(shortest, longest, negative=0.0, seed=seed)

    def __call__(self, shape, dtype=None):
        f = self._kept(shape, "float32")
        # The inverse of the sigmoid. In float32, 1 - f may be 0.
        bias = ops.log(f) - ops.log(ops.maximum(1 - f, 1e-7))
        return ops.cast(bias, dtype or keras.config.floatx())

    def with_defaults(self, time_steps):
        """A copy whose `longest` is `time_steps`, if it was None."""
        result = copy.copy(self)
        result._kept = self._kept.with_defaults(time_steps)
        return result

    def get_config(self):
        config = self._kept.get_config()
        del config["negative"]
        return config
