"""Nothing breaks: wrong arguments, extreme numbers, several threads, memory.

The wrong arguments are few, and always the same. With LONG=1 in the
environment they are thousands, new ones every time, and memory is watched ten
times as long:

    LONG=1 python -m pytest -n 2 tests/test_reliability.py
"""

import functools
import inspect
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cases import LONG
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN, dilated_rnn, mean_recurrent_length
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell, IndRNNStep, RecurrentBound
from ind_rnn_recurrence import fused_step, without_xla
from pairs import F, data

FORMS = ("sequential", "parallel")


# What is no value of any argument, or of few.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([1e300, b"relu", {}, (), [], [[]], object]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 3) | st.floats() | st.none(), max_size=3),
    st.builds(np.zeros, st.sampled_from([(), (2,), (0, 3)])),
    st.builds(object),
)
# Keras says by itself that it does not know what these arguments name.
OF_KERAS = "activation", "initializer", "regularizer", "constraint"
VALID = {
    IndRNNCell: {"units": 3},
    IndRNN: {"units": 3},
    RecurrentBound: {},
    DilatedRNN: {"cells": [], "dilations": [1, 2]},
    dilated_rnn: {
        "cell_type": "GRU",
        "hidden_structs": [2, 3],
        "dilations": [1, 2],
    },
    mean_recurrent_length: {"dilations": [1, 2]},
    stacked_ind_rnn: {"input_shape": (4, F), "units": 2, "num_layers": 1},
    residual_ind_rnn: {"input_shape": (4, F), "units": 2, "num_blocks": 1},
    dense_ind_rnn: {
        "input_shape": (4, F),
        "growth_rate": 1,
        "block_sizes": [1],
    },
}


@settings(
    deadline=None,
    max_examples=2000 if LONG else 100,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # Each takes long: show it as it was found.
)
@given(st.sampled_from(list(VALID)), st.data())
def test_junk_is_named_or_works(make, drawn):
    options = dict(VALID[make])
    if "cells" in options:
        options["cells"] = [keras.layers.GRUCell(2), IndRNN(3)]
    names = set(inspect.signature(make).parameters) - {"kwargs", "name"}
    names = sorted(names)
    changed = drawn.draw(st.lists(st.sampled_from(names), max_size=3))
    for name in changed:
        options[name] = drawn.draw(JUNK)
    try:
        make(**options)
    except (ValueError, TypeError) as error:
        of_keras = any(name.endswith(OF_KERAS) for name in changed)
        assert of_keras or any(f"`{name}" in str(error) for name in changed)


@pytest.mark.parametrize("make", [IndRNN, dilated_rnn])
def test_neither_time_steps_nor_sequences(make):
    for form in FORMS:
        if make is IndRNN:
            layer = IndRNN(4, implementation=form)
        else:
            layer = dilated_rnn("IndRNN", [4], [1], implementation=form)
        with pytest.raises(ValueError, match=r"`sequences` must .*\(2, 0, 3\)"):
            layer(np.ones((2, 0, F)))
        x = tf.ones((0, 20, F))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        assert y.shape == (0, 4)
        weights = [w.value for w in layer.trainable_weights]
        for gradient in tape.gradient(y, [x, *weights]):
            assert gradient.shape[0] == 0 or not np.any(gradient)


@pytest.mark.parametrize(
    "form, time",
    [
        ("sequential", 100_000),
        pytest.param("parallel", 100_000, marks=pytest.mark.slow),
    ],
)
def test_many_steps_on_the_bound(form, time):
    """Against float64: rounding adds up to 4e-4 of the largest."""
    x = data(1, time, 5).astype("float32")
    bound = np.float32(2 ** (1 / time))
    u = np.array([bound, -bound, 1.0, -0.999, 0.5], "float32")
    # Sums of zeros and ones: what the loss is made of does not cancel.
    weights = (np.arange(5 * time).reshape(x.shape) % 3 > 0).astype("float32")
    results = []
    for dtype, implementation in ("float32", form), ("float64", "sequential"):
        layer = IndRNN(
            5,
            use_kernel=False,
            recurrent_max_abs=float(bound),
            return_sequences=True,
            implementation=implementation,
            dtype=dtype,
        )
        layer.build(x.shape)
        layer.set_weights([u, np.float32(0.01 * data(5))])
        a = tf.constant(x, dtype)
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = layer(a)
            loss = tf.reduce_sum(y * weights)
        gradients = tape.gradient(loss, [a, *layer.trainable_weights])
        arrays = y[0], gradients[0][0], *gradients[1:]
        results.append([np.float64(array) for array in arrays])
    for actual, expected in zip(*results, strict=True):
        assert np.isfinite(actual).all()
        error = np.abs(actual - expected).max(0) / np.abs(expected).max(0)
        assert error.max() < 1e-3


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(IndRNN, 4, activation="linear"),
        functools.partial(IndRNN, 4, implementation="parallel"),
        lambda **options: DilatedRNN(
            [keras.layers.SimpleRNNCell(4), keras.layers.LSTM(4), IndRNN(4)],
            [1, 4, 2],
            **options,
        ),
        functools.partial(residual_ind_rnn, (20, F), units=2, num_blocks=1),
    ],
)
def test_what_is_not_finite_stays_in_its_sequence(make):
    x = data(4, 20, F).astype("float32")
    dirty = x.copy()
    dirty[1, 5:7], dirty[2, 5:7] = np.nan, np.inf
    layer = make(return_sequences=True)
    layer.build((None, 20, F))
    results = []
    for batch in (x, dirty):
        batch = tf.constant(batch)
        with tf.GradientTape() as tape:
            tape.watch(batch)
            y = layer(batch, training=False)
            loss = tf.reduce_sum(y * data(*y.shape).astype("float32"))
        results.append((y.numpy(), tape.gradient(loss, batch).numpy()))
    assert np.isnan(results[1][0][1]).any()
    for clean, other in zip(*results, strict=True):
        np.testing.assert_array_equal(clean[[0, 3]], other[[0, 3]])


@pytest.mark.parametrize(
    "activation, dtype, value, masked",
    [
        ("relu", "float32", np.inf, False),
        ("relu", "float32", 3e38, True),
        ("linear", "float32", 3e38, False),
        ("relu", "float16", 6e4, False),
    ],
)
def test_what_overflows_is_seen_to_the_end(activation, dtype, value, masked):
    """Infinite states stay so, in both forms, unless ReLU ends it (u < 0)."""
    x = np.abs(data(2, 60, 5)).astype("float32")
    x[0, 5:8] = value
    mask = data(2, 60) > -0.5 if masked else None
    results = []
    for form in FORMS:
        layer = IndRNN(
            5,
            activation=activation,
            use_kernel=False,
            return_sequences=True,
            implementation=form,
            dtype=dtype,
        )
        layer.build((None, 60, 5))
        layer.set_weights([np.array([0.5, 1.0, 1.003, -0.5, 0.0]), np.zeros(5)])
        y = layer(tf.constant(x, dtype), mask=mask)
        results.append(tf.cast(y, "float32").numpy())
    np.testing.assert_allclose(
        *results, rtol=1e-2 if dtype != "float32" else 1e-5
    )
    assert np.isfinite(results[0][1]).all()
    # One step, or the sum of three, is more than the type can hold.
    assert not np.isfinite(results[0][0, 8, 1])
    if dtype == "float32":
        assert not np.isfinite(results[0][0, -1, :3]).any()


def at_once(functions):
    """The results of functions, each in a thread of its own."""
    results = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def work(i):
        start.wait()
        results[i] = functions[i]()

    threads = [
        threading.Thread(target=work, args=(i,)) for i in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_may_call_one_model():
    model = keras.Sequential(
        [IndRNN(5, return_sequences=True), dilated_rnn("GRU", [4, 4], [2, 3])]
    )
    calls = [
        functools.partial(model, data(2, 9 + number, F, phase=number))
        for number in range(4)
    ]
    alone = [call() for call in calls]
    for result, expected in zip(at_once(calls * 4), alone * 4, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_without_xla_is_for_one_thread():
    cell = IndRNNCell(3)
    with without_xla():
        assert fused_step(cell) is None
        elsewhere = at_once([lambda: fused_step(cell)])
    assert elsewhere == [IndRNNStep(keras.activations.relu)]


MEMORY = """
import os, sys

import keras
import numpy as np
import tensorflow as tf
from ind_rnn import IndRNN

model = keras.Sequential(
    [
        keras.Input((None, 3)),
        IndRNN(16, return_sequences=True),
        IndRNN(16),
        keras.layers.Dense(1),
    ]
)
model.compile("adam", "mse")
rng = np.random.default_rng(0)


def work(length):
    x = rng.normal(size=(8, length, 3)).astype("float32")
    model.train_on_batch(x, np.zeros((8, 1), "float32"))
    model.predict(x, verbose=0)
    with tf.GradientTape() as tape:
        y = model(x)
    tape.gradient(y, model.trainable_variables)


def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


for length in (200, 100, 50, 30, 10, 1, 2) * 2:
    work(length)
start = megabytes()
for _ in range(int(sys.argv[1])):
    work(int(rng.integers(1, 201)))
print(start, megabytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="needs Linux"
)
def test_memory_does_not_grow():
    """Streams of lengths from 1 to 200; with LONG, 1,000 of them."""
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY, "1000" if LONG else "40"],
        # Before TensorFlow 2.21, oneDNN keeps .2 MB for each shape of a Dense.
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    start, end = map(float, printed.splitlines()[-1].split())
    assert end < 1.05 * start, printed
