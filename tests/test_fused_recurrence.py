"""What the compiled loops of IndRNN are made of."""

import re

import keras
import pytest
import tensorflow as tf

import ind_rnn

B, T, N = 3, 19, 5


def softsign(x):
    return x / (1 + tf.abs(x))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "activation",
    [keras.activations.relu, keras.activations.linear, softsign],
)
def test_loops_copy_no_whole_array(activation, dtype, backwards, masked):
    """One copy of (B, T, N) a step would make the time quadratic in T."""
    x, u, h0 = (tf.ones(s, dtype) for s in ((B, T, N), (N,), (B, N)))
    kept = () if activation in ind_rnn._PULLBACKS else (x,)
    for function, arguments in (
        (ind_rnn._forward, (x, u, u, h0)),
        (ind_rnn._backward, (x, x, u, u, h0, *kept)),
    ):

        @tf.function(jit_compile=True, autograph=False)
        def call(*arguments):
            *tensors, mask = arguments if masked else (*arguments, None)
            return function(
                *tensors,
                activation=activation,
                dropout=None,
                mask=mask,
                backwards=backwards,
            )

        arguments += (tf.ones((B, T), tf.bool),) if masked else ()
        hlo = call.experimental_get_compiler_ir(*arguments)(
            stage="optimized_hlo"
        )
        assert hlo.count(" while(") == 1
        loop, _ = hlo.split("ENTRY")
        assert "dynamic-update-slice" in loop
        assert not re.search(rf"\[{B},{T},{N}\]\S* copy\(", loop)
