"""IndRNNCell in TF1-style code; test_tf1.py runs this file in processes of
their own, for TF_USE_LEGACY_KERAS and graphs are of a whole process.

    TF_USE_LEGACY_KERAS=1 python tests/tf1.py eager
    TF_USE_LEGACY_KERAS=1 python tests/tf1.py graph
"""

import os
import sys
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


def new_cell():
    return IndRNNCell(N, recurrent_max_abs=BOUND)


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


def eager():
    cells, stack = new_stack()
    outputs, states = v1.nn.dynamic_rnn(stack, X, dtype=tf.float32)
    weights = [w.numpy() for cell in cells for w in cell.trainable_weights]
    check_stack(outputs, states, weights)


def train(loss, optimizer, steps=20):
    """The losses of so many steps, in a session of their own."""
    update = optimizer.minimize(loss)
    session = v1.Session()
    session.run(v1.global_variables_initializer())
    return session, [session.run([loss, update])[0] for _ in range(steps)]


def outwards(outputs, cell):
    """A loss under which every u is drawn outward, beyond its bound."""
    loss = tf.reduce_mean((outputs - 1) ** 2)
    return loss - tf.reduce_mean(cell.bounded_recurrent_kernel)


def stack_with_dynamic_rnn():
    x = v1.placeholder(tf.float32, [None, None, F])
    cells, stack = new_stack()
    outputs, states = v1.nn.dynamic_rnn(stack, x, dtype=tf.float32)
    variables = v1.trainable_variables()
    names = [v.name.split("/")[-1].split(":")[0] for v in variables]
    assert names == NAMES * 2
    update = v1.train.GradientDescentOptimizer(1.0).minimize(
        outwards(outputs, cells[0])
    )
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for steps in (0, 100):
            for _ in range(steps):
                session.run(update, {x: X})
            check_stack(*session.run([outputs, states, variables], {x: X}))
        u, in_use = session.run(
            [variables[1], cells[0].bounded_recurrent_kernel]
        )
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
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        check_stack(*session.run([outputs, states, v1.trainable_variables()]))
        parts = tf.concat([start, end], axis=1)
        check(*session.run([parts, outputs]))
        check(*session.run([last, states]))
    assert len(v1.trainable_variables()) == 6


def optimizers():
    cell = new_cell()
    outputs, _ = v1.nn.dynamic_rnn(cell, X, dtype=tf.float32)
    loss, in_use = outwards(outputs, cell), cell.bounded_recurrent_kernel
    _, raw, _ = v1.trainable_variables()
    for optimizer in (
        v1.train.MomentumOptimizer(0.1, 0.9),
        v1.train.AdagradOptimizer(0.5),
        v1.train.RMSPropOptimizer(0.05),
        v1.train.AdamOptimizer(0.05),
        v1.train.FtrlOptimizer(0.5),
    ):
        session, losses = train(loss, optimizer, steps=50)
        name = type(optimizer).__name__
        assert losses[-1] < losses[0] - 0.1, (name, losses)
        u, used = session.run([raw, in_use])
        assert np.abs(u).max() > BOUND, name
        assert np.abs(used).max() <= np.float32(BOUND), name
        session.close()


def saver():
    def build():
        # Names are counted in a process: those of a second cell differ, but
        # not with a name of one's own. The state of random numbers has none.
        cell = IndRNNCell(N, recurrent_max_abs=BOUND, name="remembers")
        outputs, _ = v1.nn.dynamic_rnn(cell, X, dtype=tf.float32)
        optimizer = v1.train.AdamOptimizer(0.05)
        update = optimizer.minimize(outwards(outputs, cell))
        variables = [v for v in v1.global_variables() if "seed" not in v.name]
        return variables, outputs, update, v1.train.Saver(variables)

    with tempfile.TemporaryDirectory() as directory:
        variables, outputs, update, saver = build()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(20):
                session.run(update)
            path = saver.save(session, os.path.join(directory, "model"))
            saved = session.run([outputs, *variables])
            session.run(update)
            after = session.run([outputs, *variables])
        names = [v.name for v in variables]
        assert names[:3] == [f"remembers/{name}:0" for name in NAMES], names
        with tf.Graph().as_default(), v1.Session() as session:
            variables, outputs, update, saver = build()
            saver.restore(session, path)
            restored = session.run([outputs, *variables])
            session.run(update)
            further = session.run([outputs, *variables])
    # Three weights, two moments of each, two powers of beta.
    assert [v.name for v in variables] == names and len(names) == 11
    for old, new in zip(saved + after, restored + further, strict=True):
        np.testing.assert_array_equal(old, new)
    assert (after[0] != saved[0]).any()


def one_step(cell, x):
    return cell(x[:, 0], cell.zero_state(B, tf.float32))[0]


def steps(x):
    return tf.unstack(tf.constant(x), axis=1)


def dynamic_rnn(cell):
    return v1.nn.dynamic_rnn(cell, X, dtype=tf.float32)


def scoped(cell):
    with v1.variable_scope("outer"), tf.name_scope("inner"):
        return dynamic_rnn(cell)


LOOPS = {
    "dynamic_rnn": dynamic_rnn,
    "static_rnn": lambda cell: v1.nn.static_rnn(
        cell, steps(X), dtype=tf.float32
    ),
    "a call": lambda cell: one_step(cell, X),
    "MultiRNNCell": lambda cell: dynamic_rnn(
        v1.nn.rnn_cell.MultiRNNCell([cell])
    ),
    "bidirectional": lambda cell: v1.nn.bidirectional_dynamic_rnn(
        cell, new_cell(), X, dtype=tf.float32
    ),
    "scope": scoped,
}


def names_of_checkpoints():
    """The same from every loop, so that each reads the files of all."""
    expected, path = [f"remembers/{name}:0" for name in NAMES], None
    with tempfile.TemporaryDirectory() as directory:
        for loop, build in LOOPS.items():
            with tf.Graph().as_default(), v1.Session() as session:
                v1.set_random_seed(len(loop))
                cell = IndRNNCell(N, recurrent_max_abs=BOUND, name="remembers")
                build(cell)
                y = one_step(cell, X)
                variables = v1.trainable_variables()[:3]
                assert [v.name for v in variables] == expected, (
                    loop,
                    variables,
                )
                saver = v1.train.Saver(variables)
                session.run(v1.global_variables_initializer())
                if path is None:
                    path = saver.save(session, os.path.join(directory, "model"))
                    saved = session.run(y)
                else:
                    assert (session.run(y) != saved).any(), loop
                    saver.restore(session, path)
                    np.testing.assert_array_equal(session.run(y), saved)


def sequence_lengths():
    for loop, inputs in ((v1.nn.dynamic_rnn, X), (v1.nn.static_rnn, steps(X))):
        for lengths in ((T,) * B, LENGTHS):
            options = {"dtype": tf.float32}
            if lengths is LENGTHS:
                options["sequence_length"] = lengths
            cell = new_cell()
            outputs, state = loop(cell, inputs, **options)
            if isinstance(outputs, list):
                outputs = tf.stack(outputs, axis=1)
            optimizer = v1.train.AdamOptimizer(0.01)
            session, losses = train(outwards(outputs, cell), optimizer)
            assert losses[-1] < losses[0]
            variables = v1.trainable_variables()[-3:]
            weights = session.run(variables)
            found = session.run([outputs, state])
            for part, expected in zip(found, oracle(X, weights, lengths)):
                check(part, expected)


def bidirectional_dynamic_rnn():
    forward, backward = new_cell(), new_cell()
    outputs, states = v1.nn.bidirectional_dynamic_rnn(
        forward, backward, X, LENGTHS, dtype=tf.float32
    )
    session, losses = train(
        outwards(tf.concat(outputs, axis=-1), backward),
        v1.train.AdamOptimizer(0.01),
    )
    assert losses[-1] < losses[0]
    weights = session.run(v1.trainable_variables())
    assert len(weights) == 6
    outputs, states = session.run([outputs, states])

    def reverse(y):
        y = y.copy()
        for b, length in enumerate(LENGTHS):
            y[b, :length] = y[b, :length][::-1]
        return y

    for i, order in enumerate((np.array, reverse)):
        y, last = oracle(order(X), weights[3 * i : 3 * i + 3], LENGTHS)
        check(outputs[i], order(y))
        check(states[i], last)


def graph():
    v1.disable_eager_execution()
    for run in (
        stack_with_dynamic_rnn,
        initial_states,
        optimizers,
        saver,
        names_of_checkpoints,
        sequence_lengths,
        bidirectional_dynamic_rnn,
    ):
        with tf.Graph().as_default():
            v1.set_random_seed(1)
            run()
        print(run.__name__)


if __name__ == "__main__":
    {"eager": eager, "graph": graph}[sys.argv[1]]()
