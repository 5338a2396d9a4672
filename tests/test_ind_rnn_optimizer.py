"""Adam with steps that are shorter for neurons with a longer memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_optimizer import TimeScaledAdam
from indy import IndyLSTM

T, F, N, RATE = 40, 3, 6, 0.01
U = [0.0, -0.5, 0.9, -0.99, 1.0, 1.02]
START = {"recurrent_initializer": keras.initializers.Constant(U)}


def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, T, F)).astype("float32")
    return x, x.sum(axis=(1, 2), keepdims=True)[:, 0] + 5


def layer_of_u():
    return IndRNN(N, recurrent_max_abs=None, **START)


def network(optimizer, make=layer_of_u, steps=T, **compiled):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((steps, F)), make(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    compiled = {"jit_compile": False} | compiled
    model.compile(optimizer, "mse", **compiled)
    return model


def steps_of(model, count=3):
    """The weights before, and after each training step."""
    x, y = data()
    result = [model.get_weights()]
    for _ in range(count):
        model.train_on_batch(x, y)
        result.append(model.get_weights())
    return result


def adam(gradients, scales):
    """NumPy's Adam: what it adds to a weight, each time."""
    m = v = 0
    for t, (g, scale) in enumerate(zip(gradients, scales, strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = RATE * scale * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        yield -rate * m / (np.sqrt(v) + 1e-7)


@pytest.mark.parametrize(
    "compiled, steps, known",
    [
        ({}, None, 1000),
        ({"jit_compile": True}, T, T),
        ({"run_eagerly": True}, T, T),
    ],
    ids=["function", "jit", "eager"],
)
def test_equals_numpy(compiled, steps, known):
    optimizer = TimeScaledAdam(RATE)
    model = network(optimizer, steps=steps, **compiled)
    weights = steps_of(model)
    # In the order of Keras: kernel, u, bias; the Dense layer's two.
    gradients = [gradients_at(model, before) for before in weights[:-1]]
    for index, exponent in enumerate([0.875, 1, 0.875, None, None]):
        # The bias comes after u, which has been updated then.
        seen = weights[1:] if index == 2 else weights[:-1]
        scales = [
            np.maximum(1 - np.abs(w[1]), 1 / known) ** exponent
            if exponent
            else 1.0
            for w in seen
        ]
        changes = adam([g[index] for g in gradients], scales)
        for before, after, change in zip(weights, weights[1:], changes):
            np.testing.assert_allclose(
                after[index] - before[index], change, rtol=2e-3, atol=1e-7
            )
            assert np.abs(change).min() > 1e-7


def gradients_at(model, weights):
    model.set_weights(weights)
    x, y = data()
    with tf.GradientTape() as tape:
        loss = keras.ops.mean((model(x, training=True) - y) ** 2)
    variables = [w.value for w in model.trainable_variables]
    return [np.array(g) for g in tape.gradient(loss, variables)]


@pytest.mark.parametrize(
    "make, steps",
    [
        (lambda: keras.layers.RNN(IndRNNCell(N, **START)), 1000),
        (lambda: DilatedRNN([layer_of_u()], [4]), T / 4),
        # Whose kernels are those of layers before the normalization
        (
            lambda: stacked_ind_rnn(
                (T, F), N, 2, normalization="batch", **START
            ),
            T,
        ),
        # Whose gates are trained by Adam
        (
            lambda: keras.Sequential(
                [IndyLSTM(N, return_sequences=True), layer_of_u()]
            ),
            T,
        ),
    ],
    ids=["RNN(IndRNNCell)", "DilatedRNN", "stacked_ind_rnn", "IndyLSTM"],
)
def test_steps_of_each_layer(make, steps):
    """How far each weight moves in one step, in steps of Adam."""
    moved = []
    for optimizer in (TimeScaledAdam(RATE), keras.optimizers.Adam(RATE)):
        model = network(optimizer, make)
        before, after = steps_of(model, 1)
        moved.append([b - a for a, b in zip(before, after, strict=True)])
    expected = np.maximum(1 - np.abs(U), 1 / steps)
    exponents = {"kernel": 0.875, "recurrent_kernel": 1.0, "bias": 0.875}
    seen = 0
    for weight, ours, adams in zip(model.weights, *moved, strict=True):
        if np.abs(adams).min() < 1e-6:
            continue
        scale = 1.0
        if "cell" in weight.path and "lstm" not in weight.path:
            seen += 1
            scale = expected ** exponents[weight.name]
        # The bias is last, and sees the u that this step has made.
        rtol = 0.1 if weight.name == "bias" else 1e-2
        np.testing.assert_allclose(ours / adams / scale, 1, rtol, 0)
    assert seen >= 2


def test_a_loaded_model_goes_on_alike(tmp_path):
    x, y = data()
    optimizer = TimeScaledAdam(RATE, global_clipnorm=1.0)
    model = network(optimizer, lambda: IndRNN(N))
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is TimeScaledAdam
    assert loaded.optimizer.global_clipnorm == 1.0
    for one in (model, loaded):
        one.train_on_batch(x, y)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_with_accumulated_gradients_and_weight_decay():
    """What Keras' optimizer can do, this one can."""
    optimizer = TimeScaledAdam(
        RATE, weight_decay=0.1, use_ema=True, gradient_accumulation_steps=2
    )
    before, *_, after = steps_of(network(optimizer), 2)
    kernel, u = (a - b * (1 - 0.1 * RATE) for a, b in zip(after[:2], before))
    scale = np.maximum(1 - np.abs(U), 1 / T)
    np.testing.assert_allclose(np.abs(u), RATE * scale, rtol=0.5)
    np.testing.assert_allclose(
        np.abs(kernel).mean(axis=0), RATE * scale**0.875, rtol=0.5
    )
