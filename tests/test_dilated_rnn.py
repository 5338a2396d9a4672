"""DilatedRNN against loops over steps, identities, Keras, and errors.

The cover: the full product of cells and dilations, each with seeded draws of
the other options, so that every pair of option values occurs (`test_cover`).
"""

import functools
import inspect
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras.layers import GRU, LSTM, GRUCell, LSTMCell, SimpleRNN, SimpleRNNCell
from keras.src import testing

from dilated_rnn import DilatedRNN, dilated_rnn, mean_recurrent_length
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from pairs import data, masked, weighted

B, F, N = 3, 2, 4


@keras.saving.register_keras_serializable(package="tests")
class TwoStates(keras.layers.Layer):
    """A cell with two states of different sizes, one of which starts at 0.5."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, 3]

    def build(self, shape):
        self.w = self.add_weight((shape[-1] + self.units + 3, self.units + 3))
        self.built = True

    def call(self, inputs, states, training=False):
        z = keras.ops.tanh(keras.ops.concatenate([inputs, *states], 1) @ self.w)
        h, m = z[:, : self.units], 0.5 * (states[1] + z[:, self.units :])
        return h * m[:, :1], [h, m]

    def get_initial_state(self, batch_size=None):
        shapes = [(batch_size, size) for size in self.state_size]
        h, m = (keras.ops.zeros(shape, self.compute_dtype) for shape in shapes)
        return [h, m + 0.5]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


KINDS = {
    name: functools.partial(SimpleRNNCell, N, name)
    for name in ("tanh", "relu", "sigmoid", "linear", "softsign")
} | {
    kind.__name__: functools.partial(kind, N)
    for kind in (LSTMCell, GRUCell, IndRNNCell, TwoStates, IndRNN)
}
AXES = {
    "kind": list(KINDS),
    "dilations": [
        (1,),
        (1, 2, 4, 8),
        (4, 8, 16, 32),
        (3, 3),
        (5,),
        (2, 7, 1),
        (20,),
        (50, 1),
    ],
    "time": [20, 7, 1, 16],
    "mask": [None, "right", "holes", "row", "all"],
    "initial_state": [False, True],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "go_backwards": [False, True],
    "zero_output_for_mask": [False, True],
}


def drawn(i, j):
    """The case of cell i and dilations j."""
    rng = np.random.default_rng([i, j])
    case = {name: rng.choice(len(values)) for name, values in AXES.items()}
    case |= {"kind": i, "dilations": j, "time": i + j, "mask": i + 2 * j}
    return {name: AXES[name][k % len(AXES[name])] for name, k in case.items()}


CASES = [
    drawn(i, j)
    for i in range(len(KINDS))
    for j in range(len(AXES["dilations"]))
]


def stack(kind, dilations, dtype="float64", **options):
    """A DilatedRNN whose weights depend on its arguments only."""
    cells = [KINDS[kind](dtype=dtype) for _ in dilations]
    layer = DilatedRNN(cells, list(dilations), dtype=dtype, **options)
    layer.build((B, None, F))
    for i, w in enumerate(layer.trainable_weights):
        w.assign(data(*w.shape, phase=i, scale=0.6))
    return layer


def state_of(layer, batch=B):
    return [
        tf.constant(data(batch, *size, phase=9 + i))
        for i, size in enumerate(layer.state_size)
    ]


def by_hand(layer, x, initial_state=None, mask=None):
    """What a DilatedRNN returns: one sequence and one step after the other."""
    every = []
    for b, sequence in enumerate(tf.unstack(x)):
        steps = range(len(sequence))[:: -1 if layer.go_backwards else 1]
        kept = [t for t in steps if mask is None or mask[b, t]]
        y, state = [sequence[t][None] for t in kept], []
        given = iter(initial_state or ())
        for inner, d in zip(layer.layers, layer.dilations, strict=True):
            start = tf.nest.flatten(inner.cell.get_initial_state(batch_size=1))
            if initial_state is None:
                queue = [start] * d
            else:
                pasts = [tf.split(next(given)[b], d) for _ in start]
                queue = [list(past) for past in zip(*pasts, strict=True)]
            for i, step in enumerate(y):
                y[i], new = inner.cell(step, queue[-d])
                queue.append(tf.nest.flatten(new))
            state += [
                tf.concat(parts, 0)[None]
                for parts in zip(*queue[-d:], strict=True)
            ]
        zero = tf.zeros((1, N), x.dtype)
        if layer.return_sequences:
            done, y = dict(zip(kept, y, strict=True)), [zero]
            for t in steps:
                last = zero if layer.zero_output_for_mask else y[-1]
                y.append(done.get(t, last))
            y = tf.concat(y[1:], 0)[None]
        else:
            d = layer.dilations[0]
            y = tf.concat(([zero] * d + y)[-d:], 1)
        every.append([y, *state] if layer.return_state else [y])
    return [tf.concat(parts, 0) for parts in zip(*every, strict=True)]


def computed(layer, x, state=None, mask=None, call=None, **options):
    """Outputs, states and every gradient of a call."""
    x = tf.convert_to_tensor(x)
    sources = [x, *(state or ())]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = (call or layer)(x, initial_state=state, mask=mask, **options)
        y = tf.nest.flatten(y)
        total = sum(weighted(part) for part in y)
    sources += [w.value for w in layer.trainable_weights]
    gradients = tape.gradient(total, sources, unconnected_gradients="zero")
    return {"outputs": y, "gradients": gradients}


def assert_same(actual, expected, tolerance=1e-12):
    """Gradients: to 100 times the tolerance."""
    assert actual.keys() == expected.keys()
    for name in actual:
        atol = tolerance * (100 if name == "gradients" else 1)
        for a, e in zip(actual[name], expected[name], strict=True):
            assert a.shape == e.shape and a.dtype == e.dtype
            scale = max(1, np.max(np.abs(e), initial=0))
            np.testing.assert_allclose(
                a, e, rtol=0, atol=atol * scale, err_msg=name
            )


def test_cover():
    for a, b in itertools.combinations(AXES, 2):
        seen = {(case[a], case[b]) for case in CASES}
        assert seen == set(itertools.product(AXES[a], AXES[b])), (a, b)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(case):
    case = dict(case)
    time, mask, initial_state = (
        case.pop(name) for name in ("time", "mask", "initial_state")
    )
    layer = stack(**case)
    values = {
        "x": data(B, time, F),
        "state": state_of(layer) if initial_state else None,
        "mask": masked(mask, B, time),
    }
    expected = computed(layer, call=functools.partial(by_hand, layer), **values)
    assert_same(computed(layer, **values), expected)


@pytest.mark.parametrize("dilations", AXES["dilations"])
def test_equals_numpy(dilations):
    layer = stack("tanh", dilations, return_sequences=True)
    y = x = data(B, 20, F)
    for cell, d in zip(layer.cells, dilations, strict=True):
        kernel, recurrent_kernel, bias = (np.array(w) for w in cell.weights)
        h = [np.zeros((B, N))] * d
        for t in range(20):
            z = y[:, t] @ kernel + h[-d] @ recurrent_kernel + bias
            h.append(np.tanh(z))
        y = np.stack(h[d:], 1)
    np.testing.assert_allclose(layer(x), y, rtol=0, atol=1e-12)


NESTED = [(1, 2, 4, 8), (2, 4, 8), (3, 3), (4, 8, 16, 32)]


@pytest.mark.parametrize("kind", ["tanh", "LSTMCell", "TwoStates"])
@pytest.mark.parametrize("dilations", NESTED)
@pytest.mark.parametrize("time", [12, 17, 32])
def test_only_last_outputs(kind, dilations, time):
    x = data(B, time, F)
    layer = stack(kind, dilations)
    general = stack(kind, dilations, return_state=True)
    expected = computed(general, x, call=lambda *a, **k: general(*a, **k)[0])
    assert_same(computed(layer, x), expected)


def test_work_of_only_last_outputs(monkeypatch):
    layer, work = stack("tanh", [2**i for i in range(6)]), []
    inner_loop = type(layer.layers[0]).inner_loop

    def counted(inner, sequences, *args, **kwargs):
        work.append(sequences.shape[0] * sequences.shape[1] // B)
        return inner_loop(inner, sequences, *args, **kwargs)

    monkeypatch.setattr(type(layer.layers[0]), "inner_loop", counted)
    layer(data(B, 64, F))
    assert work == [64, 32, 16, 8, 4, 2]


@pytest.mark.parametrize("kind", ["tanh", "LSTMCell", "GRUCell", "TwoStates"])
@pytest.mark.parametrize("mask", [None, "right", "holes", "row"])
def test_without_dilation_it_is_keras_rnn(kind, mask):
    x, mask = data(B, 6, F), masked(mask, B, 6)
    for return_sequences, go_backwards in itertools.product(
        [True, False], [0, 1]
    ):
        options = {
            "return_sequences": return_sequences,
            "return_state": True,
            "go_backwards": bool(go_backwards),
            "zero_output_for_mask": bool(go_backwards),
        }
        layer = stack(kind, (1, 1), **options)
        cells = keras.layers.StackedRNNCells(layer.cells, dtype="float64")
        loop = keras.layers.RNN(cells, dtype="float64", **options)
        loop.build(x.shape)

        def call(x, initial_state, mask):
            y, *state = loop(x, mask=mask)
            state = tf.nest.flatten(state)
            return y, *(value[:, None] for value in state)

        expected = computed(layer, x, mask=mask, call=call)
        assert_same(computed(layer, x, mask=mask), expected)


def in_chunks(layer, x, mask, lengths):
    """The outputs, joined, and the last states."""
    ends, outputs, state = np.cumsum(lengths), [], None
    for start, end in zip(ends - lengths, ends, strict=True):
        part = None if mask is None else mask[:, start:end]
        y, *last = layer(x[:, start:end], initial_state=state, mask=part)
        outputs.append(y)
        state = None if layer.stateful else last
    return [tf.concat(outputs, 1), *last]


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(
    kind=st.sampled_from(list(KINDS)[:-1]),
    dilations=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    mask=st.sampled_from([None, "right", "holes", "row"]),
    go_on=st.booleans(),
)
@example("LSTMCell", [4, 1, 3], [1] * 12, None, True)
@example("TwoStates", [2, 5], [1] * 9, "holes", False)
def test_chunks_are_the_whole(kind, dilations, lengths, mask, go_on):
    options = {
        "return_sequences": True,
        "return_state": True,
        "zero_output_for_mask": True,
    }
    layer, time = stack(kind, dilations, **options), sum(lengths)
    x, mask = data(B, time, F), masked(mask, B, time)
    whole = {"outputs": layer(x, mask=mask)}
    assert_same({"outputs": in_chunks(layer, x, mask, lengths)}, whole)
    if go_on:
        layer = stack(kind, dilations, stateful=True, **options)
        assert_same({"outputs": in_chunks(layer, x, mask, lengths)}, whole)
        for variable, last in zip(
            layer.states, whole["outputs"][1:], strict=True
        ):
            np.testing.assert_allclose(variable, last, rtol=0, atol=1e-12)
        layer.reset_state()
        if kind != "TwoStates":
            again = {"outputs": in_chunks(layer, x, mask, lengths)}
            assert_same(again, whole)
        layer.reset_states()
        assert not any(np.any(variable) for variable in layer.states)


@pytest.mark.parametrize("mode", ["unknown", "jit"])
@pytest.mark.parametrize("kind", ["tanh", "softsign", "LSTMCell", "TwoStates"])
@pytest.mark.parametrize("mask", [None, "holes"])
@pytest.mark.parametrize("general", [False, True])
def test_compiled_equals_eager(mode, kind, mask, general):
    layer = stack(
        kind, (1, 2, 4), return_sequences=general, return_state=general
    )
    specs = [tf.TensorSpec([None, None, F], "float64")]
    specs += [tf.TensorSpec([None, None], "bool")] if mask else []
    function = tf.function(
        lambda x, mask=None: computed(layer, x, mask=mask),
        jit_compile=mode == "jit",
        input_signature=specs if mode == "unknown" else None,
    )
    for batch, time in ((B, 7), (2, 3)) if mode == "unknown" else ((B, 7),):
        x, keep = data(batch, time, F), masked(mask, batch, time)
        actual = function(x) if mask is None else function(x, keep)
        assert_same(actual, computed(layer, x, mask=keep))


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("shape", [(None, None), (None, 7), (B, None), (B, 7)])
@pytest.mark.parametrize("kind", ["LSTMCell", "TwoStates"])
def test_symbolic_shapes(return_sequences, return_state, shape, kind):
    layer = stack(
        kind,
        (2, 3),
        dtype="float32",
        return_sequences=return_sequences,
        return_state=return_state,
    )
    x = keras.Input(batch_shape=(*shape, F))
    symbolic = tf.nest.flatten(layer(x))
    expected = [(*shape, N) if return_sequences else (shape[0], 2 * N)]
    if return_state:
        second = N if kind == "LSTMCell" else 3
        sizes = [(2, N), (2, second), (3, N), (3, second)]
        expected += [(shape[0], *size) for size in sizes]
        assert layer.state_size == sizes
    assert [tuple(y.shape) for y in symbolic] == expected
    given = layer.compute_output_shape((*shape, F))
    assert (list(given) if return_state else [given]) == expected
    actual = tf.nest.flatten(keras.Model(x, symbolic)(data(B, 7, F)))
    for y, shape in zip(actual, expected, strict=True):
        known = [n is None or n == m for n, m in zip(shape, y.shape)]
        assert len(shape) == len(y.shape) and all(known)
    mask = np.ones((B, 7), bool)
    masks = layer.compute_mask(x, mask)
    masks = masks if return_state else [masks]
    assert len(masks) == len(expected)
    assert (masks[0] is mask) == return_sequences
    assert not any(mask is not None for mask in masks[1:])


@pytest.mark.parametrize("kind", ["tanh", "GRUCell"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_takes_the_step_of_the_gradient(kind, jit_compile):
    layer = stack(kind, (1, 2, 4), dtype="float32")
    model = keras.Sequential([keras.Input((None, F)), layer])
    x, y = (data(B, 9, F).astype("float32"), data(B, N, phase=2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((layer(x) - y) ** 2)
        weights = [w.value for w in layer.trainable_weights]
    expected = [
        np.array(w) - 0.1 * np.array(gradient)
        for w, gradient in zip(weights, tape.gradient(loss, weights))
    ]
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    model.fit(x, y, verbose=0)
    for w, target in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(w, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("mask", [None, "right", "holes"])
def test_backwards_is_the_reversed_sequence(return_sequences, mask):
    options = {"return_sequences": return_sequences, "return_state": True}
    x, mask = data(B, 7, F), masked(mask, B, 7)
    flipped = None if mask is None else mask[:, ::-1]
    forward = stack("LSTMCell", (2, 3), **options)
    backward = stack("LSTMCell", (2, 3), go_backwards=True, **options)
    assert_same(
        {"outputs": backward(x, mask=mask)},
        {"outputs": forward(x[:, ::-1], mask=flipped)},
    )


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("mask", [None, "right", "holes"])
def test_bidirectional(return_sequences, mask):
    x, mask = data(B, 7, F), masked(mask, B, 7)
    layer = keras.layers.Bidirectional(
        stack("TwoStates", (2, 3), return_sequences=return_sequences),
        dtype="float64",
    )
    actual = layer(x, mask=mask)
    one = layer.forward_layer(x, mask=mask)
    two = layer.backward_layer(x, mask=mask)
    assert layer.backward_layer.go_backwards and not np.array_equal(one, two)
    two = two[:, ::-1] if return_sequences else two
    np.testing.assert_array_equal(actual, np.concatenate([one, two], -1))


def test_after_masking():
    x, mask = data(B, 7, F).astype("float32"), masked("holes", B, 7)
    x = np.where(mask[:, :, None], x, 0)
    layer = stack("GRUCell", (1, 2), "float32", return_sequences=True)
    last = stack("tanh", (2, 1), "float32")
    last.build((None, None, N))
    model = keras.Sequential([keras.layers.Masking(), layer])
    np.testing.assert_array_equal(model(x), layer(x, mask=mask))
    assert np.abs(model(x) - layer(x)).max() > 0.01


@pytest.mark.parametrize("kind", ["tanh", "GRUCell", "TwoStates"])
def test_masked_nan_does_not_leak(kind):
    mask = masked("holes", B, 16)
    x = data(B, 16, F)
    dirty = np.where(mask[:, :, None], x, np.nan)
    for return_sequences in (False, True):
        layer = stack(
            kind,
            (1, 2, 4),
            return_sequences=return_sequences,
            return_state=True,
        )
        clean = {"outputs": layer(x, mask=mask)}
        assert_same({"outputs": layer(dirty, mask=mask)}, clean, 0)
