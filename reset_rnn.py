"""ResetRNN: sequences that begin inside a batch row, for any Keras cell.

This file stands alone: copy it into a project, or install and import it. Axis
letters: B batch, T time, F input features, N units.
"""

import inspect
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="ind_rnn")
class ResetRNN(keras.layers.RNN):
    """`keras.layers.RNN` for rows that hold several sequences.

    `reset` marks the first step of each sequence. There the state starts from
    zeros, so outputs and gradients are those of a separate call for each
    sequence. Use it to pack short sequences into one row, or for episodes that
    end in the middle of a rollout.

    Arguments:
        cell, **kwargs: As in `keras.layers.RNN`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: As in `keras.layers.RNN`, for the steps before the first
            reset.
        mask: (B, T), false where a step is skipped. Default: None, which is
            the mask of a layer before, such as Embedding, if there is one.
        training: Whether to apply dropout. All sequences of a row share one
            mask. Default: False.
        reset: (B, T), true at the first step of each sequence, in the order of
            time. With `go_backwards`, each sequence is read from its end. The
            first step of a sequence may be masked. Default: None.
        sequences_mask: Where there are several tensors, Keras passes the mask
            of a layer before here. It counts if `mask` is None.

    Returns:
        As `keras.layers.RNN`. Masked steps at the beginning of a sequence
        return zeros. The last states are those of the last sequence of a row.

    Raises:
        ValueError: If `reset` or `mask` has a wrong shape.

    Example:
        >>> layer = ResetRNN(keras.layers.GRUCell(8), return_sequences=True)
        >>> reset = np.array([[True, False, False, True, False]])
        >>> layer(ops.ones((1, 5, 3)), reset=reset).shape
        TensorShape([1, 5, 8])
    """

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
        if isinstance(mask, MaskAndReset):  # from Bidirectional
            mask, reset = mask
        mask = sequences_mask if mask is None else mask
        if mask is not None:
            mask = _check_per_step("mask", mask, sequences)
        if reset is not None:
            reset = _check_per_step("reset", reset, sequences)
            if self.go_backwards:  # The last step of a sequence is read first.
                none = ops.zeros_like(reset[:, :1])
                reset = ops.concatenate([reset[:, 1:], none], axis=1)
        return super().call(
            sequences,
            initial_state=initial_state,
            mask=MaskAndReset(mask, reset),
            training=training,
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        mask, reset = mask
        if reset is None:
            return super().inner_loop(
                sequences, initial_state, mask, training=training
            )
        # 1: a step from zero states; 2: zero states, and no step.
        flag = ops.cast(reset, "int32")
        if mask is not None:
            flag = ops.where(mask, flag, 2 * flag)
            mask = ops.logical_or(mask, reset)
        flag = ops.cast(flag, sequences.dtype)[:, :, None]
        loop = keras.layers.RNN(
            _ResetCell(self.cell, training),
            return_sequences=self.return_sequences,
            go_backwards=self.go_backwards,
            unroll=self.unroll,
            zero_output_for_mask=self.zero_output_for_mask,
            name="loop",
        )
        return loop.inner_loop(
            ops.concatenate([sequences, flag], axis=-1), initial_state, mask
        )


class MaskAndReset(NamedTuple):
    """A pair in place of a mask: `keras.layers.RNN` hands it on as it is.

    `reset` is true at the steps that are read with a state of zeros.
    """

    mask: object
    reset: object


class _ResetCell:
    """A built cell whose inputs have a flag as their last feature."""

    def __init__(self, cell, training):
        self.cell, self.training = cell, training
        self.state_size = cell.state_size

    def __call__(self, inputs, states):
        flag = inputs[:, -1:]
        options = {}
        if isinstance(self.cell, keras.layers.Layer) and (
            "training" in inspect.signature(self.cell.call).parameters
        ):
            options["training"] = self.training
        output, new = self.cell(
            inputs[:, :-1], _zeros_where(flag > 0, states), **options
        )
        return _zeros_where(flag > 1, (output, new))

    call = __call__


def _zeros_where(condition, arrays):
    return keras.tree.map_structure(
        lambda x: ops.where(condition, ops.zeros_like(x), x), arrays
    )


@keras.saving.register_keras_serializable(package="ind_rnn")
class Bidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` that passes `reset` on.

    Arguments and results are the same. The layers must be IndRNN, IndyLSTM,
    IndyGRU or ResetRNN.

    Raises:
        TypeError: If `reset` is given to others.
    """

    def call(
        self,
        sequences,
        initial_state=None,
        mask=None,
        training=None,
        reset=None,
        sequences_mask=None,
    ):
        mask = sequences_mask if mask is None else mask
        if reset is not None:
            for layer in (self.forward_layer, self.backward_layer):
                if not isinstance(layer, ResetRNN):
                    raise TypeError(
                        "`reset` must be None, or `layer` one that takes it, "
                        f"got {layer!r}"
                    )
            mask = MaskAndReset(mask, reset)
        return super().call(
            sequences, initial_state=initial_state, mask=mask, training=training
        )


def _check_per_step(name, values, sequences):
    """A mask or resets as bools (B, T), or None. As in dilated_rnn.py."""
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
