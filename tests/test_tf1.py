"""The 2018 way: IndRNNCell in TF1's MultiRNNCell and dynamic_rnn."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason="needs tf_keras"
)

COMMON = """
import warnings

warnings.simplefilter("error")
import numpy as np
import tensorflow as tf

from ind_rnn_cell import IndRNNCell

B, T, F, N = 3, 5, 4, 128
m = 2 ** (1 / T)
x = np.sin(1 + np.arange(B * T * F)).reshape(B, T, F).astype("float32")


def dynamic_rnn(x):
    cells = [
        IndRNNCell(128, recurrent_max_abs=m),
        IndRNNCell(128, recurrent_max_abs=m),
    ]
    stack = tf.compat.v1.nn.rnn_cell.MultiRNNCell(cells)
    return cells, *tf.compat.v1.nn.dynamic_rnn(stack, x, dtype=tf.float32)


def oracle(x, weights):
    states = []
    for kernel, u, bias in weights:
        u, h, outputs = np.clip(u, -m, m), np.zeros((B, N)), []
        for t in range(T):
            h = np.maximum(x[:, t] @ kernel + u * h + bias, 0)
            outputs.append(h)
        x = np.stack(outputs, 1)
        states.append(h)
    return x, states


def check(outputs, states, weights):
    expected, last = oracle(x, weights)
    assert outputs.shape == (B, T, N) and len(states) == 2
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)
    for state, expected in zip(states, last):
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-5)
"""

EAGER = """
cells, outputs, states = dynamic_rnn(tf.constant(x))
weights = [[w.numpy() for w in cell.trainable_weights] for cell in cells]
check(outputs, states, weights)
"""

GRAPH = """
v1 = tf.compat.v1
v1.disable_eager_execution()
v1.set_random_seed(1)
inputs = v1.placeholder(tf.float32, [None, None, F])
cells, outputs, states = dynamic_rnn(inputs)
variables = v1.trainable_variables()
names = ["kernel", "recurrent_kernel", "bias"] * 2
assert [v.name.split("/")[-1].split(":")[0] for v in variables] == names
in_use = [cell.bounded_recurrent_kernel for cell in cells]
# Every u of the first layer is drawn outward, beyond its bound.
loss = tf.reduce_mean((outputs - 1) ** 2) - tf.reduce_mean(in_use[0])
step = v1.train.GradientDescentOptimizer(1.0).minimize(loss)
with v1.Session() as session:
    session.run(v1.global_variables_initializer())

    def check_now():
        y, s, w = session.run([outputs, states, variables], {inputs: x})
        check(y, s, [w[:3], w[3:]])

    check_now()
    losses = [session.run([loss, step], {inputs: x})[0] for _ in range(200)]
    check_now()
    raw, used = session.run([[variables[1], variables[4]], in_use])
    assert losses[-1] < losses[0] - 0.5, losses
    assert (np.abs(raw[0]) > m).any()
    for r, u in zip(raw, used):
        limit = np.float32(m)
        np.testing.assert_array_equal(u, np.clip(r, -limit, limit))
"""


@pytest.mark.parametrize("body", [EAGER, GRAPH], ids=["eager", "graph"])
def test_multi_rnn_cell_and_dynamic_rnn(body):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    done = subprocess.run(
        [sys.executable, "-c", COMMON + body],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
