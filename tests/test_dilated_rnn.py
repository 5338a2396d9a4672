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

from cases import assert_every_pair, each_value, every_pair
from dilated_rnn import DilatedRNN, dilated_rnn, mean_recurrent_length
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from indy import IndyLSTM
from pairs import activity_loss, data, masked, softsign, weighted

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
    name: functools.partial(SimpleRNNCell, N, name) for name in ("tanh", "relu")
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
    "time": [12, 7, 1, 8],
    "mask": [None, "right", "holes", "row", "all"],
    "initial_state": [False, True],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "go_backwards": [False, True],
    "zero_output_for_mask": [False, True],
}


def drawn(i, j):
    """The case of cell i and dilations j."""
    rng = np.random.default_rng([2, i, j])
    case = {name: rng.choice(len(values)) for name, values in AXES.items()}
    case |= {"kind": i, "dilations": j, "time": i + j, "mask": i + 2 * j}
    return {name: AXES[name][k % len(AXES[name])] for name, k in case.items()}


CASES = [
    drawn(i, j)
    for i in range(len(KINDS))
    for j in range(len(AXES["dilations"]))
]


def filled(layer, shape=(B, None, F)):
    """The layer, built, with weights that depend on their shapes only."""
    layer.build(shape)
    for i, w in enumerate(layer.trainable_weights):
        w.assign(data(*w.shape, phase=i, scale=0.6))
    return layer


def stack(kind, dilations, dtype="float64", **options):
    cells = [KINDS[kind](dtype=dtype) for _ in dilations]
    return filled(DilatedRNN(cells, list(dilations), dtype=dtype, **options))


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


MIXED = {
    "IndRNN": lambda: [
        IndRNN(N, "relu", dtype="float64"),
        IndRNN(N, "tanh", recurrent_max_abs=0.5, dtype="float64"),
    ],
    "IndRNN, SimpleRNN, IndyLSTM, IndRNN": lambda: [
        IndRNN(N, dtype="float64"),
        SimpleRNNCell(N, dtype="float64"),
        IndyLSTM(N, dtype="float64"),
        IndRNN(N, activation=softsign, dtype="float64"),
    ],
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("time, mode", [(12, "eager"), (13, "jit"), (7, None)])
def test_steps_in_a_row_run_as_one(kind, time, mode, monkeypatch):
    """IndRNN does so for all outputs, if there is no mask and no state."""
    layers = MIXED[kind]()
    dilations = [3, 2, 1, 20][: len(layers)]
    layer = DilatedRNN(
        layers, dilations, return_sequences=True, dtype="float64"
    )
    filled(layer)
    x = tf.constant(data(B, time, F))
    expected = computed(layer, x, call=functools.partial(by_hand, layer))
    compute = functools.partial(computed, layer)
    if mode != "eager":
        compute = tf.function(
            compute,
            jit_compile=mode == "jit",
            input_signature=None
            if mode
            else [tf.TensorSpec((None, None, F), "float64")],
        )
    assert_same(compute(x), expected)
    if kind == "IndRNN":  # No layer has run over phases.
        monkeypatch.setattr(IndRNN, "call", None)
        layer(x)


def test_cover():
    assert_every_pair(CASES, AXES)


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


@pytest.mark.parametrize(
    "dilations, time, kind",
    every_pair(NESTED, [12, 17, 32], ["tanh", "LSTMCell", "TwoStates"]),
)
def test_only_last_outputs(dilations, time, kind):
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


@pytest.mark.parametrize(
    "kind, mask",
    each_value(
        ["tanh", "LSTMCell", "GRUCell", "TwoStates"],
        [None, "right", "holes", "row"],
    ),
)
def test_without_dilation_it_is_keras_rnn(kind, mask):
    x, mask = data(B, 6, F), masked(mask, B, 6)
    for sequences, backwards in itertools.product([False, True], repeat=2):
        options = {
            "return_sequences": sequences,
            "return_state": True,
            "go_backwards": backwards,
            "zero_output_for_mask": sequences and backwards,
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


@settings(deadline=None, max_examples=15, derandomize=True, database=None)
@given(
    kind=st.sampled_from(list(KINDS)[:-1]),
    dilations=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
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
        for reset in (layer.reset_state, layer.reset_states):
            reset()
            again = {"outputs": in_chunks(layer, x, mask, lengths)}
            assert_same(again, whole)


def test_states_are_no_weights(tmp_path):
    """So that what is trained in batches serves one stream."""

    def model(batch, stateful):
        layer = dilated_rnn("IndRNN", [N, N], [1, 2], stateful=stateful)
        return keras.Sequential([keras.Input((4, F), batch_size=batch), layer])

    trained, stream = model(3, True), model(1, True)
    assert len(trained.get_weights()) == len(model(None, False).get_weights())
    x = data(3, 8, F)
    trained.predict(x[:, :4], batch_size=3, verbose=0)
    expected = trained.predict(x[:, 4:], batch_size=3, verbose=0)
    trained.save_weights(tmp_path / "model.weights.h5")
    stream.load_weights(tmp_path / "model.weights.h5")
    stream.predict(x[1:2, :4], verbose=0)
    np.testing.assert_allclose(
        stream.predict(x[1:2, 4:], verbose=0), expected[1:2], atol=1e-6
    )


@pytest.mark.parametrize(
    "kind, mask, general, mode",
    [
        ("tanh", None, False, "jit"),
        ("tanh", "holes", False, "unknown"),
        ("LSTMCell", "holes", True, "jit"),
        ("TwoStates", None, True, "unknown"),
    ],
)
def test_compiled_equals_eager(kind, mask, general, mode):
    layer = stack(kind, (1, 4), return_sequences=general, return_state=general)
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


@pytest.mark.parametrize(
    "shape, kind, return_sequences, return_state",
    every_pair(
        [(None, None), (None, 7), (B, None), (B, 7)],
        ["LSTMCell", "TwoStates"],
        [False, True],
        [False, True],
    ),
)
def test_symbolic_shapes(shape, kind, return_sequences, return_state):
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


@pytest.mark.parametrize(
    "kind, jit_compile", [("tanh", False), ("GRUCell", True)]
)
def test_fit_takes_the_step_of_the_gradient(kind, jit_compile):
    layer = stack(kind, (1, 4), dtype="float32")
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
def test_bidirectional(return_sequences, mask):
    x, mask = data(B, 7, F), masked(mask, B, 7)
    layer = keras.layers.Bidirectional(
        stack("TwoStates", (2, 3), return_sequences=return_sequences),
        dtype="float64",
    )
    actual = layer(x, mask=mask)
    one, two = layer.forward_layer, layer.backward_layer
    assert two.go_backwards and not one.go_backwards
    two.go_backwards = False
    flipped = None if mask is None else mask[:, ::-1]
    one, two = one(x, mask=mask), two(x[:, ::-1], mask=flipped)
    two = two[:, ::-1] if return_sequences else two
    np.testing.assert_array_equal(actual, np.concatenate([one, two], -1))


def test_after_masking():
    x, mask = data(B, 7, F).astype("float32"), masked("holes", B, 7)
    x = np.where(mask[:, :, None], x, 0)
    layer = stack("GRUCell", (1, 2), "float32", return_sequences=True)
    model = keras.Sequential([keras.layers.Masking(), layer])
    np.testing.assert_array_equal(model(x), layer(x, mask=mask))
    assert np.abs(model(x) - layer(x)).max() > 0.01


@pytest.mark.parametrize("kind", ["GRUCell", "TwoStates"])
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
        assert_same(
            computed(layer, dirty, mask=mask), computed(layer, x, mask=mask), 0
        )


OPTIONS = {
    "dilations": [3, 2],
    "return_sequences": True,
    "return_state": True,
    "stateful": True,
    "go_backwards": True,
    "zero_output_for_mask": True,
}


def test_config_holds_every_argument():
    parameters = inspect.signature(DilatedRNN).parameters
    assert set(parameters) - {"kwargs"} == {"cells", *OPTIONS}
    cells = [LSTMCell(N, "relu"), TwoStates(N)]
    layer = DilatedRNN(cells, **OPTIONS, name="memory", dtype="float64")
    default = DilatedRNN([LSTMCell(N), TwoStates(N)])
    assert default.dilations == [1, 2]
    config = layer.get_config()
    for name, value in OPTIONS.items():
        assert config[name] == value != default.get_config()[name], name
    again = DilatedRNN.from_config(config)
    assert again.get_config() == config
    assert (again.name, again.dtype) == ("memory", "float64")
    assert [type(cell) for cell in again.cells] == [LSTMCell, TwoStates]
    assert again.cells[0].activation is keras.activations.relu


def model_of(cells, **options):
    layer = filled(DilatedRNN(cells, [2, 3], **options))
    return keras.Sequential([keras.Input((9, F)), layer])


@pytest.mark.parametrize(
    "kind", [SimpleRNNCell, TwoStates, SimpleRNN, LSTM, GRU, IndRNN]
)
def test_saved_and_cloned_models_predict_the_same(kind, tmp_path):
    model = model_of(
        [kind(N), kind(N + 1)],
        activity_regularizer=keras.regularizers.L2(0.25),
    )
    x = data(B, 9, F).astype("float32")
    expected = model(x)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    assert np.abs(clone(x) - expected).max() > 0.01
    clone.load_weights(tmp_path / "model.weights.h5")
    for each in (loaded, clone):
        np.testing.assert_array_equal(each(x), expected)
        (loss,) = each.losses
        target = activity_loss(0.25, expected)
        np.testing.assert_allclose(loss, target, rtol=1e-5)
        assert [type(cell) for cell in each.layers[0].cells] == [
            type(cell) for cell in model.layers[0].cells
        ]


@pytest.mark.parametrize(
    "layer, cell",
    [
        (SimpleRNN, SimpleRNNCell),
        (LSTM, LSTMCell),
        (GRU, GRUCell),
        (IndRNN, IndRNNCell),
    ],
)
@pytest.mark.parametrize("mask", [None, "holes"])
def test_layers_equal_their_cells(layer, cell, mask):
    given = [layer(N, dtype="float64"), layer(N, dtype="float64")]
    copy, mask = list(given), masked(mask, B, 7)
    one, two = (
        DilatedRNN(cells, [2, 3], return_state=True, dtype="float64")
        for cells in (given, [cell(N, dtype="float64") for _ in range(2)])
    )
    x = data(B, 7, F)
    filled(one), filled(two)
    assert_same(computed(one, x, mask=mask), computed(two, x, mask=mask))
    # The caller's layers stay as they were.
    assert given == copy
    for each in given:
        assert not each.built and not each.cell.built
        assert not each.return_sequences and not each.return_state


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize(
    "policy, atol",
    [("mixed_float16", 1e-2), ("mixed_bfloat16", 1e-1), ("float64", 1e-5)],
)
def test_dtype_policies(kind, policy, atol):
    x, mask = data(B, 9, F), masked("holes", B, 9)
    options = {"return_state": True}
    layers = [
        filled(dilated_rnn(kind, [N, N], [2, 4], dtype=dtype, **options))
        for dtype in (policy, "float32")
    ]
    actual, expected = (layer(x, mask=mask) for layer in layers)
    name = policy.removeprefix("mixed_")
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == name and e.dtype == "float32"
        np.testing.assert_allclose(
            tf.cast(a, "float64"), tf.cast(e, "float64"), rtol=0, atol=atol
        )
    dtypes = {w.dtype for w in layers[0].trainable_weights}
    assert dtypes == {"float64" if name == policy else "float32"}


@pytest.mark.parametrize("kind", [SimpleRNNCell, SimpleRNN, IndRNN])
def test_one_dropout_mask_for_all_steps(kind):
    options = {"dropout": 0.3, "seed": 1}
    cell = kind(50, "linear", recurrent_initializer="zeros", **options)
    layer = DilatedRNN([cell], [3], return_sequences=True)
    x = np.ones((20, 8, 50), "float32")
    y, plain = layer(x, training=True).numpy(), layer(x).numpy()
    np.testing.assert_allclose(y - y[:, :1], 0, atol=1e-5)
    assert np.ptp(y, axis=0).max() > 0.1 and not np.ptp(plain, axis=0).any()
    assert np.abs(layer(x, training=True) - y).max() > 0.1


@pytest.mark.parametrize(
    "kind, initializer",
    [(SimpleRNNCell, "identity"), (SimpleRNN, "identity"), (IndRNN, "ones")],
)
@pytest.mark.parametrize("time", [8, 2])
def test_one_recurrent_dropout_mask_for_all_steps(kind, initializer, time):
    cell = kind(
        50,
        "linear",
        kernel_initializer="zeros",
        recurrent_initializer=initializer,
        recurrent_dropout=0.3,
        seed=1,
    )
    layer = DilatedRNN([cell], [3], return_sequences=True)
    x = np.ones((20, time, F), "float32")
    ones = np.ones((20, 3, 50), "float32")
    every = tf.TensorSpec([None, None, None])

    @tf.function(input_signature=[tf.TensorSpec([None, None, F]), every])
    def unknown(x, ones):
        ones = tf.ensure_shape(ones, [None, 3, 50])
        return layer(x, initial_state=[ones], training=True)

    eager = layer(x, initial_state=[ones], training=True)
    for y in (eager.numpy(), unknown(x, ones).numpy()):
        kept = y[:, :1] > 0
        power = 1 + np.arange(time)[:, None] // 3
        np.testing.assert_allclose(y, kept * 0.7**-power, rtol=1e-5)
        assert 0.6 < kept.mean() < 0.8 and len(np.unique(kept, axis=0)) == 20
    np.testing.assert_array_equal(layer(x, initial_state=[ones]), y * 0 + 1)


@pytest.mark.parametrize("cell", [SimpleRNNCell, LSTMCell, GRUCell, IndRNNCell])
def test_dropout_without_dilation_is_that_of_keras(cell):
    x = data(B, 6, F).astype("float32")
    one, two = (
        cell(N, dropout=0.3, recurrent_dropout=0.4, seed=3) for _ in range(2)
    )
    dilated = DilatedRNN([one], [1], return_sequences=True)
    loop = keras.layers.RNN(two, return_sequences=True)
    filled(dilated), filled(loop)
    for _ in range(2):
        y = dilated(x, training=True)
        np.testing.assert_allclose(y, loop(x, training=True), atol=1e-6)
        assert np.abs(y - dilated(x)).max() > 0.01
        loop(x)  # in inference too Keras draws numbers


@pytest.mark.parametrize("kind", [LSTM, GRU, GRUCell, LSTMCell, IndRNN])
@pytest.mark.parametrize("mask", [None, "right"])
def test_every_phase_has_the_same_dropout(kind, mask):
    """Two phases that hold the same sequence have the same outputs."""
    cell = kind(N, dropout=0.3, recurrent_dropout=0.4, seed=3)
    layer = filled(DilatedRNN([cell], [2], return_sequences=True))
    x = np.repeat(data(B, 5, F).astype("float32"), 2, axis=1)
    mask = None if mask is None else np.arange(10) < np.full((B, 1), 8)
    y = layer(x, mask=mask, training=True)[:, :8]
    np.testing.assert_allclose(y[:, ::2], y[:, 1::2], atol=1e-6)
    assert np.abs(y - layer(x, mask=mask)[:, :8]).max() > 0.01


def parameters(kind, features, units):
    """The number of weights of a network."""
    gates, biases = {"RNN": (1, 1), "LSTM": (4, 1), "GRU": (3, 2)}[kind]
    features = [features, *units[:-1]]
    return sum(
        gates * n * (f + n + biases)
        for f, n in zip(features, units, strict=True)
    )


@pytest.mark.parametrize(
    "kind, units, dilations",
    [
        ("RNN", [20] * 9, [2**i for i in range(9)]),
        ("GRU", [20, 30, 40, 50], [4, 8, 16, 32]),
        ("LSTM", [5, 4], [3, 6]),
    ],
)
def test_networks_of_the_authors(kind, units, dilations):
    layer = dilated_rnn(kind, hidden_structs=units, dilations=dilations)
    y = layer(data(2, 64, 1))
    assert y.shape == (2, dilations[0] * units[-1])
    assert layer.count_params() == parameters(kind, 1, units)
    assert [cell.units for cell in layer.cells] == units
    assert layer.dilations == dilations


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "IndRNN"])
def test_options_reach_cells_and_layer(kind):
    own = {name: OPTIONS[name] for name in OPTIONS if name != "dilations"}
    layer = dilated_rnn(
        kind,
        [N, N],
        [3, 2],
        activation="sigmoid",
        dropout=0.2,
        seed=5,
        name="memory",
        trainable=False,
        activity_regularizer="l2",
        dtype="mixed_float16",
        **own,
    )
    assert {name: getattr(layer, name) for name in own} == own
    assert (layer.name, layer.trainable) == ("memory", False)
    assert layer.activity_regularizer is not None
    assert [inner.cell.seed for inner in layer.layers] == [5, 6]
    for each in (layer, *(inner.cell for inner in layer.layers)):
        assert each.dtype_policy.name == "mixed_float16"
    for inner in layer.layers:
        assert inner.cell.activation is keras.activations.sigmoid
        assert inner.cell.dropout == 0.2


def two_cells(**options):
    cells = [SimpleRNNCell(N), SimpleRNNCell(N)]
    return DilatedRNN(**{"cells": cells, "dilations": [2, 3], **options})


FLAGS = [name for name in OPTIONS if name != "dilations"]


@pytest.mark.parametrize(
    "options, error, name, value",
    [
        ({"cells": []}, ValueError, "cells", "[]"),
        ({"cells": SimpleRNN(N)}, ValueError, "cells", "<SimpleRNN"),
        ({"cells": [LSTM(N), 3]}, TypeError, "cells[1]", "3"),
        ({"cells": [keras.layers.Dense(N)]}, TypeError, "cells[0]", "<Dense"),
        ({"dilations": []}, ValueError, "dilations", "[]"),
        ({"dilations": 2}, ValueError, "dilations", "2"),
        ({"dilations": "ab"}, ValueError, "dilations", "'ab'"),
        ({"dilations": [1]}, ValueError, "dilations", "1 for 2"),
        ({"dilations": [1, 2, 4]}, ValueError, "dilations", "3 for 2"),
        ({"dilations": [1, 0]}, ValueError, "dilations[1]", "0"),
        ({"dilations": [-2, 1]}, ValueError, "dilations[0]", "-2"),
        ({"dilations": [1, 2.0]}, TypeError, "dilations[1]", "2.0"),
        ({"dilations": [True, 2]}, TypeError, "dilations[0]", "True"),
        ({"dilations": ["1", 2]}, TypeError, "dilations[0]", "'1'"),
        *(({name: 1}, TypeError, name, "1") for name in FLAGS),
        (
            {"cells": [keras.layers.ConvLSTM1D(N, 3)]},
            TypeError,
            "cells[0]",
            "vectors, (batch, units), got <ConvLSTM1D",
        ),
        (
            {"cells": [DilatedRNN([LSTM(N)])]},
            TypeError,
            "cells[0]",
            "no DilatedRNN: give its cells to this one, got <DilatedRNN",
        ),
        *(
            (
                {"cells": [LSTM(N, **{name: value})]},
                ValueError,
                "cells[0]",
                name,
            )
            for name, value in (
                ("stateful", True),
                ("go_backwards", True),
                ("zero_output_for_mask", True),
                ("activity_regularizer", "l2"),
            )
        ),
    ],
)
def test_bad_arguments(options, error, name, value):
    if "cells" in options:
        options = {"dilations": None, **options}
    message = f"^`{re.escape(name)}` must .*{re.escape(value)}"
    with pytest.raises(error, match=message):
        two_cells(**options)


def test_bad_cell_type_and_units():
    known = "`cell_type` must be one of RNN, LSTM, GRU, IndRNN, got 'rnn'"
    with pytest.raises(ValueError, match=known):
        dilated_rnn("rnn", [N], [1])
    for value, error in (([0], ValueError), ([1.5], TypeError)):
        message = rf"`hidden_structs\[0\]` must .*{value[0]}"
        with pytest.raises(error, match=message):
            dilated_rnn("RNN", value, [1])
    with pytest.raises(ValueError, match="`hidden_structs` must .*got 5"):
        dilated_rnn("RNN", 5, [1])
    with pytest.raises(ValueError, match="`dilations` must .*got 1 for 2"):
        dilated_rnn("RNN", [N, N], [1])
    assert dilated_rnn("GRU", [N] * 4).dilations == [1, 2, 4, 8]


def zeros(*shapes):
    return [np.zeros(shape, "float32") for shape in shapes]


@pytest.mark.parametrize(
    "shape, state, message",
    [
        ((B, 5), None, "ndim=3"),
        ((B, 0, F), None, r"`sequences` must .*\(3, 0, 2\)"),
        ((B, 5, F + 1), None, "incompatible"),
        ((B, 5, F), zeros((B, 2, N)), r"`initial_state` must .*\(3, 2, 4\)\]"),
        ((B, 5, F), zeros((B, N), (B, N)), r"`initial_state` must .*\(3, 4\)"),
        (
            (B, 5, F),
            zeros((B, 3, N), (B, 2, N)),
            r"`initial_state` must .*\(3, 3, 4\), \(3, 2, 4\)",
        ),
    ],
)
def test_bad_tensors(shape, state, message):
    layer = two_cells()
    layer.build((None, None, F))
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, "float32"), initial_state=state)


@pytest.mark.parametrize("batch", [1, B + 1])
def test_bad_batch_of_initial_state(batch):
    state = zeros((batch, 2, N), (batch, 3, N))
    with pytest.raises(ValueError, match="`initial_state` must "):
        two_cells()(np.ones((B, 5, F), "float32"), initial_state=state)


def test_bad_shapes_to_build():
    with pytest.raises(ValueError, match="`sequences` must .*None, None, None"):
        two_cells().build((None, None, None))
    with pytest.raises(ValueError, match="`sequences` .*`stateful=True`.*None"):
        two_cells(stateful=True)(keras.Input((5, F)))


@pytest.mark.parametrize("shape", [(B, 1), (1, 5), (5, B), (B, 5, 2), (B,)])
def test_mask_of_a_wrong_shape_is_named(shape):
    message = rf"`mask` must have shape \(batch, time\), here \({B}, 5\), got "
    with pytest.raises(ValueError, match=message):
        two_cells()(np.ones((B, 5, F)), mask=np.ones(shape, bool))


def test_forms_of_a_mask():
    layer = two_cells(return_sequences=True)
    x, mask = data(B, 5, F), masked("holes", B, 5)
    expected = layer(x, mask=tf.constant(mask))
    for same in (
        mask,
        mask[:, :, None],
        mask.astype("float32") * 0.5,
        mask.tolist(),
        [tf.constant(mask)],
    ):
        np.testing.assert_array_equal(layer(x, mask=same), expected)
    np.testing.assert_array_equal(layer(x, mask=[None]), layer(x))


@pytest.mark.parametrize("cell", [SimpleRNNCell, LSTM, IndRNN, TwoStates])
def test_integers_are_cast(cell):
    layer = DilatedRNN([cell(N), cell(N)])
    x = (np.arange(B * 5 * F) % 3).reshape(B, 5, F)
    np.testing.assert_array_equal(layer(x), layer(x.astype("float32")))


@pytest.mark.parametrize("layer", [SimpleRNN, LSTM, GRU, IndRNN])
def test_layers_that_are_built_are_refused(layer):
    given = layer(N)
    given.build((None, 5, F))
    with pytest.raises(
        ValueError, match=r"`cells\[0\]` .* built, .*built=True"
    ):
        DilatedRNN([given])


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("layer", [SimpleRNN, LSTM, GRU, IndRNN])
def test_copies_of_layers_are_like_them(layer, unroll):
    options = {
        "activation": "sigmoid",
        "dropout": 0.3,
        "seed": 7,
        "name": "remembers",
        "unroll": unroll,
    }
    given = layer(N, **options)
    (copy,) = DilatedRNN([given]).cells
    config = copy.get_config()
    cell = copy.cell if isinstance(copy, keras.layers.RNN) else copy
    assert cell.seed == 7 and cell is not given.cell
    for name in ("activation", "dropout"):
        assert config[name] == given.get_config()[name]


def breadth_first(dilations):
    """Mean length of the paths from input 0, over (layer, time)."""
    last, layers = max(dilations), len(dilations)
    length, front = {(0, 0): 0}, [(0, 0)]
    while front:
        node, *front = front
        layer, time = node
        steps = [(layer, time + dilations[layer])]
        steps += [(layer + 1, time)] * (layer < layers - 1)
        for step in steps:
            if step not in length and step[1] <= last:
                length[step] = length[node] + 1
                front.append(step)
    top = [length.get((layers - 1, t), np.inf) for t in range(1, last + 1)]
    return sum(top) / last


@pytest.mark.parametrize(
    "dilations",
    [[2**i for i in range(9)], [1], [1, 3, 9], [1, 2, 5, 7], [3, 1, 4], [2, 4]],
)
def test_mean_recurrent_length(dilations):
    expected = breadth_first(dilations)
    assert mean_recurrent_length(dilations) == pytest.approx(expected)
    assert np.isinf(expected) == (dilations == [2, 4])


def test_mean_recurrent_length_of_the_paper():
    assert mean_recurrent_length([2**i for i in range(9)]) == 12.00390625
    for value, error in (
        (3, ValueError),
        ([0], ValueError),
        ([1.5], TypeError),
    ):
        with pytest.raises(error, match="^`dilations.* must "):
            mean_recurrent_length(value)


def second_gradient(layer, x, v):
    """The directional derivative, along v, of the gradient of x."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = weighted(layer(x))
        product = tf.reduce_sum(inner.gradient(y, x) * v)
    return outer.gradient(product, x)


def test_second_gradients():
    x = tf.constant(data(B, 6, F))
    v = tf.constant(data(B, 6, F, phase=3))
    with pytest.raises(NotImplementedError, match="`keras.*unroll=True"):
        second_gradient(stack("tanh", (2, 1)), x, v)
    cells = [SimpleRNN(N, unroll=True, dtype="float64") for _ in range(2)]
    layer = filled(DilatedRNN(cells, [2, 1], dtype="float64"))
    up, down = (
        computed(layer, x + sign * 1e-5 * v)["gradients"][0] for sign in (1, -1)
    )
    actual = second_gradient(layer, x, v)
    assert np.abs(actual).max() > 1e-3
    np.testing.assert_allclose(actual, (up - down) / 2e-5, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")
class ConformanceTest(testing.TestCase):
    def check(self, kind, weights, shape, **options):
        self.run_layer_test(
            DilatedRNN,
            init_kwargs={
                "cells": [kind(N), kind(N)],
                "dilations": [2, 3],
                **options,
            },
            input_shape=(B, 4, F),
            call_kwargs={"training": True},
            expected_output_shape=shape,
            expected_num_trainable_weights=weights,
            expected_num_non_trainable_weights=0,
            supports_masking=True,
            # Cells that are given stay in float32.
            run_mixed_precision_check=False,
        )

    def test_last_outputs(self):
        self.check(SimpleRNN, 6, (B, 2 * N))

    def test_all_outputs(self):
        self.check(TwoStates, 2, (B, 4, N), return_sequences=True)
