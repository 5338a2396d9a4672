"""IndyLSTM and IndyGRU against Keras' loop, Keras' layers and NumPy."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import LONG, each_value
from ind_rnn_recurrence import fused_step
from indy import IndyGRU, IndyLSTM
from indy_cell import GateTimeConstants, IndyGRUCell, IndyLSTMCell
from pairs import (
    CELL_OPTIONS,
    TOLERANCE,
    assert_close,
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
FLAGS = (
    "go_backwards",
    "return_sequences",
    "return_state",
    "zero_output_for_mask",
    "stateful",
)


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


@pytest.mark.parametrize("seed", range(100 if LONG else 4))
@every_kind
def test_equals_the_loop(kind, seed):
    rng = np.random.default_rng(seed)
    flags = {name: bool(rng.integers(2)) for name in FLAGS}
    dtype = ["float64", "float32"][rng.integers(2)]
    of_cell = {
        "dtype": dtype,
        "seed": 3,
        "use_bias": bool(rng.integers(2)),
        "dropout": [0.0, 0.3][rng.integers(2)],
        "recurrent_dropout": [0.0, 0.4][rng.integers(2)],
        "activation": ["tanh", "relu", softsign][rng.integers(3)],
        "recurrent_activation": ["sigmoid", "hard_sigmoid"][rng.integers(2)],
    }
    if kind is IndyGRU:
        of_cell["reset_after"] = bool(rng.integers(2))
    mask = masked([None, "right", "holes"][rng.integers(3)], B, T)
    h = states_of(kind, dtype) if rng.integers(2) else [None]
    h = h if len(h) > 1 else h[0]
    x = tf.constant(data(B, T, F), dtype)
    actual, expected = (
        computed_of(layer, x, h, mask, training=True)
        for layer in pair(kind, flags=flags, **of_cell)
    )
    assert_same(actual, expected, dtype)


def computed_of(layer, x, h, mask, training):
    """`computed` of one state or several."""
    if not isinstance(h, list):
        return computed(layer, x, h, mask, training)
    h, c = h

    class OneState:
        """Of a state (B, 2 N), h and c side by side."""

        stateful = layer.stateful
        trainable_weights = layer.trainable_weights
        states = layer.states

        def __call__(self, x, initial_state, **options):
            if initial_state is not None:
                initial_state = tf.split(initial_state, 2, axis=-1)
            return layer(x, initial_state=initial_state, **options)

    return computed(OneState(), x, tf.concat([h, c], -1), mask, training)


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


@every_kind
def test_forget_gates_start_with_time_constants(kind):
    units = 4000
    time, longest = (50, 50) if kind is IndyLSTM else (None, 1000)
    layer = kind(units)
    layer.build((B, time, 1))
    bias = layer.cell.bias.numpy().reshape(-1, units)
    f = sigmoid(bias[FORGET[kind]].astype("float64"))
    place = np.sort(np.log(-2 / np.log(f)) / np.log(2 * longest))
    uniform = (np.arange(units) + 0.5) / units
    assert np.abs(place - uniform).max() < 2 / np.sqrt(units)
    assert not np.delete(bias, FORGET[kind], axis=0).any()


@every_kind
def test_gates_without_two_biases_and_with_none(kind):
    options = {"reset_after": False} if kind is IndyGRU else {}
    layer = kind(N, **options)
    layer.build((B, 5, F))
    bias = layer.cell.bias.numpy().reshape(-1, N)
    assert list(bias.any(axis=1)) == [
        gate == FORGET[kind] for gate in range(layer.cell.gates)
    ]
    layer = kind(N, use_bias=False)
    layer.build((B, 5, F))
    assert layer.cell.bias is None


def test_time_constants_of_gates_can_be_chosen():
    def start(**options):
        return GateTimeConstants(seed=3, **options)((1000,), "float64")

    np.testing.assert_array_equal(start(), start())
    f = sigmoid(np.array(start(shortest=2, longest=9)))
    assert 2 <= (-1 / np.log(f)).min() < 2.1 and 8.9 < (-1 / np.log(f)).max()
    assert np.isfinite(start(longest=1e12)).all()
    given = GateTimeConstants(longest=9)
    layer = IndyGRU(200, bias_initializer=given)
    layer.build((B, 500, F))
    f = sigmoid(layer.cell.bias.numpy()[0, :200])
    assert (-1 / np.log(f)).max() < 9.01
    assert given.get_config() == {"shortest": 0.5, "longest": 9.0, "seed": None}
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
def test_each_gate_has_the_variance_of_its_inputs(kind):
    layer = kind(500)
    layer.build((B, T, 8))
    kernel = layer.cell.kernel.numpy()
    np.testing.assert_allclose(kernel.var() * 8, 1, rtol=0.05)


@every_kind
def test_every_option_is_kept(kind):
    changed = {
        **CELL_OPTIONS,
        **dict.fromkeys(FLAGS, True),
        "activation": "relu",
        "recurrent_activation": "hard_sigmoid",
        "unit_forget_bias": True,
        "reset_after": False,
        "activity_regularizer": keras.regularizers.L2(0.4),
        "unroll": True,
    }
    for cls in (kind, KINDS[kind][0]):
        names = [*inspect.signature(cls.__init__).parameters][1:-1]
        options = {name: changed[name] for name in names}
        layer = cls(**options, dtype="float64", name="named")
        config = layer.get_config()
        default = cls(N).get_config()
        for name in names[1:]:
            assert config[name] != default.get(name), name
        assert cls.from_config(config).get_config() == config


@every_kind
def test_wrong_options(kind):
    for options, error, match in (
        ({"units": 0}, ValueError, "`units` must be at least 1, got 0"),
        ({"units": 2.5}, TypeError, "`units` must be an integer"),
        ({"use_bias": 1}, TypeError, "`use_bias` must be a bool, got 1"),
        ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\)"),
        ({"recurrent_dropout": "a"}, TypeError, "`recurrent_dropout` must be"),
        ({"seed": 1.5}, TypeError, "`seed` must be an integer"),
        ({"activation": "nonsense"}, ValueError, "nonsense"),
        ({"recurrent_activation": 3}, ValueError, "3"),
        ({"kernel_initializer": "nonsense"}, ValueError, "nonsense"),
        ({"bias_regularizer": "nonsense"}, ValueError, "nonsense"),
        ({"recurrent_constraint": 1}, ValueError, "1"),
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
