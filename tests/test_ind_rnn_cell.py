"""IndRNNCell against a NumPy oracle, finite differences and its bound."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from cases import every_pair
from ind_rnn_cell import IndRNNCell, RecurrentBound
from pairs import CELL_OPTIONS, fails_on

B, T, F, N = 2, 4, 3, 4
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
OF_KERAS_3_10 = {
    "LossScaleOptimizer": fails_on("keras==3.10.*", "never moves"),
    "Muon": fails_on("keras==3.10.*", "reads `path`", AttributeError),
}
OPTIMIZERS = [
    pytest.param(name, marks=OF_KERAS_3_10.get(name, ()))
    for name, cls in vars(keras.optimizers).items()
    if isinstance(cls, type)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "MultiOptimizer")
]


def softsign(z):
    return z / (1 + abs(z))


ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "linear": lambda z: z,
    None: lambda z: z,
    softsign: softsign,
}


def data(*shape, phase=0.0, scale=1.0):
    """Deterministic, of both signs, in [0.2, 1] * scale in magnitude."""
    x = np.sin(1 + phase + 1.7 * np.arange(np.prod(shape))).reshape(shape)
    return scale * np.sign(x) * (0.2 + 0.8 * np.abs(x))


def bounded(u, low=0.0, high=None):
    sign = np.where(u < 0, -1, 1)
    return sign * np.clip(np.abs(u), low, np.inf if high is None else high)


def oracle(x, h, kernel, u, bias, activation="relu"):
    z = (x if kernel is None else x @ kernel) + u * h
    return ACTIVATIONS[activation](z if bias is None else z + bias)


def made(width=F, **options):
    """A built cell with zero-free weights, |u| in [0.4, 2]."""
    cell = IndRNNCell(N, **options)
    cell.build((B, width))
    for i, w in enumerate(cell.trainable_weights):
        scale = 2.0 if w is cell.recurrent_kernel else 1.0
        w.assign(data(*w.shape, phase=i, scale=scale))
    return cell


def parts(cell):
    """kernel, u within the bound, bias: by NumPy alone."""
    u = cell.recurrent_kernel.numpy()
    return (
        cell.kernel.numpy() if cell.use_kernel else None,
        bounded(u, cell.recurrent_min_abs, cell.recurrent_max_abs),
        cell.bias.numpy() if cell.use_bias else None,
    )


def assert_close(actual, expected, tolerance):
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(
        np.asarray(actual), expected, rtol=0, atol=tolerance * scale
    )


OPTIONS = {
    "dtype": TOLERANCE,
    "activation": ACTIVATIONS,
    "use_kernel": [True, False],
    "use_bias": [True, False],
    "recurrent_min_abs": [0.0, 0.7],
    "recurrent_max_abs": [None, 1.3],
    "dropout": [0.0, 0.3],
    "recurrent_dropout": [0.0, 0.6],
}


@pytest.mark.parametrize("values", every_pair(*OPTIONS.values()))
def test_steps_equal_numpy(values):
    options = dict(zip(OPTIONS, values, strict=True))
    dtype, activation = options["dtype"], options["activation"]
    width = F if options["use_kernel"] else N
    x, h0 = data(T, B, width).astype(dtype), data(B, N, phase=5).astype(dtype)
    cell = made(width, seed=1, **options)
    weights = parts(cell)
    drop = cell.get_dropout_mask(ops.ones((B, width), dtype))
    drop_h = cell.get_recurrent_dropout_mask(ops.ones((B, N), dtype))
    drop = 1 if drop is None else drop.numpy()
    drop_h = 1 if drop_h is None else drop_h.numpy()
    state, expected = ops.convert_to_tensor(h0), h0
    for x_t, as_list in zip(x, [True, False, False, True], strict=True):
        given = [state] if as_list else state
        y, state = cell(ops.convert_to_tensor(x_t), given, training=True)
        assert isinstance(state, list) == as_list
        state = state[0] if as_list else state
        expected = oracle(x_t * drop, expected * drop_h, *weights, activation)
        assert y.dtype == dtype
        assert_close(y, expected, TOLERANCE[dtype])
        assert_close(state, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "activation, dtype, dropout, recurrent_dropout",
    every_pair(ACTIVATIONS, TOLERANCE, [0.0, 0.4], [0.0, 0.4]),
)
def test_sequences_equal_numpy(activation, dtype, dropout, recurrent_dropout):
    options = {"dropout": dropout, "recurrent_dropout": recurrent_dropout}
    options = {**options, "activation": activation, "seed": 3, "dtype": dtype}
    cell, twin = made(**options), made(**options)
    x, h = data(B, T, F).astype(dtype), data(B, N, phase=5).astype(dtype)
    layer = keras.layers.RNN(
        cell, return_sequences=True, return_state=True, dtype=dtype
    )
    y, state = layer(x, initial_state=h, training=True)
    drop = twin.get_dropout_mask(ops.ones((B, F), dtype))
    drop_h = twin.get_recurrent_dropout_mask(ops.ones((B, N), dtype))
    drop = 1 if drop is None else drop.numpy()
    drop_h = 1 if drop_h is None else drop_h.numpy()
    for t in range(T):
        h = oracle(x[:, t] * drop, h * drop_h, *parts(cell), activation)
        assert_close(y[:, t], h, TOLERANCE[dtype])
    assert_close(state, h, TOLERANCE[dtype])


def test_dropout_is_seeded_scaled_and_off_outside_training():
    ones = ops.ones((50, N))
    masks = [
        made(dropout=0.25, recurrent_dropout=0.5, seed=seed)
        for seed in (1, 1, 2)
    ]
    drops = [cell.get_dropout_mask(ones).numpy() for cell in masks]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert (drops[0] != drops[2]).any()
    np.testing.assert_allclose(np.unique(drops[0]), [0, 1 / 0.75], rtol=1e-6)
    drop = masks[0].get_recurrent_dropout_mask(ones).numpy()
    np.testing.assert_allclose(np.unique(drop), [0, 2], rtol=1e-6)
    x, h = data(B, F).astype("float32"), data(B, N).astype("float32")
    cell = made(dropout=0.25, recurrent_dropout=0.5)
    assert_close(cell(x, h)[0], oracle(x, h, *parts(cell)), 1e-6)


@pytest.mark.parametrize("use_kernel", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_documented_shapes(use_kernel, use_bias):
    cell = IndRNNCell(N, use_kernel=use_kernel, use_bias=use_bias)
    cell.build((None, F if use_kernel else N))
    expected = {"kernel": (F, N)} if use_kernel else {}
    expected["recurrent_kernel"] = (N,)
    expected |= {"bias": (N,)} if use_bias else {}
    actual = {w.name: tuple(w.shape) for w in cell.trainable_weights}
    assert actual == expected
    assert (cell.kernel is None) == (not use_kernel)
    assert (cell.bias is None) == (not use_bias)
    assert cell.state_size == cell.output_size == N
    assert cell.get_initial_state(batch_size=B).shape == (B, N)
    assert cell.get_initial_state(inputs=ops.ones((B, F))).shape == (B, N)
    zeros = cell.zero_state(B, tf.float64)
    assert zeros.dtype == "float64" and not zeros.numpy().any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_weights(policy):
    cell = made(dtype=policy, recurrent_max_abs=1.0)
    x, h = data(B, F).astype("float32"), data(B, N).astype("float32")
    y, _ = cell(x, h)
    assert y.dtype == policy.removeprefix("mixed_")
    assert {w.dtype for w in cell.trainable_weights} == {"float32"}
    assert ops.max(ops.abs(cell.bounded_recurrent_kernel)) == 1.0
    assert_close(ops.cast(y, "float32"), oracle(x, h, *parts(cell)), 2e-2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("use_kernel", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_gradients_equal_finite_differences(activation, use_kernel, use_bias):
    width = F if use_kernel else N
    cell = made(
        width,
        activation=activation,
        use_kernel=use_kernel,
        use_bias=use_bias,
        dtype="float64",
    )
    g = data(B, N, phase=9)
    values = {"x": data(T, B, width), "h": data(B, N, phase=5)}
    values |= {w.name: w.numpy() for w in cell.trainable_weights}
    closest = []

    def loss(x, h, recurrent_kernel, kernel=None, bias=None):
        weights = kernel, recurrent_kernel, bias
        for x_t in x:
            closest.append(np.abs(oracle(x_t, h, *weights, None)).min())
            h = oracle(x_t, h, *weights, activation)
        return np.sum(g * h)

    x, h = map(tf.convert_to_tensor, (values["x"], values["h"]))
    with tf.GradientTape() as tape:
        tape.watch((x, h))
        y = h
        for x_t in x:
            y, _ = cell(x_t, y)
        total = ops.sum(g * y)
    sources = [x, h] + [w.value for w in cell.trainable_weights]
    gradients = tape.gradient(total, sources)
    for name, gradient in zip(values, gradients, strict=True):
        numeric = np.zeros_like(values[name])
        for i in np.ndindex(numeric.shape):
            shift = np.zeros_like(numeric)
            shift[i] = 1e-5
            above = loss(**{**values, name: values[name] + shift})
            below = loss(**{**values, name: values[name] - shift})
            numeric[i] = (above - below) / 2e-5
        assert np.abs(numeric).max() > 1e-3
        assert_close(gradient, numeric, 1e-8)
    if activation == "relu":
        assert min(closest) > 1e-3


LIMITS = [(0.0, 0.0), (0.0, 0.5), (0.3, None), (0.3, 0.5), (0.4, 0.4)]


@pytest.mark.parametrize("low, high", LIMITS)
@pytest.mark.parametrize("value", [-5.0, -0.125, 0.0, 0.125, 0.4375, 5.0])
def test_bound_holds_from_step_0(low, high, value):
    cell = IndRNNCell(
        N,
        recurrent_min_abs=low,
        recurrent_max_abs=high,
        recurrent_initializer=keras.initializers.Constant(value),
        activation=None,
        use_bias=False,
        use_kernel=False,
        dtype="float64",
    )
    y, _ = cell(ops.zeros((1, N), "float64"), ops.ones((1, N), "float64"))
    expected = np.full(N, bounded(value, low, high))
    np.testing.assert_array_equal(y[0], expected)
    np.testing.assert_array_equal(cell.recurrent_kernel, expected)


@pytest.mark.parametrize("low, high", LIMITS)
def test_bound_leaves_no_trace_inside(low, high):
    w = np.array([-0.45, -0.4, 0.4, 0.45])
    bound = RecurrentBound(low, high)
    np.testing.assert_array_equal(bound(w), bounded(w, low, high))
    v = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch(v)
        y = bound.straight_through(v)
    np.testing.assert_array_equal(y, bounded(w, low, high))
    np.testing.assert_array_equal(tape.gradient(y, v), np.ones(4))


@pytest.mark.parametrize("low, high", LIMITS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_bound_hides_no_nan(low, high, jit_compile):
    bound = tf.function(RecurrentBound(low, high), jit_compile=jit_compile)
    w = tf.constant([np.nan, -np.inf, np.inf])
    expected = [np.nan, *bounded(np.array([-np.inf, np.inf]), low, high)]
    np.testing.assert_array_equal(bound(w), np.float32(expected))


def optimizer_named(name):
    if name == "LossScaleOptimizer":
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    return getattr(keras.optimizers, name)(learning_rate=0.1)


def pushed(name, bounds):
    """A cell after 20 steps that push u from the bound outward."""
    start = np.array([1.5, -1.5, 0.7, -0.7])
    outward = np.array([1.0, -1.0, -1.0, 1.0])
    cell = made(activation=None, use_bias=False, **bounds)
    cell.recurrent_kernel.assign(start)
    optimizer = optimizer_named(name)
    optimizer.build([cell.recurrent_kernel])
    x, h = ops.zeros((1, F)), ops.ones((1, N))
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = -ops.sum(outward.astype("float32") * cell(x, h)[0])
            loss = optimizer.scale_loss(loss)
        gradient = tape.gradient(loss, cell.recurrent_kernel.value)
        optimizer.apply([gradient])
    optimizer.finalize_variable_values([cell.recurrent_kernel])
    return cell.recurrent_kernel.numpy(), start, outward, cell


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bound_holds_under_every_optimizer(name):
    u, start, outward, _ = pushed(name, {})
    assert ((u - start) * outward > 1e-4).any()
    bounds = {"recurrent_min_abs": 0.7, "recurrent_max_abs": 1.5}
    u, start, outward, cell = pushed(name, bounds)
    assert (np.abs(u) <= np.float32(1.5)).all()
    assert (np.abs(u) >= np.float32(0.7)).all()
    np.testing.assert_array_equal(cell.bounded_recurrent_kernel, u)
    y, _ = cell(ops.zeros((1, F)), ops.ones((1, N)))
    np.testing.assert_array_equal(y[0], u)


@pytest.mark.parametrize("training", [True, False])
def test_bound_holds_in_use_after_plain_sgd(training):
    cell = made(
        recurrent_min_abs=0.7,
        recurrent_max_abs=1.5,
        activation=None,
        use_bias=False,
    )
    start = np.array([1.2, -1.2, 0.9, -0.9])
    outward = np.array([1.0, -1.0, -1.0, 1.0], "float32")
    cell.recurrent_kernel.assign(start)
    x, h = ops.zeros((1, F)), ops.ones((1, N))
    for _ in range(50):
        with tf.GradientTape() as tape:
            y, _ = cell(x, h, training=training)
            loss = -ops.sum(outward * y)
        raw = cell.recurrent_kernel.value
        raw.assign_sub(0.01 * tape.gradient(loss, raw))
    raw = cell.recurrent_kernel.numpy()
    assert_close(raw, start + 0.5 * outward, 1e-5)
    expected = np.array([1.5, -1.5, 0.7, -0.7], "float32")
    np.testing.assert_array_equal(cell.bounded_recurrent_kernel, expected)
    y, _ = cell(x, h, training=training)
    np.testing.assert_array_equal(y[0], expected)


def test_gradient_outside_is_that_on_the_bound():
    options = {"recurrent_min_abs": 0.7, "recurrent_max_abs": 1.3}
    gradients = []
    for u in ([3.0, -3.0, 0.1, -0.1], [1.3, -1.3, 0.7, -0.7]):
        cell = made(**options, activation="tanh", dtype="float64")
        cell.recurrent_kernel.assign(u)
        with tf.GradientTape() as tape:
            y, _ = cell(data(B, F), data(B, N))
        gradients += [tape.gradient(y, cell.recurrent_kernel.value)]
    assert np.abs(gradients[0]).min() > 1e-2
    np.testing.assert_array_equal(gradients[0], gradients[1])


@pytest.mark.parametrize("with_keras", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_weight_outside_comes_back(with_keras, dtype):
    cell = made(
        recurrent_min_abs=0.5,
        recurrent_max_abs=1.0,
        activation=None,
        use_bias=False,
        dtype=dtype,
    )
    target = np.array([0.75, -0.75, 0.75, -0.75])
    cell.recurrent_kernel.assign([3.0, -3.0, 0.1, -0.1])
    optimizer = keras.optimizers.SGD(0.1)
    x, h = ops.zeros((1, F)), ops.ones((1, N))
    for _ in range(100):
        with tf.GradientTape() as tape:
            error = ops.cast(cell(x, h)[0], "float32") - target
            loss = ops.sum(error**2)
        raw = cell.recurrent_kernel
        gradient = tape.gradient(loss, raw.value)
        if with_keras:
            optimizer.apply([gradient], [raw])
        else:
            raw.value.assign_sub(0.1 * gradient)
    assert_close(cell.recurrent_kernel, target, 1e-3)


def test_bound_holds_in_the_saved_file(tmp_path):
    cell = made(recurrent_min_abs=0.7, recurrent_max_abs=1.5)
    model = keras.Sequential([keras.Input((T, F)), keras.layers.RNN(cell)])
    cell.recurrent_kernel.assign([9.0, -9.0, 0.0, -0.1])
    before = model(data(B, T, F))
    model.save(tmp_path / "model.keras")
    # Saving leaves the model as it is.
    raw = np.array([9.0, -9.0, 0.0, -0.1], "float32")
    np.testing.assert_array_equal(cell.recurrent_kernel, raw)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = np.array([1.5, -1.5, 0.7, -0.7], "float32")
    u = loaded.layers[0].cell.recurrent_kernel
    np.testing.assert_array_equal(u, expected)
    np.testing.assert_array_equal(loaded(data(B, T, F)), before)
    model.save_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(cell.recurrent_kernel, raw)
    loaded.layers[0].cell.recurrent_kernel.assign(np.ones(N))
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(u, expected)


def test_recurrent_constraint_composes_with_the_bound():
    cell = made(
        recurrent_constraint="non_neg",
        recurrent_min_abs=0.2,
        recurrent_max_abs=1.5,
    )
    cell.recurrent_kernel.assign([-1.0, 0.1, 0.5, 3.0])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.apply([ops.zeros(N)], [cell.recurrent_kernel])
    expected = np.array([0.2, 0.2, 0.5, 1.5], "float32")
    np.testing.assert_array_equal(cell.recurrent_kernel, expected)


@pytest.mark.parametrize("name", ["kernel", "recurrent", "bias"])
def test_initializer_regularizer_and_constraint_have_effect(name):
    cell = IndRNNCell(
        N,
        **{
            f"{name}_initializer": keras.initializers.Constant(-0.5),
            f"{name}_regularizer": keras.regularizers.L2(0.3),
            f"{name}_constraint": "non_neg",
        },
    )
    cell.build((B, F))
    w = getattr(cell, "recurrent_kernel" if name == "recurrent" else name)
    np.testing.assert_array_equal(w, np.full(w.shape, -0.5))
    assert len(cell.losses) == 1
    assert_close(cell.losses[0], 0.3 * 0.25 * np.prod(w.shape), 1e-6)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.apply(
        [ops.zeros_like(v) for v in cell.trainable_weights],
        cell.trainable_weights,
    )
    np.testing.assert_array_equal(w, np.zeros(w.shape))


def test_config_holds_every_argument():
    parameters = set(inspect.signature(IndRNNCell).parameters) - {"kwargs"}
    assert parameters == set(CELL_OPTIONS)
    cell = IndRNNCell(**CELL_OPTIONS, name="memory", dtype="float64")
    default = IndRNNCell(N).get_config()
    config = cell.get_config()
    for name in CELL_OPTIONS:
        assert config[name] != default[name], name
        assert hasattr(cell, name)
    again = IndRNNCell.from_config(config)
    assert again.get_config() == config
    assert again.name == "memory" and again.dtype == "float64"
    x, h = (data(B, cell.units, phase=i) for i in (0, 1))
    np.testing.assert_array_equal(again(x, h)[0], cell(x, h)[0])
    saved = keras.saving.serialize_keras_object(cell)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is IndRNNCell and loaded.get_config() == config


@pytest.mark.parametrize("low, high", LIMITS)
def test_bound_serializes(low, high):
    bound = RecurrentBound(low, high)
    saved = keras.saving.serialize_keras_object(bound)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is RecurrentBound
    assert loaded.get_config() == {
        "recurrent_min_abs": low,
        "recurrent_max_abs": high,
    }


@pytest.mark.parametrize(
    "numpy_value",
    [
        {"units": np.int64(N)},
        {"seed": np.int64(3)},
        {"recurrent_max_abs": np.float32(1.5)},
        {"recurrent_min_abs": np.float64(0.5)},
        {"dropout": np.float32(0.5)},
        {"recurrent_dropout": np.float64(0.5)},
    ],
    ids=lambda option: next(iter(option)),
)
def test_numpy_numbers_are_numbers(numpy_value, tmp_path):
    cell = IndRNNCell(**{"units": N, **numpy_value})
    model = keras.Sequential([keras.Input((T, F)), keras.layers.RNN(cell)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = data(B, T, F)
    np.testing.assert_array_equal(loaded(x), model(x))


NOT_NUMBERS = ["1", None, True, [0.5], {}]
BAD = {
    "units": [0, -3, 4.0, "4", None, True, [4], np.nan],
    "seed": [1.5, "1", True, [1], np.nan],
    "use_kernel": [0, 1, None, "yes", []],
    "use_bias": [0, 1, None, "yes", []],
    "activation": ["nonsense", 3, ["relu"]],
    "recurrent_min_abs": [-0.1, np.nan, np.inf, -np.inf, *NOT_NUMBERS],
    "recurrent_max_abs": [-0.1, np.nan, np.inf, "1", True, [0.5], {}],
    "dropout": [-0.1, 1, 1.0, 2, np.nan, np.inf, *NOT_NUMBERS],
    "recurrent_dropout": [-0.1, 1, 1.0, 2, np.nan, np.inf, *NOT_NUMBERS],
} | {
    f"{weight}_{kind}": ["nonsense", 3, True, [1]]
    for weight in ("kernel", "recurrent", "bias")
    for kind in ("initializer", "regularizer", "constraint")
}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name in BAD for value in BAD[name]]
)
def test_bad_argument_is_named(name, value):
    assert set(BAD) == set(CELL_OPTIONS)
    with pytest.raises((TypeError, ValueError)) as caught:
        IndRNNCell(**{"units": N, name: value})
    message = str(caught.value)
    assert f"`{name}` must" in message
    assert f"got {value!r}" in message or f"got {value}" in message


def test_crossed_bounds_are_named():
    for make in (
        lambda: IndRNNCell(N, recurrent_min_abs=1.5, recurrent_max_abs=0.5),
        lambda: RecurrentBound(1.5, 0.5),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        for part in (
            "`recurrent_min_abs`",
            "`recurrent_max_abs`",
            "1.5",
            "0.5",
        ):
            assert part in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 0, 2**31, 2**32, 2**62])
def test_every_accepted_seed_works(seed):
    cell = IndRNNCell(N, dropout=0.5, seed=seed)
    mask = cell.get_dropout_mask(ops.ones((50, N)))
    assert set(np.unique(mask)) == {0, 2}


@pytest.mark.parametrize("width", [N - 1, N + 1, 1])
def test_wrong_width_without_kernel_is_named(width):
    cell = IndRNNCell(N, use_kernel=False)
    for make in (
        lambda: cell.build((B, width)),
        lambda: cell(ops.ones((B, width)), ops.ones((B, N))),
        lambda: made(N, use_kernel=False)(
            ops.ones((B, width)), ops.ones((B, N))
        ),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        message = str(caught.value)
        assert "`inputs`" in message and "use_kernel=False" in message
        assert f"expected {N}" in message and f"({B}, {width})" in message


@pytest.mark.parametrize("shape", [(F,), (B, 7, F)])
def test_wrong_rank_is_named(shape):
    cell = IndRNNCell(N)
    for make in (
        lambda: cell.build(shape),
        lambda: made()(ops.ones(shape), ops.ones((B, N))),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        message = "`inputs` of one step must have shape (batch, features)"
        assert message in str(caught.value)
        assert str(shape) in str(caught.value)


def test_a_cell_without_weights_saves_nothing():
    store = {}
    IndRNNCell(N).save_own_variables(store)
    assert store == {}
