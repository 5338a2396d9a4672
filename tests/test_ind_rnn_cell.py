"""IndRNNCell against a NumPy oracle, and its bound."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from cases import every_pair
from ind_rnn_cell import IndRNNCell, RecurrentBound
from pairs import (
    CELL_OPTIONS,
    assert_close,
    assert_config_holds,
    data,
    fill,
    reloaded,
    softsign,
)

B, T, F, N = 2, 4, 3, 4
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
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
    "training": [True, False],
}


@pytest.mark.parametrize("values", every_pair(*OPTIONS.values()))
def test_steps_equal_numpy(values):
    """One by one, and in Keras' loop."""
    options = dict(zip(OPTIONS, values, strict=True))
    dtype, training = options["dtype"], options.pop("training")
    width = F if options["use_kernel"] else N
    x, h0 = data(T, B, width).astype(dtype), data(B, N, phase=5).astype(dtype)
    cell, twin = (made(width, seed=1, **options) for _ in range(2))
    weights, drops = parts(cell), [1, 1]
    if training:
        for i, (name, example) in enumerate(
            (("dropout", x[0]), ("recurrent_dropout", h0))
        ):
            mask = getattr(cell, f"get_{name}_mask")(ops.ones_like(example))
            if (rate := options[name]) > 0:
                drops[i] = mask.numpy()
                kept = np.unique(drops[i])
                np.testing.assert_allclose(kept, [0, 1 / (1 - rate)], 1e-6)
    state, expected, outputs = ops.convert_to_tensor(h0), h0, []
    for x_t, as_list in zip(x, [True, False, False, True], strict=True):
        given = [state] if as_list else state
        y, state = cell(ops.convert_to_tensor(x_t), given, training=training)
        assert isinstance(state, list) == as_list
        state = state[0] if as_list else state
        expected = oracle(
            x_t * drops[0], expected * drops[1], *weights, options["activation"]
        )
        assert y.dtype == dtype
        assert_close([y, state], [expected, expected], TOLERANCE[dtype])
        outputs.append(expected)
    loop = keras.layers.RNN(
        twin, return_sequences=True, return_state=True, dtype=dtype
    )
    y, state = loop(x.swapaxes(0, 1), initial_state=h0, training=training)
    outputs = np.stack(outputs, axis=1), expected
    assert_close([y, state], outputs, TOLERANCE[dtype])


def test_documented_shapes():
    cell = made()
    shapes = {w.name: tuple(w.shape) for w in cell.trainable_weights}
    expected = {"kernel": (F, N), "recurrent_kernel": (N,), "bias": (N,)}
    assert shapes == expected and cell.state_size == cell.output_size == N
    for zeros in (
        cell.get_initial_state(B, dtype="float64"),
        cell.get_initial_state(inputs=ops.ones((B, F)), dtype="float64"),
        cell.zero_state(B, tf.float64),
    ):
        assert zeros.dtype == "float64"
        np.testing.assert_array_equal(zeros, np.zeros((B, N)))


@pytest.mark.parametrize(
    "low, high", [(0.0, 0.0), (0.0, 0.5), (0.3, None), (0.3, 0.5), (0.4, 0.4)]
)
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
    np.testing.assert_array_equal(bound(values), expected)

    # The gradient is that of the weight, inside and outside.
    cell.recurrent_kernel.assign(values)
    with tf.GradientTape() as tape:
        y, _ = cell(0 * one, one)
    np.testing.assert_array_equal(y[0], expected)
    gradient = tape.gradient(y, cell.recurrent_kernel.value)
    np.testing.assert_array_equal(gradient, one[0])
    np.testing.assert_array_equal(cell.bounded_recurrent_kernel, expected)

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


def test_bound_holds_in_the_saved_file(tmp_path):
    bounds = {"recurrent_min_abs": 0.7, "recurrent_max_abs": 1.5}
    layer = keras.layers.RNN(IndRNNCell(N, **bounds))
    model = keras.Sequential([keras.Input((T, F)), layer])
    raw = np.array([9.0, -9.0, 0.0, -0.1], "float32")
    layer.cell.recurrent_kernel.assign(raw)
    loaded = reloaded(model, tmp_path)
    np.testing.assert_array_equal(
        loaded.layers[0].cell.recurrent_kernel, bounded(raw, 0.7, 1.5)
    )
    # Saving leaves the model as it is.
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, raw)
    np.testing.assert_array_equal(loaded(data(B, T, F)), model(data(B, T, F)))
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
    assert_config_holds(IndRNNCell, CELL_OPTIONS)


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


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    for value in BAD[name]:
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
