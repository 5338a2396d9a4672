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

from cases import each_value
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import fused_step
from indy import IndyGRU, IndyLSTM
from pairs import data, masked
from reset_rnn import ResetRNN

ON_JAX = keras.backend.backend() == "jax"
B, T, F, N = 2, 21, 3, 4


MASK = masked("holes", B, T)
FLAGS = "mask", "reset"
CASES = [
    (IndRNN, {"implementation": "sequential", "recurrent_max_abs": 0.5}, FLAGS),
    (IndRNN, {"implementation": "parallel"}, FLAGS),
    (IndRNN, {"implementation": "parallel", "activation": "linear"}, FLAGS),
    (IndRNN, {"activation": "tanh"}, ()),
    (IndyLSTM, {}, FLAGS),
    (IndyGRU, {}, ()),
]


@pytest.mark.parametrize("case, jit_compile", each_value(CASES, [False, True]))
def test_one_step_of_training_is_that_of_the_loop(case, jit_compile):
    """Its size shows the gradients."""
    kind, options, flags = case
    values = {"x": data(B, T, F).astype("float32")}
    values |= {name: MASK[:: (-1) ** i] for i, name in enumerate(flags)}
    of_cell = {k: v for k, v in options.items() if k != "implementation"}
    results = []
    for layer in (
        kind(N, return_sequences=True, **options),
        ResetRNN(kind.cell_type(N, **of_cell), return_sequences=True),
    ):
        inputs = {
            name: keras.Input(x.shape[1:], dtype=x.dtype, name=name)
            for name, x in values.items()
        }
        given = {name: inputs[name] for name in flags}
        model = keras.Model(inputs, layer(inputs["x"], **given))
        for i, weight in enumerate(layer.trainable_weights):
            weight.assign(data(*weight.shape, phase=i))
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit_compile)
        outputs = model.predict(values, verbose=0)
        model.train_on_batch(values, np.zeros((B, T, N)))
        results.append([outputs, *layer.get_weights()])
    for fused, loop in zip(*results, strict=True):
        np.testing.assert_allclose(fused, loop, rtol=0, atol=1e-5)


def test_networks_learn_and_are_saved(tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            stacked_ind_rnn(
                (T, F), 8, 1, normalization="batch", return_sequences=True
            ),
            DilatedRNN(
                [keras.layers.SimpleRNN(6), IndRNN(5), keras.layers.GRU(4)],
                dilations=[1, 2, 4],
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=ON_JAX)
    x = data(16, T, F).astype("float32")
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
