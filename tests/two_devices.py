"""What needs two devices: a process of its own, of two logical CPUs.

`test_distributed.py` runs it: `pytest -n 0 tests/two_devices.py`.
"""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import distributed_training
import training
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_optimizer import TimeScaledAdam
from runs import DISTRIBUTED, assert_same_run, main, refused

T, F, N, BOUND = 12, 3, 8, 0.3
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    2 * [tf.config.LogicalDeviceConfiguration()],
)


@pytest.fixture(scope="module")
def mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def network(kind, **options):
    """A network of which many recurrent weights start on their bound."""
    keras.utils.set_random_seed(1)
    bound = {"recurrent_max_abs": BOUND}
    uniform = keras.initializers.RandomUniform(0.5, 1.0)
    body = {
        "layer": lambda: IndRNN(N, **bound),
        "dilated": lambda: DilatedRNN(
            [IndRNN(N, **bound), keras.layers.SimpleRNN(6)], [1, 3]
        ),
        "stacked": lambda: stacked_ind_rnn(
            (T, F), N, 2, recurrent_initializer=uniform, **bound, **options
        ),
    }[kind]()
    return keras.Sequential([keras.Input((T, F)), body, keras.layers.Dense(1)])


def batch(step):
    x = np.random.default_rng(step).normal(size=(8, T, F)).astype("float32")
    return x, x.sum(axis=(1, 2))[:, None] + 5


def trained(kind, scope, optimizer):
    with scope:
        model = network(kind)
        model.compile(optimizer(0.01), "mse")
    model.fit(training.batches(batch, 4), epochs=2, shuffle=False, verbose=0)
    return model


def replicas(weight):
    return [value.numpy() for value in weight.value.values]


@pytest.mark.parametrize(
    "kind, optimizer",
    [(kind, keras.optimizers.SGD) for kind in ("layer", "dilated", "stacked")]
    + [("layer", TimeScaledAdam)],
)
def test_mirrored_fit_equals_one_device(kind, optimizer, mirrored):
    one = trained(kind, contextlib.nullcontext(), optimizer)
    two = trained(kind, mirrored.scope(), optimizer)
    assert len(one.weights) == len(two.weights) > 3
    start = network(kind).get_weights()
    for before, a, b in zip(start, one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(*replicas(b))
        np.testing.assert_allclose(replicas(b)[0], a, rtol=0, atol=1e-5)
        assert np.abs(a - before).max() > 1e-3
        if b.name == "recurrent_kernel" and len(b.shape) == 1:
            assert np.abs(replicas(b)).max() == np.float32(BOUND)


def test_statistics_are_those_of_each_replica(mirrored):
    """Each replica normalizes by, and keeps, those of its part of a batch."""
    with mirrored.scope():
        model = network("stacked", normalization="batch", normalize_first=True)
        model.compile(keras.optimizers.SGD(0.01), "mse")
    stack = model.layers[0]
    (kernel,) = stack.layers[1].get_weights()
    model.fit(training.batches(batch, 1), shuffle=False, verbose=0)
    for moving_mean, part in zip(
        replicas(stack.layers[2].moving_mean),
        np.split(batch(0)[0], 2),
        strict=True,
    ):
        mean = (part @ kernel).mean(axis=(0, 1))
        np.testing.assert_allclose(moving_mean, 0.1 * mean, atol=1e-6)
    # What is saved is that of the first one; trained weights are equal.
    first = replicas(stack.layers[2].moving_mean)[0]
    np.testing.assert_array_equal(stack.layers[2].get_weights()[2], first)
    for weight in model.trainable_weights:
        np.testing.assert_array_equal(*replicas(weight))


def test_mirrored_example_equals_one_device(tmp_path, capsys):
    for strategy in ("alone", "mirrored"):
        argv = [*DISTRIBUTED, tmp_path / strategy, "--strategy", strategy]
        main(distributed_training, argv)
    assert_same_run(tmp_path / "mirrored", tmp_path / "alone")
    argv += ["--batch-size", 9]
    words = "--batch-size must be a multiple of the 2"
    refused(distributed_training, argv, capsys, words)
