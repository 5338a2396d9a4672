# dilated_rnn.py, of indrnn 1.0.0: recurrent layers for Keras 3.
# SPDX-License-Identifier: Apache-2.0
"""DilatedRNN: recurrent connections that skip steps, for any Keras cell.

This file stands alone: copy it into a project, or install and import it. With
the files of IndRNN beside it, SimpleRNN is up to three times as fast. Axis
letters: B batch, T time, F input features, N units, d dilation.
"""

import inspect
import math
import numbers
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

try:
    import ind_rnn_recurrence as fused
except ModuleNotFoundError as error:
    if error.name != "ind_rnn_recurrence":
        raise
    fused = None  # Keras' own loops run.


OPTIONS = (
    "return_sequences",
    "return_state",
    "stateful",
    "go_backwards",
    "zero_output_for_mask",
)


@keras.saving.register_keras_serializable(package="dilated_rnn")
class DilatedRNN(keras.layers.Layer):
    """A stack of recurrent layers, layer l with dilation d_l.

        c_t = f(x_t, c_{t-d})

    where f is a step of any Keras cell. With dilations 1, 2, 4, ... any two
    steps, even thousands of steps apart, are only about a dozen connections
    apart. Source: arXiv 1710.02224, section 2.

    Step t of a layer depends only on steps t - d, t - 2d, ..., so the d phases
    x[j], x[j + d], x[j + 2d], ... are independent sequences. They run side by
    side, over T / d steps. Nothing is unrolled, and B and T may be unknown.
    Without `return_sequences`, if every dilation divides the next, only the
    phases that the last outputs depend on are computed. For 1, 2, 4, ... that
    is two layers' worth of steps, for any number of layers. SimpleRNN and
    IndRNN run in the compiled loop of `ind_rnn_recurrence.py`, with first
    gradients only; for second gradients use `SimpleRNN(..., unroll=True)`.
    SimpleRNN runs in Keras' loop if that file is missing.

    Arguments:
        cells: A list, bottom layer first, of Keras cells and recurrent layers
            (LSTM, GRU, IndRNN, ...) that are not built yet. Cells are used as
            they are. Layers are copied, and keep their own fast loop.
        dilations: A list of positive integers, one for each cell. Default:
            1, 2, 4, ...
        return_sequences: Whether to return the outputs of all steps rather
            than the last ones. Default: False.
        return_state: Whether to return the last states too. Default: False.
        stateful: Whether each batch continues from the final states of the
            batch before. Default: False.
        go_backwards: Whether to read the sequence from its end. Outputs come
            in the order of reading. Default: False.
        zero_output_for_mask: Whether `return_sequences` gives zeros for a
            masked step rather than the output before it. Default: False.
        **kwargs: Of `keras.layers.Layer`: `name`, `activity_regularizer`,
            `dtype` (of the outputs; each cell has its own), ...

    Call arguments:
        sequences: (B, T, F).
        initial_state: A list of (B, d, units), one for each state of each
            layer (an LSTM has two), the states of the d steps before the
            first one, in the order of time. Default: the cells' own initial
            states, as a rule zeros.
        mask: (B, T), false where a step is skipped. Default: None.
        training: Whether to apply the dropout of the cells, with one mask for
            all steps of a row. Default: False.
        reset: (B, T), true at the first step of each sequence, if a row holds
            several. There each layer forgets its last d states. Needs
            `ResetRNN` of `reset_rnn.py`, which runs the cells then. Default:
            None.
        sequences_mask: Where there are several tensors, Keras passes the mask
            of a layer before here. It counts if `mask` is None.

    Returns:
        With `return_sequences`, (B, T, N). Otherwise the last d outputs in the
        order of time, (B, d * N), where d is the first dilation: if d > 1, no
        single output has seen all steps (section 2.2 of the paper). Outputs
        before the first step are zeros. With `return_state` the last states
        follow, in the form of `initial_state`. A sequence in chunks of any
        lengths, with the states carried, gives the same as the whole.

    Raises:
        ValueError, TypeError: If an argument has a wrong type, length or
            range, a layer has options that DilatedRNN has itself, or tensors
            have a wrong shape.
        ModuleNotFoundError: If `reset` is given without reset_rnn.py.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((784, 1)),
        ...     DilatedRNN([keras.layers.SimpleRNNCell(20) for _ in range(9)]),
        ...     keras.layers.Dense(10)])
        >>> model.count_params()
        7210
    """

    def __init__(
        self,
        cells,
        dilations=None,
        return_sequences=False,
        return_state=False,
        stateful=False,
        go_backwards=False,
        zero_output_for_mask=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(cells, (list, tuple)) or not cells:
            raise ValueError(
                "`cells` must be a list of at least one Keras cell or "
                f"recurrent layer, got {cells!r}"
            )
        if dilations is None:
            dilations = [2**index for index in range(len(cells))]
        self.dilations = _positive_integers("dilations", dilations)
        if len(self.dilations) != len(cells):
            raise ValueError(
                "`dilations` must have one number for each of `cells`, got "
                f"{len(self.dilations)} for {len(cells)}"
            )
        arguments = locals()
        for name in OPTIONS:
            if not isinstance(arguments[name], bool):
                raise TypeError(
                    f"`{name}` must be a bool, got {arguments[name]!r}"
                )
            setattr(self, name, arguments[name])
        self.layers = [
            _as_layer(f"cells[{index}]", cell)
            for index, cell in enumerate(cells)
        ]
        # TensorFlow's checkpoints track attributes, but not Keras' lists.
        for index, layer in enumerate(self.layers):
            setattr(self, f"layers_{index}", layer)
        self.states = None
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @property
    def cells(self):
        return [
            layer.cell if isinstance(layer, _FastSimpleRNN) else layer
            for layer in self.layers
        ]

    @property
    def state_size(self):
        """(d, units) of every state of every layer."""
        return [
            (dilation, size)
            for layer, dilation in zip(self.layers, self.dilations, strict=True)
            for size in keras.tree.flatten(layer.state_size)
        ]

    def build(self, sequences_shape, initial_state_shape=None):
        if len(sequences_shape) != 3 or sequences_shape[-1] is None:
            raise ValueError(
                "`sequences` must have shape (batch, time, features) with a "
                f"known number of features, got {tuple(sequences_shape)}"
            )
        batch, time_steps, features = sequences_shape
        self.input_spec = keras.layers.InputSpec(shape=(None, None, features))
        for layer, dilation in zip(self.layers, self.dilations, strict=True):
            # IndRNN starts from weights that remember so many steps.
            steps = time_steps and math.ceil(time_steps / dilation)
            layer.build((None, steps, features))
            layer.built = True
            features = _units(layer)
        if self.stateful:
            if batch is None:
                raise ValueError(
                    "`sequences` must have a known batch size with "
                    f"`stateful=True`, got {tuple(sequences_shape)}"
                )
            states = [
                keras.Variable(
                    state,
                    trainable=False,
                    dtype=self.variable_dtype,
                    name="rnn_state",
                )
                for state in self.get_initial_state(batch)
            ]
            # Bypass Keras' tracking: states must not be saved as weights.
            object.__setattr__(self, "states", states)

    def call(
        self,
        sequences,
        initial_state=None,
        mask=None,
        training=False,
        reset=None,
        sequences_mask=None,
    ):
        if sequences.shape[1] == 0:
            raise ValueError(
                "`sequences` must have at least one time step, got shape "
                f"{tuple(sequences.shape)}"
            )
        mask = sequences_mask if mask is None else mask
        mask = _check_per_step("mask", mask, sequences)
        reset = _check_per_step("reset", reset, sequences)
        x = ops.cast(sequences, self.compute_dtype)  # integers too
        if self.go_backwards:
            x = ops.flip(x, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
            if reset is not None:  # The last step of a sequence is read first.
                none = ops.zeros_like(reset[:, :1])
                reset = ops.concatenate([reset[:, 1:], none], axis=1)
                reset = ops.flip(reset, axis=1)
        rows = _Rows.of(x, mask, reset)
        states = None
        if initial_state is not None or self.return_state or self.stateful:
            states = self._given_states(initial_state, ops.shape(x)[0])
        if states is None and not self.return_sequences and rows.are_plain:
            y = self._last_outputs(x, rows, training)
            if y is not None:
                return y
        y, states = self._all_outputs(rows.read(x), states, rows, training)
        y = ops.cast(y, self.compute_dtype)
        if not self.return_sequences:
            y = rows.last(y, self.dilations[0])
        elif mask is not None:
            y = rows.at_all_steps(y)
            if self.zero_output_for_mask:
                y = ops.where(mask[:, :, None], y, ops.zeros_like(y))
        states = [
            ops.cast(rows.of_last_sequence(state), self.compute_dtype)
            for state in states
        ]
        if self.stateful:
            for variable, value in zip(self.states, states, strict=True):
                variable.assign(value)
        return (y, *states) if self.return_state else y

    def _all_outputs(self, x, states, rows, training):
        """The outputs of all steps, and the last states.

        Arguments:
            x: (B, T, F), the steps that are read, and then zeros.
            states: The states before the first step; or None, if they are the
                initial ones and the last ones are not wanted.

        Returns:
            (B, T, N), and a list of the last states, (B, d, N) each.
        """
        last_states, start = [], 0
        for layer, dilation in zip(self.layers, self.dilations, strict=True):
            before = None
            if states is not None:
                count = len(keras.tree.flatten(layer.state_size))
                before = states[start : start + count]
                start += count
            x, after = self._outputs_of(
                layer, dilation, x, before, rows, training
            )
            last_states += after
        return x, last_states

    def _outputs_of(self, layer, dilation, x, before, rows, training):
        """`_all_outputs` of one layer."""
        if (
            before is None
            and rows.are_plain
            and hasattr(layer, "call_dilated")
            # Outside its `__call__`, Keras casts the weights to our type.
            and layer.compute_dtype == self.compute_dtype
        ):
            phases = min(dilation, x.shape[1] or dilation)
            y = layer.call_dilated(x, phases, training=training)
            if y is not None:
                return y, []
        return self._run_phases(layer, dilation, x, before, rows, training)

    def _run_phases(self, layer, dilation, x, before, rows, training):
        """`_all_outputs` of one layer: each phase is a row of its batch."""
        batch, length, _ = ops.shape(x)
        phases = _minimum(length, dilation)
        whole = isinstance(length, int) and length % phases == 0
        options = {}
        if rows.mask is not None or (before is not None and not whole):
            # The zeros at the end of a phase follow all other steps. A mask
            # keeps them out of the states.
            options["mask"] = _range(length) < rows.lengths[:, None]
        if rows.sequence is not None:
            options["reset"] = rows.begins_since(dilation)
        options = {
            name: ops.squeeze(_split(value[:, :, None], phases), axis=-1)
            for name, value in options.items()
        }
        if before is not None:
            options["initial_state"] = keras.tree.pack_sequence_as(
                layer.get_initial_state(batch),
                [
                    ops.reshape(state[:, :phases], (-1, state.shape[-1]))
                    for state in before
                ],
            )
        x = _split(x, phases)
        y, *after = self._run(layer, x, phases, training, **options)
        y = _join(y, phases)
        y = y if whole else y[:, :length]
        if before is None:
            return y, []
        # From the order of phases to that of time.
        order = (rows.lengths[:, None] + _range(dilation)) % dilation
        states = []
        for old, new in zip(before, keras.tree.flatten(after), strict=True):
            new = ops.reshape(new, (batch, phases, new.shape[-1]))
            new = ops.cast(new, old.dtype)
            new = ops.concatenate([new, old[:, phases:]], axis=1)
            states.append(_pick(new, order))
        return y, states

    def _last_outputs(self, x, rows, training):
        """(B, d * N) from x (B, T, F), where dilations nest; or else None.

        They do if T is a multiple of the first dilation, and each dilation of
        the one before. Whatever the last d outputs depend on then lies, in each
        layer, in the d phases that end with the last d steps.
        """
        phases, length = self.dilations[0], ops.shape(x)[1]
        known = phases == 1 or (
            isinstance(length, int) and length % phases == 0
        )
        if not known or any(
            above % below
            for below, above in zip(self.dilations, self.dilations[1:])
        ):
            return None
        below = phases
        for layer, dilation in zip(self.layers, self.dilations, strict=True):
            x = _last_of_groups(x, dilation // below, phases)
            below = dilation
            x, _ = self._outputs_of(layer, phases, x, None, rows, training)
        y = ops.reshape(x[:, -phases:], (-1, phases * x.shape[-1]))
        return ops.cast(y, self.compute_dtype)

    def _run(self, layer, x, phases, training, **options):
        """The outputs and the last states of one layer."""
        if training:
            _share_dropout(layer, x, phases)
        if (
            "reset" in options
            and "reset" not in inspect.signature(layer.call).parameters
        ):
            from reset_rnn import ResetRNN  # only needed here

            layer = ResetRNN(
                layer.cell,
                return_sequences=True,
                return_state=True,
                dtype=layer.dtype_policy,
            )
        return layer(x, training=training, **options)

    def get_initial_state(self, batch_size):
        """The states before the first step: a list of (B, d, units)."""
        return [
            ops.reshape(value, (batch_size, dilation, value.shape[-1]))
            for layer, dilation in zip(self.layers, self.dilations, strict=True)
            for value in keras.tree.flatten(
                layer.get_initial_state(dilation * batch_size)
            )
        ]

    def _given_states(self, initial_state, batch):
        if initial_state is None:
            initial_state = self.states or self.get_initial_state(batch)
        state = keras.tree.flatten(initial_state)
        shapes = [tuple(np.shape(value)) for value in state]
        batches = {shape[0] for shape in shapes} - {None}
        if [shape[1:] for shape in shapes] != self.state_size or (
            isinstance(batch, int) and batches - {batch}
        ):
            raise ValueError(
                "`initial_state` must be a list of tensors, of shapes (batch, "
                f"d, units) with (d, units) = {self.state_size} and the batch "
                f"of `sequences`, {batch}; got {shapes}"
            )
        return [ops.convert_to_tensor(value) for value in state]

    def reset_state(self):
        """Set the states of a stateful layer to the initial ones."""
        if self.states is not None:
            initial_state = self.get_initial_state(self.states[0].shape[0])
            for variable, value in zip(self.states, initial_state, strict=True):
                variable.assign(value)

    def reset_states(self):
        """The name of `reset_state` in Keras 2."""
        self.reset_state()

    def compute_output_shape(self, sequences_shape, initial_state_shape=None):
        batch, length, _ = sequences_shape
        units = _units(self.layers[-1])
        output = (batch, self.dilations[0] * units)
        if self.return_sequences:
            output = (batch, length, units)
        if self.return_state:
            return output, *((batch, *size) for size in self.state_size)
        return output

    def compute_mask(self, sequences, previous_mask=None):
        mask = None
        if self.return_sequences and previous_mask is not None:
            mask = keras.tree.flatten(previous_mask)[0]
        if self.return_state:
            return [mask] + [None] * len(self.state_size)
        return mask

    def get_config(self):
        return {
            **super().get_config(),
            "cells": [
                _without_build_config(keras.saving.serialize_keras_object(cell))
                for cell in self.cells
            ],
            "dilations": list(self.dilations),
            **{name: getattr(self, name) for name in OPTIONS},
        }

    @classmethod
    def from_config(cls, config):
        cells = [
            keras.saving.deserialize_keras_object(_without_build_config(cell))
            for cell in config["cells"]
        ]
        return cls(**{**config, "cells": cells})


class _Rows(NamedTuple):
    """What the rows of a batch hold, in the order of reading.

    Masked steps are skipped: of row b, `lengths[b]` steps are read. A row may
    hold several sequences. They are counted, and those before the first reset
    have the number 0.
    """

    mask: object  # (B, T), or None
    lengths: object  # (B,)
    sequence: object  # (B, T), the sequence of each step, or None
    sequence_read: object  # (B, T), that of each step that is read, or None
    last_start: object  # (B,), where the last sequence starts, or None

    @classmethod
    def of(cls, x, mask, reset):
        batch, length, _ = ops.shape(x)
        lengths = ops.broadcast_to(length, (batch,))
        if mask is not None:
            lengths = ops.sum(ops.cast(mask, "int32"), axis=1)
        if reset is None:
            return cls(mask, lengths, None, None, None)
        sequence = ops.cumsum(ops.cast(reset, "int32"), axis=1)
        read = sequence
        if mask is not None:
            read = _unmasked_first(read[:, :, None], mask, lengths)[:, :, 0]
        before = (_range(length) < lengths[:, None]) & (read < sequence[:, -1:])
        start = ops.sum(ops.cast(before, "int32"), axis=1)
        # Sequence 0 goes on from the states before the first step.
        start = ops.where(sequence[:, -1] > 0, start, -(2**30))
        return cls(mask, lengths, sequence, read, start)

    @property
    def are_plain(self):
        return self.mask is None and self.sequence is None

    def read(self, x):
        """The steps of x (B, T, F) that are read, and then zeros."""
        if self.mask is None:
            return x
        return _unmasked_first(x, self.mask, self.lengths)

    def begins_since(self, dilation):
        """(B, T), whether a sequence has begun since step t - d."""
        read = self.sequence_read
        batch, length = ops.shape(read)
        earlier = ops.zeros((batch, _minimum(length, dilation)), "int32")
        earlier = ops.concatenate([earlier, read], axis=1)
        return read > earlier[:, :length]

    def last(self, y, count):
        """The last outputs, (B, count * N), of y (B, T, N)."""
        steps, kept = self._last_steps(count)
        y = _pick(y, ops.where(kept, steps, -1))
        return ops.reshape(y, (-1, count * y.shape[-1]))

    def at_all_steps(self, y):
        """y (B, T, N) of the steps that are read, at their place in the row.

        A masked step has the output of the step before in its sequence.
        """
        index = ops.cumsum(ops.cast(self.mask, "int32"), axis=1) - 1
        if self.sequence is not None:
            read = _pick(self.sequence_read[:, :, None], index)
            index = ops.where(read[:, :, 0] == self.sequence, index, -1)
        return _pick(y, index)

    def of_last_sequence(self, state):
        """A state (B, d, N), with zeros for steps of earlier sequences."""
        if self.last_start is None:
            return state
        _, kept = self._last_steps(state.shape[1])
        return ops.where(kept[:, :, None], state, ops.zeros_like(state))

    def _last_steps(self, count):
        """The last steps of each row, (B, count), and which of them belong to
        its last sequence.
        """
        steps = self.lengths[:, None] - count + _range(count)
        if self.last_start is None:
            return steps, ops.ones_like(steps, dtype="bool")
        return steps, steps >= self.last_start[:, None]


def dilated_rnn(cell_type, hidden_structs, dilations=None, **kwargs):
    """A DilatedRNN of kinds of cells, with the authors' argument names.

    Arguments:
        cell_type: "RNN", "LSTM", "GRU" or "IndRNN" (this one from
            `ind_rnn.py`), or a list of them, one for each layer.
        hidden_structs: A list: the units of each layer, bottom layer first.
        dilations: A list: the dilation of each layer. Default: 1, 2, 4, ...
        **kwargs: Those of `DilatedRNN` go there, all others to every cell,
            and `dtype` to both. With a `seed`, layer l gets `seed` + l.

    Returns:
        A `DilatedRNN`.

    Raises:
        ValueError, TypeError: If an argument has a wrong type, length or
            range.

    Example:
        >>> layer = dilated_rnn("GRU", hidden_structs=[20, 30, 40, 50],
        ...                     dilations=[4, 8, 16, 32])
        >>> layer(keras.ops.ones((2, 784, 1))).shape
        TensorShape([2, 200])
    """
    units = _positive_integers("hidden_structs", hidden_structs)
    kinds = [cell_type] * len(units)
    if isinstance(cell_type, (list, tuple)):
        kinds = cell_type
    if len(kinds) != len(units):
        raise ValueError(
            "`cell_type` must be one name, or one for each of "
            f"`hidden_structs`, got {len(kinds)} for {len(units)}"
        )
    layer_types = [_layer_type(kind) for kind in kinds]
    own = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
    for name in ("activity_regularizer", "name", "trainable"):
        if name in kwargs:
            own[name] = kwargs.pop(name)
    if "dtype" in kwargs:
        own["dtype"] = kwargs["dtype"]
    seed = kwargs.pop("seed", None)
    layers = [
        layer_type(count, seed=None if seed is None else seed + index, **kwargs)
        for index, (layer_type, count) in enumerate(zip(layer_types, units))
    ]
    return DilatedRNN(layers, dilations, **own)


def _layer_type(cell_type):
    kinds = ("RNN", "LSTM", "GRU", "IndRNN")
    if cell_type not in kinds:
        raise ValueError(
            f"`cell_type` must be one of {', '.join(kinds)}, got {cell_type!r}"
        )
    if cell_type == "IndRNN":
        from ind_rnn import IndRNN  # only needed here

        return IndRNN
    return getattr(
        keras.layers, "SimpleRNN" if cell_type == "RNN" else cell_type
    )


def mixed_rnn(units, num_layers=2, **kwargs):
    """SimpleRNN layers that mix neurons, under an IndRNN that remembers.

    The layer to begin with: put it in the place of LSTM. It is a `DilatedRNN`
    with dilations 1, 2, 4, ...: each step of a SimpleRNN combines the features
    of a few steps, and the neurons of the IndRNN above keep the results for up
    to T steps. Chosen by `benchmarks/drop_in.py --study networks`.

    Arguments:
        units: N, the number of neurons in each layer.
        num_layers: The last one is the IndRNN. At least 2. Default: 2.
        **kwargs: As in `dilated_rnn`: `return_sequences`, `stateful`, ... go to
            `DilatedRNN`, and `dropout`, `seed`, ... to every layer.

    Returns:
        A `DilatedRNN`.

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range.
        ModuleNotFoundError: Without `ind_rnn.py`.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((100, 3)), mixed_rnn(64), keras.layers.Dense(1)])
        >>> model.count_params()
        8641
    """
    units = _integer("units", units, minimum=1)
    num_layers = _integer("num_layers", num_layers, minimum=2)
    kinds = ["RNN"] * (num_layers - 1) + ["IndRNN"]
    return dilated_rnn(kinds, [units] * num_layers, **kwargs)


def mean_recurrent_length(dilations):
    """The mean length of paths through a dilated network, in connections.

        (d(1) + ... + d(m)) / m

    where m is the largest dilation and d(n) the length of the shortest path
    from the input at one step to the output n steps later. It counts recurrent
    connections and those from layer to layer. Source: arXiv 1710.02224, section
    3 (the mean recurrent length), computed from the graph rather than from a
    closed form. For dilations 1, 2, 4, ..., 256 it is 12.0; for as many layers
    without dilations and the same m, 136.5.

    Arguments:
        dilations: A list of positive integers, one for each layer.

    Returns:
        A float. Infinity if some distance cannot be bridged, for example if
        all dilations are even.

    Raises:
        ValueError, TypeError: If `dilations` is no such list.
    """
    dilations = _positive_integers("dilations", dilations)
    hops = [0]  # hops[n]: recurrent connections that bridge n steps
    for distance in range(1, max(dilations) + 1):
        reachable = [hops[distance - d] for d in dilations if d <= distance]
        hops.append(1 + min(reachable, default=math.inf))
    return sum(hops[1:]) / max(dilations) + len(dilations) - 1


class _FastSimpleRNN(keras.layers.RNN):
    """`keras.layers.RNN` with the compiled loop of `ind_rnn_recurrence.py`.

    For SimpleRNNCell, if that file is there. One matrix product projects all
    inputs.
    """

    def inner_loop(self, sequences, initial_state, mask, training=False):
        cell, step = self.cell, self._step(training)
        if step is None:
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        if training and cell.dropout > 0:
            sequences *= cell.get_dropout_mask(sequences[:, 0])[:, None]
        h, states = fused.recurrence(
            *self._project(sequences), initial_state, step=step, mask=mask
        )
        return h[:, -1], h, states

    def call_dilated(self, sequences, dilation, training=False):
        """All outputs with recurrences from h_{t-d} to h_t, from zeros.

        Returns:
            (B, T, N). None with dropout, and where Keras' loop has to run.
        """
        step = self._step(training)
        if step is None or (training and self.cell.dropout > 0):
            return None
        a, (u, (b,)) = self._project(sequences)
        return fused.dilated_recurrence(
            a, (u, (ops.tile(b, dilation),)), dilation, step=step
        )

    def _step(self, training):
        cell = self.cell
        if (
            fused is None
            or type(cell) is not keras.layers.SimpleRNNCell
            or cell.activation not in fused.ACTIVATION_GRADIENTS
            or (training and cell.recurrent_dropout > 0)
            or not fused.can_compile()
        ):
            return None
        return fused.SimpleRNNStep(cell.activation, cell.units)

    def _project(self, sequences):
        """W x of all steps, and the weights of a step."""
        cell = self.cell
        a = ops.matmul(sequences, cell.kernel)
        u = ops.reshape(cell.recurrent_kernel, (-1,))
        bias = cell.bias if cell.use_bias else ops.zeros((cell.units,), a.dtype)
        return a, ((u,), (bias,))


def _as_layer(name, cell):
    """The layer that runs a cell over sequences, or a layer that does."""
    if isinstance(cell, keras.layers.RNN):
        for option in (
            "go_backwards",
            "stateful",
            "zero_output_for_mask",
            "activity_regularizer",
        ):
            if getattr(cell, option, None):
                raise ValueError(
                    f"`{name}` must be a layer without `{option}`: pass it to "
                    f"DilatedRNN, got {option}={getattr(cell, option)!r}"
                )
        if cell.built:
            raise ValueError(
                f"`{name}` must be a layer that is not built, since DilatedRNN "
                f"takes a copy without weights, got {cell!r}"
            )
        # A copy: the layer is the caller's.
        if type(cell) is keras.layers.SimpleRNN and not cell.unroll:
            cell = _copy(cell.cell)
        else:
            cell = _copy(cell)
            cell.return_sequences = cell.return_state = True
            _check_states(name, cell)
            return cell
    if isinstance(cell, DilatedRNN):
        raise TypeError(
            f"`{name}` must be a Keras cell or a recurrent layer, and no "
            f"DilatedRNN: give its cells to this one, got {cell!r}"
        )
    if not callable(getattr(cell, "call", None)) or not hasattr(
        cell, "state_size"
    ):
        raise TypeError(
            f"`{name}` must be a Keras cell, with `call` and `state_size`, or "
            f"a recurrent layer, got {cell!r}"
        )
    _check_states(name, cell)
    return _FastSimpleRNN(
        cell,
        return_sequences=True,
        return_state=True,
        dtype=getattr(cell, "dtype_policy", None),
    )


def _copy(layer):
    """A copy without weights."""
    config = layer.get_config()
    if type(layer) is keras.layers.SimpleRNN:
        config["seed"] = layer.cell.seed  # which Keras forgets
    return type(layer).from_config(config)


def _without_build_config(config):
    """A cell's config without its shapes: DilatedRNN builds the cell."""
    return {name: config[name] for name in config if name != "build_config"}


def _check_states(name, cell):
    sizes = keras.tree.flatten(cell.state_size)  # -1 for convolutions
    if not all(isinstance(n, numbers.Integral) and n > 0 for n in sizes):
        raise TypeError(
            f"`{name}` must have states that are vectors, (batch, units), got "
            f"{cell!r} with `state_size` {cell.state_size!r}"
        )


def _share_dropout(layer, x, phases):
    """Draw the dropout masks of x (B * d, T, F): the same for every phase."""
    cell, batch = layer.cell, ops.shape(x)[0] // phases
    for name, example in (
        ("dropout", x[:batch, 0]),
        ("recurrent_dropout", layer.get_initial_state(batch)[0]),
    ):
        if getattr(cell, name, 0) and hasattr(cell, f"get_{name}_mask"):
            # A Keras cell keeps a mask in an attribute until its layer's call
            # has ended; under another name, each phase would draw its own.
            mask = getattr(cell, f"get_{name}_mask")(
                ops.cast(example, layer.compute_dtype)
            )
            mask = keras.tree.map_structure(
                lambda mask: ops.repeat(mask, phases, axis=0), mask
            )
            setattr(cell, f"_{name}_mask", mask)


def _units(layer):
    return layer.compute_output_shape((None, None, 1))[0][-1]


def _range(*limits):
    """int32, as sizes are: Keras' own is int64 with `floatx` "float64"."""
    return ops.arange(*limits, dtype="int32")


def _split(x, phases):
    """(B, T, F) with zeros at its end to (B * d, T / d, F): phases are rows."""
    batch, length, features = ops.shape(x)
    steps = -(-length // phases)
    x = _with_zeros(x, steps * phases - length, at_end=True)
    x = ops.reshape(x, (batch, steps, phases, features))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (batch * phases, steps, features))


def _join(x, phases):
    """(B * d, T / d, F) to (B, T, F): the inverse of `_split`."""
    rows, steps, features = ops.shape(x)
    x = ops.reshape(x, (rows // phases, phases, steps, features))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (rows // phases, steps * phases, features))


def _last_of_groups(x, count, size):
    """Of each `count` blocks of `size` steps the last one, from the end on."""
    if count == 1:
        return x
    batch, length, features = ops.shape(x)
    missing = -(length // size) % count
    x = _with_zeros(x, missing * size, at_end=False)
    groups = (length // size + missing) // count
    # Whole rows: a slice with a stride is ten times slower.
    x = ops.reshape(x, (batch, groups, count * size * features))
    x = x[:, :, -size * features :]
    return ops.reshape(x, (batch, groups * size, features))


def _with_zeros(x, count, at_end):
    """x (B, T, F) with `count` more steps, at its end or start."""
    if isinstance(count, int) and count == 0:
        return x
    batch, _, features = ops.shape(x)
    zeros = ops.zeros((batch, count, features), x.dtype)
    return ops.concatenate([x, zeros] if at_end else [zeros, x], axis=1)


def _unmasked_first(x, mask, lengths):
    """x (B, T, F) with the steps that a mask (B, T) keeps, and then zeros."""
    steps = _range(ops.shape(x)[1])
    order = ops.argsort(ops.where(mask, steps, steps + ops.shape(x)[1]), axis=1)
    return _pick(x, ops.where(steps < lengths[:, None], order, -1))


def _pick(x, index):
    """x[b, index[b, i]] of x (B, T, N): (B, I, N), zeros where index < 0."""
    batch, length, units = ops.shape(x)
    rows = _range(batch)[:, None] * length + ops.maximum(index, 0)
    y = ops.take(ops.reshape(x, (batch * length, units)), rows, axis=0)
    return ops.where(index[:, :, None] >= 0, y, ops.zeros_like(y))


def _check_per_step(name, values, sequences):
    """A mask or resets as bools (B, T), or None. As in reset_rnn.py."""
    if isinstance(values, (list, tuple)):
        # One mask for each input, as Keras has it, or numbers in lists.
        first = values[0] if values else None
        is_mask = first is None or len(getattr(first, "shape", ())) > 1
        values = first if is_mask else np.array(values)
    if values is None:
        return None
    values = ops.convert_to_tensor(values)
    expected = tuple(sequences.shape[:2])
    if len(values.shape) == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if not _shapes_match(values.shape, expected):
        raise ValueError(
            f"`{name}` must have shape (batch, time), here {expected}, got "
            f"{tuple(values.shape)}"
        )
    # A size unknown until now must not be broadcast.
    return ops.cast(ops.reshape(values, ops.shape(sequences)[:2]), "bool")


def _shapes_match(shape, expected):
    """Whether a shape may be the expected one, as far as both are known."""
    return len(shape) == len(expected) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(shape, expected, strict=True)
    )


def _minimum(a, b):
    return min(a, b) if isinstance(a, int) else ops.minimum(a, b)


def _positive_integers(name, values):
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(
            f"`{name}` must be a list of at least one integer, got {values!r}"
        )
    return [
        _integer(f"{name}[{index}]", value, minimum=1)
        for index, value in enumerate(values)
    ]


def _integer(name, value, minimum):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}")
    return int(value)
