"""IndRNNCell in TF1-style code; test_tf1.py runs this file in a process of its
own, for TF_USE_LEGACY_KERAS and graphs are of a whole process.

    TF_USE_LEGACY_KERAS=1 python tests/tf1.py
"""

import os
import tempfile
import warnings

import numpy as np
import tensorflow as tf

from ind_rnn_cell import IndRNNCell

warnings.simplefilter("error")
v1 = tf.compat.v1
B, T, F, N = 3, 5, 4, 16
LENGTHS = [5, 3, 1]
BOUND = 2 ** (1 / T)
X = np.sin(1 + np.arange(B * T * F)).reshape(B, T, F).astype("float32")
NAMES = ["kernel", "recurrent_kernel", "bias"]


def new_cell(**options):
    return IndRNNCell(N, recurrent_max_abs=BOUND, **options)


def new_stack():
    cells = [new_cell(), new_cell()]
    return cells, v1.nn.rnn_cell.MultiRNNCell(cells)


def oracle(x, weights, lengths=(T,) * B):
    """Outputs (B, T, N), zeros after the end, and the last states (B, N)."""
    kernel, u, bias = weights
    outputs, state = np.zeros((B, T, N)), np.zeros((B, N))
    for b, length in enumerate(lengths):
        for t in range(length):
            a = x[b, t] @ kernel + np.clip(u, -BOUND, BOUND) * state[b] + bias
            outputs[b, t] = state[b] = np.maximum(a, 0)
    return outputs, state


def check(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def check_stack(outputs, states, weights):
    first, first_state = oracle(X, weights[:3])
    second, second_state = oracle(first, weights[3:])
    check(outputs, second)
    check(states[0], first_state)
    check(states[1], second_state)


def initialized():
    session = v1.Session()
    session.run(v1.global_variables_initializer())
    return session


def eager():
    cells, stack = new_stack()
    outputs, states = v1.nn.dynamic_rnn(stack, X, dtype=tf.float32)
    weights = [w.numpy() for cell in cells for w in cell.trainable_weights]
    check_stack(outputs, states, weights)


def stack_is_trained():
    """With a loss that draws every u outward, beyond its bound."""
    x = v1.placeholder(tf.float32, [None, None, F])
    cells, stack = new_stack()
    outputs, states = v1.nn.dynamic_rnn(stack, x, dtype=tf.float32)
    variables = v1.trainable_variables()
    names = [v.name.split("/")[-1].split(":")[0] for v in variables]
    assert names == NAMES * 2
    in_use = cells[0].bounded_recurrent_kernel
    loss = tf.reduce_mean((outputs - 1) ** 2) - tf.reduce_mean(in_use)
    update = v1.train.GradientDescentOptimizer(1.0).minimize(loss)
    with initialized() as session:
        for steps in (0, 100):
            for _ in range(steps):
                session.run(update, {x: X})
            check_stack(*session.run([outputs, states, variables], {x: X}))
        u, in_use = session.run([variables[1], in_use])
    assert (np.abs(u) > BOUND).any()
    limit = np.float32(BOUND)
    np.testing.assert_array_equal(in_use, np.clip(u, -limit, limit))


def initial_states():
    cells, stack = new_stack()
    zeros = stack.zero_state(B, tf.float32)
    outputs, states = v1.nn.dynamic_rnn(stack, X, initial_state=zeros)
    # A sequence in two parts, with the states of the first.
    start, between = v1.nn.dynamic_rnn(stack, X[:, :2], dtype=tf.float32)
    end, last = v1.nn.dynamic_rnn(stack, X[:, 2:], initial_state=between)
    with initialized() as session:
        check_stack(*session.run([outputs, states, v1.trainable_variables()]))
        parts = tf.concat([start, end], axis=1)
        check(*session.run([parts, outputs]))
        check(*session.run([last, states]))
    assert len(v1.trainable_variables()) == 6


def one_step(cell):
    return cell(X[:, 0], cell.zero_state(B, tf.float32))[0]


def dynamic_rnn(cell, **options):
    return v1.nn.dynamic_rnn(cell, X, dtype=tf.float32, **options)


def static_rnn(cell, **options):
    steps = tf.unstack(tf.constant(X), axis=1)
    y, state = v1.nn.static_rnn(cell, steps, dtype=tf.float32, **options)
    return tf.stack(y, axis=1), state


def bidirectional_rnn(cell, backward=None, **options):
    return v1.nn.bidirectional_dynamic_rnn(
        cell, backward or new_cell(), X, dtype=tf.float32, **options
    )


def scoped(cell):
    with v1.variable_scope("outer"), tf.name_scope("inner"):
        return dynamic_rnn(cell)


LOOPS = {
    "dynamic_rnn": dynamic_rnn,
    "static_rnn": static_rnn,
    "a call": one_step,
    "MultiRNNCell": lambda cell: dynamic_rnn(
        v1.nn.rnn_cell.MultiRNNCell([cell])
    ),
    "bidirectional": bidirectional_rnn,
    "scope": scoped,
}


def names_of_checkpoints():
    """The same from every loop, so that each reads the files of all."""
    expected, path = [f"remembers/{name}:0" for name in NAMES], None
    with tempfile.TemporaryDirectory() as directory:
        for loop, build in LOOPS.items():
            with tf.Graph().as_default():
                v1.set_random_seed(len(loop))
                cell = new_cell(name="remembers")
                build(cell)
                y = one_step(cell)
                variables = v1.trainable_variables()[:3]
                names = [v.name for v in variables]
                assert names == expected, (loop, names)
                saver, session = v1.train.Saver(variables), initialized()
                if path is None:
                    path = saver.save(session, os.path.join(directory, "model"))
                    saved = session.run(y)
                else:
                    assert (session.run(y) != saved).any(), loop
                    saver.restore(session, path)
                    np.testing.assert_array_equal(session.run(y), saved)
                session.close()


def sequence_lengths():
    for loop in (dynamic_rnn, static_rnn):
        y = loop(new_cell(), sequence_length=LENGTHS)
        variables = v1.trainable_variables()[-3:]
        with initialized() as session:
            found, weights = session.run([y, variables])
        for part, expected in zip(found, oracle(X, weights, LENGTHS)):
            check(part, expected)


def both_directions():
    y = bidirectional_rnn(new_cell(), new_cell(), sequence_length=LENGTHS)
    with initialized() as session:
        weights = session.run(v1.trainable_variables())
        outputs, states = session.run(y)
    assert len(weights) == 6

    def reverse(y):
        y = y.copy()
        for b, length in enumerate(LENGTHS):
            y[b, :length] = y[b, :length][::-1]
        return y

    for i, order in enumerate((np.array, reverse)):
        y, last = oracle(order(X), weights[3 * i : 3 * i + 3], LENGTHS)
        check(outputs[i], order(y))
        check(states[i], last)


if __name__ == "__main__":
    eager()
    v1.disable_eager_execution()
    for run in (
        stack_is_trained,
        initial_states,
        names_of_checkpoints,
        sequence_lengths,
        both_directions,
    ):
        with tf.Graph().as_default():
            v1.set_random_seed(1)
            run()
        print(run.__name__)
