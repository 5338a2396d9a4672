"""Training in Keras' ways: mixed precision, accumulation; a summary."""

import functools

import keras
import numpy as np
import pytest

from cases import each_value
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

T, F, N, BOUND = 10, 3, 6, 0.5
SGD = keras.optimizers.SGD


def body(kind, **options):
    """A network; many of its recurrent weights start on their bound."""
    bound = {"recurrent_max_abs": BOUND}
    return {
        "layer": lambda: IndRNN(N, **bound, **options),
        "cell": lambda: keras.layers.RNN(
            IndRNNCell(N, **bound, **options), **options
        ),
        "dilated": lambda: DilatedRNN(
            [
                IndRNN(N, recurrent_initializer="ones", **bound, **options),
                keras.layers.GRU(4, **options),
            ],
            [1, 2],
            **options,
        ),
        "stacked": lambda: stacked_ind_rnn(
            (T, F),
            N,
            2,
            recurrent_initializer="ones",
            normalization="batch",
            **bound,
        ),
    }[kind]()


def network(kind="layer", optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((T, F)), body(kind, **options), keras.layers.Dense(1)]
    )
    model.compile(optimizer or SGD(0.02), "mse", jit_compile=False)
    return model


def data(count=16):
    x = np.random.default_rng(1).normal(size=(count, T, F)).astype("float32")
    return x, x[:, -2:, 0].sum(axis=1, keepdims=True) + 2


def fit(model, epochs=3, batch_size=8, **options):
    return model.fit(
        *data(),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **options,
    ).history


@functools.cache
def in_float32(kind):
    """The losses of training, and the predictions afterwards."""
    model = network(kind)
    return fit(model)["loss"], model.predict(data()[0], verbose=0)


def assert_bounded(model):
    largest = [
        np.abs(w.numpy()).max()
        for w in model.weights
        if w.name == "recurrent_kernel" and len(w.shape) == 1
    ]
    assert largest and max(largest) == np.float32(BOUND)


@pytest.fixture
def policy():
    before = keras.mixed_precision.dtype_policy()
    yield keras.mixed_precision.set_dtype_policy
    keras.mixed_precision.set_dtype_policy(before)


@pytest.mark.parametrize(
    "kind, precision",
    each_value(
        ["layer", "cell", "dilated", "stacked"],
        [("mixed_float16", 2e-2), ("mixed_bfloat16", 2e-1)],
    ),
)
def test_global_policy(kind, precision, policy):
    name, tolerance = precision
    expected_losses, expected = in_float32(kind)
    policy(name)
    model = network(kind)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (name == "mixed_float16")
    # No step is skipped, as the first ones are with Keras' own first scale.
    model.optimizer.initial_scale = 2.0**8
    losses = fit(model)["loss"]
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    assert losses[-1] < 0.9 * losses[0]
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    assert_bounded(model)
    y = model.predict(data()[0], verbose=0)
    assert y.dtype == name.removeprefix("mixed_")
    np.testing.assert_allclose(
        y.astype("float32"), expected, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(
    "dtype, finite",
    [("float32", True), ("mixed_bfloat16", True), ("mixed_float16", False)],
)
def test_states_beyond_float16_are_infinite(dtype, finite):
    """They are no numbers that look right; and weights stay finite."""
    layer = IndRNN(
        2,
        kernel_initializer="ones",
        recurrent_initializer="ones",
        recurrent_max_abs=2 ** (1 / 100),
        return_sequences=True,
        dtype=dtype,
    )
    model = keras.Sequential([keras.Input((100, 1)), layer])
    x = np.full((2, 100, 1), 1000.0)
    h = np.array(keras.ops.cast(layer(x), "float64"))
    oracle = 1000.0 * np.arange(1, 101)[:, None] * np.ones(2)
    assert not np.isnan(h).any()
    if finite:
        np.testing.assert_allclose(h[0], oracle, rtol=0.1)
    else:
        np.testing.assert_array_equal(np.isinf(h[0]), oracle > 65520)
    scaled = keras.optimizers.LossScaleOptimizer(SGD(1e-15))
    model.compile(scaled, "mse", jit_compile=False)
    before = model.get_weights()
    losses = model.fit(x, 0 * x, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() == finite
    for a, b in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(b).all() and (a == b).all() == (not finite)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole = network()
    parts = network(optimizer=SGD(0.02, gradient_accumulation_steps=2))
    start = whole.get_weights()
    fit(whole, batch_size=8)
    fit(parts, batch_size=4)
    all_weights = start, whole.get_weights(), parts.get_weights()
    for before, a, b in zip(*all_weights, strict=True):
        assert np.abs(a - before).max() > 1e-3
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)
    assert_bounded(parts)


def test_summary_and_plot(capsys):
    network("dilated").summary(expand_nested=True)
    printed = capsys.readouterr().out
    assert "dilated_rnn" in printed and "Total params" in printed
    graph = keras.utils.model_to_dot(
        network("stacked"), show_shapes=True, expand_nested=True
    ).to_string()
    assert graph.count("IndRNN") == 2 and f"{T}, {F})" in graph
