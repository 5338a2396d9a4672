"""The layers on whatever backend Keras has: `KERAS_BACKEND=jax pytest ...`.

Nothing here knows of TensorFlow. The last test runs the others under JAX, and
some of the examples.
"""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from cases import each_value
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import fused_step
from indy import IndyGRU, IndyLSTM
from indy_cell import IndyGRUCell, IndyLSTMCell
from reset_rnn import ResetRNN

ON_JAX = keras.backend.backend() == "jax"
B, T, F, N = 2, 21, 3, 4
ACTIVATIONS = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "linear": (lambda z: z, np.ones_like),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}


def data(*shape, phase=0.0):
    """Deterministic, of both signs, in [0.2, 1] in magnitude, float32."""
    x = np.sin(1 + phase + 1.7 * np.arange(np.prod(shape))).reshape(shape)
    return (np.sign(x) * (0.2 + 0.8 * np.abs(x))).astype("float32")


WEIGHTS = data(F, N), data(N, phase=1), data(N, phase=2)
MASK = np.sin(3.0 * np.arange(B * T)).reshape(B, T) > -0.3


def oracle(x, weights, activation, mask):
    """h of all steps, and the gradients of the weights of sum(h)."""
    f, slope = ACTIVATIONS[activation]
    w, u, b = (v.astype("float64") for v in weights)
    h, hs, zs = np.zeros((B, N)), [], []
    for t in range(T):
        zs.append(x[:, t] @ w + u * h + b)
        h = np.where(mask[:, t, None], f(zs[t]), h)
        hs.append(h)
    gradients, g = [0 * w, 0 * u, 0 * b], np.zeros((B, N))
    for t in reversed(range(T)):
        g = g + 1
        delta = np.where(mask[:, t, None], slope(zs[t]) * g, 0)
        before = hs[t - 1] if t else 0 * h
        gradients[0] += x[:, t].T @ delta
        gradients[1] += (delta * before).sum(0)
        gradients[2] += delta.sum(0)
        g = np.where(mask[:, t, None], u * delta, g)
    return np.stack(hs, 1), gradients


@pytest.mark.parametrize(
    "form, with_mask, jit_compile",
    each_value(
        [
            ("relu", "sequential"),
            ("relu", "parallel"),
            ("linear", "parallel"),
            ("tanh", "auto"),
        ],
        [False, True],
        [False, True],
    ),
)
def test_outputs_and_a_training_step(form, with_mask, jit_compile):
    activation, implementation = form
    layer = IndRNN(
        N,
        activation,
        return_sequences=True,
        implementation=implementation,
    )
    inputs = {"x": keras.Input((T, F), name="x")}
    values = {"x": data(B, T, F, phase=3)}
    if with_mask:
        inputs["mask"] = keras.Input((T,), dtype="bool", name="mask")
        values["mask"] = MASK
    outputs = layer(inputs["x"], mask=inputs.get("mask"))
    model = keras.Model(inputs, outputs)
    layer.set_weights(WEIGHTS)
    m = MASK | (not with_mask)
    h, gradients = oracle(values["x"], WEIGHTS, activation, m)
    # Zeros before the first step that counts, as Keras has it.
    h *= (np.cumsum(m, axis=1) > 0)[:, :, None]
    np.testing.assert_allclose(
        model.predict(values, verbose=0), h, rtol=0, atol=1e-5
    )
    model = keras.Model(inputs, ops.sum(outputs, axis=(1, 2)))
    model.compile(
        keras.optimizers.SGD(1e-3),
        lambda _, total: total * B,  # Keras takes the mean
        jit_compile=jit_compile,
    )
    model.train_on_batch(values, np.zeros((B, 1)))
    for before, after, g in zip(WEIGHTS, layer.get_weights(), gradients):
        np.testing.assert_allclose(
            (before - after) / 1e-3, g, rtol=2e-3, atol=2e-3
        )


def test_layer_equals_its_cell():
    layer = IndRNN(N, return_sequences=True, recurrent_max_abs=0.5)
    loop = keras.layers.RNN(
        IndRNNCell(N, recurrent_max_abs=0.5), return_sequences=True
    )
    x = data(B, T, F)
    for each in (layer, loop):
        each.build(x.shape)
        each.set_weights(WEIGHTS)
    y, expected = (ops.convert_to_numpy(each(x)) for each in (layer, loop))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "kind, cell",
    [
        (IndRNN, IndRNNCell),
        (IndyLSTM, IndyLSTMCell),
        (IndyGRU, IndyGRUCell),
    ],
)
def test_resets_and_gates_train_as_the_loop(kind, cell):
    """One step, whose size shows the gradients."""
    values = {"x": data(B, T, F), "reset": MASK, "mask": MASK[::-1]}
    results = []
    for layer in (
        kind(N, return_sequences=True),
        ResetRNN(cell(N), return_sequences=True),
    ):
        x = keras.Input((T, F), name="x")
        reset, mask = (
            keras.Input((T,), dtype="bool", name=name)
            for name in ("reset", "mask")
        )
        y = layer(x, mask=mask, reset=reset)
        model = keras.Model({"x": x, "reset": reset, "mask": mask}, y)
        for i, weight in enumerate(layer.trainable_weights):
            weight.assign(data(*weight.shape, phase=i))
        model.compile(keras.optimizers.SGD(1.0), "mse")
        outputs = model.predict(values, verbose=0)
        model.train_on_batch(values, np.zeros((B, T, N)))
        results.append([outputs, *layer.get_weights()])
    for fused, loop in zip(*results, strict=True):
        np.testing.assert_allclose(fused, loop, rtol=0, atol=1e-5)


def test_networks_learn_and_are_saved(tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            stacked_ind_rnn((T, F), 8, 1, return_sequences=True),
            DilatedRNN(
                [keras.layers.SimpleRNN(6), IndRNN(5), keras.layers.GRU(4)],
                dilations=[1, 2, 4],
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=ON_JAX)
    x = data(16, T, F)
    y = x[:, -3:, 0].sum(axis=1, keepdims=True)
    losses = model.fit(x, y, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


def test_which_backends_have_the_fused_recurrence():
    fused = keras.backend.backend() in ("tensorflow", "jax")
    assert (fused_step(IndRNNCell(N)) is not None) is fused


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, chosen",
    [
        ("test_backends.py", "not on_jax"),
        ("test_in_models.py", ""),
        ("test_examples.py", "killed and addition or initial_weights"),
    ],
)
def test_on_jax(file, chosen):
    options = ["-q", "-n", "0", "-k", chosen]
    path = pathlib.Path(__file__).with_name(file)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, path],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
