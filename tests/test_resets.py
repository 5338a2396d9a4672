"""`reset`: several sequences in one row equal each of them run alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import each_value, more
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import without_xla
from indy import IndyGRU, IndyLSTM
from indy_cell import IndyGRUCell, IndyLSTMCell
from pairs import assert_close, data, fill, reloaded, softsign, weighted
from reset_rnn import Bidirectional, ResetRNN

B, F, N = 3, 2, 4
CELLS = {IndRNN: IndRNNCell, IndyLSTM: IndyLSTMCell, IndyGRU: IndyGRUCell}
TIMES = (1, 5, 20)


def flags(rng, time, share):
    return rng.random((B, time)) < share


def drawn(seed):
    """Options of a layer, T, and what its call gets."""
    rng = np.random.default_rng(seed)
    options = {
        "go_backwards": bool(rng.integers(2)),
        "return_sequences": bool(rng.integers(2)),
        "return_state": bool(rng.integers(2)),
        "zero_output_for_mask": bool(rng.integers(2)),
    }
    time = TIMES[seed % 3]
    mask = flags(rng, time, 0.7) if rng.integers(2) else None
    reset = flags(rng, time, rng.choice([0.0, 0.3, 1.0], p=[0.1, 0.8, 0.1]))
    return options, time, mask, reset, bool(rng.integers(2)), rng


def alone(layer, x, states, mask, reset):
    """What `reset` has to give, from calls for each sequence."""
    rows = []
    for b in range(B):
        starts = [0, *(t for t in np.flatnonzero(reset[b]) if t > 0)]
        parts = list(zip(starts, [*starts[1:], reset.shape[1]], strict=True))
        parts = parts[::-1] if layer.go_backwards else parts
        outputs, last = [], None
        for i, (start, end) in enumerate(parts):
            of_row = None
            begins = reset[b, 0] and not layer.go_backwards
            if states is not None and i == 0 and not begins:
                of_row = [h[b : b + 1] for h in states]
            part = slice(b, b + 1), slice(start, end)
            y = layer(
                x[part],
                initial_state=of_row,
                mask=None if mask is None else mask[part],
            )
            y, *last = y if layer.return_state else (y,)
            outputs.append(y)
        y = outputs[-1]
        if layer.return_sequences:
            y = tf.concat(outputs, axis=1)
        rows.append([y, *last])
    return [tf.concat(part, axis=0) for part in zip(*rows, strict=True)]


def with_gradients(call, layer, x, states):
    """Outputs and gradients of `call(x, states)`."""
    sources = [x, *(states or []), *(w.value for w in layer.trainable_weights)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = tf.nest.flatten(call(x, states))
        total = tf.add_n([weighted(part) for part in y])
    zero = tf.UnconnectedGradients.ZERO
    return y + tape.gradient(total, sources, unconnected_gradients=zero)


def built(layer, time=7):
    layer.build((B, time, F))
    fill(layer.trainable_weights)
    return layer


def check(layer, of_sequences, time, mask, reset, with_state, dtype):
    built(layer, time)
    built(of_sequences, time)
    x = tf.constant(data(B, time, F), dtype)
    states = None
    if with_state:
        states = [
            tf.constant(data(*h.shape, phase=3 + i), dtype)
            for i, h in enumerate(layer.get_initial_state(B))
        ]

    def together(x, states):
        return layer(x, initial_state=states, mask=mask, reset=reset)

    def one_by_one(x, states):
        return alone(of_sequences, x, states, mask, reset)

    found = with_gradients(together, layer, x, states)
    expected = with_gradients(one_by_one, of_sequences, x, states)
    assert [y.dtype for y in found] == [y.dtype for y in expected]
    # Gradients of weights are sums over all steps; in float32 either form is up
    # to 1.3e-6 from float64.
    assert_close(found, expected, 3e-6 if dtype == "float32" else 1e-12)


# Forwards and backwards, with masks and without, of several T
SEEDS = {IndRNN: (4, 7, 44, 56), IndyLSTM: (7,), IndyGRU: (56,)}


@pytest.mark.parametrize(
    "kind, seed",
    [
        (kind, seed)
        for kind, few in SEEDS.items()
        for seed in more(few, range(300))
    ],
)
def test_equals_sequences_run_alone(kind, seed):
    options, time, mask, reset, with_state, rng = drawn(seed)
    dtype = "float32" if seed % 2 else "float64"
    of_cell = {"use_bias": bool(rng.integers(2)), "dtype": dtype}
    form = {}
    if kind is IndRNN:
        activations = ["relu", "tanh", softsign]
        of_cell["activation"] = activations[rng.integers(3)]
        if of_cell["activation"] == "relu" and rng.integers(2):
            form = {"implementation": "parallel"}
    layer = kind(N, **of_cell, **options, **form)
    loop = keras.layers.RNN(CELLS[kind](N, **of_cell), dtype=dtype, **options)
    check(layer, loop, time, mask, reset, with_state, dtype)


OF_DILATED = {
    "IndRNN": lambda dtype: IndRNN(N, dtype=dtype),
    "IndyLSTM": lambda dtype: IndyLSTM(N, dtype=dtype),
    "IndyGRUCell": lambda dtype: IndyGRUCell(N, dtype=dtype),
    "LSTM": lambda dtype: keras.layers.LSTM(N, dtype=dtype),
    "SimpleRNNCell": lambda dtype: keras.layers.SimpleRNNCell(N, dtype=dtype),
}


@pytest.mark.parametrize("seed", more([4, 56], range(150)))
def test_dilated_equals_sequences_run_alone(seed):
    options, time, mask, reset, with_state, rng = drawn(seed)
    dtype = "float32" if seed % 2 else "float64"
    dilations = [[1, 2, 4], [2, 3], [4, 1]][rng.integers(3)]
    names = rng.choice(list(OF_DILATED), len(dilations))
    layer, of_sequences = (
        DilatedRNN(
            [OF_DILATED[name](dtype) for name in names],
            dilations,
            dtype=dtype,
            **options,
        )
        for _ in range(2)
    )
    check(layer, of_sequences, time, mask, reset, with_state, dtype)


CASE = np.array(
    [
        [False, False, True, False, False, True, False],
        [True, False, False, False, True, True, False],
        [False, False, False, False, False, False, False],
    ]
)
HOLES = np.array(
    [
        [True, True, False, True, True, True, False],
        [False, False, True, True, False, False, False],
        [True, False, True, True, False, True, True],
    ]
)


MODES = ["function", "unknown", "jit", "without_xla"]


@pytest.mark.parametrize(
    "kind, mode, mask, unroll",
    [
        *((*case, False) for case in each_value(CELLS, MODES, [HOLES, None])),
        (IndyLSTM, "function", HOLES, True),
    ],
)
def test_other_modes(kind, mode, mask, unroll):
    layer = kind(N, return_sequences=True, dtype="float64", unroll=unroll)
    built(layer, None if mode == "unknown" else 7)
    x = tf.constant(data(B, 7, F))
    expected = layer(x, mask=mask, reset=CASE)
    shape = (None, None) if mode == "unknown" else (B, 7)
    given = [x, CASE] if mask is None else [x, CASE, mask]
    call = tf.function(
        lambda x, reset, mask=None: layer(x, mask=mask, reset=reset),
        input_signature=[
            tf.TensorSpec((*shape, F), x.dtype),
            *[tf.TensorSpec(shape, tf.bool)] * (len(given) - 1),
        ],
        jit_compile=mode == "jit",
    )
    if mode == "without_xla":
        with without_xla():
            actual = call(*given)
    else:
        actual = call(*given)
    assert_close(actual, expected, 1e-12)


def test_bidirectional():
    layer = IndyLSTM(N, return_sequences=True, dtype="float64")
    layer = Bidirectional(layer, dtype="float64")
    layer.build((B, 7, F))
    x = tf.constant(data(B, 7, F))
    y = layer(x, mask=HOLES, reset=CASE).numpy()
    forward = layer.forward_layer(x, mask=HOLES, reset=CASE)
    backward = layer.backward_layer(x, mask=HOLES, reset=CASE)
    expected = np.concatenate([forward, backward[:, ::-1]], axis=-1)
    assert_close(y, expected, 1e-12)
    assert_close(layer(x, reset=np.zeros((B, 7))), layer(x), 1e-12)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(again) is Bidirectional
    assert isinstance(again.forward_layer, IndyLSTM)

    layer = Bidirectional(keras.layers.LSTM(N))
    with pytest.raises(TypeError, match="`reset` must be None"):
        layer(data(B, 7, F), reset=CASE)


def test_any_cells():
    """Stacked cells with states of several kinds, and dropout."""
    cells = [keras.layers.LSTMCell(N), IndRNNCell(N), keras.layers.GRUCell(3)]
    layer = ResetRNN(cells, return_sequences=True)
    plain = keras.layers.RNN(cells, return_sequences=True)
    x = tf.constant(data(B, 7, F), "float32")
    y = layer(x, reset=CASE)
    np.testing.assert_allclose(y[2], plain(x)[2], atol=1e-6)
    np.testing.assert_allclose(y[0, 2:5], plain(x[:1, 2:5])[0], atol=1e-6)
    cell = keras.layers.GRUCell(N, dropout=0.5, recurrent_dropout=0.5, seed=1)
    layer = ResetRNN(cell, return_sequences=True)
    first = layer(x, reset=CASE, training=True)
    assert np.abs(first - layer(x, reset=CASE)).max() > 0.01


@pytest.mark.parametrize("kind", [IndRNN, IndyLSTM])
def test_stateful_stream_in_chunks(kind):
    x = tf.constant(data(B, 7, F))
    options = {"return_sequences": True, "dtype": "float64"}
    whole = built(kind(N, **options))
    stream = built(kind(N, stateful=True, **options), None)
    parts = [
        stream(x[:, start:end], reset=CASE[:, start:end])
        for start, end in ((0, 2), (2, 3), (3, 7))
    ]
    assert_close(tf.concat(parts, axis=1), whole(x, reset=CASE), 1e-12)


@pytest.mark.parametrize(
    "kind", more([DilatedRNN], [IndRNN, IndyLSTM, IndyGRU])
)
def test_model_with_resets_is_saved(kind, tmp_path):
    cells = [IndRNN(N), IndyGRUCell(N)]
    layer = kind(cells) if kind is DilatedRNN else kind(N)
    x, r = keras.Input((7, F), name="x"), keras.Input((7,), dtype="bool")
    model = keras.Model([x, r], layer(x, reset=r))
    model.compile("adam", "mse", jit_compile=False)
    given = [np.float32(data(B, 7, F)), CASE]
    model.train_on_batch(given, np.zeros((B, N)))
    expected = model(given)
    assert_close(reloaded(model, tmp_path)(given), expected, 1e-6)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    assert_close(served.serve(given), expected, 1e-5)


def test_forms_of_flags():
    layer = IndRNN(N)
    for each in (layer, IndyLSTM(N), DilatedRNN([IndRNN(N)])):
        for shape in ((B,), (B, 6), (B, 7, 2), (2, 7)):
            with pytest.raises(ValueError, match="`reset` must have shape"):
                each(data(B, 7, F), reset=np.zeros(shape))
    x = np.float32(data(B, 7, F))
    expected = layer(x, reset=CASE)
    for reset in (CASE.tolist(), CASE.astype("int64"), CASE[:, :, None] * 1.0):
        np.testing.assert_array_equal(layer(x, reset=reset), expected)


@pytest.mark.parametrize(
    "sizes, normalization",
    each_value(
        [
            (
                stacked_ind_rnn,
                {"units": N, "dilations": [3, 1, 2], "num_layers": 3},
            ),
            (residual_ind_rnn, {"units": N, "num_blocks": 2}),
            (dense_ind_rnn, {"growth_rate": 2, "block_sizes": [2, 1]}),
        ],
        ["batch", "layer", None],
    ),
)
def test_networks_with_resets(sizes, normalization):
    network, options = sizes
    options = {
        **options,
        "normalization": normalization,
        "num_outputs": 2,
        "return_sequences": True,
    }
    plain = network((None, F), **options)
    model = network((None, F), reset=True, **options)
    assert [x.name for x in model.inputs][1] == "reset"
    fill(model.weights, scale=1.0)
    plain.set_weights(model.get_weights())
    x = np.float32(data(B, 7, F))
    y = model([x, CASE])
    spans = (0, 0, 2), (0, 2, 5), (0, 5, 7), (1, 5, 7), (2, 0, 7)
    for b, start, end in spans:
        expected = plain(x[b : b + 1, start:end])[0]
        assert_close(y[b, start:end], expected, 1e-5)


EVERYWHERE = {
    "IndRNN": lambda: IndRNN(N),
    "IndyLSTM": lambda: IndyLSTM(N),
    "ResetRNN": lambda: ResetRNN(keras.layers.GRUCell(N)),
    "DilatedRNN": lambda: DilatedRNN([keras.layers.LSTM(N), IndRNN(N)]),
    "stacked": lambda: stacked_ind_rnn(
        (None, F), N, 2, normalization="batch", return_sequences=True
    ),
}


@pytest.mark.parametrize("make", [*EVERYWHERE.values()], ids=[*EVERYWHERE])
def test_double_precision_everywhere(make, float64):
    """With `floatx` "float64", integers of Keras' operations are int64."""
    layer = make()
    network = isinstance(layer, keras.Model)
    rng = np.random.default_rng(3)

    def call(x, mask, reset):
        if network:
            return layer(x, training=True)
        return layer(x, mask=mask, reset=reset)

    specs = [tf.TensorSpec((B, None, F), "float64")]
    specs += [tf.TensorSpec((B, None), "bool")] * 2
    traced = tf.function(call, input_signature=specs)
    given = [
        (rng.normal(size=(B, t, F)), flags(rng, t, 0.7), flags(rng, t, 0.3))
        for t in (7, 4)
    ]
    for case in given:
        y = call(*case)
        assert y.dtype == "float64"
        assert_close(traced(*case), y, 1e-12)


def test_masked_outputs_of_any_cell_are_zeros():
    layer = ResetRNN(
        keras.layers.GRUCell(4),
        return_sequences=True,
        zero_output_for_mask=True,
    )
    mask = np.array([[True, False, True, True, False, True]])
    reset = np.array([[True, False, False, True, False, False]])
    x = np.sin(np.arange(1.0, 19.0)).reshape(1, 6, 3)
    y = np.asarray(layer(x, mask=mask, reset=reset))
    np.testing.assert_array_equal((y != 0).any(axis=-1), mask)
