"""IndRNN: identities, what Keras does with a layer, and errors."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import each_value, every_pair
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import without_xla
from pairs import (
    CELL_OPTIONS,
    OF_LAYER,
    B,
    F,
    N,
    T,
    activity_loss,
    assert_close,
    assert_same,
    computed,
    data,
    fails_on,
    inputs,
    masked,
    pair,
    reloaded,
    softsign,
    weighted,
)


@pytest.mark.parametrize("mask", [None, "left", "holes", "row"])
def test_parts_and_directions(mask):
    """Two halves are the whole; backwards is the reversed sequence."""
    case = {"return_sequences": True, "return_state": True, "mask": mask}
    layer, _ = pair({**case, "zero_output_for_mask": True})
    x, _, mask = inputs(case)
    whole, last = layer(x, mask=mask)
    state, parts = None, []
    for part in (slice(0, 3), slice(3, T)):
        y, state = layer(
            x[:, part],
            initial_state=state,
            mask=None if mask is None else mask[:, part],
        )
        parts.append(y)
    assert_close([np.concatenate(parts, 1), state], [whole, last], 1e-12)

    forward, backward = (
        pair({**case, "go_backwards": flag})[0] for flag in (False, True)
    )
    flipped = None if mask is None else mask[:, ::-1]
    for a, b in zip(
        backward(x, mask=mask), forward(x[:, ::-1], mask=flipped), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "activation, mask, use_kernel",
    each_value(
        ["relu", "tanh", softsign],
        ["right", "left", "holes", "row", "all"],
        [True, False],
    ),
)
def test_masked_nan_does_not_leak(activation, mask, use_kernel):
    case = {
        "activation": activation,
        "mask": mask,
        "use_kernel": use_kernel,
        "return_sequences": True,
        "return_state": True,
        "initial_state": True,
    }
    fused, loop = pair(case)
    x, h, mask = inputs(case)
    clean = computed(fused, x, h, mask)
    x = tf.where(mask[:, :, None], x, np.nan)
    assert np.isnan(x).any()
    dirty, of_loop = computed(fused, x, h, mask), computed(loop, x, h, mask)
    for name, value in dirty.items():
        if name == "gradient of kernel":
            assert not (np.isnan(value) & ~np.isnan(of_loop[name])).any()
        else:
            np.testing.assert_array_equal(value, clean[name], err_msg=name)


@pytest.mark.parametrize("as_list", [True, False])
def test_stacked_cells_equal_two_layers(as_list):
    # Keras computes a plain list of cells in its default dtype.
    dtype = "float32" if as_list else "float64"
    x = data(B, T, F).astype(dtype)
    cells = [
        IndRNNCell(N, dtype=dtype),
        IndRNNCell(N, use_kernel=False, dtype=dtype),
    ]
    if not as_list:
        cells = keras.layers.StackedRNNCells(cells, dtype=dtype)
    stack = keras.layers.RNN(cells, return_sequences=True, dtype=dtype)
    stack.build(x.shape)
    case = {"return_sequences": True, "dtype": dtype}
    one, _ = pair(case)
    two, _ = pair({**case, "use_kernel": False})
    stack.set_weights(one.get_weights() + two.get_weights())
    actual, expected = stack(x), two(one(x))
    assert_same({"output": actual}, {"output": expected}, dtype)


def test_wrappers(tmp_path):
    x = data(B, T, F)
    layer = keras.layers.Bidirectional(
        IndRNN(N, return_sequences=True, dtype="float64"), dtype="float64"
    )
    model = keras.Sequential([keras.Input((T, F), dtype="float64"), layer])
    one, two = layer.forward_layer, layer.backward_layer
    assert isinstance(two, IndRNN) and two.go_backwards
    expected = np.concatenate([one(x), two(x)[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(model(x), expected)
    np.testing.assert_array_equal(reloaded(model, tmp_path)(x), expected)

    x = np.stack([x, 2 * x], axis=1)
    y = keras.layers.TimeDistributed(one, dtype="float64")(x)
    expected = np.stack([one(x[:, i]) for i in range(2)], axis=1)
    np.testing.assert_array_equal(y, expected)


OPTIONS = {
    **CELL_OPTIONS,
    "activity_regularizer": keras.regularizers.L2(0.4),
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "stateful": True,
    "unroll": True,
    "zero_output_for_mask": True,
    "implementation": "sequential",
}


def test_config_holds_every_argument():
    parameters = inspect.signature(IndRNN).parameters
    of_cell = inspect.signature(IndRNNCell).parameters
    assert set(parameters) - {"kwargs"} == set(OPTIONS)
    assert all(of_cell[name] == parameters[name] for name in of_cell)
    layer = IndRNN(**OPTIONS, name="memory", dtype="float64")
    config, default = layer.get_config(), IndRNN(N + 1).get_config()
    for name, value in OPTIONS.items():
        assert config[name] != default.get(name), name
        if name != "activation":
            assert getattr(layer, name) == value, name
    assert layer.activation is keras.activations.tanh
    again = IndRNN.from_config(config)
    assert again.get_config() == config
    assert again.name == "memory"
    assert again.dtype == again.cell.dtype == "float64"
    saved = keras.saving.serialize_keras_object(layer)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is IndRNN and loaded.get_config() == config


@pytest.mark.parametrize(
    "options",
    [
        lambda: {
            "activation": softsign,
            "dropout": 0.2,
            "recurrent_dropout": 0.2,
            "recurrent_min_abs": 0.2,
            "recurrent_max_abs": 0.9,
        },
        pytest.param(
            lambda: {"activation": keras.layers.PReLU("ones")},
            marks=fails_on(
                "keras<3.10", "cannot load a layer as activation", ValueError
            ),
        ),
    ],
)
def test_saved_and_cloned_models_predict_the_same(options, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, F)),
            IndRNN(N, return_sequences=True, **options()),
            IndRNN(N, use_kernel=False, **options()),
            keras.layers.Dense(2),
        ]
    )
    x = data(B, T, F)
    expected = model(x)
    np.testing.assert_array_equal(reloaded(model, tmp_path)(x), expected)
    clone = keras.models.clone_model(model)
    clone(x)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(x), expected)


@pytest.mark.parametrize(
    "shape, return_sequences, return_state",
    every_pair(
        [(None, None), (None, T), (B, None), (B, T)],
        [False, True],
        [False, True],
    ),
)
def test_symbolic_shapes(shape, return_sequences, return_state):
    layer = IndRNN(
        N, return_sequences=return_sequences, return_state=return_state
    )
    x = keras.Input(batch_shape=(*shape, F))
    symbolic = tf.nest.flatten(layer(x))
    last = (shape[0], N)
    expected = [(*shape, N) if return_sequences else last]
    expected += [last] if return_state else []
    assert [tuple(y.shape) for y in symbolic] == expected
    actual = tf.nest.flatten(keras.Model(x, symbolic)(data(B, T, F)))
    for y, shape in zip(actual, expected, strict=True):
        sizes = [T if n is None and i else n for i, n in enumerate(shape)]
        assert tuple(y.shape) == (B, *sizes[1:])


def test_activity_regularizer_survives_saving(tmp_path):
    layer = IndRNN(N, activity_regularizer=keras.regularizers.L2(0.25))
    model = keras.Sequential([keras.Input((T, F)), layer])
    x = data(B, T, F).astype("float32")
    for each in (model, reloaded(model, tmp_path)):
        y = each(x)
        (loss,) = each.losses
        np.testing.assert_allclose(loss, activity_loss(0.25, y), rtol=1e-5)


def test_activation_with_weights():
    activations = [
        keras.layers.PReLU(keras.initializers.Constant(0.3), dtype="float64")
        for _ in range(2)
    ]
    x, h, _ = inputs({"initial_state": True})
    fused, loop = (
        pair({"activation": activation, "return_sequences": True})[i]
        for i, activation in enumerate(activations)
    )
    results = [computed(layer, x, h, None) for layer in (fused, loop)]
    assert activations[0].alpha.shape == activations[1].alpha.shape == (N,)
    assert_same(*results)
    gradient = results[0]["gradient of recurrent_kernel"]
    assert np.abs(gradient).max() > 0.1
    with tf.GradientTape() as tape:
        total = weighted(fused(x))
    gradient = tape.gradient(total, activations[0].alpha.value)
    assert np.abs(gradient).min() > 1e-3


def test_activation_with_other_state():
    layer = IndRNN(N, activation=keras.layers.Dropout(0.5, seed=1))
    x = data(B, T, F)
    whole = layer(x)
    assert np.abs(layer(x, training=True) - whole).max() > 0.1
    np.testing.assert_array_equal(layer(x), whole)


def test_activation_of_one_dtype():
    half = tf.constant(0.5, "float64")
    fused, loop = pair({"activation": lambda z: half * z})
    x, _, _ = inputs({})
    assert_close(fused(x), loop(x), 1e-12)


def test_functions_run_eagerly():
    fused, loop = pair({"return_sequences": True})
    values = inputs({"initial_state": True, "mask": "holes"})
    expected = computed(loop, *values)
    tf.config.run_functions_eagerly(True)
    try:
        assert_same(computed(fused, *values), expected)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_same(computed(fused, *values), expected)


def second_gradient(layer, loss, x):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = loss(layer(x))
        penalty = tf.reduce_sum(inner.gradient(y, x) ** 2)
    return outer.gradient(penalty, x)


@pytest.mark.parametrize(
    "activation, wrap, loss",
    [
        ("tanh", lambda f: f, weighted),
        (softsign, tf.function, lambda y: tf.reduce_sum(y**2)),
    ],
)
def test_second_gradients_need_unroll(activation, wrap, loss):
    fused, _ = pair({"activation": activation})
    x, _, _ = inputs({}, time=3)
    with pytest.raises(NotImplementedError, match="`unroll=True`"):
        wrap(lambda x: second_gradient(fused, loss, x))(x)
    unrolled, loop = pair({"activation": activation, "unroll": True})
    actual = wrap(lambda x: second_gradient(unrolled, loss, x))(x)
    assert np.abs(actual).max() > 1e-2
    assert_close(actual, second_gradient(loop, loss, x), 1e-10)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)):
            fused(x)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_streams_of_unknown_length(jit_compile):
    fused, loop = pair({"return_sequences": True, "dtype": "float32"})
    model = keras.Sequential([keras.Input((None, F)), fused])
    model.compile(jit_compile=jit_compile)
    for batch, time in ((2, 5), (3, 1), (1, 9)):
        x = data(batch, time, F).astype("float32")
        assert_close(model.predict(x, verbose=0), loop(x), 1e-5)


def test_stateful_stream_is_the_whole():
    whole, _ = pair({"return_sequences": True})
    stream, _ = pair({"return_sequences": True, "stateful": True})
    x = data(B, T, F)
    for _ in range(2):
        stream.reset_state()
        parts = [stream(part) for part in np.split(x, [2, 3], axis=1)]
        assert_close(np.concatenate(parts, 1), whole(x), 1e-12)


def called(x=(B, T, F), state=None, mask=None, **options):
    """Call a layer with ones of these shapes."""
    given = {"initial_state": state and np.ones(state)}
    given["mask"] = mask and np.ones(mask, bool)
    IndRNN(N, **options)(np.ones(x), **given)


@pytest.mark.parametrize(
    "shapes, expected",
    [
        *[
            ({"x": x}, rf"`sequences`.*\(batch, time, features\), got.*{x[0]}")
            for x in ((B, F), (B, T, F, 1), (F,))
        ],
        *[
            ({"x": (B, T, n), "use_kernel": False}, f"expected {N}.*{n}")
            for n in (N - 1, N + 1, 1)
        ],
        *[
            ({"state": x}, rf"be one tensor of.*\(batch, {N}\).*{list(x)[-1]}")
            for x in ((B, N + 1), (N,), (B, T, N), (2, B, N))
        ],
        *[
            ({"state": (batch, N)}, rf"`initial_state`.*\({batch}, {N}\)")
            for batch in (1, B + 1)
        ],
        *[
            ({"mask": x}, rf"`mask` must.*\(batch, time\), here \({B}, {T}\)")
            for x in ((B, 1), (1, T), (T, B), (B, T, 2), (B,))
        ],
    ],
)
@pytest.mark.parametrize("unroll", [False, True])
def test_wrong_shapes_are_named(shapes, expected, unroll):
    with pytest.raises(ValueError, match=expected):
        called(**shapes, unroll=unroll)


def test_other_wrong_tensors_are_named():
    x, states = np.ones((B, T, F)), [np.ones((B, N))] * 2
    layer = IndRNN(N)
    with pytest.raises(ValueError, match="`initial_state` must be one tensor"):
        layer(x, initial_state=states)
    for shape in ((B, T, F + 1), (B, F)):
        with pytest.raises(ValueError, match="expected"):
            layer(np.ones(shape))
    for batch in (1, B + 1):
        with pytest.raises(ValueError, match=rf"`states`.*\({batch}, {N}\)"):
            layer.cell(np.ones((B, F)), np.ones((batch, N)))
    with pytest.raises(ValueError, match=f"expected {N}.*{N + 1}"):
        IndRNN(N, use_kernel=False)(keras.Input((T, N + 1)))

    layer = IndRNN(N, stateful=True)
    layer(x)
    with pytest.raises(ValueError, match=f"(?s)stateful.*{B + 1}"):
        layer(np.ones((B + 1, T, F)))

    for layer, name in (
        (IndRNN(N), "sequences"),
        (keras.layers.RNN(IndRNNCell(N)), "inputs"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must have a known nu"):
            layer(keras.Input((5, None)))


@pytest.mark.parametrize("unroll", [False, True])
def test_forms_of_a_mask(unroll):
    layer = IndRNN(N, return_sequences=True, unroll=unroll)
    x, mask = data(B, T, F), masked("holes")
    expected = layer(x, mask=tf.constant(mask))
    for same in (
        mask,
        mask[:, :, None],
        mask.astype("int64"),
        mask.astype("float32") * 0.5,
        mask.tolist(),
        [tf.constant(mask), None],
    ):
        np.testing.assert_array_equal(layer(x, mask=same), expected)
    for none in (None, [None]):
        np.testing.assert_array_equal(layer(x, mask=none), layer(x))


@pytest.mark.parametrize(
    "dtype, kernel",
    each_value(["int32", "uint8", "bool", "float64"], [True, False]),
)
def test_integers_are_cast(dtype, kernel):
    x = (np.arange(B * T * N) % 3).reshape(B, T, N).astype(dtype)
    for layer in (
        IndRNN(N, use_kernel=kernel),
        keras.layers.RNN(IndRNNCell(N, use_kernel=kernel)),
    ):
        expected = layer(x.astype("float32"))
        np.testing.assert_array_equal(layer(x), expected)
        model = keras.Sequential([keras.Input((T, N), dtype=dtype), layer])
        assert_close(model.predict(x, verbose=0), expected, 1e-6)


def test_wrong_options():
    for flag in OF_LAYER:
        for value in (0, 1, None, "yes", []):
            with pytest.raises(TypeError) as caught:
                IndRNN(N, **{flag: value})
            message = f"`{flag}` must be a bool, got {value!r}"
            assert message in str(caught.value)
    for name, value in (
        ("units", "4"),
        ("units", 0),
        ("dropout", 1.0),
        ("recurrent_max_abs", -1.0),
        ("recurrent_min_abs", np.nan),
    ):
        with pytest.raises((TypeError, ValueError), match=f"`{name}` must"):
            IndRNN(**{"units": N, name: value})
    for name in ("activation", "activity_regularizer"):
        with pytest.raises(ValueError, match="nonsense"):
            IndRNN(N, **{name: "nonsense"})


@pytest.mark.parametrize("of_layer", [True, False])
@pytest.mark.parametrize("of_cell", [True, False])
def test_what_is_trainable_is_kept(of_layer, of_cell, tmp_path):
    layer = IndRNN(N)
    model = keras.Sequential([keras.Input((T, F)), layer])
    layer.trainable = of_layer  # which sets that of the cell too
    layer.cell.trainable = of_cell
    (loaded,) = reloaded(model, tmp_path).layers
    assert loaded.trainable is of_layer and loaded.cell.trainable is of_cell
    count = len(layer.trainable_weights)
    assert len(loaded.trainable_weights) == count
    assert count == (3 if of_layer and of_cell else 0)


def test_weights_of_keras_ind_rnn():
    """Its step, with a saved u outside of what it uses: docs/migrating.md."""
    clip_max = 2 ** (1 / T)
    kernel, bias = data(F, N), data(N, phase=1.0)
    u = np.array([-0.7, 1.9, 0.5, -2.0, 0.9])
    x, h = data(B, T, F, phase=2.0), np.zeros((B, N))
    straight_through = np.clip(u, 0, clip_max)
    for t in range(T):
        h = np.maximum(x[:, t] @ kernel + straight_through * h + bias, 0)
    layer = IndRNN(
        N,
        recurrent_constraint="non_neg",
        recurrent_max_abs=clip_max,
        dtype="float64",
    )
    layer.build(x.shape)
    layer.set_weights([kernel, np.clip(u, 0, clip_max), bias])
    np.testing.assert_allclose(layer(x), h, rtol=1e-12)
    layer.set_weights([kernel, u, bias])
    assert np.abs(layer(x) - h).max() > 0.1


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_one_step_has_no_loop(activation):
    layer = IndRNN(3, activation, return_sequences=True, return_state=True)
    x = tf.reshape(tf.range(1.0, 9.0) / 8, (2, 1, 4))
    h = tf.reshape(tf.range(1.0, 7.0) / 6, (2, 3))
    y, state = layer(x, initial_state=h)
    expected, _ = layer.cell(x[:, 0], h)
    np.testing.assert_array_equal(y[:, 0], expected)
    np.testing.assert_array_equal(state, expected)

    with without_xla():
        step = tf.function(lambda x, h: layer(x, initial_state=h))
        graph = step.get_concrete_function(x, h).graph
    types = {each.type for each in graph.get_operations()}
    assert not types & {"While", "StatelessWhile", "PartitionedCall"}

    # The first step of all is masked: its output is zeros, by Keras' rule.
    mask = np.array([[False], [True]])
    y, state = layer(x, initial_state=h, mask=mask)
    np.testing.assert_array_equal(y[:, 0], np.where(mask, expected, 0))
    np.testing.assert_array_equal(state, np.where(mask, expected, h))
