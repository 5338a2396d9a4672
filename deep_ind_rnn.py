"""Deep IndRNN networks: stacked, residual, and densely connected.

Each function returns a functional `keras.Model`, and shows its wiring in a few
lines. Axis letters: B batch, T time, F input features, N units.
"""

import dataclasses
import math
import random

import keras
from keras import ops

from dilated_rnn import DilatedRNN, _positive_integers
from ind_rnn import IndRNN
from ind_rnn_cell import (
    TimeConstants,
    UnitGain,
    _auto_bound,
    _check_bools,
    _integer,
    _number,
)
from ind_rnn_normalization import (
    BatchNormalization,
    TimeStepBatchNormalization,
)


def stacked_ind_rnn(
    input_shape,
    units=128,
    num_layers=6,
    num_outputs=None,
    dropout=0.0,
    *,
    activation="relu",
    recurrent_max_abs="auto",
    recurrent_initializer=None,
    long_memory=False,
    dilations=None,
    normalization=None,
    normalize_first=False,
    max_steps=None,
    recurrent_regularizer=None,
    kernel_initializer="he_normal",
    weight_decay=0.0,
    return_sequences=False,
    stateful=False,
    batch_size=None,
    reset=False,
    name=None,
):
    """A plain stack of IndRNN layers.

        x = input
        num_layers times:
            x = dropout(recur(dense(x, units)))

    `recur` is an IndRNN without a kernel of its own, and a normalization. It
    adds the bias of the dense layer, which costs nothing in its loop. Source:
    arXiv 1803.04831, section 4 and figure 2a.

    Arguments:
        input_shape: (T, F). T may be None.
        units: N, the number of neurons in each layer. Default: 128.
        num_layers: Default: 6.
        num_outputs: Adds a linear layer of so many units on top. Default:
            None, which returns the N features themselves.
        dropout: Rate after each layer, in [0, 1). All time steps share one
            mask. Default: 0.0.
        activation: Of the recurrences. Default: "relu".
        recurrent_max_abs: The bound of |u|: a number, None for no bound, or
            "auto" for 2^(1/T), which is 1.0 if T is None. Default: "auto".
        recurrent_initializer: How recurrent weights start. Default: None,
            which is `TimeConstants` up to T without normalization, and
            uniform over [-bound / 3, bound] with it (without a bound, over
            [-1/3, 1]).
        long_memory: Starts the recurrent weights of the last layer near 1,
            uniform over [1 / bound, bound], so that it remembers the whole
            sequence. For networks that return the last step only. Default:
            False.
        dilations: A list with a positive integer d for each layer, whose
            recurrence then is from h_{t-d} to h_t (arXiv 1710.02224, section
            2), and whose bound is that of |u| to the power of d. With 1, 2,
            4, ... steps that are far apart are few connections apart.
            Default: None, which is 1 for all.
        normalization: None; "batch", as in the papers; "layer", over the
            features of each step; "rms", the same without subtracting the
            mean (both as in Keras, "rms" from Keras 3.9 on). "batch" needs
            batches drawn at random: if those of training are neighbours in
            time, its running statistics are not those of a batch, and the
            loss of validation grows while that of training falls. Default:
            None.
        normalize_first: Whether the normalization comes before each
            recurrence rather than after it. Default: False.
        max_steps: Keeps separate statistics of batch normalization for each of
            the first `max_steps` time steps (`TimeStepBatchNormalization`).
            Default: None, all steps share their statistics.
        recurrent_regularizer: A penalty on recurrent weights. With
            `RecurrentPenalty`, `recurrent_max_abs` can be None. Default: None.
        kernel_initializer: How the dense layers start. Default: "he_normal".
            Without normalization, and with the default recurrent weights,
            `UnitGain` divides each column by the gain of the neuron it feeds.
        weight_decay: Adds `weight_decay / 2` times the sum of squares of the
            dense kernels to the loss. Recurrent weights and biases are not
            decayed. Default: 0.0.
        return_sequences: Whether to return all time steps rather than the
            last one. Default: False.
        stateful: Whether each batch continues from the final states of the
            batch before. Default: False.
        batch_size: B. Required with `stateful`. Default: None.
        reset: Adds a second input "reset" (B, T). Where it is true, a new
            sequence begins, and all recurrences start from zeros; see
            `IndRNN`. Default: False.
        name: Name of the model. Default: "stacked_ind_rnn".

    Returns:
        A `keras.Model` that maps (B, T, F) to (B, num_outputs), or to
        (B, T, num_outputs) with `return_sequences`. With `reset` its inputs
        are a list of (B, T, F) and (B, T).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range.

    Example:
        >>> stacked_ind_rnn((784, 1), num_layers=2, num_outputs=10).output_shape
        (None, 10)
    """
    options = locals()
    units = _integer("units", units, minimum=1)
    num_layers = _integer("num_layers", num_layers, minimum=1)
    dilations = _dilations(dilations, num_layers, "`num_layers`")
    net = _Network.of(options, "stacked_ind_rnn")
    x = net.input
    for index, dilation in enumerate(dilations):
        x = net.dense(x, units, dilation)
        x = net.recur(x, index == num_layers - 1, dilation)
        x = net.dropout(x, "dropout", dropout)
    return net.model(x, num_outputs)


def residual_ind_rnn(
    input_shape,
    units=128,
    num_blocks=5,
    num_outputs=None,
    dropout=0.0,
    *,
    activation="relu",
    recurrent_max_abs="auto",
    recurrent_initializer=None,
    long_memory=False,
    dilations=None,
    normalization=None,
    normalize_first=False,
    max_steps=None,
    recurrent_regularizer=None,
    kernel_initializer="he_normal",
    weight_decay=0.0,
    return_sequences=False,
    stateful=False,
    batch_size=None,
    reset=False,
    name=None,
):
    """Pre-activation residual blocks of two recurrences each.

        x = dense(input, units)
        num_blocks times:
            y = x
            twice:
                y = dense(dropout(recur(y)), units)
            x = x + y
        x = dropout(recur(x))

    There are 2 * num_blocks + 1 recurrences. The sum x itself passes through
    no activation. Source: arXiv 1910.06251, figure 3b.

    Arguments:
        num_blocks: Blocks of two recurrences. Default: 5.
        dropout: Rate before each dense layer but the first, in [0, 1). All
            time steps share one mask. Default: 0.0.
        dilations: A list with a positive integer d for each of the
            2 * num_blocks + 1 recurrences, as in `stacked_ind_rnn`. Default:
            None, which is 1 for all.
        name: Name of the model. Default: "residual_ind_rnn".
        All others: As in `stacked_ind_rnn`.

    Returns, Raises:
        As in `stacked_ind_rnn`.

    Example:
        >>> residual_ind_rnn((None, 3), return_sequences=True).output_shape
        (None, None, 128)
    """
    options = locals()
    units = _integer("units", units, minimum=1)
    num_blocks = _integer("num_blocks", num_blocks, minimum=1)
    dilations = _dilations(
        dilations, 2 * num_blocks + 1, "2 * `num_blocks` + 1"
    )
    net = _Network.of(options, "residual_ind_rnn")
    x = net.dense(net.input, units, dilations[0])
    for block in range(num_blocks):
        y = x
        for index in (2 * block, 2 * block + 1):
            y = net.recur(y, dilation=dilations[index])
            y = net.dropout(y, "dropout", dropout)
            y = net.dense(y, units, dilations[index + 1])
        x = keras.layers.Add()([x, y])
    x = net.recur(x, last=True, dilation=dilations[-1])
    x = net.dropout(x, "dropout", dropout)
    return net.model(x, num_outputs)


def dense_ind_rnn(
    input_shape,
    growth_rate=16,
    block_sizes=(8, 6, 4),
    num_outputs=None,
    input_dropout=0.0,
    dropout=0.0,
    bottleneck_dropout=0.0,
    transition_dropout=0.0,
    last_dropout=None,
    *,
    activation="relu",
    recurrent_max_abs="auto",
    recurrent_initializer=None,
    long_memory=False,
    normalization=None,
    normalize_first=False,
    max_steps=None,
    recurrent_regularizer=None,
    kernel_initializer="he_normal",
    weight_decay=0.0,
    return_sequences=False,
    stateful=False,
    batch_size=None,
    reset=False,
    name=None,
):
    """Densely connected blocks: each layer sees all layers before it.

        x = input_dropout(recur(dense(input, 6 * growth_rate)))
        for size in block_sizes:
            size times:
                y = bottleneck_dropout(recur(dense(x, 4 * growth_rate)))
                y = dropout(recur(dense(y, growth_rate)))
                x = concatenate(x, y)
            x = transition_dropout(recur(dense(x, half of the features of x)))

    With the defaults the number of features goes 96 -> 224 -> 112 -> 208 ->
    104 -> 168 -> 84, through 40 recurrences. Source: arXiv 1910.06251, figure
    3c.

    Arguments:
        growth_rate: Features that each layer adds. Default: 16.
        block_sizes: Number of layers in each block. Default: (8, 6, 4).
        input_dropout, dropout, bottleneck_dropout, transition_dropout: Rates
            at the places shown above, in [0, 1). All time steps share one
            mask. Default: 0.0.
        last_dropout: Rate after the last transition. Default: None, which
            takes `transition_dropout`.
        name: Name of the model. Default: "dense_ind_rnn".
        All others: As in `stacked_ind_rnn`.

    Returns, Raises:
        As in `stacked_ind_rnn`.

    Example:
        >>> dense_ind_rnn((784, 1)).output_shape
        (None, 84)
    """
    options = locals()
    growth_rate = _integer("growth_rate", growth_rate, minimum=1)
    if not isinstance(block_sizes, (list, tuple)) or not block_sizes:
        raise ValueError(
            "`block_sizes` must be a list of at least one integer, got "
            f"{block_sizes!r}"
        )
    sizes = [
        _integer(f"block_sizes[{index}]", size, minimum=1)
        for index, size in enumerate(block_sizes)
    ]
    transition_dropout = _number(
        "transition_dropout", transition_dropout, below=1
    )
    if last_dropout is None:
        last_dropout = transition_dropout
    net = _Network.of(options, "dense_ind_rnn")
    x = net.recur(net.dense(net.input, 6 * growth_rate))
    x = net.dropout(x, "input_dropout", input_dropout)
    for index, size in enumerate(sizes):
        for _ in range(size):
            y = net.recur(net.dense(x, 4 * growth_rate))
            y = net.dropout(y, "bottleneck_dropout", bottleneck_dropout)
            y = net.recur(net.dense(y, growth_rate))
            y = net.dropout(y, "dropout", dropout)
            x = keras.layers.Concatenate()([x, y])
        last = index == len(sizes) - 1
        x = net.recur(net.dense(x, x.shape[-1] // 2), last=last)
        if last:
            x = net.dropout(x, "last_dropout", last_dropout)
        else:
            x = net.dropout(x, "transition_dropout", transition_dropout)
    return net.model(x, num_outputs)


@dataclasses.dataclass
class _Network:
    """The options of all networks, and the parts they are built from."""

    input_shape: tuple
    activation: object
    recurrent_max_abs: object
    recurrent_initializer: object
    long_memory: bool
    normalization: str | None
    normalize_first: bool
    max_steps: int | None
    recurrent_regularizer: object
    kernel_initializer: object
    weight_decay: float
    return_sequences: bool
    stateful: bool
    batch_size: int | None
    reset: bool
    name: str

    @classmethod
    def of(cls, arguments, default_name):
        """From the arguments of a function, which may have others, too."""
        names = [field.name for field in dataclasses.fields(cls)]
        options = {name: arguments[name] for name in names}
        if options["name"] is None:
            options["name"] = default_name
        return cls(**options)

    def __post_init__(self):
        self._check()
        self.time_steps, features = self.input_shape
        if self.recurrent_max_abs == "auto":
            self.recurrent_max_abs = _auto_bound(self.time_steps)
        elif self.recurrent_max_abs is not None:
            self.recurrent_max_abs = _number(
                "recurrent_max_abs", self.recurrent_max_abs
            )
        self.input = keras.Input((self.time_steps, features), self.batch_size)
        self.inputs, self.reset_input = self.input, None
        if self.reset:
            self.reset_input = keras.Input(
                (self.time_steps,), self.batch_size, dtype="bool", name="reset"
            )
            self.inputs = [self.input, self.reset_input]
        self.has_time_constants = (
            self.normalization is None and self.recurrent_initializer is None
        )
        # One seed: feature n has the same memory in every layer, also where
        # several layers feed one recurrence, as in residual blocks.
        self.seed = random.randrange(2**31)

    def _check(self):
        _check_bools(
            long_memory=self.long_memory,
            normalize_first=self.normalize_first,
            reset=self.reset,
            return_sequences=self.return_sequences,
            stateful=self.stateful,
        )
        shape = self.input_shape
        if not isinstance(shape, (list, tuple)) or len(shape) != 2:
            raise ValueError(
                f"`input_shape` must be (time steps, features), got {shape!r}"
            )
        if shape[0] is not None:
            _integer("input_shape[0]", shape[0], minimum=1)
        _integer("input_shape[1]", shape[1], minimum=1)
        if self.normalization not in ("batch", "layer", "rms", None):
            raise ValueError(
                '`normalization` must be "batch", "layer", "rms" or None, got '
                f"{self.normalization!r}"
            )
        if self.normalization == "rms" and not hasattr(
            keras.layers, "RMSNormalization"
        ):
            # `LayerNormalization(rms_scaling=True)` of Keras 3.8 divides by the
            # standard deviation.
            raise ValueError(
                '`normalization="rms"` needs Keras 3.9 or newer, got Keras '
                f"{keras.__version__}"
            )
        if self.normalization is None and self.normalize_first:
            raise ValueError(
                "`normalize_first` must be False without normalization, got "
                "True with `normalization=None`"
            )
        if self.max_steps is not None and self.normalization != "batch":
            raise ValueError(
                "`max_steps` must be None without batch normalization, got "
                f"{self.max_steps!r} with "
                f"`normalization={self.normalization!r}`"
            )
        self.weight_decay = _number("weight_decay", self.weight_decay)

    def steps(self, dilation):
        """The steps of a layer that takes every `dilation`-th one, or None."""
        return self.time_steps and math.ceil(self.time_steps / dilation)

    def time_constants(self, dilation):
        return TimeConstants(longest=self.steps(dilation), seed=self.seed)

    def dense(self, x, units, dilation=1):
        """A dense layer that feeds a recurrence, which adds the bias."""
        initializer = self.kernel_initializer
        if self.has_time_constants:
            initializer = UnitGain(
                initializer or "glorot_uniform",  # None: as Keras does
                self.time_constants(dilation),
                self.steps(dilation),
                exponent=1.0,  # The remaining gain compounds over layers.
            )
        return self._dense(x, units, initializer, use_bias=False)

    def _dense(self, x, units, initializer, use_bias):
        decay = self.weight_decay
        return keras.layers.Dense(
            units,
            use_bias=use_bias,
            kernel_initializer=_clone(initializer),
            kernel_regularizer=keras.regularizers.L2(decay / 2)
            if decay
            else None,
        )(x)

    def recur(self, x, last=False, dilation=1):
        if self.normalize_first:
            x = self.normalize(x)
        max_abs = self.recurrent_max_abs
        if max_abs is not None:
            max_abs **= dilation  # The same growth, over T / d steps.
        layer = IndRNN(
            x.shape[-1],
            activation=self.activation,
            use_kernel=False,
            recurrent_initializer=self.recurrent_start(max_abs, last, dilation),
            recurrent_regularizer=self.recurrent_regularizer,
            recurrent_max_abs=max_abs,
            return_sequences=True,
            # A DilatedRNN keeps the states of its layers.
            stateful=self.stateful and dilation == 1,
        )
        if dilation > 1:
            layer = DilatedRNN(
                [layer],
                [dilation],
                return_sequences=True,
                stateful=self.stateful,
            )
        x = layer(x, reset=self.reset_input)
        return x if self.normalize_first else self.normalize(x)

    def recurrent_start(self, max_abs, last, dilation):
        """The initializer of the recurrent weights of a layer."""
        bound = 1.0 if max_abs is None else max_abs
        uniform = keras.initializers.RandomUniform
        if last and self.long_memory and bound > 0:
            return uniform(min(1 / bound, bound), bound)
        if self.has_time_constants:
            return self.time_constants(dilation)
        if self.recurrent_initializer is None:
            # A quarter is negative: see benchmarks/drop_in.py
            return uniform(-bound / 3, bound)
        return _clone(self.recurrent_initializer)

    def normalize(self, x):
        if self.normalization is None:
            return x
        if self.normalization == "layer":
            return keras.layers.LayerNormalization(epsilon=1e-5)(x)
        if self.normalization == "rms":
            return keras.layers.RMSNormalization(epsilon=1e-5)(x)
        options = {"momentum": 0.9, "epsilon": 1e-5}
        if self.max_steps is None:
            return BatchNormalization(**options)(x)
        return TimeStepBatchNormalization(self.max_steps, **options)(x)

    def dropout(self, x, name, rate):
        rate = _number(name, rate, below=1)
        return keras.layers.SpatialDropout1D(rate)(x) if rate else x

    def model(self, x, num_outputs):
        if not self.return_sequences:
            x = x[:, -1]
        if num_outputs is not None:
            num_outputs = _integer("num_outputs", num_outputs, minimum=1)
            x = self._dense(
                x, num_outputs, self.kernel_initializer, use_bias=True
            )
        return keras.Model(self.inputs, x, name=self.name)


def _dilations(dilations, count, meaning):
    """A list with the dilation of each of `count` recurrences."""
    if dilations is None:
        return [1] * count
    dilations = _positive_integers("dilations", dilations)
    if len(dilations) != count:
        raise ValueError(
            f"`dilations` must be {count} numbers, {meaning}, got {dilations!r}"
        )
    return dilations


def _clone(initializer):
    """One instance would give all weights of a shape the same values."""
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer.clone()
    return initializer


@keras.saving.register_keras_serializable(package="ind_rnn")
class RecurrentPenalty(keras.regularizers.Regularizer):
    """A penalty on recurrent weights beyond a bound, instead of the bound.

        factor * sum(max(0, |u| - recurrent_max_abs))

    The alternative of the authors of IndRNN to `recurrent_max_abs`: pass it as
    `recurrent_regularizer`. Source: the readme of their code.

    Arguments:
        recurrent_max_abs: Where the penalty begins, a number >= 0.
        factor: A number >= 0. Default: 1.0.

    Raises:
        ValueError, TypeError: If an argument is no such number.
    """

    def __init__(self, recurrent_max_abs, factor=1.0):
        self.recurrent_max_abs = _number("recurrent_max_abs", recurrent_max_abs)
        self.factor = _number("factor", factor)

    def __call__(self, u):
        beyond = ops.relu(ops.abs(u) - self.recurrent_max_abs)
        return self.factor * ops.sum(beyond)

    def get_config(self):
        return {
            "recurrent_max_abs": self.recurrent_max_abs,
            "factor": self.factor,
        }
