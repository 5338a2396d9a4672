"""Deep IndRNN networks: sizes, wiring against NumPy, identities, errors."""

import inspect
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.layers import Add, Dense, LayerNormalization, SpatialDropout1D

from cases import each_value, every_pair
from deep_ind_rnn import (
    RecurrentPenalty,
    TimeStepBatchNormalization,
    dense_ind_rnn,
    residual_ind_rnn,
    stacked_ind_rnn,
)
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from pairs import (
    RMS,
    assert_close,
    assert_same,
    computed,
    data,
    fill,
    masked,
    reloaded,
)

B, T, F, N = 4, 6, 3, 4
STEPS = TimeStepBatchNormalization
# New in Keras 3.9
RMS_LAYER = getattr(keras.layers, "RMSNormalization", LayerNormalization)
BN = (keras.layers.BatchNormalization, LayerNormalization, RMS_LAYER, STEPS)
SMALL = {
    stacked_ind_rnn: {"units": N, "num_layers": 3},
    residual_ind_rnn: {"units": N, "num_blocks": 2},
    dense_ind_rnn: {"growth_rate": 2, "block_sizes": (2, 1)},
}
every_network = pytest.mark.parametrize("network", SMALL)


def small(network, shape=(T, F), **options):
    return network(shape, **{**SMALL[network], **options})


def of_type(model, kind):
    """In the order of depth, which is that of the wiring."""
    return [layer for layer in model.layers if isinstance(layer, kind)]


def filled(model):
    """With weights some of which are beyond the bound."""
    fill(model.weights, scale=1.3)
    return model


def recurrent(model):
    return [np.array(cell.recurrent_kernel) for cell, _ in cells(model)]


def cells(model):
    """(IndRNNCell, dilation) of all recurrences."""
    return [
        (x.cells[0].cell, x.dilations[0])
        if isinstance(x, DilatedRNN)
        else (x.cell, 1)
        for x in of_type(model, (IndRNN, DilatedRNN))
    ]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "network, options, count",
    [
        (stacked_ind_rnn, {}, 86410),
        (stacked_ind_rnn, {"num_layers": 12}, 187786),
        (residual_ind_rnn, {}, 170890),
        (dense_ind_rnn, {}, 256514),
    ],
)
def test_published_sizes(network, options, count, first):
    options = {**options, "normalization": "batch", "normalize_first": first}
    model = network((784, 1), num_outputs=10, **options)
    assert model.output_shape == (None, 10)
    assert sum(np.prod(w.shape) for w in model.trainable_weights) == count
    layers = of_type(model, IndRNN)
    assert len(of_type(model, BN)) == len(layers)
    assert {x.activation for x in layers} == {keras.activations.relu}
    if network is residual_ind_rnn:
        assert len(layers) == 2 * 5 + 1 and len(of_type(model, Add)) == 5
    if network is dense_ind_rnn:
        assert len(layers) == 40
        units = [layers[i].units for i in (0, 17, 30, 39)]
        assert units == [96, 112, 104, 84]


class Wiring:
    """What the docstrings say, in NumPy, with the weights of a model."""

    def __init__(self, model, bound, normalization, first):
        self.layers = {kind: iter(of_type(model, kind)) for kind in (Dense, BN)}
        self.layers[IndRNN] = iter(cells(model))
        self.bound, self.normalization, self.first = bound, normalization, first

    def dense(self, x, units):
        layer = next(self.layers[Dense])
        assert layer.units == units
        y = x @ layer.kernel.numpy()
        return y + layer.bias.numpy() if layer.use_bias else y

    def normalize(self, x):
        if self.normalization is None:
            return x
        layer = next(self.layers[BN])
        gamma, *others = (w.numpy() for w in layer.weights)
        if self.normalization == "rms":
            square = np.mean(x**2, axis=-1, keepdims=True)
            return gamma * x / np.sqrt(square + 1e-5)
        beta, *others = others
        if self.normalization == "layer":
            mean, variance = (
                f(x, -1, keepdims=True) for f in (np.mean, np.var)
            )
        else:
            mean, variance = others[:2]
        if isinstance(layer, STEPS):
            index = np.minimum(np.arange(T), len(mean) - 1)
            mean, variance = mean[index], variance[index]
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def recur(self, x):
        x = self.normalize(x) if self.first else x
        cell, d = next(self.layers[IndRNN])
        u = cell.recurrent_kernel.numpy()
        u = np.clip(u, -(self.bound**d), self.bound**d)
        out = np.zeros_like(x)
        for t in range(x.shape[1]):
            before = out[:, t - d] if t >= d else 0
            z = x[:, t] + u * before + cell.bias.numpy()
            out[:, t] = np.maximum(z, 0)
        return out if self.first else self.normalize(out)

    def stacked_ind_rnn(self, x, units, num_layers):
        for _ in range(num_layers):
            x = self.recur(self.dense(x, units))
        return x

    def residual_ind_rnn(self, x, units, num_blocks):
        x = self.dense(x, units)
        for _ in range(num_blocks):
            y = self.dense(self.recur(x), units)
            x = x + self.dense(self.recur(y), units)
        return self.recur(x)

    def dense_ind_rnn(self, x, growth_rate, block_sizes):
        x = self.recur(self.dense(x, 6 * growth_rate))
        for size in block_sizes:
            for _ in range(size):
                y = self.recur(self.dense(x, 4 * growth_rate))
                y = self.recur(self.dense(y, growth_rate))
                x = np.concatenate([x, y], axis=-1)
            x = self.recur(self.dense(x, x.shape[-1] // 2))
        return x


# normalization, whether it is first, max_steps
NORMALIZED = [
    ("batch", False, None),
    ("batch", True, None),
    ("batch", True, 4),
    ("layer", False, None),
    (RMS, True, None),
    (None, False, None),
]


OUTPUTS = [(False, 5), (True, None)]
WITHOUT_DILATIONS = [
    (*case, None) for case in every_pair(NORMALIZED, SMALL, OUTPUTS)
]
DILATED = [
    (NORMALIZED[0], stacked_ind_rnn, (True, None), (1, 2, 4)),
    (NORMALIZED[2], stacked_ind_rnn, (True, 5), [4, 1, 3]),
    (NORMALIZED[4], stacked_ind_rnn, (True, None), [1, 9, 2]),
    (NORMALIZED[5], residual_ind_rnn, (True, None), [1, 3, 9, 2, 4]),
]


@pytest.mark.parametrize(
    "normalized, network, outputs, dilations", WITHOUT_DILATIONS + DILATED
)
def test_wiring(normalized, network, outputs, dilations, float64):
    normalization, first, max_steps = normalized
    return_sequences, num_outputs = outputs
    options = {} if dilations is None else {"dilations": dilations}
    model = small(
        network,
        normalization=normalization,
        normalize_first=first,
        max_steps=max_steps,
        return_sequences=return_sequences,
        num_outputs=num_outputs,
        dropout=0.5,
        weight_decay=0.1,
        **options,
    )
    filled(model)
    x = data(B, T, F, phase=2)
    oracle = Wiring(model, 2 ** (1 / T), normalization, first)
    expected = getattr(oracle, network.__name__)(x, **SMALL[network])
    expected = expected if return_sequences else expected[:, -1]
    if num_outputs is not None:
        expected = oracle.dense(expected, num_outputs)
    assert all(next(rest, None) is None for rest in oracle.layers.values())
    assert np.ptp(expected) > 0.1
    assert [d for _, d in cells(model)] == [
        *(dilations or [1] * len(cells(model)))
    ]
    assert model.output_shape == (None, *expected.shape[1:])
    assert_close(model(x), expected, 1e-11)


@pytest.mark.parametrize(
    "network, count", [(stacked_ind_rnn, 3), (residual_ind_rnn, 5)]
)
def test_dilations_of_one_are_none(network, count):
    one, other = (
        keras.utils.set_random_seed(1) or small(network, dilations=dilations)
        for dilations in ([1] * count, None)
    )
    assert [type(x) for x in one.layers] == [type(x) for x in other.layers]
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def wide(network, shape, **options):
    """With many neurons, and dilations where they can be."""
    key = "growth_rate" if network is dense_ind_rnn else "units"
    dilations = {"dilations": [1, 2, 4]} if network is stacked_ind_rnn else {}
    return small(network, shape, **{key: 128}, **dilations, **options)


@pytest.mark.parametrize("long_memory", [False, True])
@pytest.mark.parametrize(
    "case, network",
    each_value(
        [
            (T, "auto", 2 ** (1 / T)),
            (T, None, None),
            (None, "auto", 1.0),
            (T, 3, 3.0),
            (T, 0.5, 0.5),
            (T, 0.0, 0.0),
        ],
        [stacked_ind_rnn, *SMALL],
    ),
)
def test_initial_recurrent_weights(case, network, long_memory):
    """With normalization, uniform over [-bound / 3, bound]; the last layer may
    start near 1."""
    time, given, bound = case
    keras.utils.set_random_seed(1)
    options = {"recurrent_max_abs": given, "long_memory": long_memory}
    options["normalization"] = "batch"
    found = cells(wide(network, (time, 1), **options))
    for index, (cell, d) in enumerate(found, 1):
        assert cell.recurrent_max_abs == (bound and bound**d)
        high = 1.0 if bound is None else bound**d
        low = -high / 3
        if long_memory and high > 0 and index == len(found):
            low = min(1 / high, high)
        u = np.sort(cell.recurrent_kernel)
        assert low - 1e-6 <= u[0] and u[-1] <= high + 1e-6
        if high - low > 1e-6:  # Kolmogorov-Smirnov
            uniform = (np.arange(len(u)) + 0.5) / len(u)
            distance = np.abs((u - low) / (high - low) - uniform).max()
            assert distance < 2 / np.sqrt(len(u))
    firsts = {float(cell.recurrent_kernel[0]) for cell, _ in found}
    assert bound == 0 or len(firsts) == len(found)


@pytest.mark.parametrize("network, time", each_value(SMALL, [20, 5, 1000]))
def test_start_without_normalization(network, time):
    """Each Dense layer knows what the recurrence that it feeds remembers."""
    keras.utils.set_random_seed(2)
    model = wide(network, (time, 16))
    kernels = [x.kernel.numpy() for x in of_type(model, Dense)]
    # By width and dilation; a neuron has the same order in all layers.
    found = list(zip(recurrent(model), (d for _, d in cells(model))))
    us = {(len(u), d): u for u, d in found}
    for u, d in found:
        np.testing.assert_array_equal(u, us[len(u), d])
        np.testing.assert_array_equal(np.argsort(u), np.argsort(us[len(u), 1]))
        # Log-uniform up to the steps of the layer; the largest of many
        longest = -1 / np.log(np.abs(u).max())
        assert 0.8 * time / d < longest <= np.ceil(time / d) * 1.001
    dilations = [1, 2, 4] if network is stacked_ind_rnn else [1] * len(kernels)
    for kernel, d in zip(kernels, dilations, strict=True):
        u, steps = us[kernel.shape[1], d], np.ceil(time / d)
        plain = kernel / np.maximum(1 - np.abs(u), 1 / steps)
        # As "he_normal": of equal spread, whatever a neuron remembers
        expected = np.sqrt(2 / len(kernel))
        assert 0.7 < plain[:, np.abs(u) > 0.5].std() / expected < 1.3
        assert 0.7 < plain[:, np.abs(u) < 0.5].std() / expected < 1.3
    for a, b in itertools.combinations(kernels, 2):
        assert a.shape != b.shape or np.abs(a - b).max() > 1e-3
    x = data(2, 1, 16).astype("float32") * np.ones((2, time, 16), "float32")
    y = model(x).numpy()
    assert 0.02 < np.sqrt(np.mean(y**2) / np.mean(x**2)) < 5


def test_the_head_without_normalization_has_no_gain():
    keras.utils.set_random_seed(3)
    model = stacked_ind_rnn((9, 2), 64, 1, num_outputs=64, normalization=None)
    *_, head = of_type(model, Dense)
    spread = head.kernel.numpy().std(axis=0) / np.sqrt(2 / 64)
    assert 0.6 < spread.min() and spread.max() < 1.4
    # And its dense layers may start as Keras' do.
    stacked_ind_rnn((9, 2), 4, 1, normalization=None, kernel_initializer=None)


@pytest.mark.parametrize(
    "network, long_memory", each_value(SMALL, [False, True])
)
def test_given_initializers(network, long_memory):
    options = {"long_memory": long_memory, "recurrent_max_abs": 2.0}
    for given, value in (
        (keras.initializers.Constant(-0.75), -0.75),
        ("ones", 1.0),
        (keras.initializers.Constant(-3.0), -2.0),
    ):
        *weights, last = recurrent(
            small(network, recurrent_initializer=given, **options)
        )
        if long_memory:
            assert 0.5 <= last.min() < last.max() <= 2
        else:
            weights.append(last)
        assert all((u == value).all() for u in weights)

    # Layers of one instance differ.
    model = small(
        network,
        kernel_initializer=keras.initializers.HeNormal(),
        recurrent_initializer=keras.initializers.RandomUniform(-0.5, 0.5),
    )
    kernels = [x.kernel.numpy() for x in of_type(model, Dense)]
    for group in (kernels, recurrent(model)):
        for a, b in itertools.combinations(group, 2):
            assert a.shape != b.shape or np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize("network, num_outputs", each_value(SMALL, [None, 5]))
def test_weight_decay(network, num_outputs):
    assert small(network, num_outputs=num_outputs).losses == []
    model = filled(small(network, num_outputs=num_outputs, weight_decay=0.3))
    # Of all dense layers, the one on top included
    kernels = [x.kernel.numpy() for x in of_type(model, Dense)]
    expected = 0.15 * sum(np.sum(kernel**2) for kernel in kernels)
    assert_close(tf.add_n(model.losses), expected, 1e-5)


def sources(layers):
    return [layer.input._keras_history.operation for layer in layers]


@pytest.mark.parametrize(
    "network, kind, first",
    [
        (stacked_ind_rnn, "batch", False),
        (residual_ind_rnn, "batch", True),
        (dense_ind_rnn, None, False),
    ],
)
def test_dropout_is_the_same_at_all_steps(network, kind, first):
    keras.utils.set_random_seed(2)
    options = {"normalization": kind, "normalize_first": first}
    options |= {"dropout": 0.25, "activation": "sigmoid"}
    if network is dense_ind_rnn:
        of_all = ("input_dropout", "bottleneck_dropout", "transition_dropout")
        options |= dict.fromkeys(of_all, 0.25)
    model = small(network, **options)
    layers = of_type(model, SpatialDropout1D)
    source = BN if kind and not first else IndRNN
    assert sources(layers) == of_type(model, source)
    parts = keras.Model(model.input, [(x.input, x.output) for x in layers])
    x = data(64, T, F).astype("float32")
    for before, after in parts(x):
        np.testing.assert_array_equal(before, after)
    for before, after in parts(x, training=True):
        kept = after.numpy() != 0
        np.testing.assert_array_equal(kept, np.repeat(kept[:, :1], T, 1))
        assert_close(after, np.where(kept, before / 0.75, 0), 1e-5)
        assert 0.5 < kept[:, 0].mean() < 0.95
        assert not (kept == kept[:1]).all()


RATES = {
    "input_dropout": 0.1,
    "dropout": 0.2,
    "bottleneck_dropout": 0.3,
    "transition_dropout": 0.4,
    "last_dropout": 0.5,
}


def test_places_of_dropout():
    for names in (
        tuple(RATES),
        *((name,) for name in RATES),
        tuple(RATES)[:-1],
    ):
        used = {name: RATES[name] for name in names}
        model = small(dense_ind_rnn, normalization=None, **used)
        layer = [("bottleneck_dropout", 8), ("dropout", 2)]
        last = (
            "last_dropout" if "last_dropout" in names else "transition_dropout"
        )
        places = [
            ("input_dropout", 12),
            *(2 * layer + [("transition_dropout", 8)]),
            *(layer + [(last, 5)]),
        ]
        expected = [(used[name], n) for name, n in places if name in used]
        layers = of_type(model, SpatialDropout1D)
        units = [source.units for source in sources(layers)]
        assert [(x.rate, n) for x, n in zip(layers, units)] == expected
    assert RATES.keys() <= inspect.signature(dense_ind_rnn).parameters.keys()
    model = small(dense_ind_rnn, transition_dropout=0.4, last_dropout=0.0)
    assert [x.rate for x in of_type(model, SpatialDropout1D)] == [0.4]


@pytest.mark.parametrize(
    "network, normalized",
    each_value(SMALL, [NORMALIZED[0], NORMALIZED[4], NORMALIZED[5]]),
)
def test_stateful_chunks_are_the_whole(network, normalized, float64):
    given = dict(zip(("normalization", "normalize_first"), normalized))
    if network is stacked_ind_rnn:
        given["dilations"] = [3, 1, 2]
    options = {"return_sequences": True, **given}
    whole = filled(small(network, (None, F), **options))
    stream = small(network, (None, F), stateful=True, batch_size=B, **options)
    of_last = small(network, (None, F), **given)
    assert stream.output_shape[:2] == (B, None)
    for cell, _ in cells(whole):
        assert cell.recurrent_max_abs == 1.0
    for model in (stream, of_last):
        weights = [w for w in model.weights if w.name != "rnn_state"]
        for w, value in zip(weights, whole.weights, strict=True):
            w.assign(value)
    x = data(B, T, F)
    for _ in range(2):
        for layer in of_type(stream, (IndRNN, DilatedRNN)):
            layer.reset_state()
        parts = [stream(part) for part in np.split(x, [1, 3], axis=1)]
        assert_close(np.concatenate(parts, 1), whole(x), 1e-9)
    for time in (1, 4, T):
        assert_close(of_last(x[:, :time]), whole(x)[:, time - 1], 1e-9)


@pytest.mark.parametrize(
    "options, dilation",
    each_value(
        [
            {},
            {"use_kernel": False, "use_bias": False, "recurrent_max_abs": 0.5},
            {"activation": "tanh", "dtype": "mixed_float16"},
            {"dropout": 0.5},
            {"implementation": "parallel"},
            {"unroll": True},
        ],
        [2, 3, 9],
    ),
)
def test_dilated_layers_equal_their_cells(options, dilation):
    of_cell = {**options}
    for name in ("implementation", "unroll"):
        of_cell.pop(name, None)
    fast, slow = (
        DilatedRNN([layer], [dilation], return_sequences=True)
        for layer in (IndRNN(F, **options), IndRNNCell(F, **of_cell))
    )
    x = tf.constant(data(B, T, F), "float32")
    for layer in (fast, slow):
        layer.build(x.shape)
        fill(layer.trainable_weights)
    for mask in [None] if options else [None, masked("left", B, T)]:
        found, expected = (
            computed(layer, x, None, mask, training="dropout" not in options)
            for layer in (fast, slow)
        )
        assert_same(found, expected, options.get("dtype", "float32"))


@every_network
def test_names_and_losses_are_saved(network, tmp_path):
    model = small(
        network,
        weight_decay=0.1,
        recurrent_regularizer=RecurrentPenalty(0.1, 0.5),
        recurrent_max_abs=None,
    )
    loaded = reloaded(model, tmp_path)
    assert loaded.losses == model.losses and len(model.losses) > 2
    assert loaded.name == model.name == network.__name__
    assert small(network, name="mine").name == "mine"


@pytest.mark.parametrize("bound, factor", [(0.9, 1.0), (0, 2), (5.0, 1.0)])
def test_recurrent_penalty(bound, factor):
    u = data(9, scale=2.0)
    penalty = RecurrentPenalty(bound, factor)
    with tf.GradientTape() as tape:
        tape.watch(v := tf.constant(u))
        loss = penalty(v)
    beyond = np.maximum(np.abs(u) - bound, 0)
    slope = factor * np.sign(u) * (beyond > 0)
    gradient = tape.gradient(loss, v)
    assert_close([loss, gradient], [factor * beyond.sum(), slope], 1e-12)
    saved = keras.saving.serialize_keras_object(penalty)
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is RecurrentPenalty
    assert again.get_config() == {"recurrent_max_abs": bound, "factor": factor}

    options = {"recurrent_regularizer": penalty, "recurrent_max_abs": None}
    for network in SMALL:
        model = filled(small(network, **options))
        us = recurrent(model)
        assert len(model.losses) == len(us)
        assert_close(sum(model.losses), sum(map(penalty, us)), 1e-5)


ERRORS = {
    stacked_ind_rnn: [
        ("num_layers", [0, 1.5, True, "6", None]),
        ("dilations", [5, "124", [1, 2], []]),
        ("units", [0, -1, 1.5, True, None]),
        ("dropout", [1.0, -0.1, "a", True, float("nan")]),
    ],
    residual_ind_rnn: [
        ("num_blocks", [0, 1.5, True]),
        ("dilations", [5, "12412", [1, 2, 4], []]),
        ("units", [0, 1.5, True]),
        ("dropout", [1.0, -0.1]),
    ],
    dense_ind_rnn: [
        ("growth_rate", [0, 1.5, True]),
        ("block_sizes", [(), [], 4, None, "8"]),
        *((name, [1.0, -0.1]) for name in RATES),
    ],
}
OF_ALL = [
    ("input_shape", [(F,), (T, F, 1), 5, None]),
    ("num_outputs", [0, 1.5, True]),
    ("normalization", ["middle", True, "after"]),
    ("normalize_first", ["after", 1, None]),
    ("max_steps", [0, 1.5, True]),
    ("weight_decay", [-0.1, "a", float("inf")]),
    ("recurrent_max_abs", [-1.0, "a", True]),
    ("long_memory", [1, None, "yes"]),
    ("return_sequences", [1, None]),
    ("stateful", [1, None]),
]
OF_KERAS = (
    "activation",
    "kernel_initializer",
    "recurrent_initializer",
    "recurrent_regularizer",
)


@every_network
def test_errors_name_argument_and_value(network):
    for name, values in ERRORS[network] + OF_ALL:
        for value in values:
            options = {**SMALL[network], "input_shape": (T, F), name: value}
            with pytest.raises((TypeError, ValueError)) as caught:
                network(**options)
            message = str(caught.value)
            assert f"`{name}`" in message, (name, value, message)
            assert str(value) in message, (name, value, message)
    for name in OF_KERAS:
        with pytest.raises(ValueError, match="no such"):
            small(network, **{name: "no such"})
    for shape, index in (((0, F), 0), ((2.5, F), 0), ((T, None), 1)):
        pattern = re.escape(f"`input_shape[{index}]`") + f".*{shape[index]}"
        with pytest.raises((TypeError, ValueError), match=pattern):
            small(network, shape)
    with pytest.raises(ValueError, match="`max_steps`.*3"):
        small(network, max_steps=3, normalization="layer")
    with pytest.raises(ValueError, match="`normalize_first`"):
        small(network, normalize_first=True, normalization=None)
    with pytest.raises(TypeError, match="no_such"):
        small(network, no_such=1)


PARTS = [
    *[
        (stacked_ind_rnn, {"dilations": [1, d, 2]}, rf"`dilations\[1\]`.*{d}")
        for d in (0, 2.5, True)
    ],
    (dense_ind_rnn, {"block_sizes": (2, 0)}, r"`block_sizes\[1\]`.*0"),
    (dense_ind_rnn, {"block_sizes": [1.5]}, r"`block_sizes\[0\]`.*1.5"),
    *[
        (
            dense_ind_rnn,
            {"transition_dropout": 1.0, "last_dropout": last},
            "`transition_dropout`.*1.0",
        )
        for last in (None, 0.1)
    ],
    (STEPS, {"max_steps": 0}, "`max_steps`.*0"),
    (STEPS, {"max_steps": 5, "momentum": 1.0}, "`momentum`.*1.0"),
    (STEPS, {"max_steps": 5, "epsilon": -1.0}, "`epsilon`.*-1.0"),
    (RecurrentPenalty, {"recurrent_max_abs": -1.0}, "`recurrent_max_abs`.*-1"),
    (
        RecurrentPenalty,
        {"recurrent_max_abs": 1.0, "factor": None},
        "`factor`.*None",
    ),
]


def test_errors_of_parts():
    for make, options, match in PARTS:
        with pytest.raises((TypeError, ValueError), match=match):
            small(make, **options) if make in SMALL else make(**options)
    with pytest.raises(ValueError, match=r"`inputs`.*\(2, 3\)"):
        STEPS(5)(np.ones((2, 3)))


@every_network
def test_signatures_show_their_arguments(network):
    parameters = inspect.signature(network).parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    shared = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert shared[0] == "activation" and shared[-1] == "name"
    defaults = {name: parameters[name].default for name in shared}
    assert defaults == {
        name: inspect.signature(stacked_ind_rnn).parameters[name].default
        for name in shared
    }
    with pytest.raises(TypeError, match=f"{network.__name__}.*'unit'"):
        network((5, 2), unit=4)


def test_rms_needs_a_keras_that_has_it(monkeypatch):
    monkeypatch.delattr(keras.layers, "RMSNormalization", raising=False)
    with pytest.raises(ValueError, match='`normalization="rms"` .*Keras 3.9'):
        small(stacked_ind_rnn, normalization="rms")


def test_projections_start_for_the_steps_of_what_they_feed():
    dilations = [1, 3, 5]
    model = residual_ind_rnn(
        (20, 2), 4, num_blocks=1, normalization=None, dilations=dilations
    )
    found = [
        layer.kernel_initializer.time_steps
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense)
    ]
    assert found == [20, 7, 4]
