"""IndyLSTM and IndyGRU against Keras' loop, Keras' layers and NumPy."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

from cases import LONG, each_value, every_pair
from ind_rnn_recurrence import fused_activations
from indy import IndyGRU, IndyLSTM
from indy_cell import GateTimeConstants, IndyGRUCell, IndyLSTMCell
from pairs import TOLERANCE, compiled, computed, data, masked, softsign

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


def fill(layer):
    layer.build((B, T, F))
    for i, w in enumerate(layer.trainable_weights):
        w.assign(data(*w.shape, phase=i, scale=0.9))


def assert_near(actual, expected, dtype="float64"):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        target = np.asarray(tf.cast(expected[name], "float64"))
        assert value.shape == target.shape, name
        scale = max(1.0, np.abs(target).max(initial=0))
        np.testing.assert_allclose(
            tf.cast(value, "float64"),
            target,
            rtol=0,
            atol=TOLERANCE[dtype] * scale,
            err_msg=name,
        )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, h, c, kernel, u, b):
    """In NumPy, gate by gate: all h."""
    ys = []
    for x_t in np.swapaxes(x, 0, 1):
        i, f, g, o = (
            x_t @ kernel[:, n * N : (n + 1) * N]
            + u[n * N : (n + 1) * N] * h
            + b[n * N : (n + 1) * N]
            for n in range(4)
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, axis=1)


def gru(x, h, kernel, u, b):
    ys = []
    (w_z, w_r, w_g), (u_z, u_r, u_g) = np.split(kernel, 3, 1), np.split(u, 3)
    (b_z, b_r, b_g), (c_z, c_r, c_g) = (np.split(row, 3) for row in b)
    for x_t in np.swapaxes(x, 0, 1):
        z = sigmoid(x_t @ w_z + u_z * h + b_z + c_z)
        r = sigmoid(x_t @ w_r + u_r * h + b_r + c_r)
        g = np.tanh(x_t @ w_g + b_g + r * (u_g * h + c_g))
        h = z * h + (1 - z) * g
        ys.append(h)
    return np.stack(ys, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_oracle(kind):
    layer = kind(N, return_sequences=True, dtype="float64")
    fill(layer)
    x = data(B, T, F)
    count = 2 if kind is IndyLSTM else 1
    states = [data(B, N, phase=3 + i) for i in range(count)]
    oracle = lstm if kind is IndyLSTM else gru
    expected = oracle(x, *states, *layer.get_weights())
    y = layer(x, initial_state=states)
    np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(100 if LONG else 6))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind, seed):
    rng = np.random.default_rng(seed)
    options = {name: bool(rng.integers(2)) for name in FLAGS}
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
    cell, _ = KINDS[kind]
    layers = (
        kind(N, **of_cell, **options),
        keras.layers.RNN(cell(N, **of_cell), dtype=dtype, **options),
    )
    mask = masked([None, "right", "holes"][rng.integers(3)], B, T)
    h = None
    if rng.integers(2):
        count = 2 if kind is IndyLSTM else 1
        h = [tf.constant(data(B, N, phase=5 + i), dtype) for i in range(count)]
        h = h if count > 1 else h[0]
    x = tf.constant(data(B, T, F), dtype)
    for layer in layers:
        fill(layer)
    actual, expected = (
        computed_of(layer, x, h, mask, training=True) for layer in layers
    )
    assert_near(actual, expected, dtype)


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


@pytest.mark.parametrize("mask", [None, "holes"])
@pytest.mark.parametrize("kind", KINDS)
def test_keras_layers_with_diagonal_matrices(kind, mask):
    _, of_keras = KINDS[kind]
    options = {"return_sequences": True, "return_state": True}
    layer = kind(N, dtype="float64", **options)
    full = of_keras(N, dtype="float64", **options)
    fill(layer)
    full.build((B, T, F))
    kernel, u, bias = layer.get_weights()
    diagonals = [np.diag(row) for row in np.reshape(u, (-1, N))]
    full.set_weights([kernel, np.concatenate(diagonals, axis=1), bias])
    mask = masked(mask, B, T)
    for a, b in zip(
        layer(data(B, T, F), mask=mask),
        full(data(B, T, F), mask=mask),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    # Keras' layers say that they have no `activity_regularizer`.
    others = {"use_cudnn", "activity_regularizer"}
    assert set(of_keras(N).get_config()) - set(kind(N).get_config()) <= others


@pytest.mark.parametrize(
    "mode, kind, mask",
    every_pair(["function", "unknown", "jit"], KINDS, [None, "holes"]),
)
def test_other_modes(kind, mask, mode):
    cell, _ = KINDS[kind]
    options = {"return_sequences": True, "return_state": True}
    fused = kind(N, dtype="float64", **options)
    loop = keras.layers.RNN(
        cell(N, dtype="float64"), dtype="float64", **options
    )
    mask = masked(mask, B, T)
    mask = None if mask is None else tf.constant(mask)
    values = [tf.constant(data(B, T, F)), None, mask]
    for layer in (fused, loop):
        fill(layer)
    function = compiled(fused, mode, values)
    assert_near(function(*values), computed(loop, *values))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    layer = kind(N, return_sequences=True, dtype="float64")
    fill(layer)
    x = tf.constant(data(B, T, F))
    mask = masked("holes", B, T)
    reset = masked("left", B, T)

    def loss(x):
        y = layer(x, mask=mask, reset=reset)
        return tf.reduce_sum(y * data(B, T, N, phase=9))

    sources = [x, *(w.value for w in layer.trainable_weights)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = loss(x)
    gradients = tape.gradient(total, sources)
    step = 1e-6
    for i, gradient in enumerate(gradients):
        direction = data(*gradient.shape, phase=i)

        def moved(sign, i=i, direction=direction):
            if i == 0:
                return loss(x + sign * step * direction)
            weight = layer.trainable_weights[i - 1]
            before = weight.numpy()
            weight.assign(before + sign * step * direction)
            result = loss(x)
            weight.assign(before)
            return result

        expected = (moved(1) - moved(-1)) / (2 * step)
        found = tf.reduce_sum(gradient * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize(
    "kind, dtype", each_value(KINDS, ["mixed_float16", "mixed_bfloat16"])
)
def test_half_precision(kind, dtype):
    """No further from single than Keras' loop is."""
    cell, _ = KINDS[kind]
    x = tf.constant(data(B, 200, F), "float32")
    errors = []
    exact = kind(N, return_sequences=True)
    fill(exact)
    for layer in (
        kind(N, return_sequences=True, dtype=dtype),
        keras.layers.RNN(
            cell(N, dtype=dtype), return_sequences=True, dtype=dtype
        ),
    ):
        fill(layer)
        y = layer(x)
        assert y.dtype == dtype.removeprefix("mixed_")
        errors.append(np.abs(tf.cast(y, "float32") - exact(x)).max())
    assert errors[0] <= errors[1] < TOLERANCE[dtype]


# Where the biases of the forget gates are, of all of them in a row.
FORGET = {IndyLSTM: 1, IndyGRU: 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time, longest", [(50, 50), (None, 1000)])
def test_forget_gates_start_with_time_constants(kind, time, longest):
    units = 4000
    layer = kind(units)
    layer.build((B, time, 1))
    bias = layer.cell.bias.numpy().reshape(-1, units)
    f = sigmoid(bias[FORGET[kind]].astype("float64"))
    place = np.sort(np.log(-2 / np.log(f)) / np.log(2 * longest))
    uniform = (np.arange(units) + 0.5) / units
    assert np.abs(place - uniform).max() < 2 / np.sqrt(units)
    assert not np.delete(bias, FORGET[kind], axis=0).any()


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
def test_each_gate_has_the_variance_of_its_inputs(kind):
    layer = kind(500)
    layer.build((B, T, 8))
    kernel = layer.cell.kernel.numpy()
    np.testing.assert_allclose(kernel.var() * 8, 1, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_kept(kind):
    changed = {
        "units": N,
        "activation": "relu",
        "recurrent_activation": "hard_sigmoid",
        "use_bias": False,
        "unit_forget_bias": True,
        "reset_after": False,
        "kernel_initializer": keras.initializers.Constant(2.0),
        "recurrent_initializer": keras.initializers.Constant(0.5),
        "bias_initializer": keras.initializers.Constant(3.0),
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "recurrent_regularizer": keras.regularizers.L2(0.2),
        "bias_regularizer": keras.regularizers.L2(0.3),
        "activity_regularizer": keras.regularizers.L2(0.4),
        "kernel_constraint": keras.constraints.NonNeg(),
        "recurrent_constraint": keras.constraints.MaxNorm(1.0, axis=0),
        "bias_constraint": keras.constraints.MaxNorm(2.0, axis=0),
        "dropout": 0.1,
        "recurrent_dropout": 0.2,
        "seed": 7,
        "return_sequences": True,
        "return_state": True,
        "go_backwards": True,
        "stateful": True,
        "unroll": True,
        "zero_output_for_mask": True,
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"units": 0}, ValueError, "`units` must be at least 1, got 0"),
        ({"units": 2.5}, TypeError, "`units` must be an integer"),
        ({"use_bias": 1}, TypeError, "`use_bias` must be a bool, got 1"),
        ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\)"),
        ({"recurrent_dropout": "a"}, TypeError, "`recurrent_dropout` must be"),
        ({"seed": 1.5}, TypeError, "`seed` must be an integer"),
        ({"activation": "no"}, ValueError, "`activation` must be"),
        ({"recurrent_activation": 3}, ValueError, "`recurrent_activation`"),
        ({"kernel_initializer": "no"}, ValueError, "`kernel_initializer`"),
        ({"bias_regularizer": "no"}, ValueError, "`bias_regularizer` must"),
        ({"recurrent_constraint": 1}, ValueError, "`recurrent_constraint`"),
    ],
)
def test_wrong_options(kind, options, error, match):
    for cls in (kind, KINDS[kind][0]):
        with pytest.raises(error, match=match):
            cls(**{"units": N, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_tensors(kind):
    layer = kind(N)
    x = data(B, T, F)
    count = 2 if kind is IndyLSTM else 1
    with pytest.raises(ValueError, match="`initial_state` must be"):
        layer(x, initial_state=[np.zeros((B, N + 1))] * count)
    with pytest.raises(ValueError, match="`initial_state` must be"):
        layer(x, initial_state=[np.zeros((B, N))] * (count + 1))
    with pytest.raises(ValueError, match="`mask` must have shape"):
        layer(x, mask=np.ones((B, T + 1), bool))
    with pytest.raises(ValueError, match="must have shape"):
        KINDS[kind][0](N)(x, [np.zeros((B, N))] * count)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_recurrence_runs(kind):
    layer = kind(N)
    layer.build((B, T, F))
    assert layer.fused_step() == layer.cell.step
    assert fused_activations(layer.cell, softsign, softsign) is not None


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")
class ConformanceTest(testing.TestCase):
    def test_layers(self):
        dropout = {"dropout": 0.1, "recurrent_dropout": 0.1, "seed": 1}
        for kind, options in each_value(KINDS, [{}, dropout]):
            with self.subTest(kind=kind.__name__, **options):
                self.run_layer_test(
                    kind,
                    init_kwargs={"units": N, **options},
                    input_shape=(B, 2, F),
                    call_kwargs={"training": True},
                    expected_output_shape=(B, N),
                    expected_num_trainable_weights=3,
                    expected_num_non_trainable_weights=0,
                    supports_masking=True,
                )
