"""IndRNN against `keras.layers.RNN(IndRNNCell)`: all it returns, all gradients.

Eagerly, with T = 7: of 300 draws of all options (`LONG=1`: each of them) so
many that every two values of two options meet. Compiled forms, other T, fit and
half precision: smaller draws of the same.
"""

import functools

import keras
import numpy as np
import pytest

from cases import assert_every_pair, covering, each_value, every_pair
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
    drawn,
    inputs,
    pair,
    softsign,
)

TIMES = {
    "function": (1, 7),
    "unknown": (2, 7, 1),
    "jit": (1, 7),
}
RANDOM = ("dropout", "recurrent_dropout")
CASES = [
    dict(zip(AXES, case, strict=True))
    for case in covering(
        2, [tuple(drawn(seed).values()) for seed in range(300)]
    )
]


def test_cover():
    assert_every_pair(CASES, AXES)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(case):
    fused, loop = pair(case)
    values = inputs(case)
    assert_same(
        computed(fused, *values), computed(loop, *values), case["dtype"]
    )
    if case["stateful"]:
        fused.reset_state()
        assert not np.any(fused.states[0])


COMPILED = [
    (drawn(i, activation=activation), mode)
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
    for time in times:
        values = inputs(case, time=time)
        assert_same(function(*values), reference(*values), case["dtype"])


@pytest.mark.parametrize(
    "activation, policy, seed",
    each_value(
        ["relu", "tanh", softsign],
        ["mixed_float16", "mixed_bfloat16"],
        range(2),
    ),
)
def test_mixed_precision(activation, policy, seed):
    case = drawn(seed, dtype=policy, activation=activation)
    fused, loop = pair(case)
    values = inputs(case)
    actual = computed(fused, *values)
    assert_same(actual, computed(loop, *values), policy)
    assert {w.dtype for w in fused.trainable_weights} == {"float32"}
    assert actual["gradient of recurrent_kernel"].dtype == "float32"
    assert actual["output 0 0"].dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize(
    "dtype, jit_compile, activation",
    [("float32", True, "relu"), ("float64", False, softsign)],
)
def test_fit_equals_the_loop(dtype, jit_compile, activation):
    options = {"dtype": dtype, "activation": activation}
    models = [
        keras.Sequential(
            [
                keras.Input((None, F), dtype=dtype),
                keras.layers.Masking(dtype=dtype),
                first,
                second,
                keras.layers.Dense(1, dtype=dtype),
            ]
        )
        for first, second in zip(
            pair({**options, "return_sequences": True}, bound=1.1),
            pair({**options, "use_kernel": False}, bound=1.1),
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
    for start, *ends in zip(before, *(m.get_weights() for m in models)):
        assert np.abs(start - ends[1]).max() > 1e-3
        np.testing.assert_allclose(*ends, rtol=0, atol=TOLERANCE[dtype])


def test_dropout_masks_are_those_of_the_loop():
    case = {"dropout": 0.3, "recurrent_dropout": 0.4, "return_sequences": True}
    fused, loop = pair(case)
    plain, _ = pair({**case, "dropout": 0.0, "recurrent_dropout": 0.0})
    x, _, _ = inputs(case)
    first, second = fused(x, training=True), fused(x, training=True)
    np.testing.assert_allclose(first, loop(x, training=True), atol=1e-12)
    np.testing.assert_allclose(second, loop(x, training=True), atol=1e-12)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(fused(x), plain(x))
    assert np.abs(first - fused(x)).max() > 0.1
