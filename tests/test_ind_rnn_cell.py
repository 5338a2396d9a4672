"""IndRNNCell against a NumPy oracle, finite differences and its bound."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from cases import every_pair
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell, RecurrentBound
from pairs import (
    CELL_OPTIONS,
    assert_close,
    data,
    fails_on,
    fill,
    reloaded,
    softsign,
)

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
ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "linear": lambda z: z,
    None: lambda z: z,
    softsign: softsign,
}


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
    fill(cell.trainable_weights, scale=1.0)
    cell.recurrent_kernel.assign(2 * cell.recurrent_kernel)
    return cell


def parts(cell):
    """kernel, u within the bound, bias: by NumPy alone."""
    u = cell.recurrent_kernel.numpy()
    return (
        cell.kernel.numpy() if cell.use_kernel else None,
        bounded(u, cell.recurrent_min_abs, cell.recurrent_max_abs),
        cell.bias.numpy() if cell.use_bias else None,
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
    """One by one, and in Keras' loop."""
    options = dict(zip(OPTIONS, values, strict=True))
    dtype, activation = options["dtype"], options["activation"]
    width = F if options["use_kernel"] else N
    x, h0 = data(T, B, width).astype(dtype), data(B, N, phase=5).astype(dtype)
    cell, twin = (made(width, seed=1, **options) for _ in range(2))
    weights = parts(cell)
    drop = cell.get_dropout_mask(ops.ones((B, width), dtype))
    drop_h = cell.get_recurrent_dropout_mask(ops.ones((B, N), dtype))
    drop = 1 if drop is None else drop.numpy()
    drop_h = 1 if drop_h is None else drop_h.numpy()
    state, expected, outputs = ops.convert_to_tensor(h0), h0, []
    for x_t, as_list in zip(x, [True, False, False, True], strict=True):
        given = [state] if as_list else state
        y, state = cell(ops.convert_to_tensor(x_t), given, training=True)
        assert isinstance(state, list) == as_list
        state = state[0] if as_list else state
        expected = oracle(x_t * drop, expected * drop_h, *weights, activation)
        assert y.dtype == dtype
        assert_close([y, state], [expected, expected], TOLERANCE[dtype])
        outputs.append(expected)
    loop = keras.layers.RNN(
        twin, return_sequences=True, return_state=True, dtype=dtype
    )
    y, state = loop(x.swapaxes(0, 1), initial_state=h0, training=True)
    outputs = np.stack(outputs, axis=1), expected
    assert_close([y, state], outputs, TOLERANCE[dtype])


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
    for seed in (-1, 0, 2**31, 2**32, 2**62):
        mask = IndRNNCell(N, dropout=0.5, seed=seed).get_dropout_mask(ones)
        assert set(np.unique(mask)) == {0, 2}


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
    assert_close(y, oracle(x, h, *parts(cell)), 2e-2)


LIMITS = [(0.0, 0.0), (0.0, 0.5), (0.3, None), (0.3, 0.5), (0.4, 0.4)]
every_limit = pytest.mark.parametrize("low, high", LIMITS)


@every_limit
def test_bound(low, high):
    bound = RecurrentBound(low, high)
    # From step 0 on, in the variable and in use
    values = np.array([-5.0, -0.125, 0.0, 0.125, 0.4375, 5.0])
    expected = bounded(values, low, high)
    cell = IndRNNCell(
        len(values),
        recurrent_min_abs=low,
        recurrent_max_abs=high,
        recurrent_initializer=lambda shape, dtype: tf.constant(values, dtype),
        activation=None,
        use_bias=False,
        use_kernel=False,
        dtype="float64",
    )
    one = np.ones((1, len(values)))
    y, _ = cell(0 * one, one)
    np.testing.assert_array_equal(y[0], expected)
    np.testing.assert_array_equal(cell.recurrent_kernel, expected)

    # Its gradient is that of the weight, inside and outside.
    v = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(v)
        y = bound.straight_through(v)
    np.testing.assert_array_equal(bound(values), expected)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(tape.gradient(y, v), np.ones(len(values)))

    # It hides no NaN.
    w = tf.constant([np.nan, -np.inf, np.inf])
    expected = [np.nan, *bounded(np.array([-np.inf, np.inf]), low, high)]
    for call in (bound, tf.function(bound, jit_compile=True)):
        np.testing.assert_array_equal(call(w), np.float32(expected))

    saved = keras.saving.serialize_keras_object(bound)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is RecurrentBound
    assert loaded.get_config() == {
        "recurrent_min_abs": low,
        "recurrent_max_abs": high,
    }


BOUNDS = {"recurrent_min_abs": 0.7, "recurrent_max_abs": 1.5}
START = np.array([1.5, -1.5, 0.7, -0.7], "float32")
OUTWARD = np.array([1.0, -1.0, -1.0, 1.0], "float32")


def pushed(name, bounds):
    """A cell after steps that push u from the bound outward."""
    cell = made(activation=None, use_bias=False, **bounds)
    cell.recurrent_kernel.assign(START)
    if name == "LossScaleOptimizer":
        sgd = keras.optimizers.SGD(0.1)
        optimizer = keras.optimizers.LossScaleOptimizer(sgd)
    else:
        optimizer = getattr(keras.optimizers, name)(learning_rate=0.1)
    optimizer.build([cell.recurrent_kernel])
    x, h = ops.zeros((1, F)), ops.ones((1, N))
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = -ops.sum(OUTWARD * cell(x, h)[0])
            loss = optimizer.scale_loss(loss)
        gradient = tape.gradient(loss, cell.recurrent_kernel.value)
        optimizer.apply([gradient])
    optimizer.finalize_variable_values([cell.recurrent_kernel])
    return cell.recurrent_kernel.numpy(), cell


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bound_holds_under_every_optimizer(name):
    u, _ = pushed(name, {})
    assert ((u - START) * OUTWARD > 1e-4).any()
    u, cell = pushed(name, BOUNDS)
    assert (np.abs(u) <= np.float32(1.5)).all()
    assert (np.abs(u) >= np.float32(0.7)).all()
    np.testing.assert_array_equal(cell.bounded_recurrent_kernel, u)
    y, _ = cell(ops.zeros((1, F)), ops.ones((1, N)))
    np.testing.assert_array_equal(y[0], u)


@pytest.mark.parametrize("training", [True, False])
def test_bound_holds_in_use_when_the_variable_is_outside(training):
    cell = made(**BOUNDS, activation=None, use_bias=False)
    cell.recurrent_kernel.assign(START + 0.5 * OUTWARD)
    np.testing.assert_array_equal(cell.bounded_recurrent_kernel, START)
    y, _ = cell(ops.zeros((1, F)), ops.ones((1, N)), training=training)
    np.testing.assert_array_equal(y[0], START)


def test_gradient_outside_is_that_on_the_bound():
    gradients = []
    for u in ([3.0, -3.0, 0.1, -0.1], START):
        cell = made(**BOUNDS, activation="tanh", dtype="float64")
        cell.recurrent_kernel.assign(u)
        with tf.GradientTape() as tape:
            y, _ = cell(data(B, F), data(B, N))
        gradients += [tape.gradient(y, cell.recurrent_kernel.value)]
    assert np.abs(gradients[0]).min() > 1e-2
    np.testing.assert_allclose(*gradients, rtol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_bound_holds_in_the_saved_file(fused, tmp_path):
    layer = IndRNN(N, **BOUNDS)
    if not fused:
        layer = keras.layers.RNN(IndRNNCell(N, **BOUNDS))
    model = keras.Sequential([keras.Input((T, F)), layer])
    raw = np.array([9.0, -9.0, 0.0, -0.1], "float32")
    layer.cell.recurrent_kernel.assign(raw)
    before = model(data(B, T, F))
    loaded = reloaded(model, tmp_path)
    model.save_weights(tmp_path / "model.weights.h5")
    # Saving leaves the model as it is.
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, raw)
    expected = np.array([1.5, -1.5, 0.7, -0.7], "float32")
    u = loaded.layers[0].cell.recurrent_kernel
    np.testing.assert_array_equal(u, expected)
    np.testing.assert_array_equal(loaded(data(B, T, F)), before)
    u.assign(np.ones(N))
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(u, expected)
    store = {}
    IndRNNCell(N).save_own_variables(store)
    assert store == {}


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


def test_numpy_numbers_are_numbers(tmp_path):
    options = {
        "units": np.int64(N),
        "seed": np.int64(3),
        "recurrent_max_abs": np.float32(1.5),
        "recurrent_min_abs": np.float64(0.5),
        "dropout": np.float32(0.5),
        "recurrent_dropout": np.float64(0.5),
    }
    layer = keras.layers.RNN(IndRNNCell(**options))
    model = keras.Sequential([keras.Input((T, F)), layer])
    x = data(B, T, F)
    np.testing.assert_array_equal(reloaded(model, tmp_path)(x), model(x))


NOT_NUMBERS = ["1", None, True, [0.5], {}]
BAD = {
    "units": [0, -3, 4.0, "4", None, True, [4], np.nan],
    "seed": [1.5, "1", True, [1], np.nan],
    "use_kernel": [0, 1, None, "yes", []],
    "use_bias": [0, 1, None, "yes", []],
    "recurrent_min_abs": [-0.1, np.nan, np.inf, -np.inf, *NOT_NUMBERS],
    "recurrent_max_abs": [-0.1, np.nan, np.inf, "1", True, [0.5], {}],
    "dropout": [-0.1, 1, 1.0, 2, np.nan, np.inf, *NOT_NUMBERS],
    "recurrent_dropout": [-0.1, 1, 1.0, 2, np.nan, np.inf, *NOT_NUMBERS],
}
OF_KERAS = {"activation": ["nonsense", 3]} | {
    f"{weight}_{kind}": ["nonsense", 3]
    for weight in ("kernel", "recurrent", "bias")
    for kind in ("initializer", "regularizer", "constraint")
}


@pytest.mark.parametrize("name", CELL_OPTIONS)
def test_bad_arguments_are_errors(name):
    assert {*BAD, *OF_KERAS} == {*CELL_OPTIONS}
    for value in OF_KERAS.get(name, []):
        with pytest.raises(ValueError, match=str(value)):
            IndRNNCell(**{"units": N, name: value})
    for value in BAD.get(name, []):
        with pytest.raises((TypeError, ValueError)) as caught:
            IndRNNCell(**{"units": N, name: value})
        message = str(caught.value)
        assert f"`{name}` must" in message
        assert f"got {value!r}" in message or f"got {value}" in message


def test_crossed_bounds_are_named():
    crossed = {"recurrent_min_abs": 1.5, "recurrent_max_abs": 0.5}
    match = "`recurrent_min_abs` .*`recurrent_max_abs`, got 1.5 and 0.5"
    for options in ({"units": N, **crossed}, crossed):
        make = IndRNNCell if "units" in options else RecurrentBound
        with pytest.raises(ValueError, match=match):
            make(**options)


@pytest.mark.parametrize(
    "shape, options, expected",
    [
        *[
            ((B, width), {"use_kernel": False}, f"use_kernel=False.*ected {N}")
            for width in (N - 1, N + 1, 1)
        ],
        ((F,), {}, r"of one step must have shape \(batch, features\)"),
        ((B, 7, F), {}, r"of one step must have shape \(batch, features\)"),
    ],
)
def test_wrong_inputs_are_named(shape, options, expected):
    width = F if options == {} else N
    x, h = ops.ones(shape), ops.ones((B, N))
    for make in (
        lambda: IndRNNCell(N, **options).build(shape),
        lambda: IndRNNCell(N, **options)(x, h),
        lambda: made(width, **options)(x, h),
    ):
        with pytest.raises(ValueError, match=f"`inputs`.*{expected}") as caught:
            make()
        assert str(shape) in str(caught.value)
