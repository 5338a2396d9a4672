"""IndRNN: identities, what Keras does with a layer, and errors."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from pairs import (
    CELL_OPTIONS,
    B,
    F,
    N,
    T,
    assert_close,
    assert_config_holds,
    data,
    masked,
    pair,
    reloaded,
    second_gradient,
    softsign,
)

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
    assert_config_holds(IndRNN, OPTIONS)
    parameters = inspect.signature(IndRNN).parameters
    of_cell = inspect.signature(IndRNNCell).parameters
    assert {name for name in of_cell if of_cell[name] != parameters[name]} == {
        "recurrent_max_abs"
    }


@pytest.mark.parametrize(
    "time, bound", [(5, 2 ** (1 / 5)), (784, 2 ** (1 / 784)), (None, 1.0)]
)
def test_the_bound_follows_from_the_length(time, bound):
    layer = IndRNN(N)
    dilated = DilatedRNN([IndRNN(N)], [3])
    cell = IndRNNCell(N, recurrent_max_abs="auto")
    cell.time_steps = time
    for each in (layer, dilated, cell):
        each.build((None, time, F) if each is not cell else (None, F))
    found = [x.bound.recurrent_max_abs for x in (layer.cell, cell)]
    assert found == [bound] * 2
    # A dilated layer takes every third step.
    of_dilated = dilated.layers[0].cell.bound.recurrent_max_abs
    assert of_dilated == (2 ** (1 / np.ceil(time / 3)) if time else 1.0)
    layer.cell.recurrent_kernel.assign([9.0, -9.0, 0.5] + [bound] * (N - 3))
    expected = [bound, -bound, 0.5] + [bound] * (N - 3)
    u = layer.cell.bounded_recurrent_kernel
    np.testing.assert_allclose(u, expected, rtol=1e-6)
    assert layer.get_config()["recurrent_max_abs"] == "auto"
    assert IndRNN(N, recurrent_max_abs=None).recurrent_max_abs is None
    with pytest.raises(ValueError, match="`recurrent_min_abs`.*20"):
        IndRNN(N, recurrent_min_abs=20).build((None, time, F))
    with pytest.raises(ValueError, match="`recurrent_max_abs`.*'no'"):
        IndRNN(N, recurrent_max_abs="no")


@pytest.mark.parametrize("batch", [None, B])
@pytest.mark.parametrize("time", [None, T])
def test_symbolic_shapes(batch, time):
    x = keras.Input(batch_shape=(batch, time, F))
    y, h = IndRNN(N, return_sequences=True, return_state=True)(x)
    assert (y.shape, h.shape) == ((batch, time, N), (batch, N))


@pytest.mark.parametrize(
    "activation, wrap", [("tanh", lambda f: f), (softsign, tf.function)]
)
def test_second_gradients_need_unroll(activation, wrap):
    fused, _ = pair({"activation": activation})
    x, v = (tf.constant(data(B, 3, F, phase=phase)) for phase in (0, 3))

    def second(layer):
        return wrap(lambda x: second_gradient(layer, x, v))(x)

    with pytest.raises(NotImplementedError, match="`unroll=True`"):
        second(fused)
    unrolled, loop = pair({"activation": activation, "unroll": True})
    actual = second(unrolled)
    assert np.abs(actual).max() > 1e-2
    assert_close(actual, second(loop), 1e-10)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)):
            fused(x)


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
def test_wrong_shapes_are_named(shapes, expected):
    state, mask = shapes.get("state"), shapes.get("mask")
    with pytest.raises(ValueError, match=expected):
        IndRNN(N, use_kernel=shapes.get("use_kernel", True))(
            np.ones(shapes.get("x", (B, T, F))),
            initial_state=state and np.ones(state),
            mask=mask and np.ones(mask, bool),
        )


def test_other_wrong_tensors_are_named():
    x, states = np.ones((B, T, F)), [np.ones((B, N))] * 2
    layer = IndRNN(N)
    with pytest.raises(ValueError, match="`initial_state` must be one tensor"):
        layer(x, initial_state=states)
    layer(x)
    for batch in (1, B + 1):
        with pytest.raises(ValueError, match=rf"`states`.*\({batch}, {N}\)"):
            layer.cell(np.ones((B, F)), np.ones((batch, N)))

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


def test_forms_of_a_mask():
    layer = IndRNN(N, return_sequences=True)
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
    np.testing.assert_array_equal(layer(x, mask=[None]), layer(x))


def test_integers_are_cast():
    x = (np.arange(B * T * N) % 3).reshape(B, T, N)
    for layer in (
        IndRNN(N),
        IndRNN(N, use_kernel=False),
        keras.layers.RNN(IndRNNCell(N)),
    ):
        np.testing.assert_array_equal(layer(x), layer(x.astype("float32")))


def test_flags_are_bools():
    for flag in [name for name in OPTIONS if OPTIONS[name] is True]:
        for value in (0, 1, None, "yes", []):
            with pytest.raises(TypeError) as caught:
                IndRNN(N, **{flag: value})
            message = f"`{flag}` must be a bool, got {value!r}"
            assert message in str(caught.value)


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


def test_one_step_has_no_loop_and_no_program():
    layer = IndRNN(N, return_sequences=True)
    step = tf.function(layer).get_concrete_function(tf.TensorSpec((B, 1, F)))
    graph = step.graph.as_graph_def()
    nodes = [*graph.node]
    for inner in graph.library.function:
        nodes += inner.node_def
        assert not inner.attr["_XlaMustCompile"].b
    assert not [x.op for x in nodes if "Xla" in x.op or "While" in x.op]
