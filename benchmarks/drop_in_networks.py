"""The networks of `drop_in.py`: a kind of layer, and how its weights start."""

import functools
import math

import keras
from keras import ops

from deep_ind_rnn import residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN, mixed_rnn
from ind_rnn import IndRNN
from ind_rnn_cell import TimeConstants, UnitGain
from indy import IndyGRU, IndyLSTM
from indy_cell import GateTimeConstants

UNITS = 64
# `stacked_ind_rnn` of 6 layers has the weights of LSTM of 2 layers.
STACKED_UNITS = 96
KERAS = "LSTM", "GRU", "SimpleRNN"
INDY = "IndyLSTM", "IndyGRU"
# How often a state may grow over T steps: |u| <= growth^(1 / T). These were run
# with time constants drawn at random, "quantiles" with the default since then.
BOUNDS = {
    "no bound": None,
    "bound 1": 1,
    "bound 2^(1/T)": 2,
    "bound 16^(1/T)": 16,
    "bound 256^(1/T)": 256,
}


# Of `stacked_ind_rnn`, whose default is none, and was "batch" before
NORMALIZATIONS = {
    "stacked, not normalized": {},
    "stacked": {"normalization": "batch"},
    "stacked, layer": {"normalization": "layer"},
    "stacked, rms": {"normalization": "rms"},
}


def build(run, task):
    """The compiled network of a run."""
    x = inputs = keras.Input(task.x.shape[1:], dtype=task.x.dtype)
    if task.vocabulary:
        embedding = keras.layers.Embedding(
            task.vocabulary, UNITS, mask_zero=task.mask
        )
        x = embedding(x)
    elif task.mask:
        x = keras.layers.Masking()(x)
    time_steps = task.x.shape[1]
    if run.model in BUILDERS:
        x = BUILDERS[run.model](run.layers, x, task.every_step)
    elif run.model.startswith("stacked"):
        start = options(run.model, time_steps)
        x = deep(stacked_ind_rnn, run.layers, x, task.every_step, **start)
    else:
        for index in range(run.layers):
            of_layer = {
                "return_sequences": task.every_step or index < run.layers - 1
            }
            start = options(run.model, time_steps)
            x = layer_type(run.model)(UNITS, **of_layer, **start)(x)
    model = keras.Model(inputs, keras.layers.Dense(task.outputs)(x))
    loss = "mse"
    if task.classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy"] if task.score == "accuracy" else None
    adam = keras.optimizers.Adam(run.learning_rate)
    model.compile(adam, loss, metrics=metrics)
    return model


def dilated(kinds, count, x, every_step):
    """A DilatedRNN, with layers of these kinds in turn.

    `count` layers with dilations 1, 2, 4, ...; 0: as many as reach T steps.
    """
    count = count or math.ceil(math.log2(x.shape[1]))
    layers = [kinds[index % len(kinds)](UNITS) for index in range(count)]
    return DilatedRNN(layers, return_sequences=every_step)(x)


def mixed(count, x, every_step):
    """IndRNN, which remembers, over SimpleRNN with dilations 1, 2, ..."""
    return mixed_rnn(UNITS, count, return_sequences=every_step)(x)


def upside_down(count, x, every_step):
    """SimpleRNN with dilations 1, 2, ... over IndRNN."""
    layers = [IndRNN(UNITS)]
    layers += [keras.layers.SimpleRNN(UNITS) for _ in range(count - 1)]
    dilations = [1, *(2**index for index in range(count - 1))]
    return DilatedRNN(layers, dilations, return_sequences=every_step)(x)


def deep(network, count, x, every_step, **options):
    return network(
        x.shape[1:],
        STACKED_UNITS,
        count,
        return_sequences=every_step,
        **options,
    )(x)


def stacked_dilated(count, x, every_step):
    dilations = [2**index for index in range(count)]
    return deep(stacked_ind_rnn, count, x, every_step, dilations=dilations)


def residual_dilated(count, x, every_step):
    dilations = [2 ** (index // 2) for index in range(2 * count + 1)]
    return deep(residual_ind_rnn, count, x, every_step, dilations=dilations)


# Networks of `--study networks`: (layers, x, every_step) -> outputs
SIMPLE = keras.layers.SimpleRNN
BUILDERS = {
    "dilated SimpleRNN": functools.partial(dilated, [SIMPLE]),
    "dilated IndRNN": functools.partial(dilated, [IndRNN]),
    "dilated, in turn": functools.partial(dilated, [SIMPLE, IndRNN]),
    "mixed": mixed,
    "SimpleRNN over IndRNN": upside_down,
    "stacked, dilated": stacked_dilated,
    "residual, dilated": residual_dilated,
    "residual": functools.partial(deep, residual_ind_rnn),
    "residual, batch": functools.partial(
        deep, residual_ind_rnn, normalization="batch"
    ),
}


def layer_type(model):
    """The class of the layers of a network."""
    name = model.split(",")[0]
    if name in KERAS:
        return getattr(keras.layers, name)
    return {"IndyLSTM": IndyLSTM, "IndyGRU": IndyGRU}.get(name, IndRNN)


def chrono(gates, time_steps):
    """An initializer of biases: gates that keep a state for tau steps.

    tau is uniform, and the input gate opens as little as the forget gate closes
    (arXiv 1804.11188). In a GRU they are one.
    """
    uniform = keras.initializers.RandomUniform(0.0, 1.0)

    def start(shape, dtype=None):
        r = uniform((shape[-1] // gates,), dtype)
        keep = ops.log(1 + r * (time_steps - 2))
        zeros = ops.zeros_like(keep)
        if gates == 3:  # z r g, of inputs and of h
            of_inputs = ops.concatenate([keep, zeros, zeros])
            return ops.stack([of_inputs, ops.zeros_like(of_inputs)])
        return ops.concatenate([-keep, keep, zeros, zeros])

    return start


def options_of_gates(model, time_steps):
    """The arguments of a network of IndyLSTM or IndyGRU layers.

    Without a name behind it, the defaults; with names, the start of Keras'
    layers but for these.
    """
    name, *names = model.split(", ")
    if not names:
        return {}
    gates = 4 if name == "IndyLSTM" else 3
    result = {
        "kernel_initializer": "glorot_uniform",
        "bias_initializer": "zeros",
    }
    if gates == 4:
        names.insert(0, "unit_forget_bias")

    def uniform(lowest):
        uniform = keras.initializers.RandomUniform(lowest, 1.0)
        return {"recurrent_initializer": uniform}

    def biases(start):
        others = {"unit_forget_bias": False} if gates == 4 else {}
        return {"bias_initializer": start, **others}

    # All are made, whichever is taken, so that they draw the same seeds.
    starts = {
        "unit_forget_bias": {"unit_forget_bias": True},
        "uniform": uniform(-1.0),
        "zeros": {"recurrent_initializer": "zeros"},
        "positive": uniform(0.0),
        "time constants": biases(GateTimeConstants(longest=time_steps)),
        "chrono": biases(chrono(gates, time_steps)),
        # The variance of each gate: 1 / F.
        "wide": {"kernel_initializer": "lecun_uniform"},
    }
    for start in names:
        result |= starts[start]
    return result


def options(model, time_steps):
    """The arguments of a network's layers: what its start is."""
    if model in KERAS:
        return {}
    if model.startswith(INDY):
        return options_of_gates(model, time_steps)

    def gain(initializer=None, **arguments):
        return {"kernel_initializer": UnitGain(initializer, **arguments)}

    def tau(**arguments):
        return {"recurrent_initializer": TimeConstants(**arguments)}

    uniform = keras.initializers.RandomUniform(0.0, 1.0)
    return {
        "IndRNN": {},
        "quantiles": {},
        **{
            name: {"recurrent_max_abs": growth and growth ** (1 / time_steps)}
            for name, growth in BOUNDS.items()
        },
        # The default before this study
        "uniform": {
            "kernel_initializer": "glorot_uniform",
            "recurrent_initializer": uniform,
        },
        **NORMALIZATIONS,
        "stacked, uniform": {
            "normalization": "batch",
            "recurrent_initializer": keras.initializers.RandomUniform(
                0.0, 2 ** (1 / time_steps)
            ),
        },
        "stacked, time constants": {"normalization": "batch", **tau()},
        "all positive": tau(negative=0.0),
        "half negative": tau(negative=0.5),
        "longest 1000": {**gain(time_steps=1000), **tau(longest=1000)},
        "glorot": gain("glorot_uniform"),
        "he": gain("he_uniform"),
        "fan_avg": gain(
            keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform")
        ),
        "gain^1": gain(exponent=1.0),
        "gain^.75": gain(exponent=0.75),
        "gain^.5": gain(exponent=0.5),
        "he, gain^1": gain("he_uniform", exponent=1.0),
        "uniform, gain": {"recurrent_initializer": uniform},
    }[model]
