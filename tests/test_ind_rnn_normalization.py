"""Normalization: against Keras' layers, and against NumPy step for step."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import LONG, each_value
from ind_rnn_normalization import (
    BatchNormalization,
    TimeStepBatchNormalization,
)
from pairs import assert_close, data, masked, reloaded, weighted

B, T, F, N = 4, 6, 3, 4
STEPS = TimeStepBatchNormalization
BOTH = BatchNormalization, keras.layers.BatchNormalization
MODES = ["eager", "function", "unknown", "jit"]
TOLERANCE = {
    "float32": 1e-5,
    "float64": 1e-12,
    "mixed_float16": 1e-3,
    "mixed_bfloat16": 1e-2,
}


def traced(step, mode, *examples):
    """`step` eagerly, traced, compiled, or for arrays of any sizes but N."""
    if mode == "eager":
        return step
    specs = [
        tf.TensorSpec([None, None, *x.shape[2:]], x.dtype) for x in examples
    ]
    return tf.function(
        step,
        jit_compile=mode == "jit",
        input_signature=specs if mode == "unknown" else None,
    )


def trained(layer, x, mode="function", mask=None):
    """Outputs, gradients and statistics of two training steps."""
    options = {"training": True} | ({} if mask is None else {"mask": mask})

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **options)
            loss = weighted(tf.cast(y, "float64") ** 2)
        weights = [w.value for w in layer.trainable_weights]
        return [y, *tape.gradient(loss, [x, *weights])]

    step = traced(step, mode, x)
    found = [*step(x), *step(x / 2)]
    return found + [w.value for w in layer.non_trainable_weights]


def assert_same(found, expected, tolerance):
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert_close(found, expected, tolerance)


def a_case(seed, dtype):
    """A layer of ours, the one that it is to equal, and their inputs."""
    rng = np.random.default_rng(seed)
    # Over two features alone, gradients are nothing but rounding.
    shape = rng.integers(3, 12, 3)
    spread = rng.choice([0.003, 0.3, 3])  # the first one below epsilon
    x = rng.normal(rng.uniform(-2, 2) * spread, spread, shape)
    options = {
        "epsilon": rng.choice([1e-3, 1e-5, 1e-7]),
        "momentum": rng.choice([0.9, 0.99, 0.0]),
        "center": seed % 2 == 0,
        "scale": seed % 3 > 0,
        "dtype": dtype,
    }
    layers = [kind(**options) for kind in BOTH]
    for layer in layers:
        layer.build(shape)
        for index, w in enumerate(layer.weights):
            w.assign(np.abs(data(*w.shape, phase=index)))
    return *layers, tf.constant(x, layers[0].compute_dtype)


@pytest.mark.parametrize("dtype, mode", each_value(TOLERANCE, MODES))
def test_it_is_that_of_keras(dtype, mode):
    """Of random sizes and options."""
    for seed in range(10 if LONG else 3):
        ours, of_keras, x = a_case(seed, dtype)
        found, expected = (trained(y, x, mode) for y in (ours, of_keras))
        assert_same(found, expected, TOLERANCE[dtype])
        # and where nothing is trained
        assert_same([ours(x)], [of_keras(x)], TOLERANCE[dtype])


def test_large_sums_with_an_offset():
    """As exact as Keras in float64, within what float32 knows of x."""
    x = data(32, 784, 16) + 30
    results = []
    for kind, dtype in zip(BOTH, ("float32", "float64"), strict=True):
        layer = kind(epsilon=1e-5, dtype=dtype)
        y = tf.function(layer)(tf.constant(x, dtype), training=True)
        results.append([y, *(w.value for w in layer.non_trainable_weights)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_gradients_of_gradients():
    ours, of_keras, x = a_case(3, "float32")

    @tf.function
    def second(layer):
        weights = [w.value for w in layer.trainable_weights]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = weighted(y**3)
            norm = tf.reduce_sum(tape.gradient(loss, x) ** 2)
        return outer.gradient(norm, [x, *weights])

    assert_same(second(ours), second(of_keras), 1e-4)


@pytest.mark.parametrize("kind", [BatchNormalization, lambda: STEPS(T)])
def test_training_takes_the_kernel(kind):
    layer = kind()
    function = tf.function(lambda x: layer(x, training=True))
    x = tf.constant(data(B, T, F), "float32")
    graph = function.get_concrete_function(x).graph
    names = {operation.type for operation in graph.get_operations()}
    assert "FusedBatchNormV3" in names


@pytest.mark.parametrize(
    "options, shape, mask",
    [
        ({}, (3, 5, 4), "holes"),
        ({"axis": 1}, (3, 5, 4), None),
        ({}, (3, 4), None),
        ({}, (3, 2, 5, 4), None),
        ({"trainable": False}, (3, 5, 4), None),
    ],
)
def test_what_else_keras_can_do(options, shape, mask):
    x = tf.constant(data(*shape), "float32")
    mask = None if mask is None else tf.constant(masked(mask, *shape[:2]))
    found = []
    for layer in (make(**options) for make in BOTH):
        layer.build(shape)
        found.append(trained(layer, x, mask=mask))
    assert_same(*found, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_running_statistics_in_half_precision(dtype):
    """Mixed in float32 and rounded once, as in Keras."""
    x = tf.cast(3 + 2 * data(64, T, F), dtype)
    layers = [kind(dtype=dtype) for kind in BOTH]
    for layer in layers:
        for _ in range(100):
            layer(x, training=True)
    for a, b in zip(*(layer.weights for layer in layers), strict=True):
        a, b = (tf.cast(w.value, "float32") for w in (a, b))
        np.testing.assert_allclose(a, b, rtol=0.02)


def test_it_has_the_files_of_keras(tmp_path):
    """Of whole models and of weights, from either to the other."""
    models = [
        keras.Sequential(
            [keras.Input((T, F)), make(epsilon=0.1), keras.layers.Dense(2)]
        )
        for make in BOTH
    ]
    configs = [model.layers[0].get_config() for model in models]
    assert configs[0] == {**configs[1], "name": configs[0]["name"]}
    x = data(B, T, F).astype("float32")
    for phase, model in enumerate(models):
        for w in model.weights:
            w.assign(np.abs(data(*w.shape, phase=phase)))
        expected = model(x)
        model.save_weights(tmp_path / "model.weights.h5")
        for other in models:
            for w in other.weights:
                w.assign(np.zeros(w.shape))
            other.load_weights(tmp_path / "model.weights.h5")
            np.testing.assert_allclose(other(x), expected, rtol=1e-6)
        loaded = reloaded(model, tmp_path)
        assert type(loaded.layers[0]) is type(model.layers[0])
        np.testing.assert_array_equal(loaded(x), model(x))


class StepStatistics:
    """TimeStepBatchNormalization, in NumPy, step for step."""

    def __init__(self, max_steps, momentum, epsilon):
        self.momentum, self.epsilon = momentum, epsilon
        self.known, self.max_steps = {}, max_steps

    def train(self, x, mask):
        y = np.full_like(x, np.nan)
        for t in range(x.shape[1]):
            rows = x[:, t] if mask is None else x[mask[:, t], t]
            if len(rows):
                new = rows.mean(0), rows.var(0)
                y[:, t] = (x[:, t] - new[0]) / np.sqrt(new[1] + self.epsilon)
                if t < self.max_steps:
                    m, old = self.momentum, self.known.get(t, new)
                    self.known[t] = [
                        m * a + (1 - m) * b for a, b in zip(old, new)
                    ]
        return y

    def evaluate(self, x, mask=None):
        y = np.zeros_like(x)
        for t in range(x.shape[1]):
            mean, variance = 0.0, 1.0
            if self.known:
                before = [s for s in self.known if s <= t]
                last = max(before) if before else min(self.known)
                mean, variance = self.known[last]
            y[:, t] = (x[:, t] - mean) / np.sqrt(variance + self.epsilon)
        return y


def normalization(max_steps=7, dtype="float64", **options):
    options = {"momentum": 0.8, "epsilon": 1e-3, **options}
    layer = STEPS(max_steps, dtype=dtype, **options)
    layer.build((None, None, N))
    layer.gamma.assign(data(N, phase=1))
    layer.beta.assign(data(N, phase=2))
    return layer


def sequences(time, phase=0.0):
    """Each step with statistics of its own."""
    t = np.arange(time)[:, None]
    return data(B, time, N, phase=phase) * (1 + t) + np.cos(t + phase)


@pytest.mark.parametrize(
    "kind, mode",
    each_value(
        (None, "holes", "right", "left", "row"), ("eager", "unknown", "jit")
    ),
)
def test_statistics_of_steps(kind, mode):
    layer = normalization()
    oracle = StepStatistics(7, 0.8, 1e-3)
    examples = [data(B, T, N)] + ([] if kind is None else [masked(kind)])
    functions = [
        traced(
            lambda x, mask=None, training=training: layer(
                x, mask=mask, training=training
            ),
            mode,
            *map(tf.constant, examples),
        )
        for training in (False, True)
    ]
    plan = [(3, False), (4, True), (6, False), (3, True), (2, False)]
    plan += [(6, True), (9, True), (12, False), (5, True), (3, False)]
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    for call, (time, training) in enumerate(plan):
        x = sequences(time, phase=call)
        mask = masked(kind, B, time)
        if mask is not None and call == 1:
            mask[:, [0, 2]] = False
        step = oracle.train if training else oracle.evaluate
        expected = gamma * step(x, mask) + beta
        given = [x] if mask is None else [x, mask]
        y = functions[training](*map(tf.constant, given)).numpy()
        assert np.isfinite(y).all() and y.shape == x.shape
        y = np.where(np.isnan(expected), np.nan, y)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-9)
        known = sorted(oracle.known)
        assert list(np.flatnonzero(layer.trained)) == known
        for moving, i in ((layer.moving_mean, 0), (layer.moving_variance, 1)):
            target = [oracle.known[t][i] for t in known]
            actual = moving.numpy()[known]
            target = np.reshape(target, actual.shape)
            np.testing.assert_allclose(actual, target, rtol=0, atol=1e-9)
    assert known == [*range(7)] or kind is not None


@pytest.mark.parametrize(
    "mode, precision, time",
    each_value(
        MODES,
        [("float32", 1e-5), ("mixed_float16", 5e-3), ("mixed_bfloat16", 3e-2)],
        [T - 2, T + 3],
    ),
)
def test_statistics_of_steps_by_the_kernel(mode, precision, time):
    """As by sums, which a mask of ones takes."""
    dtype, tolerance = precision
    x = 2 * data(B, time, F)
    if dtype != "float32":  # too far from 0 for sums in half precision
        x = 20 * data(300, time, F) + 50
    found = []
    for mask in (None, tf.ones(x.shape[:2], "bool")):
        layer = STEPS(T, dtype=dtype)
        layer.build((None, None, F))
        layer.gamma.assign(data(F))
        x_of = tf.constant(x, layer.compute_dtype)
        found.append(trained(layer, x_of, mode, mask))
    assert_same(*found, tolerance)


def test_masked_nan_does_not_leak():
    mask = masked("holes", B, 5)
    results = []
    for value in (0.0, np.nan):
        layer = normalization()
        x = np.where(mask[:, :, None], sequences(5), value)
        y = layer(x, mask=mask, training=True).numpy()[mask]
        results.append([y, *layer.get_weights()])
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)


def test_frozen_keeps_its_statistics():
    layer = normalization()
    layer(sequences(5), training=True)
    layer.trainable = False
    before, x = layer.get_weights(), sequences(6, phase=3)
    np.testing.assert_array_equal(layer(x, training=True), layer(x))
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_time_step_batch_normalization_as_a_layer(tmp_path):
    options = {"max_steps": 5, "momentum": 0.7, "epsilon": 0.25}
    assert set(inspect.signature(STEPS).parameters) == {*options, "kwargs"}
    layer = STEPS(**options, name="steps")
    config, default = layer.get_config(), STEPS(6).get_config()
    for name, value in options.items():
        assert config[name] == value != default[name]
    assert STEPS.from_config(config).get_config() == config
    assert default["momentum"] == 0.9 and default["epsilon"] == 1e-5
    for shape in ((None, None, N), (B, T, N)):
        assert layer.compute_output_shape(shape) == shape
    model = keras.Sequential([keras.Input((None, N)), layer])
    assert model.output_shape == (None, None, N)
    shapes = [tuple(w.shape) for w in layer.weights]
    assert shapes == [(N,), (N,), (5, N), (5, N), (5,)]
    assert len(layer.trainable_weights) == 2
    model(sequences(3), training=True)
    x = sequences(8, phase=1)
    expected = model(x)
    np.testing.assert_array_equal(reloaded(model, tmp_path)(x), expected)


@pytest.mark.parametrize("mask", [None, np.ones((0, 4), bool)])
def test_statistics_of_steps_of_an_empty_batch(mask):
    layer = STEPS(3)
    layer(data(2, 4, 3), training=True)
    before = layer.get_weights()
    y = layer(np.zeros((0, 4, 3)), training=True, mask=mask)
    assert y.shape == (0, 4, 3)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
