"""Normalization: against Keras' layers, and against NumPy step for step."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import LONG, each_value, every_pair
from deep_ind_rnn import (
    DilatedIndRNN,
    dense_ind_rnn,
    residual_ind_rnn,
    stacked_ind_rnn,
)
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_normalization import (
    BatchNormalization,
    Concatenate,
    Dense,
    Dropout,
    LastStep,
    LayerNormalization,
    RMSNormalization,
    TimeStepBatchNormalization,
)
from ind_rnn_recurrence import _attached
from pairs import data, masked, softsign, weighted

B, T, F, N = 4, 6, 3, 4
STEPS = TimeStepBatchNormalization


class RootMeanSquare(keras.layers.Layer):
    """As it is written down."""

    def __init__(self, epsilon, **options):
        super().__init__(**options)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(
            (input_shape[-1],), "ones", autocast=False, name="scale"
        )

    def call(self, x):
        wide = tf.cast(x, "float64" if x.dtype == tf.float64 else "float32")
        square = tf.reduce_mean(wide**2, axis=-1, keepdims=True)
        y = self.scale * wide / tf.sqrt(square + self.epsilon)
        return tf.cast(y, x.dtype)


KINDS = {
    "batch": (BatchNormalization, keras.layers.BatchNormalization),
    "layer": (LayerNormalization, keras.layers.LayerNormalization),
    "rms": (RMSNormalization, RootMeanSquare),
}
MODES = ["eager", "function", "unknown", "jit"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def traced(step, mode, x):
    """A function of arrays like x: eager, traced, compiled; of any sizes."""
    if mode == "eager":
        return step
    spec = tf.TensorSpec([None] * (x.ndim - 1) + [x.shape[-1]], x.dtype)
    return tf.function(
        step,
        jit_compile=mode == "jit",
        input_signature=[spec] if mode == "unknown" else None,
    )


def normalized(layer, x, mode, mask=None):
    """Outputs, gradients and statistics of two training steps."""
    options = {"training": True} | ({} if mask is None else {"mask": mask})

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **options)
            loss = weighted(tf.cast(y, "float64") ** 2)
        weights = [w.value for w in layer.trainable_weights]
        return [y, *tape.gradient(loss, [x, *weights])]

    step = traced(step, mode, x)
    found = [*step(x), *step(x / 2)]
    return found + [w.value for w in layer.non_trainable_weights]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = (np.asarray(tf.cast(v, "float64")) for v in (a, b))
        scale = max(1, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def a_case(kind, seed, dtype):
    """A layer of ours, the one that it is to equal, and their inputs."""
    rng = np.random.default_rng(seed)
    # Over two features alone, gradients are nothing but rounding.
    shape = rng.integers(3, 12, 3)
    spread = rng.choice([0.003, 0.3, 3])  # the first one below epsilon
    x = rng.normal(rng.uniform(-2, 2) * spread, spread, shape)
    options = {"epsilon": rng.choice([1e-3, 1e-5, 1e-7]), "dtype": dtype}
    if kind != "rms":
        options |= {"center": seed % 2 == 0, "scale": seed % 3 > 0}
    if kind == "batch":
        options["momentum"] = rng.choice([0.9, 0.99, 0.0])
    layers = [kind(**options) for kind in KINDS[kind]]
    for layer in layers:
        layer.build(shape)
        for index, w in enumerate(layer.weights):
            w.assign(np.abs(data(*w.shape, phase=index)))
    return *layers, tf.constant(x, layers[0].compute_dtype)


TOLERANCE = {
    "float32": 1e-5,
    "float64": 1e-12,
    "mixed_float16": 1e-3,
    "mixed_bfloat16": 1e-2,
}


@pytest.mark.parametrize(
    "kind, dtype, mode", every_pair(KINDS, TOLERANCE, MODES)
)
def test_it_is_that_of_keras(kind, dtype, mode):
    """Of random sizes and options."""
    tolerance = TOLERANCE[dtype]
    for seed in range(10 if LONG else 3 if kind == "batch" else 2):
        ours, of_keras, x = a_case(kind, seed, dtype)
        found = normalized(ours, x, mode)
        assert_close(found, normalized(of_keras, x, mode), tolerance)
        # and where nothing is trained
        assert_close([ours(x)], [of_keras(x)], tolerance)


@every_kind
def test_large_sums_with_an_offset(kind):
    """As exact as Keras in float64, within what float32 knows of x."""
    x = data(32, 784, 16) + 30
    exact = KINDS[kind][1](epsilon=1e-5, dtype="float64")
    exact.build(x.shape)
    ours = KINDS[kind][0](epsilon=1e-5)
    ours.build(x.shape)
    expected = [exact(x, training=True)]
    found = [tf.function(ours)(tf.constant(x, "float32"), training=True)]
    found += [w.value for w in ours.non_trainable_weights]
    expected += [w.value for w in exact.non_trainable_weights]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@every_kind
def test_gradients_of_gradients(kind):
    ours, of_keras, x = a_case(kind, 3, "float32")

    @tf.function
    def second(layer):
        weights = [w.value for w in layer.trainable_weights]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = weighted(y**3)
            norm = tf.reduce_sum(tape.gradient(loss, x) ** 2)
        return outer.gradient(norm, [x, *weights])

    assert_close(second(ours), second(of_keras), 1e-4)


def program_of(layer, x):
    """The names of all operations of a training step."""
    function = tf.function(lambda x: layer(x, training=True))
    graph = function.get_concrete_function(x).graph.as_graph_def()
    nodes = [*graph.node]
    for each in graph.library.function:
        nodes += each.node_def
    return {node.op for node in nodes}, graph.library.function


@every_kind
def test_training_takes_the_fast_way(kind):
    ours, of_keras, x = a_case(kind, 0, "float32")
    names, functions = program_of(ours, x)
    if kind == "batch":
        assert "FusedBatchNormV3" in names
    else:
        assert any(f.attr["_XlaMustCompile"].b for f in functions)


@pytest.mark.parametrize(
    "kind, options, shape, mask",
    [
        ("batch", {}, (3, 5, 4), "holes"),
        ("batch", {"axis": 1}, (3, 5, 4), None),
        ("batch", {}, (3, 4), None),
        ("batch", {}, (3, 2, 5, 4), None),
        ("batch", {"trainable": False}, (3, 5, 4), None),
        ("layer", {"axis": 1}, (3, 5, 4), None),
        ("layer", {"axis": [1, 2]}, (3, 5, 4), None),
        ("layer", {}, (3, 4), None),
        ("layer", {}, (3, 2, 5, 4), None),
        ("layer", {"trainable": False}, (3, 5, 4), None),
    ],
)
def test_what_else_keras_can_do(kind, options, shape, mask):
    x = tf.constant(data(*shape), "float32")
    mask = None if mask is None else tf.constant(masked(mask, *shape[:2]))
    found = []
    for layer in (make(**options) for make in KINDS[kind]):
        layer.build(shape)
        found.append(normalized(layer, x, "function", mask))
    assert_close(*found, 1e-6)


def loss_and_gradients(model, *batches, mode="function"):
    """Outputs, gradients and running statistics of training steps."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            loss = weighted(tf.cast(y, "float64") ** 2)
        weights = [w.value for w in model.trainable_weights]
        gradients = tape.gradient(loss, [x, *weights])
        return [y, *map(tf.convert_to_tensor, gradients)]

    step = traced(step, mode, batches[0])
    found = [each for x in batches for each in step(x)]
    return [*found, *(w.value for w in model.non_trainable_weights)]


def as_in_keras(model):
    """The same network of Keras' layers, and IndRNN, none of which tells."""
    of_keras = {
        kind: getattr(keras.layers, kind.__name__)
        for kind in (BatchNormalization, Concatenate, Dense, Dropout)
    }

    def clone(layer):
        kind, config = type(layer), layer.get_config()
        if kind is Dropout:
            config["noise_shape"] = (None, 1, None)
        if kind is IndRNN:
            config["with_moments"] = False
        if kind is DilatedIndRNN:
            kind = DilatedRNN
        return of_keras.get(kind, kind).from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def pair_of_networks(network, time=T, **options):
    sizes = {
        stacked_ind_rnn: {"units": N, "num_layers": 3},
        residual_ind_rnn: {"units": N, "num_blocks": 2},
        dense_ind_rnn: {"growth_rate": 2, "block_sizes": (1,)},
    }[network]
    model = network((time, F), num_outputs=2, **sizes, **options)
    other = as_in_keras(model)
    for each in (model, other):
        for index, w in enumerate(each.weights):
            value = data(*w.shape, phase=index)
            w.assign(abs(value) if w.name == "moving_variance" else value)
        for seed, layer in enumerate(each.layers):
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign([seed, seed])
    return model, other


NETWORKS = stacked_ind_rnn, residual_ind_rnn, dense_ind_rnn
OPTIONS = [
    {},
    {"dropout": 0.3},
    {"place": "before"},
    {"return_sequences": True, "activation": "tanh"},
    {"stateful": True, "batch_size": B},
]


@pytest.mark.parametrize(
    "options, mode, network", each_value(OPTIONS, MODES, NETWORKS)
)
def test_networks_train_as_with_keras(network, options, mode, float64):
    time = None if mode == "unknown" else T
    ours, of_keras = pair_of_networks(network, time, **options)
    batches = [tf.constant(data(B, T, F, phase=call)) for call in range(2)]
    found = loss_and_gradients(ours, *batches, mode=mode)
    expected = loss_and_gradients(of_keras, *batches, mode=mode)
    assert_close(found, expected, 1e-11)
    predicted = [tf.function(model)(batches[0]) for model in (ours, of_keras)]
    assert_close(predicted[:1], predicted[1:], 1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dilations", [[1, 2, 3], [2, 4, 2]])
def test_dilations_train_as_with_keras(dilations, mode, float64):
    test_networks_train_as_with_keras(
        stacked_ind_rnn, {"dilations": dilations}, mode, None
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_networks_in_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        ours, of_keras = pair_of_networks(stacked_ind_rnn)
    finally:
        keras.config.set_dtype_policy("float32")
    x = tf.constant(data(B, T, F), "float32")
    tolerance = 0.02 if policy == "mixed_float16" else 0.15
    assert_close(
        loss_and_gradients(ours, x)[:1],
        loss_and_gradients(of_keras, x)[:1],
        tolerance,
    )


def needed(function, *arguments):
    """The operations of a function that its results depend on."""
    graph = function.get_concrete_function(*arguments).graph
    found, rest = {}, [y.op for y in graph.outputs]
    while rest:
        operation = rest.pop()
        if operation.name not in found:
            found[operation.name] = operation
            rest += [x.op for x in operation.inputs]
    return found.values()


@pytest.mark.parametrize(
    "network, dropout, training",
    every_pair(NETWORKS, [0.0, 0.3], [False, True]),
)
def test_nothing_normalizes_whole_sequences(network, dropout, training):
    """The kernels hold it; and the bias is left to the recurrence."""
    ours, of_keras = pair_of_networks(network, dropout=dropout)
    x = tf.constant(data(B, T, F), "float32")
    for model, least, most in ((ours, 0, 0), (of_keras, 3, 1000)):
        function = tf.function(lambda x: model(x, training=training))
        whole = [
            operation.name
            for operation in needed(function, x)
            if "batch_normalization" in operation.name
            and operation.outputs
            and operation.outputs[0].shape[:2] == (B, T)
        ]
        assert least <= len(whole) <= most, whole


def test_layers_between_need_not_know():
    """What is not told is computed: nothing depends on it."""
    inputs = keras.Input((T, F))
    h = IndRNN(N, return_sequences=True, with_moments=True)(inputs)
    y = BatchNormalization()(h)
    z = keras.layers.Activation("tanh")(y)
    both = keras.layers.Add()([Dense(N)(z), Dense(N)(y), y, h])
    ours = keras.Model(inputs, both)
    of_keras = as_in_keras(ours)
    of_keras.set_weights(ours.get_weights())
    x = tf.constant(data(B, T, F), "float32")
    found = loss_and_gradients(ours, x)
    assert_close(found, loss_and_gradients(of_keras, x), 1e-5)


def test_a_frozen_one_takes_running_statistics():
    ours, of_keras = pair_of_networks(stacked_ind_rnn)
    for model in (ours, of_keras):
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    x = tf.constant(data(B, T, F), "float32")
    found = loss_and_gradients(ours, x)
    assert_close(found, loss_and_gradients(of_keras, x), 1e-5)


CASES = {
    "relu": {},
    "tanh": {"activation": "tanh"},
    "own": {"activation": softsign},
    "backwards": {"go_backwards": True},
    "dropout": {"recurrent_dropout": 0.4, "seed": 1},
    "state": {"return_state": True},
}


@pytest.mark.parametrize(
    "case, mode, dtype", each_value(CASES, MODES, ["float64", "float32"])
)
def test_moments_of_the_loop(case, mode, dtype):
    """As of all outputs: the values, and what they pull back."""
    found = []
    for with_moments in (True, False):
        layer = IndRNN(
            N,
            dtype=dtype,
            return_sequences=True,
            with_moments=with_moments,
            recurrent_initializer=keras.initializers.RandomUniform(seed=2),
            kernel_initializer=keras.initializers.RandomNormal(1, seed=3),
            **CASES[case],
        )

        def step(x):
            weights = [w.value for w in layer.trainable_weights]
            with tf.GradientTape() as tape:
                tape.watch(x)
                h = layer(x, training=True)
                h = h[0] if isinstance(h, (list, tuple)) else h
                mean, variance = _attached(h, "moments") or tf.nn.moments(
                    h, (0, 1)
                )
                loss = (
                    weighted(h)
                    + weighted(mean[None])
                    + 3 * weighted(tf.sqrt(variance[None] + 1e-3))
                )
            gradients = tape.gradient(loss, [x, *weights])
            return [mean, variance, *gradients]

        layer.build((None, None, F))
        # Eagerly, the third length is padded.
        batches = [tf.constant(data(B, t, F), dtype) for t in (5, 9, 21)]
        step = traced(step, mode, batches[0])
        found.append([each for x in batches for each in step(x)])
    assert_close(*found, 1e-11 if dtype == "float64" else 1e-5)


def test_moments_in_parts():
    """Of batches that several programs share."""
    x = tf.constant(data(9, 300, 512), "float32")
    layer = IndRNN(
        512, use_kernel=False, return_sequences=True, with_moments=True
    )

    @tf.function
    def step(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            h = layer(x, training=True)
            told, plain = _attached(h, "moments"), tf.nn.moments(h, (0, 1))
            told, plain = (weighted(tf.stack(m)) for m in (told, plain))
        return [[m, tape.gradient(m, x)] for m in (told, plain)]

    found, expected = step(x)
    for a, b in zip(found, expected, strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("offset", [1.0, 30.0, 1000.0])
def test_moments_far_from_zero(offset):
    """With what float32 knows of the outputs, not of their squares."""
    time = 20_000
    x = offset + data(2, time, N, scale=0.01 * offset)
    layer = IndRNN(
        N,
        use_kernel=False,
        recurrent_initializer=keras.initializers.Constant(0.9),
        return_sequences=True,
        with_moments=True,
    )
    h = layer(tf.constant(x, "float32"), training=True)
    mean, variance = _attached(h, "moments")
    exact = h.numpy().astype("float64")
    np.testing.assert_allclose(mean, exact.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(variance, exact.var((0, 1)), rtol=1e-3)


def test_moments_need_all_steps():
    with pytest.raises(ValueError, match="`with_moments=True`.*False"):
        IndRNN(N, with_moments=True)


def test_dropout_is_for_sequences():
    with pytest.raises(ValueError, match=r"`inputs`.*\(2, 3\)"):
        Dropout(0.3)(np.ones((2, 3)))
    layer = Dropout(0.3, seed=1)

    @tf.function(input_signature=[tf.TensorSpec((None, None, F))])
    def call(x):
        y = layer(x, training=True)
        assert y.shape == (None, None, F)
        return y

    assert call(data(B, T, F)).shape == (B, T, F)
    assert "noise_shape" not in layer.get_config()
    assert Dropout.from_config(layer.get_config()).rate == 0.3


def test_the_last_step_of_masked_sequences():
    layers = IndRNN(N, return_sequences=True), LastStep()
    model = keras.Sequential([keras.layers.Masking(), *layers])
    assert model(data(B, T, F)).shape == (B, N)
    with pytest.raises(ValueError, match="expected ndim=3"):
        LastStep()(np.ones((2, 3)))


def test_an_empty_batch_is_concatenated():
    norm = BatchNormalization()
    join = Concatenate()

    @tf.function(input_signature=[tf.TensorSpec((None, T, F))])
    def call(x):
        return join([norm(x), x])

    assert call(np.zeros((0, T, F))).shape == (0, T, 2 * F)
    x = data(B, T, F).astype("float32")
    expected = np.concatenate([norm(x), x], axis=-1)
    np.testing.assert_allclose(call(x), expected, rtol=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_dense_layers_are_quantized(lora):
    ours, of_keras = pair_of_networks(stacked_ind_rnn)
    x = tf.constant(data(B, T, F), "float32")
    for model in (ours, of_keras):
        for layer in model.layers:
            if not isinstance(layer, keras.layers.Dense):
                continue
            if not lora:
                layer.quantize("int8")
                continue
            layer.enable_lora(2)
            for w in (layer.lora_kernel_a, layer.lora_kernel_b):
                w.assign(data(*w.shape))
    kinds = {
        layer.quantization_mode
        for layer in ours.layers
        if isinstance(layer, Dense)
    }
    assert kinds == {None if lora else "int8"}
    found, expected = (tf.function(model)(x) for model in (ours, of_keras))
    assert_close([found], [expected], 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_running_statistics_in_half_precision(dtype):
    """Mixed in float32 and rounded once, as in Keras."""
    x = tf.cast(3 + 2 * data(64, T, F), dtype)
    layers = [kind(dtype=dtype) for kind in KINDS["batch"]]
    for layer in layers:
        for _ in range(100):
            layer(x, training=True)
    for a, b in zip(*(layer.weights for layer in layers), strict=True):
        a, b = (tf.cast(w.value, "float32") for w in (a, b))
        np.testing.assert_allclose(a, b, rtol=0.02)


@pytest.mark.parametrize(
    "options, call",
    [
        ({"with_moments": False}, {}),
        ({}, {"training": False}),
        ({}, {"mask": np.ones((B, T), bool)}),
        ({"implementation": "parallel"}, {}),
        ({"unroll": True}, {}),
    ],
)
def test_where_no_moments_are_told(options, call):
    options = {"with_moments": True, "return_sequences": True} | options
    h = IndRNN(N, **options)(data(B, T, F), **{"training": True} | call)
    assert _attached(h, "moments") is None


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_it_has_the_files_of_keras(kind, tmp_path):
    """Of whole models and of weights, from either to the other."""
    models = [
        keras.Sequential(
            [keras.Input((T, F)), make(epsilon=0.1), keras.layers.Dense(2)]
        )
        for make in KINDS[kind]
    ]
    assert models[0].layers[0].get_config() == {
        **models[1].layers[0].get_config(),
        "name": models[0].layers[0].name,
    }
    x = data(B, T, F).astype("float32")
    for phase, model in enumerate(models):
        for w in model.weights:
            w.assign(np.abs(data(*w.shape, phase=phase)))
        expected = model(x)
        model.save_weights(tmp_path / "model.weights.h5")
        for other in models:
            for w in other.weights:
                w.assign(np.zeros(w.shape))
            other.load_weights(tmp_path / "model.weights.h5")
            np.testing.assert_allclose(other(x), expected, rtol=1e-6)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert type(loaded.layers[0]) is type(model.layers[0])
        np.testing.assert_array_equal(loaded(x), model(x))


def test_rms_normalization_as_a_layer(tmp_path):
    layer = RMSNormalization(epsilon=0.25, name="rms")
    config = layer.get_config()
    assert config["epsilon"] == 0.25
    assert RMSNormalization.from_config(config).get_config() == config
    model = keras.Sequential([keras.layers.Masking(), layer])
    x = data(B, T, F).astype("float32")
    y = model(x)
    assert model.output_shape == (B, T, F) and y._keras_mask.shape == (B, T)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), y)


@pytest.mark.parametrize("epsilon", [-1.0, "a", None, True])
def test_errors_of_rms_normalization(epsilon):
    with pytest.raises((TypeError, ValueError), match="`epsilon`") as caught:
        RMSNormalization(epsilon)
    assert str(epsilon) in str(caught.value)


class StepStatistics:
    """TimeStepBatchNormalization, in NumPy, step for step."""

    def __init__(self, max_steps, momentum, epsilon):
        self.momentum, self.epsilon = momentum, epsilon
        self.known, self.max_steps = {}, max_steps

    def train(self, x, mask):
        y = np.full_like(x, np.nan)
        for t in range(x.shape[1]):
            rows = x[:, t] if mask is None else x[mask[:, t], t]
            if len(rows):
                new = rows.mean(0), rows.var(0)
                y[:, t] = (x[:, t] - new[0]) / np.sqrt(new[1] + self.epsilon)
                if t < self.max_steps:
                    m, old = self.momentum, self.known.get(t, new)
                    self.known[t] = [
                        m * a + (1 - m) * b for a, b in zip(old, new)
                    ]
        return y

    def evaluate(self, x, mask=None):
        y = np.zeros_like(x)
        for t in range(x.shape[1]):
            mean, variance = 0.0, 1.0
            if self.known:
                before = [s for s in self.known if s <= t]
                last = max(before) if before else min(self.known)
                mean, variance = self.known[last]
            y[:, t] = (x[:, t] - mean) / np.sqrt(variance + self.epsilon)
        return y


def normalization(max_steps=7, dtype="float64", **options):
    options = {"momentum": 0.8, "epsilon": 1e-3, **options}
    layer = TimeStepBatchNormalization(max_steps, dtype=dtype, **options)
    layer.build((None, None, N))
    layer.gamma.assign(data(N, phase=1))
    layer.beta.assign(data(N, phase=2))
    return layer


def sequences(time, phase=0.0):
    """Each step with statistics of its own."""
    t = np.arange(time)[:, None]
    return data(B, time, N, phase=phase) * (1 + t) + np.cos(t + phase)


def called(layer, mode, with_mask):
    def function(x, mask=None, training=False):
        return layer(x, mask=mask, training=training)

    if mode == "eager":
        return function
    signature = [tf.TensorSpec([None, None, N], "float64")]
    if with_mask:
        signature.append(tf.TensorSpec([None, None], "bool"))
    functions = [
        tf.function(
            lambda *given, training=training: function(
                *given, training=training
            ),
            input_signature=signature if mode == "unknown" else None,
            jit_compile=mode == "jit",
        )
        for training in (False, True)
    ]
    return lambda x, mask=None, training=False: functions[training](
        tf.constant(x), *([tf.constant(mask)] if with_mask else [])
    )


@pytest.mark.parametrize(
    "kind, mode",
    each_value(
        (None, "holes", "right", "left", "row"), ("eager", "unknown", "jit")
    ),
)
def test_statistics_of_steps(kind, mode):
    layer = normalization()
    function = called(layer, mode, kind is not None)
    oracle = StepStatistics(7, 0.8, 1e-3)
    plan = [(3, False), (4, True), (3, True), (6, False), (2, False)]
    plan += [(6, True), (6, False), (9, True), (12, False), (5, True), (3, 0)]
    gamma, beta = layer.gamma.numpy(), layer.beta.numpy()
    for call, (time, training) in enumerate(plan):
        x = sequences(time, phase=call)
        mask = masked(kind, B, time)
        if mask is not None and call == 1:
            mask[:, [0, 2]] = False
        step = oracle.train if training else oracle.evaluate
        expected = gamma * step(x, mask) + beta
        y = function(x, mask, training=bool(training)).numpy()
        assert np.isfinite(y).all() and y.shape == x.shape
        y = np.where(np.isnan(expected), np.nan, y)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-9)
        known = sorted(oracle.known)
        assert list(np.flatnonzero(layer.trained)) == known
        for moving, i in ((layer.moving_mean, 0), (layer.moving_variance, 1)):
            target = [oracle.known[t][i] for t in known]
            actual = moving.numpy()[known]
            target = np.reshape(target, actual.shape)
            np.testing.assert_allclose(actual, target, rtol=0, atol=1e-9)
    assert known == [*range(7)] or kind is not None


@pytest.mark.parametrize(
    "mode, precision, time",
    each_value(
        MODES,
        [("float32", 1e-5), ("mixed_float16", 5e-3), ("mixed_bfloat16", 3e-2)],
        [T - 2, T + 3],
    ),
)
def test_statistics_of_steps_by_the_kernel(mode, precision, time):
    """As by sums, which a mask of ones takes."""
    dtype, tolerance = precision
    x = data(B, time, F, scale=2)
    found = []
    for mask in (None, tf.ones((B, time), "bool")):
        layer = STEPS(T, dtype=dtype)
        layer.build((None, None, F))
        layer.gamma.assign(data(F))
        x_of = tf.constant(x, layer.compute_dtype)
        found.append(normalized(layer, x_of, mode, mask))
    assert_close(*found, tolerance)


@pytest.mark.parametrize("trained", [[0], [2], [1, 3], [0, 4]])
def test_untrained_steps_take_trained_ones(trained):
    layer = normalization(5)
    mask = np.zeros((B, 5), bool)
    mask[:, trained] = True
    x = sequences(5)
    layer(x, mask=mask, training=True)
    y = layer(np.ones((1, 9, N)))[0].numpy()
    for t in range(9):
        s = max([s for s in trained if s <= t], default=trained[0])
        scale = layer.gamma / np.sqrt(x[:, s].var(0) + 1e-3)
        expected = scale * (1 - x[:, s].mean(0)) + layer.beta
        np.testing.assert_allclose(y[t], expected, rtol=0, atol=1e-10)


def test_masked_nan_does_not_leak():
    mask = masked("holes", B, 5)
    results = []
    for value in (0.0, np.nan):
        layer = normalization()
        x = np.where(mask[:, :, None], sequences(5), value)
        y = layer(x, mask=mask, training=True).numpy()[mask]
        results.append([y, *layer.get_weights()])
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("kind", [None, "right", "holes"])
@pytest.mark.parametrize("time", [5, 9])
def test_gradients_through_statistics(kind, time):
    layer, mask = normalization(), masked(kind, B, time)
    counted = np.ones((B, time), bool) if mask is None else mask
    assert counted.any(axis=0).all()
    x = tf.constant(sequences(time))
    values = [layer.gamma.value, layer.beta.value]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        actual = weighted(layer(x, mask=mask, training=True))
        y = []
        for t in range(time):
            rows = tf.boolean_mask(x[:, t], counted[:, t])
            mean = tf.reduce_mean(rows, axis=0)
            variance = tf.math.reduce_variance(rows, axis=0)
            normal = (x[:, t] - mean) / tf.sqrt(variance + 1e-3)
            y.append(values[0] * normal + values[1])
        expected = weighted(tf.stack(y, axis=1))
    for a, b in zip(
        tape.gradient(actual, [x, *values]),
        tape.gradient(expected, [x, *values]),
        strict=True,
    ):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_frozen_keeps_its_statistics():
    layer = normalization()
    layer(sequences(5), training=True)
    layer.trainable = False
    before, x = layer.get_weights(), sequences(6, phase=3)
    np.testing.assert_array_equal(layer(x, training=True), layer(x))
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "dtype", ["mixed_float16", "mixed_bfloat16", "float16"]
)
def test_half_precision(dtype):
    layer = normalization(dtype=dtype)
    x = 100 * data(1000, 5, N).astype("float32") + 100
    x = keras.ops.cast(x, layer.compute_dtype)
    wide = np.array(keras.ops.cast(x, "float64"))
    oracle = StepStatistics(7, 0.8, 1e-3)
    gamma, beta = (data(N, phase=phase) for phase in (1, 2))
    for expected, training in (
        (oracle.train(wide, None), True),
        (oracle.evaluate(wide), False),
    ):
        y = layer(x, training=training)
        assert y.dtype == layer.compute_dtype
        y = np.array(keras.ops.cast(y, "float64"))
        expected = gamma * expected + beta
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-2)
    kept = [w.dtype for w in layer.non_trainable_weights]
    assert kept == ["float32"] * 3


def test_time_step_batch_normalization_as_a_layer(tmp_path):
    options = {"max_steps": 5, "momentum": 0.7, "epsilon": 0.25}
    assert set(inspect.signature(STEPS).parameters) == {*options, "kwargs"}
    layer = STEPS(**options, name="steps")
    config, default = layer.get_config(), STEPS(6).get_config()
    for name, value in options.items():
        assert config[name] == value != default[name]
    assert STEPS.from_config(config).get_config() == config
    assert default["momentum"] == 0.9 and default["epsilon"] == 1e-5
    for shape in ((None, None, N), (B, T, N)):
        assert layer.compute_output_shape(shape) == shape
    model = keras.Sequential([keras.Input((None, N)), layer])
    assert model.output_shape == (None, None, N)
    shapes = [tuple(w.shape) for w in layer.weights]
    assert shapes == [(N,), (N,), (5, N), (5, N), (5,)]
    assert len(layer.trainable_weights) == 2
    model(sequences(3), training=True)
    x = sequences(8, phase=1)
    expected = model(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)


@pytest.mark.parametrize("mask", [None, np.ones((0, 4), bool)])
def test_statistics_of_steps_of_an_empty_batch(mask):
    layer = TimeStepBatchNormalization(3)
    layer(data(2, 4, 3), training=True)
    before = layer.get_weights()
    y = layer(np.zeros((0, 4, 3)), training=True, mask=mask)
    assert y.shape == (0, 4, 3)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
