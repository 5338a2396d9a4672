"""The start: what the default initializers draw, and what it does."""

import inspect
import math

import keras
import numpy as np
import pytest

from cases import every_pair
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell, TimeConstants, UnitGain
from indy_cell import GateTimeConstants


def taken_off(u, time_steps, exponent=0.875):
    """What `UnitGain` multiplies the columns of a kernel by."""
    return np.maximum(1 - np.abs(u), 1 / time_steps) ** exponent


def kolmogorov_smirnov(values):
    """How far sorted values are from uniform over [0, 1], times sqrt(n)."""
    n = len(values)
    uniform = (np.arange(n) + 0.5) / n
    return np.abs(np.sort(values) - uniform).max() * np.sqrt(n)


def weights(layer, *shape):
    layer.build(shape)
    return [w.numpy() for w in layer.trainable_weights]


@pytest.mark.parametrize(
    "shortest, longest, negative",
    [(0.5, 1000, 0.25), (3, 30, 0.0), (0.1, 1, 0.75)],
)
@pytest.mark.parametrize("units", [16, 4000])
def test_time_constants_are_log_uniform(shortest, longest, negative, units):
    """At the quantiles, in any order."""
    initializer = TimeConstants(shortest, longest, negative, seed=1)
    u = np.array(initializer((units,), "float64"))
    for part, share in ((u[u < 0], negative), (u[u > 0], 1 - negative)):
        assert len(part) == units * share
        tau = -1 / np.log(np.abs(part))
        place = np.log(tau / shortest) / np.log(longest / shortest)
        quantiles = (np.arange(len(part)) + 0.5) / max(1, len(part))
        np.testing.assert_allclose(np.sort(place), quantiles, atol=1e-3)
        assert len(part) < 3 or (np.diff(place) < 0).any()
    assert (np.abs(u) < 1).all()
    # Or one for all
    u = TimeConstants(7, 7, negative=0.0)((50,))
    np.testing.assert_allclose(u, np.full(50, math.exp(-1 / 7)), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: TimeConstants(1.0, 30.0, 0.5, seed),
        lambda seed: GateTimeConstants(1.0, 30.0, seed),
        lambda seed: UnitGain(
            keras.initializers.HeUniform(seed),
            TimeConstants(seed=seed),
            20,
            0.6,
        ),
    ],
)
def test_an_initializer_repeats_itself_and_others_differ(make):
    shape = (3, 40)
    unseeded, seeded, other, third = map(make, (None, 1, 2, None))
    config = seeded.get_config()
    assert {*config} == {*inspect.signature(type(seeded)).parameters}
    saved = keras.saving.serialize_keras_object(seeded)
    loaded = keras.saving.deserialize_keras_object(saved)
    for again in (make(1), loaded, keras.initializers.get(saved)):
        assert type(again) is type(seeded) and again.get_config() == config
        np.testing.assert_array_equal(again(shape), seeded(shape))
    np.testing.assert_array_equal(unseeded(shape), unseeded(shape))
    assert np.abs(seeded(shape) - other(shape)).mean() > 0.01
    assert np.abs(unseeded(shape) - third(shape)).mean() > 0.01
    for dtype in ("float16", "float64", None):
        assert seeded(shape, dtype).dtype == (dtype or "float32")


def told(units):
    cell = IndRNNCell(units)
    cell.time_steps = 20
    return cell


@pytest.mark.parametrize(
    "make, shape, time_steps",
    [
        (IndRNN, (1, 50), 1),
        (IndRNN, (784, 50), 784),
        (IndRNN, (None, 50), 1000),
        (
            lambda units: IndRNN(
                units,
                kernel_initializer=UnitGain(),
                recurrent_initializer=TimeConstants(),
            ),
            (10_000, 50),
            10_000,
        ),
        (IndRNNCell, (50,), 1000),
        (lambda units: keras.layers.RNN(IndRNNCell(units)), (30, 50), 1000),
        (told, (50,), 20),
        (lambda units: DilatedRNN([IndRNN(units)], [50]), (1000, 50), 20),
    ],
)
def test_default_start(make, shape, time_steps):
    """It depends on the number of time steps, if that is known."""
    keras.utils.set_random_seed(1)
    kernel, u, bias = weights(make(2000), None, *shape)
    tau = -1 / np.log(np.abs(u))
    place = np.log(tau / 0.5) / np.log(time_steps / 0.5)
    assert kolmogorov_smirnov(np.clip(place, 0, 1)) < 1.63
    assert abs((u < 0).mean() - 0.25) < 0.05
    plain = kernel / taken_off(u, time_steps)
    limit = np.sqrt(6 / np.sqrt(50 * 2000))
    assert kolmogorov_smirnov(plain.ravel() / limit / 2 + 0.5) < 1.63
    assert not bias.any()


def test_the_gain_is_that_of_the_weights_that_the_cell_draws():
    for given in (None, keras.initializers.RandomUniform(-2.0, 2.0)):
        cell = IndRNNCell(
            200,
            kernel_initializer=UnitGain("ones"),
            recurrent_initializer=given,
            recurrent_max_abs=0.9,
        )
        kernel, u, _ = weights(cell, None, 1)
        assert np.abs(u).max() <= np.float32(0.9)
        np.testing.assert_allclose(kernel[0], taken_off(u, 1000), rtol=1e-5)


def responses(x, exponent, depth=6, units=128):
    """The root mean square of each layer's last output over that of x."""
    unit, result = np.sqrt(np.mean(x**2)), []
    for _ in range(depth):
        gain = UnitGain(exponent=exponent)
        x = IndRNN(units, return_sequences=True, kernel_initializer=gain)(x)
        result.append(float(np.sqrt(np.mean(x[:, -1].numpy() ** 2))) / unit)
    return result


# exponent: kind: (the least of the first layer, of the last, the most of all);
# what is left of the gain of a layer grows with T^(1 - exponent).
GAINS = {
    1.0: {"constant": (0.6, 0.1, 1.5), "noise": (0.2, 0.05, 1.3)},
    0.875: {"constant": (0.6, 0.1, 50), "noise": (0.3, 0.1, 5)},
}


@pytest.mark.parametrize(
    "time_steps, kind, exponent",
    every_pair([1, 100, 10_000], ["noise", "constant"], GAINS),
)
def test_a_stack_neither_explodes_nor_dies_out(time_steps, kind, exponent):
    rng = np.random.default_rng(5)
    length = time_steps if kind == "noise" else 1
    x = rng.normal(size=(4, length, 128)).astype("float32")
    x = np.broadcast_to(x, (4, time_steps, 128))
    keras.utils.set_random_seed(4)
    gains = responses(x, exponent)
    least, least_of_last, most = GAINS[exponent][kind]
    if time_steps <= 100:
        most = min(most, 3)
    assert least < gains[0] and least_of_last < gains[-1]
    assert max(gains) < most


def test_both_directions_differ():
    layer = keras.layers.Bidirectional(IndRNN(50))
    layer.build((None, 20, 3))
    cells = layer.forward_layer.cell, layer.backward_layer.cell
    for cell in cells:
        plain = cell.kernel / taken_off(cell.recurrent_kernel, 20)
        limit = np.sqrt(6 / np.sqrt(3 * 50))
        assert 0.9 * limit < np.abs(plain).max() <= limit * 1.0001
    differences = np.abs(cells[0].recurrent_kernel - cells[1].recurrent_kernel)
    assert differences.mean() > 0.01


@pytest.mark.parametrize(
    "make, argument, values",
    [
        (TimeConstants, "shortest", [0, -1, "1"]),
        (TimeConstants, "longest", [0.1, math.inf]),
        (TimeConstants, "negative", [1, -0.1, True]),
        (TimeConstants, "seed", [1.5]),
        (UnitGain, "time_steps", [0, 1.5]),
        (UnitGain, "exponent", [-0.5, "1"]),
    ],
)
def test_bad_arguments_are_named(make, argument, values):
    for value in values:
        match = f"`{argument}` must be .*got .*{value}"
        with pytest.raises((TypeError, ValueError), match=match):
            make(**{argument: value})


def test_unit_gain_wants_initializers():
    for argument in ("initializer", "recurrent_initializer"):
        with pytest.raises(ValueError, match="nonsense"):
            UnitGain(**{argument: "nonsense"})
    with pytest.raises(ValueError, match="`recurrent_initializer`.*got None"):
        keras.layers.Dense(3, kernel_initializer=UnitGain()).build((None, 2))


def test_unit_gain_outside_of_an_ind_rnn():
    u = TimeConstants(longest=50, seed=1)
    dense = keras.layers.Dense(30, kernel_initializer=UnitGain("ones", u, 50))
    recur = IndRNN(30, use_kernel=False, recurrent_initializer=u)
    dense.build((None, 50, 2))
    (u, _) = weights(recur, None, 50, 30)
    np.testing.assert_allclose(dense.kernel[0], taken_off(u, 50), rtol=1e-5)
