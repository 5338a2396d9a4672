# ind_rnn_cell.py, of indrnn 1.0.0: recurrent layers for Keras 3.
# SPDX-License-Identifier: Apache-2.0
"""IndRNNCell: one step of the Independently Recurrent Neural Network.

This file stands alone: copy it into a project, or install and import it.
"""

import contextlib
import copy
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

__version__ = "1.0.0"

# The initial weights assume so many time steps where T is unknown.
UNKNOWN_TIME_STEPS = 1000


class IndRNNStep(NamedTuple):
    """h_t = activation(a_t + u * h_{t-1} + b).

    The steps of all cells are tuples of their activations, as `recurrence` of
    `ind_rnn_recurrence.py` takes them.
    """

    activation: Callable

    def __call__(self, gates, states, weights):
        (a,), (h,), ((u,), (b,)) = gates, states, weights
        return (self.activation(a + u * h + b),)


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndRNNCell(keras.layers.SimpleRNNCell):
    """One step of an IndRNN: each neuron remembers only itself.

        h_t = activation(x_t @ kernel + recurrent_kernel * h_{t-1} + bias)

    where `*` is elementwise: neuron n has one recurrent weight u_n. With |u_n|
    near 1 it remembers for long. Over T steps its gradient scales with u_n^T,
    so the bound |u_n| <= 2^(1/T), given as `recurrent_max_abs`, keeps even ReLU
    networks of many layers from exploding. Source: arXiv 1803.04831, sections
    3 and 4 (equations 2 and 5). The layer `IndRNN` of `ind_rnn.py` computes
    the same for whole sequences, many times faster.

    Weights, with F input features and N units:
        kernel: (F, N); absent with `use_kernel=False`.
        recurrent_kernel: (N,).
        bias: (N,); absent with `use_bias=False`.

    Arguments:
        units: N, a positive integer.
        activation: A function, its Keras name, or None for none. Default:
            "relu".
        use_kernel: Whether there is a kernel. Pass False if another layer
            projects the inputs, for example to normalize them before the
            recurrence. Then F must be N. Default: True.
        use_bias: Whether to add a bias. Default: True.
        kernel_initializer: Default: None, which is `UnitGain()`: neurons that
            remember longer get a smaller kernel. It draws u as well, so a
            `recurrent_initializer` of your own must return the same values
            each time, as those of Keras do.
        recurrent_initializer: Default: None, which is `TimeConstants()`:
            memories of all lengths. Initial values are clipped to the bound.
        bias_initializer: Default: "zeros".
        kernel_regularizer, recurrent_regularizer, bias_regularizer:
            Default: None.
        kernel_constraint, recurrent_constraint, bias_constraint: Default:
            None. The bound applies after `recurrent_constraint`.
        recurrent_min_abs: Lower bound of |u|, a number >= 0; u = 0 counts as
            positive. Default: 0.0.
        recurrent_max_abs: Upper bound of |u|: a number >= 0; None for no bound;
            or "auto" for 2^(1/T), with which a state at most doubles over T
            steps, and for 1.0 where T is unknown. Default: None, since a cell
            alone does not know T; that of IndRNN is "auto".
        dropout: Fraction of the inputs to drop, in [0, 1); one mask for all
            time steps. Default: 0.0.
        recurrent_dropout: Fraction of h_{t-1} to drop, in [0, 1); one mask
            for all time steps. Default: 0.0.
        seed: Integer seed of the dropout masks, or None. Default: None.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    "auto" and the default initializers depend on the length of the sequences,
    the attribute `time_steps`. IndRNN sets it. For a cell alone you can set it
    before the cell is built. None, the default, counts as 1000 steps for the
    initializers.

    The bound `recurrent_min_abs <= |u| <= recurrent_max_abs` holds for the
    weight in use at every step, with every optimizer, and for initial and saved
    values. The variable itself is clipped where Keras applies constraints.

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

    Example:
        >>> cells = [IndRNNCell(128, recurrent_max_abs=2 ** (1 / 784)),
        ...          IndRNNCell(128, recurrent_max_abs=2 ** (1 / 784))]
        >>> y = keras.layers.RNN(cells)(keras.ops.ones((2, 784, 1)))
        >>> y.shape
        TensorShape([2, 128])
    """

    step_type = IndRNNStep

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
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        recurrent_min_abs=0.0,
        recurrent_max_abs=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        seed=None,
        **kwargs,
    ):
        units = _integer("units", units, minimum=1)
        seed = None if seed is None else _integer("seed", seed)
        _check_bools(use_kernel=use_kernel, use_bias=use_bias)
        if kernel_initializer is None:
            kernel_initializer = UnitGain()
        if recurrent_initializer is None:
            recurrent_initializer = TimeConstants()
        super().__init__(
            units,
            activation=activation,
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
            dropout=_number("dropout", dropout, below=1),
            recurrent_dropout=_number(
                "recurrent_dropout", recurrent_dropout, below=1
            ),
            seed=seed,
            **kwargs,
        )
        self.use_kernel = use_kernel
        is_auto = isinstance(recurrent_max_abs, str)
        if is_auto and recurrent_max_abs != "auto":
            raise ValueError(
                '`recurrent_max_abs` must be a number, None or "auto", got '
                f"{recurrent_max_abs!r}"
            )
        self.bound = RecurrentBound(
            recurrent_min_abs, None if is_auto else recurrent_max_abs
        )
        self.recurrent_min_abs = self.bound.recurrent_min_abs
        self.recurrent_max_abs = (
            "auto" if is_auto else self.bound.recurrent_max_abs
        )
        self.time_steps = None

    def build(self, input_shape):
        self._check_input(input_shape)
        if self.recurrent_max_abs == "auto":
            self.bound = RecurrentBound(
                self.recurrent_min_abs, _auto_bound(self.time_steps)
            )
        with self._variable_scope():
            self._build(input_shape)
        self.built = True

    def _build(self, input_shape):
        kernel_initializer, recurrent_initializer = self._initializers()
        self.kernel = self.bias = None
        if self.use_kernel:
            self.kernel = self.add_weight(
                shape=(input_shape[-1], self.units),
                name="kernel",
                initializer=kernel_initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units,),
            name="recurrent_kernel",
            initializer=recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=_ConstraintThenBound(
                self.recurrent_constraint, self.bound
            ),
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.units,),
                name="bias",
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        for weight in (self.kernel, self.recurrent_kernel, self.bias):
            if weight is not None:  # for `TimeScaledAdam`
                weight.ind_rnn_neurons = self.recurrent_kernel, self.time_steps

    def _variable_scope(self):
        """NAME/kernel, ... in graphs of TF1, whichever loop builds the cell."""
        if not tf or tf.compat.v1.executing_eagerly_outside_functions():
            return contextlib.nullcontext()
        return tf.name_scope(f"{self.name}/")  # absolute, as it ends in /

    def call(self, inputs, states, training=False):
        self._check_input(inputs.shape)
        inputs = ops.cast(inputs, self.compute_dtype)  # integers, as in LSTM
        h = states[0] if isinstance(states, (list, tuple)) else states
        _check_state("`states`", states, self.units, "inputs", inputs)
        if training and self.recurrent_dropout > 0:
            h = h * self.get_recurrent_dropout_mask(h)
        if training and self.dropout > 0:
            inputs = inputs * self.get_dropout_mask(inputs)
        a, ((u,), (b,)) = self.project(inputs)
        h = self.activation(a + u * h + b)
        return h, [h] if isinstance(states, (list, tuple)) else h

    def project(self, inputs):
        """W x of shape (..., N), for one step or for any number of them.

        Also the weights that each step takes: ((u,), (bias,)), (N,) each.
        """
        u = self.bound.straight_through(self.recurrent_kernel)
        bias = self.bias if self.use_bias else ops.zeros_like(u)
        if self.use_kernel:
            inputs = ops.matmul(inputs, self.kernel)
        return inputs, ((u,), (bias,))

    @property
    def bounded_recurrent_kernel(self):
        """u within the bound, as every step uses it: a tensor (N,)."""
        return self.bound.straight_through(self.recurrent_kernel)

    def get_initial_state(self, batch_size=None, inputs=None, dtype=None):
        """Zeros (batch_size, units): one tensor, not a list, as TF1 needs."""
        if batch_size is None:
            batch_size = ops.shape(inputs)[0]
        dtype = keras.backend.standardize_dtype(dtype or self.compute_dtype)
        return ops.zeros((batch_size, self.units), dtype=dtype)

    def zero_state(self, batch_size, dtype):
        """`get_initial_state` under the name that TF1's loops call."""
        return self.get_initial_state(batch_size, dtype=dtype)

    def save_own_variables(self, store):
        # An optimizer that knows no constraints may have left the variable
        # outside the bound: save the value in use.
        variables = {}
        super().save_own_variables(variables)
        for name, variable in variables.items():
            if variable is self.recurrent_kernel:
                variable = ops.convert_to_numpy(self.bound(variable))
            store[name] = variable

    def get_config(self):
        return {
            **super().get_config(),
            "use_kernel": self.use_kernel,
            "recurrent_min_abs": self.recurrent_min_abs,
            "recurrent_max_abs": self.recurrent_max_abs,
        }

    def _initializers(self):
        """The initializers of kernel and u; the kernel's may depend on u.

        Both draw u. That gives the same values, since an initializer of Keras
        draws the same ones each time. A drawn tensor must not be kept: Keras
        may initialize a variable twice, first inside a graph that it discards.
        """
        initializer = self.recurrent_initializer
        if isinstance(initializer, TimeConstants):
            initializer = initializer.with_defaults(self.time_steps)

        def draw(shape, dtype=None):
            return self.bound(initializer(shape, dtype=dtype))

        kernel_initializer = self.kernel_initializer
        if isinstance(kernel_initializer, UnitGain):
            kernel_initializer = kernel_initializer.with_defaults(
                draw, self.time_steps
            )
        return kernel_initializer, draw

    def _check_input(self, shape):
        _check_step(shape)
        if not self.use_kernel and shape[-1] != self.units:
            raise ValueError(
                "`inputs` must have as many features as `units` with "
                f"`use_kernel=False`: expected {self.units}, "
                f"got shape {tuple(shape)}"
            )


@keras.saving.register_keras_serializable(package="ind_rnn")
class RecurrentBound(keras.constraints.Constraint):
    """Keeps every weight's magnitude within bounds, and its sign.

    Weights within the bounds stay as they are. Zero counts as positive.
    IndRNNCell makes one from `recurrent_min_abs` and `recurrent_max_abs`.

    Arguments:
        recurrent_min_abs: The smallest magnitude, a number >= 0. Default: 0.0.
        recurrent_max_abs: The largest magnitude, a number >= the smallest, or
            None for no bound. 0.0 is a bound like any other. Default: None.

    Raises:
        ValueError, TypeError: If a bound is no number, negative, not finite,
            or the smallest is larger than the largest.
    """

    def __init__(self, recurrent_min_abs=0.0, recurrent_max_abs=None):
        self.recurrent_min_abs = _number("recurrent_min_abs", recurrent_min_abs)
        self.recurrent_max_abs = None
        if recurrent_max_abs is not None:
            self.recurrent_max_abs = _number(
                "recurrent_max_abs", recurrent_max_abs
            )
            if self.recurrent_min_abs > self.recurrent_max_abs:
                raise ValueError(
                    "`recurrent_min_abs` must be at most `recurrent_max_abs`, "
                    f"got {recurrent_min_abs} and {recurrent_max_abs}"
                )

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        if self.recurrent_max_abs is not None:
            # Not `ops.clip`: XLA of TensorFlow 2.20 would hide a NaN.
            bound = self.recurrent_max_abs
            w = ops.where(ops.abs(w) > bound, bound * ops.sign(w), w)
        if self.recurrent_min_abs > 0:
            sign = ops.where(w < 0, -ops.ones_like(w), ops.ones_like(w))
            w = sign * ops.maximum(ops.abs(w), self.recurrent_min_abs)
        return w

    def straight_through(self, w):
        """The bounded weight, with the gradient of `w` itself.

        Plain clipping has a gradient of zero outside the bound, so a weight
        outside could never return.
        """
        w = ops.convert_to_tensor(w)
        if self.recurrent_min_abs == 0 and self.recurrent_max_abs is None:
            return w
        # w - w carries the gradient; as a value it is exactly zero.
        return ops.stop_gradient(self(w)) + (w - ops.stop_gradient(w))

    def get_config(self):
        return {
            "recurrent_min_abs": self.recurrent_min_abs,
            "recurrent_max_abs": self.recurrent_max_abs,
        }


def _auto_bound(time_steps):
    """The bound "auto": over so many steps, a state at most doubles."""
    return 2 ** (1 / time_steps) if time_steps else 1.0


class _ConstraintThenBound(keras.constraints.Constraint):
    """A constraint of the user's, or None, followed by the bound."""

    def __init__(self, constraint, bound):
        self.constraint = constraint
        self.bound = bound

    def __call__(self, w):
        return self.bound(w if self.constraint is None else self.constraint(w))


@keras.saving.register_keras_serializable(package="ind_rnn")
class TimeConstants(keras.initializers.Initializer):
    """Recurrent weights that remember for different numbers of time steps.

        |u| = exp(-1 / tau),    tau log-uniform over [shortest, longest]

    As many neurons remember for 1 to 10 steps as for 10 to 100: without input,
    a state falls to 1/e of itself in tau steps. The weights are the quantiles
    of this distribution in a random order, so that few neurons, too, have all
    kinds of memory. This is the default of `IndRNNCell` and `IndRNN`, chosen
    by `benchmarks/drop_in.py`.

    Arguments:
        shortest: The shortest time constant, in steps, a number > 0. Default:
            0.5.
        longest: The longest one, a number >= `shortest`. Default: None, the
            number of time steps if an IndRNN knows it, or 1000.
        negative: The fraction of negative weights, in [0, 1). Their neurons
            respond to changes of the input. Default: 0.25.
        seed: An integer, or None for a random one. One instance has the same
            order each time. Default: None.

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range.

    Example:
        >>> u = TimeConstants(longest=784)((128,))
        >>> bool(abs(u).numpy().max() < 1)
        True
    """

    def __init__(self, shortest=0.5, longest=None, negative=0.25, seed=None):
        self.shortest = _number("shortest", shortest)
        if self.shortest == 0:
            raise ValueError(f"`shortest` must be above 0, got {shortest}")
        self.longest = None if longest is None else _number("longest", longest)
        if longest is not None and self.longest < self.shortest:
            raise ValueError(
                "`longest` must be at least `shortest`, got "
                f"{longest} and {shortest}"
            )
        self.negative = _number("negative", negative, below=1)
        self.seed = None if seed is None else _integer("seed", seed)
        self._uniform = keras.initializers.RandomUniform(0.0, 1.0, self.seed)

    def __call__(self, shape, dtype=None):
        draws = ops.reshape(self._uniform(shape, "float32"), (-1,))
        rank = ops.cast(ops.argsort(ops.argsort(draws)), "float32")
        r = ops.reshape((rank + 0.5) / draws.shape[0], shape)
        negative = r < self.negative
        # What is left of r, once it has chosen the sign, is uniform again.
        r = ops.where(
            negative,
            r / (self.negative or 1.0),
            (r - self.negative) / (1 - self.negative),
        )
        longest = self.longest or max(UNKNOWN_TIME_STEPS, self.shortest)
        tau = self.shortest * (longest / self.shortest) ** r
        u = ops.exp(-1 / tau)
        u = ops.where(negative, -u, u)
        return ops.cast(u, dtype or keras.config.floatx())

    def with_defaults(self, time_steps):
        """A copy whose `longest` is `time_steps`, if it was None."""
        result = copy.copy(self)
        if self.longest is None and time_steps:
            result.longest = max(float(time_steps), self.shortest)
        return result

    def get_config(self):
        return {
            "shortest": self.shortest,
            "longest": self.longest,
            "negative": self.negative,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="ind_rnn")
class UnitGain(keras.initializers.Initializer):
    """A smaller kernel for neurons that remember longer.

        kernel = initializer * max(1 - |u|, 1 / time_steps) ** exponent

    A neuron with recurrent weight u multiplies a constant input by
    1 + u + u^2 + ... = 1 / (1 - u). A stack multiplies these gains, and would
    explode. So each column of the kernel is divided by (most of) the gain of
    its neuron. This is the default of `IndRNNCell` and `IndRNN`, chosen by
    `benchmarks/drop_in.py`.

    Arguments:
        initializer: What the kernel would be without memory: an initializer,
            its Keras name or config. Default: None, which is uniform with
            variance 2 / sqrt(F * N). That is "he_uniform", for ReLU, with the
            geometric mean of F and N in place of F.
        recurrent_initializer: That of the recurrent weights u. It must draw
            the same values each time. Default: None; an IndRNN passes its own.
        time_steps: The gain is at most this. Default: None, which is the
            length of the sequences if an IndRNN knows it, or 1000.
        exponent: A number >= 0. 1.0 removes the gain of a constant input, 0.5
            that of white noise. Most data lie between. Default: 0.875.

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range.

    Example:
        >>> layer = IndRNNCell(128, kernel_initializer=UnitGain("orthogonal"))
    """

    def __init__(
        self,
        initializer=None,
        recurrent_initializer=None,
        time_steps=None,
        exponent=0.875,
    ):
        self.initializer = keras.initializers.get(initializer)
        self._uniform = keras.initializers.RandomUniform(-1.0, 1.0)
        self.recurrent_initializer = keras.initializers.get(
            recurrent_initializer
        )
        self.time_steps = None
        if time_steps is not None:
            self.time_steps = _integer("time_steps", time_steps, minimum=1)
        self.exponent = _number("exponent", exponent)

    def __call__(self, shape, dtype=None):
        if self.recurrent_initializer is None:
            raise ValueError(
                "`recurrent_initializer` of UnitGain must be given where the "
                "kernel is not that of an IndRNN, got None"
            )
        u = self.recurrent_initializer((shape[-1],), dtype=dtype)
        scale = _inverse_gain(u, self.time_steps, self.exponent)
        if self.initializer is not None:
            return self.initializer(shape, dtype=dtype) * scale
        limit = math.sqrt(6) / math.prod(shape) ** 0.25
        return self._uniform(shape, dtype=dtype) * limit * scale

    def with_defaults(self, recurrent_initializer, time_steps):
        """A copy with these in place of arguments that are None."""
        result = copy.copy(self)
        result.time_steps = self.time_steps or time_steps
        if self.recurrent_initializer is None:
            result.recurrent_initializer = recurrent_initializer
        return result

    def get_config(self):
        serialize = keras.initializers.serialize
        return {
            "initializer": serialize(self.initializer),
            "recurrent_initializer": serialize(self.recurrent_initializer),
            "time_steps": self.time_steps,
            "exponent": self.exponent,
        }


def _inverse_gain(u, time_steps, exponent):
    """max(1 - |u|, 1 / time_steps) ** exponent, for u of shape (N,)."""
    steps = time_steps or UNKNOWN_TIME_STEPS
    return ops.maximum(1 - ops.abs(u), 1 / steps) ** exponent


def _integer(name, value, minimum=None):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}")
    return int(value)


def _number(name, value, below=math.inf):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    if not 0 <= value < below:
        raise ValueError(f"`{name}` must be in [0, {below}), got {value}")
    return float(value)


def _check_bools(**arguments):
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be a bool, got {value!r}")


def _check_step(shape):
    """The shape of the inputs of one step, (B, F)."""
    if len(shape) != 2:
        raise ValueError(
            "`inputs` of one step must have shape (batch, features), "
            f"got {tuple(shape)}; sequences (batch, time, features) are "
            "for `keras.layers.RNN(cell)`"
        )
    if shape[-1] is None:
        raise ValueError(
            "`inputs` must have a known number of features, got shape "
            f"{tuple(shape)}"
        )


def _check_state(name, states, units, name_of_inputs, inputs, count=1):
    """A state of another size would be broadcast."""
    batch = inputs.shape[0]
    shapes = [
        tuple(getattr(state, "shape", ()))
        for state in keras.tree.flatten(states)
    ]
    if len(shapes) != count or not all(
        _shapes_match(shape, (batch, units)) for shape in shapes
    ):
        tensors = "one tensor" if count == 1 else f"{count} tensors"
        raise ValueError(
            f"{name} must be {tensors} of shape (batch, {units}) with the "
            f"batch of `{name_of_inputs}`, {batch}; got {shapes}"
        )


def _shapes_match(shape, expected):
    """Whether a shape may be the expected one, as far as both are known."""
    return len(shape) == len(expected) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, expected, strict=True)
    )
