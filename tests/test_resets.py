"""`reset`: several sequences in one row equal each of them run alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import LONG, each_value, every_pair, more
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import without_xla
from indy import IndyGRU, IndyLSTM
from indy_cell import IndyGRUCell, IndyLSTMCell
from pairs import data, softsign, weighted
from reset_rnn import Bidirectional, ResetRNN

B, F, N = 3, 2, 4
CELLS = {IndRNN: IndRNNCell, IndyLSTM: IndyLSTMCell, IndyGRU: IndyGRUCell}
COUNT = 300 if LONG else 4
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
    return y, tape.gradient(total, sources, unconnected_gradients=zero)


def assert_equal(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = max(1.0, float(np.abs(b).max(initial=0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def fill(layer, time):
    layer.build((B, time, F))
    for i, w in enumerate(layer.trainable_weights):
        w.assign(data(*w.shape, phase=i, scale=0.9))


def check(layer, of_sequences, time, mask, reset, with_state, dtype):
    fill(layer, time)
    fill(of_sequences, time)
    x = tf.constant(data(B, time, F), dtype)
    states = None
    if with_state:
        states = [
            tf.constant(data(*h.shape, phase=3 + i), dtype)
            for i, h in enumerate(layer.get_initial_state(B))
        ]
    outputs, gradients = with_gradients(
        lambda x, states: layer(
            x, initial_state=states, mask=mask, reset=reset
        ),
        layer,
        x,
        states,
    )
    expected, expected_gradients = with_gradients(
        lambda x, states: alone(of_sequences, x, states, mask, reset),
        of_sequences,
        x,
        states,
    )
    # Those of weights are sums over all steps; in float32 either form is up to
    # 1.3e-6 from float64.
    tolerance, of_sums = (1e-6, 3e-6) if dtype == "float32" else (1e-12, 1e-12)
    count = 1 + len(states or [])
    assert_equal(outputs, expected, tolerance)
    assert_equal(gradients[:count], expected_gradients[:count], tolerance)
    assert_equal(gradients[count:], expected_gradients[count:], of_sums)


@pytest.mark.parametrize("seed", range(COUNT))
@pytest.mark.parametrize("kind", CELLS)
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


@pytest.mark.parametrize("seed", range(COUNT // 2))
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
        *((*case, False) for case in every_pair(CELLS, MODES, [None, HOLES])),
        (IndyLSTM, "function", HOLES, True),
    ],
)
def test_other_modes(kind, mode, mask, unroll):
    layer = kind(N, return_sequences=True, dtype="float64", unroll=unroll)
    fill(layer, None if mode == "unknown" else 7)
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
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_bidirectional(kind):
    layer = kind(N, return_sequences=True, dtype="float64")
    layer = Bidirectional(layer, dtype="float64")
    layer.build((B, 7, F))
    x = tf.constant(data(B, 7, F))
    y = layer(x, mask=HOLES, reset=CASE).numpy()
    forward = layer.forward_layer(x, mask=HOLES, reset=CASE)
    backward = layer.backward_layer(x, mask=HOLES, reset=CASE)
    expected = np.concatenate([forward, backward[:, ::-1]], axis=-1)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    y = layer(x, reset=np.zeros((B, 7)))
    np.testing.assert_allclose(y, layer(x), atol=1e-12)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(again) is Bidirectional
    assert isinstance(again.forward_layer, kind)


def test_bidirectional_of_others_cannot():
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


@pytest.mark.parametrize("kind", CELLS)
def test_stateful_stream_in_chunks(kind):
    x = tf.constant(data(B, 7, F))
    whole = kind(N, return_sequences=True, dtype="float64")
    stream = kind(N, return_sequences=True, stateful=True, dtype="float64")
    stream.build((B, None, F))
    whole.build((B, 7, F))
    stream.set_weights(whole.get_weights())
    parts = [
        stream(x[:, start:end], reset=CASE[:, start:end])
        for start, end in ((0, 2), (2, 3), (3, 7))
    ]
    np.testing.assert_allclose(
        tf.concat(parts, axis=1), whole(x, reset=CASE), atol=1e-12
    )


@pytest.mark.parametrize(
    "kind", more([IndyLSTM, DilatedRNN], [IndRNN, IndyGRU])
)
def test_model_with_resets_is_saved(kind, tmp_path):
    cells = [IndRNN(N), IndyGRUCell(N)]
    layer = kind(cells) if kind is DilatedRNN else kind(N)
    x, r = keras.Input((7, F), name="x"), keras.Input((7,), dtype="bool")
    model = keras.Model([x, r], layer(x, reset=r))
    model.compile("adam", "mse")
    given = [np.float32(data(B, 7, F)), CASE]
    model.fit(given, np.zeros((B, N)), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(given, verbose=0)
    np.testing.assert_allclose(
        again.predict(given, verbose=0), expected, atol=1e-6
    )
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(given), expected, atol=1e-5)


def test_mask_of_an_embedding_is_kept():
    ids = np.array([[3, 1, 0, 0, 2, 4, 0]] * B)
    embedded = keras.layers.Embedding(5, F, mask_zero=True)(ids)
    layer = IndRNN(N, return_sequences=True)
    np.testing.assert_array_equal(
        layer(embedded, reset=CASE), layer(embedded, reset=CASE, mask=ids > 0)
    )


@pytest.mark.parametrize("kind", [*CELLS, DilatedRNN])
@pytest.mark.parametrize("shape", [(B,), (B, 6), (B, 7, 2), (2, 7)])
def test_wrong_shapes(kind, shape):
    layer = kind([IndRNN(N)]) if kind is DilatedRNN else kind(N)
    with pytest.raises(ValueError, match="`reset` must have shape"):
        layer(data(B, 7, F), reset=np.zeros(shape))


def test_lists_and_numbers_are_flags():
    layer = IndRNN(N)
    x = np.float32(data(B, 7, F))
    expected = layer(x, reset=CASE)
    for reset in (CASE.tolist(), CASE.astype("int64"), CASE[:, :, None] * 1.0):
        np.testing.assert_array_equal(layer(x, reset=reset), expected)


@pytest.mark.parametrize(
    "sizes, normalization",
    each_value(
        [
            (stacked_ind_rnn, {"units": N, "num_layers": 3}),
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
    for i, w in enumerate(model.weights):
        value = data(*w.shape, phase=i)
        w.assign(np.abs(value) if "variance" in w.name else value)
    plain.set_weights(model.get_weights())
    x = np.float32(data(B, 7, F))
    y = model.predict([x, CASE], verbose=0)
    for b, start, end in (
        (0, 0, 2),
        (0, 2, 5),
        (0, 5, 7),
        (1, 5, 7),
        (2, 0, 7),
    ):
        expected = plain(x[b : b + 1, start:end])[0]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(y[b, start:end], expected, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IndRNN(N),
        lambda: IndyLSTM(N),
        lambda: ResetRNN(keras.layers.GRUCell(N)),
        lambda: DilatedRNN([keras.layers.LSTM(N), IndRNN(N)]),
        lambda: stacked_ind_rnn((None, F), N, 2, return_sequences=True),
    ],
    ids=["IndRNN", "IndyLSTM", "ResetRNN", "DilatedRNN", "stacked"],
)
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
        for t in (7, 6, 5, 4)
    ]
    expected = [call(*case) for case in given]  # from the third on, padded
    assert all(y.dtype == "float64" for y in expected)
    for case, y in zip(given, expected, strict=True):
        np.testing.assert_allclose(traced(*case), y, rtol=0, atol=1e-12)
