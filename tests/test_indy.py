"""IndyLSTM and IndyGRU against Keras' loop and Keras' layers."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import each_value, every_drawn_pair
from ind_rnn_recurrence import fused_step
from indy import IndyGRU, IndyLSTM
from indy_cell import GateTimeConstants, IndyGRUCell, IndyLSTMCell
from pairs import (
    CELL_OPTIONS,
    TOLERANCE,
    assert_close,
    assert_config_holds,
    assert_same,
    compiled,
    computed,
    data,
    fill,
    masked,
    softsign,
)

B, T, F, N = 3, 7, 2, 4
KINDS = {
    IndyLSTM: (IndyLSTMCell, keras.layers.LSTM),
    IndyGRU: (IndyGRUCell, keras.layers.GRU),
}
OF_LAYER = {
    "go_backwards": [False, True],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "zero_output_for_mask": [False, True],
    "stateful": [False, True],
}
OF_CELL = {
    "dtype": ["float64", "float32"],
    "use_bias": [False, True],
    "dropout": [0.0, 0.3],
    "recurrent_dropout": [0.0, 0.4],
    "activation": ["tanh", "relu", softsign],
    "recurrent_activation": ["sigmoid", "hard_sigmoid"],
    "reset_after": [True, False],  # of IndyGRU
}
OF_CALL = {"mask": [None, "right", "holes"], "initial_state": [False, True]}
AXES = {"kind": [*KINDS], **OF_LAYER, **OF_CELL, **OF_CALL}
every_kind = pytest.mark.parametrize("kind", KINDS)


def built(layer):
    layer.build((B, T, F))
    fill(layer.trainable_weights)
    return layer


def pair(kind, dtype="float64", flags=None, **options):
    """A layer and Keras' loop of its cell, of the same weights."""
    cell, _ = KINDS[kind]
    options["dtype"] = dtype
    flags = flags or {"return_sequences": True, "return_state": True}
    return (
        built(kind(N, **options, **flags)),
        built(keras.layers.RNN(cell(N, **options), dtype=dtype, **flags)),
    )


def states_of(kind, dtype="float64"):
    count = 2 if kind is IndyLSTM else 1
    return [tf.constant(data(B, N, phase=5 + i), dtype) for i in range(count)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("case", every_drawn_pair(AXES, 100))
def test_equals_the_loop(case):
    kind, dtype = case["kind"], case["dtype"]
    of_cell = {name: case[name] for name in OF_CELL}
    if kind is IndyLSTM:
        del of_cell["reset_after"]
    flags = {name: case[name] for name in OF_LAYER}
    mask = masked(case["mask"], B, T)
    h = states_of(kind, dtype) if case["initial_state"] else None
    x = tf.constant(data(B, T, F), dtype)
    fused, loop = pair(kind, flags=flags, seed=3, **of_cell)
    assert len(fused.get_weights()) == 2 + case["use_bias"]
    expected = computed(loop, x, h, mask)
    assert_same(computed(fused, x, h, mask), expected, dtype)


@pytest.mark.parametrize("kind, mask", each_value(KINDS, [None, "holes"]))
def test_keras_layers_with_diagonal_matrices(kind, mask):
    _, of_keras = KINDS[kind]
    options = {"return_sequences": True, "return_state": True}
    layer = built(kind(N, dtype="float64", **options))
    full = built(of_keras(N, dtype="float64", **options))
    kernel, u, bias = layer.get_weights()
    diagonals = [np.diag(row) for row in np.reshape(u, (-1, N))]
    full.set_weights([kernel, np.concatenate(diagonals, axis=1), bias])
    mask = masked(mask, B, T)
    x, given = data(B, T, F), {"mask": mask, "initial_state": states_of(kind)}
    assert_close(layer(x, **given), full(x, **given), 1e-12)
    # Keras' layers say that they have no `activity_regularizer`.
    others = {"use_cudnn", "activity_regularizer"}
    assert set(of_keras(N).get_config()) - set(kind(N).get_config()) <= others


@pytest.mark.parametrize(
    "mode, kind, mask",
    each_value(["function", "unknown", "jit"], KINDS, [None, "holes"]),
)
def test_other_modes(mode, kind, mask):
    fused, loop = pair(kind)
    mask = masked(mask, B, T)
    mask = None if mask is None else tf.constant(mask)
    values = [tf.constant(data(B, T, F)), None, mask]
    function = compiled(fused, mode, values)
    assert_same(function(*values), computed(loop, *values))


@pytest.mark.parametrize(
    "kind, dtype", each_value(KINDS, ["mixed_float16", "mixed_bfloat16"])
)
def test_half_precision(kind, dtype):
    """No further from single than Keras' loop is."""
    x = tf.constant(data(B, 200, F), "float32")
    exact = built(kind(N, return_sequences=True))(x)
    errors = []
    for layer in pair(kind, dtype, {"return_sequences": True}):
        y = layer(x)
        assert y.dtype == dtype.removeprefix("mixed_")
        errors.append(np.abs(tf.cast(y, "float32") - exact).max())
    assert errors[0] <= errors[1] < TOLERANCE[dtype]


# Where the biases of the forget gates are, of all of them in a row.
FORGET = {IndyLSTM: 1, IndyGRU: 0}


@pytest.mark.parametrize(
    "kind, options, time, longest",
    [
        (IndyLSTM, {}, 50, 50),
        (IndyGRU, {}, None, 1000),
        (IndyGRU, {"reset_after": False}, None, 1000),
        (IndyGRU, {"bias_initializer": GateTimeConstants(0.5, 9)}, 500, 9),
    ],
)
def test_start(kind, options, time, longest):
    """Forget gates keep for log-uniform times; other biases are zero.

    And each gate has the variance of its inputs.
    """
    units = 4000
    layer = kind(units, **options)
    layer.build((B, time, 8))
    bias = layer.cell.bias.numpy().reshape(-1, units)
    f = sigmoid(bias[FORGET[kind]].astype("float64"))
    place = np.sort(np.log(-2 / np.log(f)) / np.log(2 * longest))
    uniform = (np.arange(units) + 0.5) / units
    assert np.abs(place - uniform).max() < 2 / np.sqrt(units)
    assert not np.delete(bias, FORGET[kind], axis=0).any()
    kernel = layer.cell.kernel.numpy()
    np.testing.assert_allclose(kernel.var() * 8, 1, rtol=0.05)


def test_gate_time_constants():
    long = GateTimeConstants(longest=1e12)((1000,), "float64")
    assert np.isfinite(long).all()
    for options, error in (
        ({"shortest": 0}, ValueError),
        ({"longest": 0.1}, ValueError),
        ({"longest": "a"}, TypeError),
        ({"seed": 1.5}, TypeError),
    ):
        with pytest.raises(error, match=f"`{[*options][0]}` must be"):
            GateTimeConstants(**options)


def test_unit_forget_bias_as_in_keras():
    layer = IndyLSTM(N, bias_initializer="random_normal", unit_forget_bias=True)
    layer.build((B, T, F))
    i, f, *_ = np.split(layer.cell.bias.numpy(), 4)
    assert (f == 1).all() and (i != 0).all()


@every_kind
def test_config_holds_every_argument(kind):
    changed = {
        **CELL_OPTIONS,
        **dict.fromkeys(OF_LAYER, True),
        "activation": keras.activations.relu,
        "recurrent_activation": keras.activations.hard_sigmoid,
        "unit_forget_bias": True,
        "reset_after": False,
        "activity_regularizer": keras.regularizers.L2(0.4),
        "unroll": True,
    }
    of_cell, of_layer = (
        inspect.signature(cls).parameters for cls in (KINDS[kind][0], kind)
    )
    assert all(of_cell[name] == of_layer[name] for name in of_cell)
    for cls, names in ((KINDS[kind][0], of_cell), (kind, of_layer)):
        options = {name: changed[name] for name in names if name != "kwargs"}
        assert_config_holds(cls, options)


@every_kind
def test_wrong_options(kind):
    for options, error, match in (
        ({"units": 0}, ValueError, "`units` must be at least 1, got 0"),
        ({"units": 2.5}, TypeError, "`units` must be an integer"),
        ({"use_bias": 1}, TypeError, "`use_bias` must be a bool, got 1"),
        ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\)"),
        ({"recurrent_dropout": "a"}, TypeError, "`recurrent_dropout` must be"),
        ({"seed": 1.5}, TypeError, "`seed` must be an integer"),
    ):
        for cls in (kind, KINDS[kind][0]):
            with pytest.raises(error, match=match):
                cls(**{"units": N, **options})


@every_kind
def test_wrong_tensors(kind):
    layer = kind(N)
    x = data(B, T, F)
    count = len(states_of(kind))
    with pytest.raises(ValueError, match="`initial_state` must be"):
        layer(x, initial_state=[np.zeros((B, N + 1))] * count)
    with pytest.raises(ValueError, match="`initial_state` must be"):
        layer(x, initial_state=[np.zeros((B, N))] * (count + 1))
    with pytest.raises(ValueError, match="`mask` must have shape"):
        layer(x, mask=np.ones((B, T + 1), bool))
    with pytest.raises(ValueError, match="must have shape"):
        KINDS[kind][0](N)(x, [np.zeros((B, N))] * count)


@every_kind
def test_the_fused_recurrence_runs(kind):
    for activation in ("tanh", softsign):
        layer = kind(N, activation, recurrent_activation=activation)
        assert isinstance(fused_step(layer.cell), layer.cell.step_type)
