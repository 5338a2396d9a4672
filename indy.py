"""IndyLSTM and IndyGRU: gated layers at the price of their matrix products.

Axis letters: B batch, T time, F input features, N units.
"""

import keras

from ind_rnn import ElementwiseRNN, _cell_property
from indy_cell import IndyGRUCell, IndyLSTMCell


class _IndyLayer(ElementwiseRNN):
    recurrent_activation = _cell_property("recurrent_activation")


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndyLSTM(_IndyLayer):
    """An LSTM with elementwise recurrent weights, over whole sequences.

        i, f, o = sigmoid(x_t @ W + u * h_{t-1} + b), each with its own W, u, b
        g = tanh(x_t @ W + u * h_{t-1} + b)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    It equals `keras.layers.RNN(IndyLSTMCell(...))` in outputs, states and first
    gradients, in a fraction of the time, and has the options of
    `keras.layers.LSTM`. One matrix product projects all steps for all gates,
    and one compiled loop runs the recurrence. `IndRNN` says when Keras' own
    loop runs instead. Source: arXiv 1903.08023, section 3.

    Weights: those of `IndyLSTMCell`, in the attribute `cell`.

    Arguments:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
        recurrent_initializer, bias_initializer, unit_forget_bias,
        kernel_regularizer, recurrent_regularizer, bias_regularizer,
        kernel_constraint, recurrent_constraint, bias_constraint, dropout,
        recurrent_dropout, seed:
            As in `IndyLSTMCell`.
        activity_regularizer, return_sequences, return_state, go_backwards,
        stateful, unroll, zero_output_for_mask:
            As in `IndRNN`.
        **kwargs: Of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: A list of h and c, (B, N). Default: zeros.
        mask, training, reset: As in `IndRNN`.

    Returns:
        (B, N), or (B, T, N) with `return_sequences`; with `return_state` also
        h and c of the last step, (B, N).

    Raises:
        ValueError, TypeError: If an argument has a wrong type or range;
            sequences, a state, a mask or resets have a wrong shape.

    Example:
        >>> layer = IndyLSTM(8, return_sequences=True)
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 5, 8])
    """

    cell_type = IndyLSTMCell

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
        activity_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
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
        super().__init__(locals())

    unit_forget_bias = _cell_property("unit_forget_bias")


@keras.saving.register_keras_serializable(package="ind_rnn")
class IndyGRU(_IndyLayer):
    """A GRU with elementwise recurrent weights, over whole sequences.

        z, r = sigmoid(x_t @ W + u * h_{t-1} + b), each with its own W, u, b
        g = tanh(x_t @ W + b + r * (u * h_{t-1} + b'))
        h_t = z * h_{t-1} + (1 - z) * g

    As `IndyLSTM`, with `IndyGRUCell` and the options of `keras.layers.GRU`.

    Weights: those of `IndyGRUCell`, in the attribute `cell`.

    Arguments:
        reset_after: As in `IndyGRUCell`.
        Others: As in `IndyLSTM`, without `unit_forget_bias`.

    Call arguments:
        sequences: (B, T, F).
        initial_state: (B, N), or a list of it. Default: zeros.
        mask, training, reset: As in `IndRNN`.

    Returns:
        (B, N), or (B, T, N) with `return_sequences`; with `return_state` also
        the state, (B, N).

    Raises:
        ValueError, TypeError: As `IndyLSTM`.

    Example:
        >>> layer = IndyGRU(8, return_sequences=True)
        >>> layer(keras.ops.ones((2, 5, 3))).shape
        TensorShape([2, 5, 8])
    """

    cell_type = IndyGRUCell

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
        activity_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        seed=None,
        reset_after=True,
        return_sequences=False,
        return_state=False,
        go_backwards=False,
        stateful=False,
        unroll=False,
        zero_output_for_mask=False,
        **kwargs,
    ):
        super().__init__(locals())

    reset_after = _cell_property("reset_after")
