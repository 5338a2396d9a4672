"""IndRNN against `keras.layers.RNN(IndRNNCell)`: all it returns, all gradients.

Eagerly, with T = 7: of 300 draws of all options (`LONG=1`: each of them) so
many that every two values of two options meet. Compiled forms, other T and fit:
smaller draws of the same.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import drawn, every_drawn_pair, every_pair
from ind_rnn_recurrence import fused_step
from pairs import (
    AXES,
    TOLERANCE,
    B,
    F,
    N,
    T,
    assert_same,
    compiled,
    computed,
    data,
    inputs,
    pair,
    softsign,
)

TIMES = {
    "function": (1, 7),
    "unknown": (2, 7, 1),
    "jit": (1, 7),
    "run_functions_eagerly": (2,),
}
RANDOM = ("dropout", "recurrent_dropout")


@pytest.mark.parametrize("case", every_drawn_pair(AXES, 300))
def test_equals_the_loop(case):
    fused, loop = pair(case)
    x, *values = inputs(case)
    expected = computed(loop, x, *values, training=case["training"])
    if case["mask"] and not case["use_kernel"]:
        # Nobody reads it. (The gradient of a kernel is NaN, in Keras too.)
        x = tf.where(values[1][:, :, None], x, np.nan)
    actual = computed(fused, x, *values, training=case["training"])
    assert_same(actual, expected, case["dtype"])
    mixed = case["dtype"].startswith("mixed")
    weights = "float32" if mixed else case["dtype"]
    assert {w.dtype for w in fused.trainable_weights} == {weights}
    if case["stateful"]:
        fused.reset_state()
        assert not np.any(fused.states[0])


COMPILED = [
    (drawn(AXES, i, activation=activation), mode)
    for i, (activation, mode) in enumerate(
        every_pair(["relu", softsign], TIMES)
    )
]


@pytest.mark.parametrize("case, mode", COMPILED)
def test_other_modes_and_lengths_equal_the_loop(case, mode):
    times = TIMES[mode]
    if random := mode == "jit" and any(case[name] for name in RANDOM):
        # XLA draws other masks than TensorFlow, and trains Keras' loop only
        # if unrolled, where zeros for masked steps are wrong backwards.
        case, times = {**case, "zero_output_for_mask": False}, (2,)
        _, loop = pair({**case, "unroll": True})
        reference = compiled(loop, mode, inputs(case))
    fused, loop = pair(case)
    if not random:
        reference = functools.partial(computed, loop)
    function = compiled(fused, mode, inputs(case))
    eagerly = mode == "run_functions_eagerly"
    tf.config.run_functions_eagerly(eagerly)
    try:
        assert (fused_step(fused.cell) is None) == eagerly
        for time in times:
            values = inputs(case, time=time)
            assert_same(function(*values), reference(*values), case["dtype"])
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    "dtype, jit_compile, activation, regularizer",
    [("float32", True, "relu", "l2"), ("float64", False, softsign, None)],
)
def test_fit_equals_the_loop(dtype, jit_compile, activation, regularizer):
    options = {"dtype": dtype, "activation": activation}
    second = {"use_kernel": False, "activity_regularizer": regularizer}
    models = [
        keras.Sequential(
            [
                keras.Input((None, F), dtype=dtype),
                keras.layers.Masking(dtype=dtype),
                *layers,
                keras.layers.Dense(1, dtype=dtype),
            ]
        )
        for layers in zip(
            pair({**options, "return_sequences": True}, bound=1.1),
            pair({**options, **second}, bound=1.1),
            strict=True,
        )
    ]
    x = data(3 * B, T, F).astype(dtype)
    x[:, 2] = x[::2, -2:] = 0
    y = data(3 * B, 1, phase=2).astype(dtype)
    for model in models:
        model.layers[-1].set_weights([data(N, 1), data(1)])
    before = models[0].get_weights()
    for model, jit in zip(models, (jit_compile, False), strict=True):
        model.compile(keras.optimizers.SGD(0.005), "mse", jit_compile=jit)
        model.fit(x, y, batch_size=B, epochs=2, shuffle=False, verbose=0)
        assert len(model.losses) == (regularizer is not None)
    for start, *ends in zip(before, *(m.get_weights() for m in models)):
        assert np.abs(start - ends[1]).max() > 1e-3
        np.testing.assert_allclose(*ends, rtol=0, atol=TOLERANCE[dtype])
