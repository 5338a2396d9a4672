"""DilatedRNN against loops over steps, identities, Keras, and errors.

The main test draws all options, so that every two values of two options meet.
"""

import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.layers import GRU, LSTM, GRUCell, LSTMCell, SimpleRNN, SimpleRNNCell

import dilated_rnn as dilated_module
import indy
from cases import each_value, every_drawn_pair
from dilated_rnn import (
    DilatedRNN,
    dilated_rnn,
    mean_recurrent_length,
    mixed_rnn,
)
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from pairs import (
    assert_close,
    assert_config_holds,
    assert_same,
    compiled,
    computed,
    data,
    fill,
    masked,
    reloaded,
    second_gradient,
)

B, F, N = 3, 2, 4
ALL = {"return_sequences": True}
STATES = {"return_state": True}
BACKWARDS = {"go_backwards": True}


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
        *[(1,), (1, 2, 4, 8), (4, 8, 16, 32), (3, 3)],
        *[(5,), (2, 7, 1), (20,), (50, 1)],
    ],
    "time": [12, 7, 1, 8],
    "mask": [None, "right", "holes", "row", "all"],
    "initial_state": [False, True],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "go_backwards": [False, True],
    "zero_output_for_mask": [False, True],
}


def filled(layer, shape=(B, None, F)):
    """The layer, built, with weights that depend on their shapes only."""
    layer.build(shape)
    fill(layer.trainable_weights, scale=0.6)
    return layer


def stack(kind, dilations, dtype="float64", **options):
    cells = [KINDS[kind](dtype=dtype) for _ in dilations]
    return filled(DilatedRNN(cells, list(dilations), dtype=dtype, **options))


def state_of(layer, batch=B):
    return [
        tf.constant(data(batch, *size, phase=9 + i))
        for i, size in enumerate(layer.state_size)
    ]


def by_hand(layer, x, initial_state=None, mask=None, training=None):
    """What a DilatedRNN returns: one sequence and one step after the other."""
    rows = []
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
        rows.append([y, *state] if layer.return_state else [y])
    return [tf.concat(parts, 0) for parts in zip(*rows, strict=True)]


def computed_by_hand(layer, x, states=None, mask=None):
    call = functools.partial(by_hand, layer)
    return computed(layer, x, states, mask, call=call)


@pytest.mark.parametrize("case", every_drawn_pair(AXES, 500))
def test_equals_the_loop(case):
    case = dict(case)
    time, mask, initial_state = (
        case.pop(name) for name in ("time", "mask", "initial_state")
    )
    layer, mask = stack(**case), masked(mask, B, time)
    state = state_of(layer) if initial_state else None
    x = data(B, time, F)
    if mask is not None:
        x[~mask] = np.nan  # which nobody reads
    values = tf.constant(x), state, mask
    expected = computed_by_hand(layer, *values)
    assert_same(computed(layer, *values), expected)
    shapes = layer.compute_output_shape(x.shape)
    for i, shape in enumerate(shapes if layer.return_state else [shapes]):
        assert expected[f"output 0 {i}"].shape == shape


FAST = type(DilatedRNN([SimpleRNNCell(N)]).layers[0])


@pytest.fixture
def by_itself(monkeypatch):
    """(steps, dilation) of the layers that have run dilations by themselves."""
    found = []
    if dilated_module.fused is None:
        pytest.skip("needs ind_rnn_recurrence.py")

    def recorded(call_dilated):
        def call(layer, x, dilation, **options):
            y = call_dilated(layer, x, dilation, **options)
            found.extend([] if y is None else [(x.shape[1], dilation)])
            return y

        return call

    for kind in (IndRNN, FAST):
        call = recorded(kind.call_dilated)
        monkeypatch.setattr(kind, "call_dilated", call)
    return found


OF_DILATIONS = KINDS | {
    "sequential": functools.partial(IndRNN, N, implementation="sequential"),
    "parallel": functools.partial(IndRNN, N, implementation="parallel"),
    "IndyLSTM": lambda **options: indy.IndyLSTM(N, **options),
}
MIXED = ["IndRNN", "tanh", "IndRNN"]


@pytest.mark.parametrize(
    "kinds, dilations, ran, time, mode, mask, options",
    [
        (["sequential"], [4], [4], 12, "eager", None, ALL),
        (["parallel"], [3], [3], 16, "eager", None, ALL),
        (["IndRNN"], [4], [4], 7, "unknown", None, ALL),
        (["IndRNN"], [4], [], 7, "unknown", "holes", ALL),
        (["IndRNN", "IndyLSTM"], [3, 2], [3], 7, "eager", None, ALL),
        (MIXED, [3, 2, 4], [3, 2, 4], 12, "jit", None, ALL),
        (MIXED, [3, 2, 4], [3, 2, 4], 7, "unknown", None, ALL),
        # No more phases than steps
        (MIXED, [5, 2, 3], [2, 2, 2], 2, "eager", None, {}),
        (MIXED[1:], [2, 5], [2, 5], 7, "jit", None, ALL | BACKWARDS),
        (MIXED[:2], [2, 3], [2, 3], 12, "unknown", None, {}),
        (["tanh", "tanh"], [1, 4], [1, 1], 7, "jit", None, {}),
        (["tanh", "tanh"], [1, 4], [], 7, "unknown", "holes", {}),
        (["GRUCell"], [4], [], 7, "jit", "holes", ALL | STATES),
        # Only the last outputs, of dilations that nest and others
        (["tanh"] * 3, [2, 4, 16], [2, 2, 2], 16, "eager", None, {}),
        (["tanh"] * 3, [1, 4, 8], [1, 1, 1], 7, "unknown", None, {}),
        (["LSTMCell"] * 3, [1, 2, 4], [], 6, "eager", None, {}),
        (["IndRNN"] * 2, [3, 3], [3, 3], 12, "eager", None, {}),
        (["tanh"] * 3, [2, 4, 8], [2, 4, 8], 9, "eager", None, {}),
        (["tanh"] * 3, [1, 3, 2], [1, 3, 2], 6, "eager", None, {}),
        (["tanh"] * 3, [1, 2, 3], [1, 2, 3], 6, "eager", None, {}),
        (["TwoStates"] * 2, [1, 4], [], 7, "unknown", None, ALL | STATES),
    ],
)
def test_modes_and_dilations_that_layers_run_by_themselves(
    kinds, dilations, ran, time, mode, mask, options, by_itself
):
    cells = [OF_DILATIONS[kind](dtype="float64") for kind in kinds]
    layer = filled(DilatedRNN(cells, dilations, dtype="float64", **options))
    x, mask = tf.constant(data(B, time, F)), masked(mask, B, time)
    mask = None if mask is None else tf.constant(mask)
    actual = compiled(layer, mode, (x, None, mask))(x, None, mask)
    assert [dilation for _, dilation in by_itself] == ran
    assert_same(actual, computed_by_hand(layer, x, None, mask))


@pytest.mark.parametrize(
    "of_cell, training",
    [
        ({"unroll": True}, False),
        ({"dropout": 0.5}, True),
        ({"recurrent_dropout": 0.5}, True),
        ({"dtype": "mixed_float16"}, False),
    ],
)
@pytest.mark.parametrize("kind", [IndRNN, SimpleRNN])
def test_layers_that_cannot_run_dilations_by_themselves(
    kind, of_cell, training, by_itself
):
    layers = [
        filled(DilatedRNN([kind(N, seed=1, **of_cell)], [2], **ALL))
        for _ in range(2)
    ]
    x = data(B, 7, F).astype("float32")
    y = layers[0](x, training=training)
    # With a mask, all layers run phases.
    masked = layers[1](x, mask=np.ones((B, 7), bool), training=training)
    assert y.dtype == "float32" and not by_itself
    np.testing.assert_allclose(y, masked, atol=1e-6)
    layers[0](x)
    assert bool(by_itself) == training


def test_work_of_only_last_outputs(by_itself):
    stack("tanh", [2**i for i in range(6)])(data(B, 64, F))
    assert by_itself == [(steps, 1) for steps in (64, 32, 16, 8, 4, 2)]


def test_without_the_file_of_the_compiled_loops(by_itself, monkeypatch):
    x = tf.constant(data(B, 12, F))
    layer = stack("tanh", [1, 2, 4], **ALL)
    expected = computed(layer, x)
    assert by_itself
    by_itself.clear()
    monkeypatch.setattr(dilated_module, "fused", None)
    assert_same(computed(layer, x), expected)
    assert not by_itself


RANDOM = {"dropout": 0.3, "recurrent_dropout": 0.4, "seed": 3}


@pytest.mark.parametrize(
    "kind, mask, sequences, backwards",
    each_value(
        ["tanh", "LSTMCell", "GRUCell", "IndRNNCell", "TwoStates"],
        [None, "right", "holes", "row"],
        [False, True],
        [False, True],
    ),
)
def test_without_dilation_it_is_keras_rnn(kind, mask, sequences, backwards):
    """In training with dropout too, in this call and in the next one."""
    x, mask = tf.constant(data(B, 6, F)), masked(mask, B, 6)
    options = {
        "return_sequences": sequences,
        "return_state": True,
        "go_backwards": backwards,
        "zero_output_for_mask": sequences and backwards,
        "dtype": "float64",
    }
    of_cell = {} if kind == "TwoStates" else RANDOM
    cells, twins = (
        [KINDS[kind](dtype="float64", **of_cell) for _ in range(2)]
        for _ in range(2)
    )
    layer = filled(DilatedRNN(cells, [1, 1], **options))
    twins = keras.layers.StackedRNNCells(twins, dtype="float64")
    loop = filled(keras.layers.RNN(twins, **options), x.shape)

    def of_keras(x, initial_state, **options):
        y, *state = loop(x, **options)
        return y, *(value[:, None] for value in tf.nest.flatten(state))

    for _ in range(2):
        expected = computed(loop, x, None, mask, call=of_keras)
        assert_same(computed(layer, x, None, mask), expected)


def in_chunks(layer, x, mask, lengths):
    """The outputs, joined, and the last states."""
    ends, outputs, state = np.cumsum(lengths), [], None
    for start, end in zip(ends - lengths, ends, strict=True):
        part = None if mask is None else mask[:, start:end]
        y, *last = layer(x[:, start:end], initial_state=state, mask=part)
        outputs.append(y)
        state = None if layer.stateful else last
    return [tf.concat(outputs, 1), *last]


@pytest.mark.parametrize(
    "kind, dilations, lengths, mask",
    [
        ("LSTMCell", [4, 1, 3], [1] * 9, None),
        ("TwoStates", [2, 5], [1] * 7, "holes"),
        ("tanh", [6, 1], [2, 7, 4], "row"),
        ("IndRNNCell", [3, 2], [5, 6], "right"),
        ("GRUCell", [2, 4], [8, 3], None),
    ],
)
def test_chunks_are_the_whole(kind, dilations, lengths, mask):
    options = ALL | {"return_state": True, "zero_output_for_mask": True}
    layer, time = stack(kind, dilations, **options), sum(lengths)
    x, mask = data(B, time, F), masked(mask, B, time)
    whole = layer(x, mask=mask)
    assert_close(in_chunks(layer, x, mask, lengths), whole, 1e-12)
    stream = stack(kind, dilations, stateful=True, **options)
    # What is trained in batches serves one stream: states are no weights.
    assert len(stream.get_weights()) == len(layer.get_weights())
    for restart in (stream.reset_state, stream.reset_states):
        assert_close(in_chunks(stream, x, mask, lengths), whole, 1e-12)
        assert_close(stream.states, whole[1:], 1e-12)
        restart()


@pytest.mark.parametrize("return_sequences", [False, True])
def test_masks_of_outputs(return_sequences):
    mask = np.ones((B, 7), bool)
    for states in ([], [None] * 4):
        layer = stack(
            "LSTMCell",
            (2, 3),
            return_sequences=return_sequences,
            return_state=bool(states),
        )
        masks = layer.compute_mask(data(B, 7, F), mask)
        expected = mask if return_sequences else None
        assert masks is expected or masks == [expected, *states]


def test_bidirectional():
    x, mask = data(B, 7, F), masked("holes", B, 7)
    layer = keras.layers.Bidirectional(
        stack("TwoStates", (2, 3), return_sequences=True), dtype="float64"
    )
    actual = layer(x, mask=mask)
    one, two = layer.forward_layer, layer.backward_layer
    assert two.go_backwards and not one.go_backwards
    one, two = one(x, mask=mask), two(x, mask=mask)
    np.testing.assert_array_equal(actual, np.dstack([one, two[:, ::-1]]))


OPTIONS = {
    "dilations": [3, 2],
    "return_sequences": True,
    "return_state": True,
    "stateful": True,
    "go_backwards": True,
    "zero_output_for_mask": True,
}
FLAGS = [name for name in OPTIONS if name != "dilations"]


def test_config_holds_every_argument():
    cells = [LSTMCell(N, "relu"), TwoStates(N)]
    assert_config_holds(DilatedRNN, {"cells": cells, **OPTIONS})
    assert DilatedRNN(cells).dilations == [1, 2]


def test_saved_and_cloned_models_predict_the_same(tmp_path):
    """With all kinds of cells, and a regularizer of the outputs."""
    kinds = [SimpleRNNCell, TwoStates, SimpleRNN, LSTM, GRU, IndRNN]
    layer = DilatedRNN(
        [kind(N + index) for index, kind in enumerate(kinds)],
        [2, 3, 1, 1, 4, 2],
        activity_regularizer="l2",
    )
    model = keras.Sequential([keras.Input((9, F)), filled(layer)])
    x = data(B, 9, F).astype("float32")
    expected = model(x)
    (expected_loss,) = model.losses
    assert expected_loss > 0
    loaded = reloaded(model, tmp_path)
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    assert np.abs(clone(x) - expected).max() > 0.01
    clone.load_weights(tmp_path / "model.weights.h5")
    for each in (loaded, clone):
        np.testing.assert_array_equal(each(x), expected)
        np.testing.assert_allclose(each.losses, [expected_loss], rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", [None, "holes"])
def test_layers_equal_their_cells(mask, training):
    """In training too: the copies keep the layers' seeds."""
    options = {"dropout": 0.3, "seed": 7, "dtype": "float64"}
    layers = [kind(N, **options) for kind in (IndRNN, SimpleRNN, LSTM, GRU)]
    layers.append(SimpleRNN(N, unroll=True, **options))
    given, mask = list(layers), masked(mask, B, 7)
    kinds = IndRNNCell, SimpleRNNCell, LSTMCell, GRUCell, SimpleRNNCell
    one, two = (
        filled(DilatedRNN(each, [2, 3, 1, 4, 2], **ALL, dtype="float64"))
        for each in (layers, [kind(N, **options) for kind in kinds])
    )
    values = tf.constant(data(B, 7, F)), None, mask, training
    assert_same(computed(one, *values), computed(two, *values))
    # The caller's layers stay as they were.
    assert given == layers
    for each in given:
        assert not each.built and not each.cell.built
        assert not each.return_sequences and not each.return_state


@pytest.mark.parametrize(
    "policy, atol",
    [("mixed_float16", 1e-2), ("mixed_bfloat16", 1e-1)],
)
def test_dtype_policies(policy, atol):
    x, mask = data(B, 9, F), masked("holes", B, 9)
    found = []
    for dtype in (policy, "float32"):
        options = {"dtype": dtype}
        cells = [SimpleRNN(N, **options), GRUCell(N, **options)]
        layer = filled(DilatedRNN(cells, [2, 4], **STATES, **options))
        found.append(layer(x, mask=mask))
        outputs = dtype.removeprefix("mixed_")
        assert {w.dtype for w in layer.trainable_weights} == {"float32"}
        assert {y.dtype.name for y in found[-1]} == {outputs}
    for a, e in zip(*found, strict=True):
        np.testing.assert_allclose(tf.cast(a, "float32"), e, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "kind, time, mask",
    each_value(
        [LSTM, GRU, GRUCell, LSTMCell, SimpleRNNCell, SimpleRNN, IndRNN],
        [10, 2],
        [None, "right"],
    ),
)
def test_every_phase_has_the_same_dropout(kind, time, mask):
    """Two phases that hold the same sequence have the same outputs."""
    cell = kind(8, dropout=0.3, recurrent_dropout=0.4, seed=3)
    layer = filled(DilatedRNN([cell], [2], return_sequences=True))
    x = np.repeat(data(9, time // 2, F).astype("float32"), 2, axis=1)
    h0 = np.ones((9, 2, 8), "float32")
    state = [h0 for _ in layer.state_size]
    mask = None if mask is None else np.arange(time) < np.full((9, 1), 8)

    def call(x, training=True):
        return layer(x, initial_state=state, mask=mask, training=training)

    unknown = tf.function(call, [tf.TensorSpec([None, None, F])])
    eager, expected = call(x), call(x, training=False)
    for y in (eager, unknown(x)):
        np.testing.assert_allclose(y[:, ::2], y[:, 1::2], atol=1e-6)
        assert np.abs(y - expected).max() > 0.01
    # Each row has a mask of its own, and each call has.
    assert np.abs(eager - unknown(x)).max() > 0.01
    same = layer(x * 0 + 1, initial_state=state, training=True).numpy()
    assert len(np.unique(same[:, 0], axis=0)) > 4


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "IndRNN"])
def test_options_reach_cells_and_layer(kind):
    own = {name: True for name in FLAGS}
    own |= {"name": "memory", "trainable": False}
    of_cell = {"activation": keras.activations.sigmoid, "dropout": 0.2}
    both = {"activity_regularizer": "l2", "dtype": "mixed_float16"}
    layer = dilated_rnn(kind, [3, N], [3, 2], seed=5, **of_cell, **both, **own)
    own |= {"dilations": [3, 2]}
    assert {name: getattr(layer, name) for name in own} == own
    assert layer.activity_regularizer is not None
    cells = [inner.cell for inner in layer.layers]
    assert [cell.units for cell in cells] == [3, N]
    assert [cell.seed for cell in cells] == [5, 6]
    for cell in cells:
        assert {name: getattr(cell, name) for name in of_cell} == of_cell
    for each in (layer, *cells):
        assert each.dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize("count", [2, 4])
def test_mixed_rnn(count):
    of_cell = {"dropout": 0.1, "activation": "relu", "seed": 5}
    layer = mixed_rnn(N, count, return_state=True, **of_cell)
    kinds = [SimpleRNN] * (count - 1) + [IndRNN]
    layers = [
        kind(N, **{**of_cell, "seed": 5 + index})
        for index, kind in enumerate(kinds)
    ]
    dilations = [2**index for index in range(count)]
    expected = DilatedRNN(layers, dilations, return_state=True)
    config, of_expected = layer.get_config(), expected.get_config()
    for each in config, of_expected:
        del each["name"]
        for cell in each["cells"]:
            del cell["config"]["name"]
    assert config == of_expected
    assert mixed_rnn(N).dilations == [1, 2]


def test_kinds_of_layers():
    layer = dilated_rnn(["GRU", "RNN"], [3, N], seed=None)
    kinds = [type(cell).__name__ for cell in layer.cells]
    assert kinds == ["GRU", "SimpleRNNCell"] and layer.dilations == [1, 2]


def two_cells(**options):
    cells = [SimpleRNNCell(N), SimpleRNNCell(N)]
    return DilatedRNN(**{"cells": cells, "dilations": [2, 3], **options})


@pytest.mark.parametrize(
    "cells, error, message",
    [
        ([], ValueError, r"`cells` must .*\[\]"),
        (SimpleRNN(N), ValueError, "`cells` must .*<SimpleRNN"),
        ([LSTM(N), 3], TypeError, r"`cells\[1\]` must .*3"),
        ([keras.layers.Dense(N)], TypeError, "<Dense"),
        ([keras.layers.ConvLSTM1D(N, 3)], TypeError, "got <ConvLSTM1D"),
        ([DilatedRNN([LSTM(N)])], TypeError, "got <DilatedRNN"),
        ([filled(LSTM(N))], ValueError, "built=True"),
        ([LSTM(N, stateful=True)], ValueError, "without `stateful`"),
        ([LSTM(N, go_backwards=True)], ValueError, "without `go_backwards`"),
        ([LSTM(N, zero_output_for_mask=True)], ValueError, "without `zero_"),
        ([LSTM(N, activity_regularizer="l2")], ValueError, "without `activity"),
    ],
)
def test_bad_cells(cells, error, message):
    start = message if message[0] == "`" else rf"`cells\[0\]` must .*{message}"
    with pytest.raises(error, match=start):
        DilatedRNN(cells)


@pytest.mark.parametrize(
    "name, call",
    [
        ("dilations", lambda value: two_cells(dilations=value)),
        ("dilations", mean_recurrent_length),
        ("hidden_structs", lambda value: dilated_rnn("RNN", value)),
    ],
)
def test_bad_lists_of_integers(name, call):
    for value, error, place in (
        ([], ValueError, ""),
        (2, ValueError, ""),
        ([1, 0], ValueError, "[1]"),
        ([1, 2.0], TypeError, "[1]"),
        ([True, 2], TypeError, "[0]"),
        (["1", 2], TypeError, "[0]"),
    ):
        with pytest.raises(error) as caught:
            call(value)
        got = value[int(place[1])] if place else value
        assert str(caught.value).startswith(f"`{name}{place}` must ")
        assert str(caught.value).endswith(f"got {got!r}")


def test_other_bad_arguments():
    for name in FLAGS:
        with pytest.raises(TypeError, match=f"^`{name}` must .*1"):
            two_cells(**{name: 1})
    with pytest.raises(ValueError, match="^`dilations` must .*got 1 for 2"):
        two_cells(dilations=[1])
    kinds = "RNN, LSTM, GRU, IndRNN"
    with pytest.raises(ValueError, match=f"^`cell_type` .*{kinds}, got 'rnn'"):
        dilated_rnn("rnn", [N])
    with pytest.raises(ValueError, match=f"^`cell_type` .*{kinds}, got 'rnn'"):
        dilated_rnn(["RNN", "rnn"], [N, N])
    with pytest.raises(ValueError, match="^`cell_type` must .*got 1 for 2"):
        dilated_rnn(["RNN"], [N, N])
    with pytest.raises(TypeError, match="^`units` must be an integer, got 2.5"):
        mixed_rnn(2.5)
    with pytest.raises(ValueError, match="^`num_layers` must be .* 2, got 1"):
        mixed_rnn(N, 1)
    with pytest.raises(ValueError, match="`sequences` must .*None, None, None"):
        two_cells().build((None, None, None))
    with pytest.raises(ValueError, match="`sequences` .*`stateful=True`.*None"):
        two_cells(stateful=True)(keras.Input((5, F)))


@pytest.mark.parametrize(
    "shape, state, mask, message",
    [
        ((B, 5), None, None, None),  # Keras says it.
        ((B, 5, F + 1), None, None, None),
        ((B, 0, F), None, None, r"`sequences` must .*\(3, 0, 2\)"),
        *[
            ((B, 5, F), state, None, rf"`initial_state` must .*{expected}")
            for state, expected in (
                ([(B, 2, N)], r"\(3, 2, 4\)\]"),
                ([(B, N)] * 2, r"\(3, 4\)"),
                ([(B, 3, N), (B, 2, N)], r"\(3, 3, 4\), "),
                ([(1, 2, N), (1, 3, N)], ""),
                ([(B + 1, 2, N), (B + 1, 3, N)], ""),
            )
        ],
        *[
            ((B, 5, F), None, mask, r"`mask` must .*, here \(3, 5\), got ")
            for mask in ((B, 1), (1, 5), (5, B), (B, 5, 2), (B,))
        ],
    ],
)
def test_bad_tensors(shape, state, mask, message):
    layer = two_cells()
    layer.build((None, None, F))
    state = state and [np.zeros(each, "float32") for each in state]
    mask = mask and np.ones(mask, bool)
    with pytest.raises(ValueError, match=message):
        layer(np.ones(shape, "float32"), initial_state=state, mask=mask)


def test_forms_of_a_mask():
    layer = two_cells(return_sequences=True)
    x, mask = data(B, 5, F), masked("holes", B, 5)
    expected = layer(x, mask=tf.constant(mask))
    forms = [mask, mask[:, :, None], mask * 0.5, mask.tolist()]
    for same in (*forms, [tf.constant(mask)]):
        np.testing.assert_array_equal(layer(x, mask=same), expected)
    np.testing.assert_array_equal(layer(x, mask=[None]), layer(x))


def test_integers_are_cast():
    kinds = SimpleRNNCell, LSTM, IndRNN, TwoStates
    layer = DilatedRNN([kind(N) for kind in kinds])
    x = (np.arange(B * 5 * F) % 3).reshape(B, 5, F)
    np.testing.assert_array_equal(layer(x), layer(x.astype("float32")))


@pytest.mark.parametrize(
    "dilations, connections",
    [
        ([1], [1]),
        ([1, 3, 9], [3, 4, 3, 4, 5, 4, 5, 6, 3]),
        ([1, 2, 5, 7], [4, 4, 5, 5, 4, 5, 4]),
        ([3, 1, 4], [3, 4, 3, 3]),
        ([2, 4], [np.inf, 2, np.inf, 2]),
    ],
)
def test_mean_recurrent_length(dilations, connections):
    """Connections from an input to the output 1, 2, ... steps later."""
    length = mean_recurrent_length(dilations)
    assert length == pytest.approx(np.mean(connections))
    of_paper = mean_recurrent_length([2**i for i in range(9)])
    assert of_paper == 12.00390625


def test_second_gradients(by_itself):
    x = tf.constant(data(B, 6, F))
    v = tf.constant(data(B, 6, F, phase=3))
    with pytest.raises(NotImplementedError, match="unroll=True"):
        second_gradient(stack("tanh", (2, 1)), x, v)
    cells = [SimpleRNN(N, unroll=True, dtype="float64") for _ in range(2)]
    layer = filled(DilatedRNN(cells, [2, 1], dtype="float64"))
    expected = second_gradient(lambda x: by_hand(layer, x)[0], x, v)
    actual = second_gradient(layer, x, v)
    assert np.abs(actual).max() > 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_only_ind_rnn_needs_another_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "ind_rnn", None)
    assert dilated_rnn("GRU", [4], [2]).dilations == [2]
    with pytest.raises(ModuleNotFoundError, match="ind_rnn"):
        dilated_rnn("IndRNN", [4], [2])
    with pytest.raises(ModuleNotFoundError, match="ind_rnn"):
        mixed_rnn(4)
