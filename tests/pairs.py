"""What the tests of IndRNN share: cases, data, and pairs of equal layers."""

import importlib.metadata
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from packaging.requirements import Requirement

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

B, T, F, N = 4, 7, 3, 5
TOLERANCE = {
    "float64": 1e-10,
    "float32": 1e-5,
    "mixed_float16": 2e-2,
    "mixed_bfloat16": 1e-1,
}


@keras.saving.register_keras_serializable(package="tests")
def softsign(z):
    return z / (1 + abs(z))


def fails_on(requirement, reason, raises=AssertionError, strict=True):
    """What versions like "keras<3.15" get wrong by themselves.

    It must fail there; not `strict`, it may, for other things decide as well.
    """
    requirement = Requirement(requirement)
    found = importlib.metadata.version(requirement.name)
    return pytest.mark.xfail(
        requirement.specifier.contains(found, prereleases=True),
        reason=f"{requirement}: {reason}",
        raises=raises,
        strict=strict,
    )


# Keras 3.8 has no RMSNormalization.
RMS = "rms" if hasattr(keras.layers, "RMSNormalization") else "layer"
AXES = {
    "dtype": ["float64", "float32", "mixed_float16", "mixed_bfloat16"],
    "activation": ["relu", "tanh", "sigmoid", "linear", softsign],
    "go_backwards": [False, True],
    "mask": [None, "right", "left", "holes", "row", "all"],
    "recurrent_dropout": [0.0, 0.4],
    "dropout": [0.0, 0.3],
    "use_kernel": [True, False],
    "use_bias": [True, False],
    "initial_state": [False, True],
    "stateful": [False, True],
    "training": [True, True, False],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "zero_output_for_mask": [False, True],
}
OF_CELL = (
    "activation",
    "use_kernel",
    "use_bias",
    "dropout",
    "recurrent_dropout",
)
OF_LAYER = (
    "unroll",
    "go_backwards",
    "stateful",
    "return_sequences",
    "return_state",
    "zero_output_for_mask",
    "activity_regularizer",
)
# Of every argument of IndRNNCell, a value that is not its default.
CELL_OPTIONS = {
    "units": N,
    "activation": keras.activations.tanh,
    "use_kernel": False,
    "use_bias": False,
    "kernel_initializer": keras.initializers.Constant(2.0),
    "recurrent_initializer": keras.initializers.Constant(0.5),
    "bias_initializer": keras.initializers.Constant(3.0),
    "kernel_regularizer": keras.regularizers.L2(0.1),
    "recurrent_regularizer": keras.regularizers.L2(0.2),
    "bias_regularizer": keras.regularizers.L2(0.3),
    "kernel_constraint": keras.constraints.NonNeg(),
    "recurrent_constraint": keras.constraints.MaxNorm(1.0, axis=0),
    "bias_constraint": keras.constraints.MaxNorm(2.0, axis=0),
    "recurrent_min_abs": 0.25,
    "recurrent_max_abs": 1.75,
    "dropout": 0.1,
    "recurrent_dropout": 0.2,
    "seed": 7,
}


def data(*shape, phase=0.0, scale=1.0):
    """Deterministic, of both signs, in [0.2, 1] * scale in magnitude."""
    x = np.sin(1 + phase + 1.7 * np.arange(np.prod(shape))).reshape(shape)
    return scale * np.sign(x) * (0.2 + 0.8 * np.abs(x))


def masked(kind, batch=B, time=T):
    """(batch, time), false where a step is to be skipped."""
    if kind is None:
        return None
    lengths = np.maximum(time - np.arange(batch), 1)[:, None]
    mask = np.arange(time) < lengths
    if kind == "left":
        mask = mask[:, ::-1]
    if kind in ("holes", "row", "all"):
        mask = np.sin(3.0 * np.arange(batch * time)).reshape(batch, time) > -0.3
    if kind == "row":
        mask[batch // 2] = False
    return mask & (kind != "all")


def pair(case, bound=None):
    """IndRNN and RNN(IndRNNCell) of the same weights."""
    of_cell = {name: case[name] for name in OF_CELL if name in case}
    of_layer = {name: case[name] for name in OF_LAYER if name in case}
    of_cell |= {"seed": 3, "recurrent_max_abs": bound}
    dtype = {"dtype": case.get("dtype", "float64")}
    cell = IndRNNCell(N, **of_cell, **dtype)
    form = case.get("implementation", "auto")
    layers = [
        IndRNN(N, **of_cell, **of_layer, **dtype, implementation=form),
        keras.layers.RNN(cell, **of_layer, **dtype),
    ]
    for layer in layers:
        layer.build((B, None, _width(case)))
        for i, w in enumerate(layer.trainable_weights):
            scale = 1.3 if w.name == "recurrent_kernel" else 1.0
            w.assign(data(*w.shape, phase=i, scale=scale))
    return layers


def _width(case):
    return F if case.get("use_kernel", True) else N


def inputs(case, batch=B, time=T):
    """x, initial state (or None), mask (or None)."""
    dtype = case.get("dtype", "float64").removeprefix("mixed_")
    x = data(batch, time, _width(case))
    h = None
    if case.get("initial_state"):
        h = data(batch, N, phase=5)
    mask = masked(case.get("mask"), batch, time)
    return [
        None if value is None else tf.constant(value, kind)
        for value, kind in ((x, dtype), (h, dtype), (mask, "bool"))
    ]


def weighted(y):
    """A sum of y with fixed weights, whatever its shape."""
    weights = tf.sin(1 + 1.7 * tf.range(tf.size(y), dtype="float32"))
    y = tf.cast(y, tf.float64)
    return tf.reduce_sum(y * tf.cast(tf.reshape(weights, tf.shape(y)), y.dtype))


def computed(layer, x, states=None, mask=None, training=True, call=None):
    """Outputs, states and every gradient of a call (of two, if stateful)."""
    sources = [x] if states is None else [x, *tf.nest.flatten(states)]
    result, total = {}, 0.0
    with tf.GradientTape() as tape:
        tape.watch(sources)
        for number in range(2 if layer.stateful else 1):
            y = (call or layer)(
                x * (1 - number / 2),
                initial_state=None if number else states,
                mask=mask,
                training=training,
            )
            for i, part in enumerate(tf.nest.flatten(y)):
                result[f"output {number} {i}"] = part
                total += weighted(part)
    sources += [w.value for w in layer.trainable_weights]
    gradients = tape.gradient(total, sources, unconnected_gradients="zero")
    for i, gradient in enumerate(gradients):  # x, states, weights
        result[f"gradient {i}"] = gradient
    for i, state in enumerate(layer.states if layer.stateful else ()):
        result[f"state {i}"] = tf.identity(state)
    return result


def second_gradient(layer, x, v):
    """The derivative, in the direction v, of the gradient of x."""
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = weighted(layer(x) ** 2)
        product = tf.reduce_sum(inner.gradient(y, x) * v)
    return outer.gradient(product, x)


def assert_config_holds(cls, options):
    """Every argument of a layer, here each with another value than its default.

    And the layer has each of them as an attribute.
    """
    parameters = dict(inspect.signature(cls).parameters)
    del parameters["kwargs"]
    assert parameters.keys() == options.keys()
    layer = cls(**options, name="memory", dtype="float64")
    needed = [name for name, p in parameters.items() if p.default is p.empty]
    default = cls(**{name: options[name] for name in needed}).get_config()
    config = layer.get_config()
    for name, value in options.items():
        assert getattr(layer, name) == value, name
        assert name in needed or config[name] != default.get(name), name
    saved = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is cls and again.get_config() == config
    assert again.name == "memory" and again.dtype == "float64"


def assert_close(actual, expected, tolerance, name=""):
    """Of nested arrays, up to `tolerance` * max(1, the largest value)."""
    both = map(tf.nest.flatten, (actual, expected))
    for a, b in zip(*both, strict=True):
        a, b = (np.asarray(ops.cast(x, "float64")) for x in (a, b))
        assert a.shape == b.shape, name
        scale = max(1.0, np.nanmax(np.abs(b), initial=0))
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * scale, err_msg=name
        )


def assert_same(actual, expected, dtype="float64"):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        assert_close(value, expected[name], TOLERANCE[dtype], name)


def fill(weights, scale=0.9):
    """Give each weight values of `data`; variances are positive."""
    for i, w in enumerate(weights):
        value = data(*w.shape, phase=i, scale=scale)
        positive = w.name in ("moving_variance", "trained")
        w.assign(abs(value) if positive else value)


def reloaded(model, folder):
    """The model, saved in a folder and loaded."""
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def compiled(layer, mode, values):
    """`computed` of a layer; "unknown" hides B (if it may) and T."""

    def function(x, h, mask):
        return computed(layer, x, h, mask)

    if mode == "eager":
        return function
    function = tf.function(function, jit_compile=mode == "jit")
    if mode != "unknown":
        return function
    x, h, mask = values
    batch = len(x) if layer.stateful else None
    x, h, mask = (
        None if value is None else tf.TensorSpec(shape, value.dtype)
        for value, shape in (
            (x, (batch, None, x.shape[2])),
            (h, (batch, N)),
            (mask, (batch, None)),
        )
    )
    return function.get_concrete_function(x, h, mask)
