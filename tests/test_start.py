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


def uniform():
    """Recurrent weights uniform over [0, 1], as in the paper, for a layer."""
    return {
        "kernel_initializer": "glorot_uniform",
        "recurrent_initializer": keras.initializers.RandomUniform(0.0, 1.0),
    }


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
    cell = getattr(layer, "cell", layer)
    return [w.numpy() for w in cell.trainable_weights]


@pytest.mark.parametrize(
    "shortest, longest, negative",
    [(0.5, 1000, 0.25), (3, 30, 0.0), (0.1, 1, 0.9)],
)
def test_time_constants_are_log_uniform(shortest, longest, negative):
    initializer = TimeConstants(shortest, longest, negative, seed=1)
    u = np.array(initializer((4000,), "float64"))
    for part, share in ((u[u < 0], negative), (u[u > 0], 1 - negative)):
        assert abs(len(part) - 4000 * share) <= 2.5 * np.sqrt(4000 / 4)
        if share:
            tau = -1 / np.log(np.abs(part))
            place = np.log(tau / shortest) / np.log(longest / shortest)
            assert -1e-3 < place.min() and place.max() < 1 + 1e-3
            assert kolmogorov_smirnov(place) < 1.63  # 1 %
    assert (np.abs(u) < 1).all()
    # Or one for all
    u = TimeConstants(7, 7, negative=0.0)((50,))
    np.testing.assert_allclose(u, np.full(50, math.exp(-1 / 7)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", None])
def test_dtypes(dtype):
    for initializer in (TimeConstants(), UnitGain("ones", TimeConstants())):
        expected = dtype or keras.config.floatx()
        assert initializer((4,), dtype).dtype == expected


def test_an_instance_repeats_itself_and_others_differ():
    shape = (3, 40)
    for make in (
        lambda seed: TimeConstants(seed=seed),
        lambda seed: UnitGain(
            keras.initializers.HeUniform(seed), TimeConstants(seed=seed)
        ),
    ):
        initializer, seeded, twin, other, third = map(
            make, (None, 1, 1, 2, None)
        )
        drawn = initializer(shape)
        np.testing.assert_array_equal(drawn, initializer(shape))
        np.testing.assert_array_equal(seeded(shape), twin(shape))
        assert np.abs(seeded(shape) - other(shape)).min() > 0
        assert np.abs(drawn - third(shape)).min() > 0


@pytest.mark.parametrize(
    "time_steps, is_default", [(1, True), (784, True), (10_000, False)]
)
def test_default_start_of_a_layer(time_steps, is_default):
    keras.utils.set_random_seed(1)
    options = {}
    if not is_default:
        options["kernel_initializer"] = UnitGain()
        options["recurrent_initializer"] = TimeConstants()
    kernel, u, bias = weights(IndRNN(2000, **options), None, time_steps, 50)
    tau = -1 / np.log(np.abs(u))
    place = np.log(tau / 0.5) / np.log(time_steps / 0.5)
    assert kolmogorov_smirnov(np.clip(place, 0, 1)) < 1.63
    assert abs((u < 0).mean() - 0.25) < 0.05
    plain = kernel / taken_off(u, time_steps)
    limit = np.sqrt(6 / np.sqrt(50 * 2000))
    assert kolmogorov_smirnov(plain.ravel() / limit / 2 + 0.5) < 1.63
    assert not bias.any()


@pytest.mark.parametrize(
    "make, shape, steps",
    [
        (IndRNNCell, (None, 7), 1000),
        (IndRNN, (None, None, 7), 1000),
        (lambda n: keras.layers.RNN(IndRNNCell(n)), (None, 30, 7), 1000),
        (IndRNNCell, (None, 7), 20),  # told
    ],
)
def test_number_of_time_steps(make, shape, steps):
    keras.utils.set_random_seed(3)
    layer = make(500)
    if steps != 1000:
        layer.time_steps = steps
    kernel, u, _ = weights(layer, *shape)
    assert math.exp(-1.2 / steps) < np.abs(u).max() <= math.exp(-1 / steps)
    plain = kernel / taken_off(u, steps)
    limit = np.sqrt(6 / np.sqrt(7 * 500))
    assert 0.98 < np.abs(plain).max() / limit < 1.0001


def test_a_dilated_layer_has_fewer_steps():
    layer = DilatedRNN([IndRNN(300), IndRNN(300)], [1, 50])
    layer.build((None, 1000, 2))
    for inner, steps in zip(layer.layers, (1000, 20), strict=True):
        u = np.abs(inner.cell.recurrent_kernel)
        assert math.exp(-2 / steps) < u.max() <= math.exp(-1 / steps)


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


def responses(x, start, depth=6, units=128):
    """The root mean square of each layer's last output over that of x."""
    unit, result = np.sqrt(np.mean(x**2)), []
    for _ in range(depth):
        x = IndRNN(units, return_sequences=True, **start())(x)
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
    gains = responses(
        x, lambda: {"kernel_initializer": UnitGain(exponent=exponent)}
    )
    least, least_of_last, most = GAINS[exponent][kind]
    if time_steps <= 100:
        most = min(most, 3)
    assert least < gains[0] and least_of_last < gains[-1]
    assert max(gains) < most
    if time_steps >= 100:
        assert responses(x, uniform)[-1] > 1000


def test_both_directions_differ():
    layer = keras.layers.Bidirectional(IndRNN(50))
    layer.build((None, 20, 3))
    cells = layer.forward_layer.cell, layer.backward_layer.cell
    for cell in cells:
        plain = cell.kernel / taken_off(cell.recurrent_kernel, 20)
        limit = np.sqrt(6 / np.sqrt(3 * 50))
        assert 0.9 * limit < np.abs(plain).max() <= limit * 1.0001
    assert np.abs(cells[0].recurrent_kernel - cells[1].recurrent_kernel).min()


def test_initializers_serialize():
    for initializer in (
        TimeConstants(2.0, 50.0, 0.5, 7),
        TimeConstants(),
        UnitGain("orthogonal", TimeConstants(3.0), 20, 0.6),
        UnitGain(),
    ):
        config = initializer.get_config()
        saved = keras.saving.serialize_keras_object(initializer)
        loaded = keras.saving.deserialize_keras_object(saved)
        assert type(loaded) is type(initializer)
        assert loaded.get_config() == config
        assert keras.initializers.get(saved).get_config() == config


BAD = {
    TimeConstants: [
        ("shortest", [0, -1, "1"]),
        ("longest", [0.1, math.inf]),
        ("negative", [1, -0.1, True]),
        ("seed", [1.5]),
    ],
    UnitGain: [("time_steps", [0, 1.5]), ("exponent", [-0.5, "1"])],
}


def test_bad_arguments_are_named():
    for make, arguments in BAD.items():
        for argument, values in arguments:
            for value in values:
                with pytest.raises((TypeError, ValueError)) as caught:
                    make(**{argument: value})
                message = str(caught.value)
                assert f"`{argument}` must be" in message
                assert str(value) in message
    for argument in ("initializer", "recurrent_initializer"):
        with pytest.raises(ValueError, match="nonsense"):
            UnitGain(**{argument: "nonsense"})


def test_unit_gain_outside_of_an_ind_rnn_wants_its_recurrent_weights():
    with pytest.raises(ValueError, match="`recurrent_initializer`.*got None"):
        keras.layers.Dense(3, kernel_initializer=UnitGain()).build((None, 2))
    u = TimeConstants(longest=50, seed=1)
    dense = keras.layers.Dense(30, kernel_initializer=UnitGain("ones", u, 50))
    recur = IndRNN(30, use_kernel=False, recurrent_initializer=u)
    dense.build((None, 50, 2))
    (u, _) = weights(recur, None, 50, 30)
    np.testing.assert_allclose(dense.kernel[0], taken_off(u, 50), rtol=1e-5)


@pytest.mark.parametrize(
    "initializer",
    [
        TimeConstants(1.0, 30.0, negative=0.5, seed=3),
        GateTimeConstants(1.0, 30.0, seed=3),
        UnitGain("ones", TimeConstants(seed=3), time_steps=20, exponent=0.6),
    ],
)
def test_a_config_holds_every_argument(initializer):
    config = initializer.get_config()
    assert {*config} == {*inspect.signature(type(initializer)).parameters}
    again = type(initializer).from_config(config)
    np.testing.assert_array_equal(again((3, 50)), initializer((3, 50)))
