"""IndRNN against `keras.layers.RNN(IndRNNCell)`, identities and plumbing.

The cover: eagerly, with T = 7, the full product of dtype, activation, reading
direction, mask and recurrent_dropout, each with seeded draws of the other
options, so that every pair of option values occurs (`test_cover`). Compiled
forms, other T, fit and half precision: smaller seeded draws of the same.
"""

import functools
import inspect
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

B, T, F, N = 4, 7, 3, 5
TOLERANCE = {
    "float64": 1e-10,
    "float32": 1e-5,
    "mixed_float16": 2e-2,
    "mixed_bfloat16": 1e-1,
}
TIMES = {
    "eager": (1, 2),
    "function": (2, 7),
    "unknown": (2, 7, 1),
    "jit": (1, 7),
}


@keras.saving.register_keras_serializable(package="tests")
def softsign(z):
    return z / (1 + abs(z))


AXES = {
    "dtype": ["float64", "float32"],
    "activation": ["relu", "tanh", "sigmoid", "linear", softsign],
    "go_backwards": [False, True],
    "mask": [None, "right", "left", "holes", "row", "all"],
    "recurrent_dropout": [0.0, 0.4],
    "dropout": [0.0, 0.3],
    "use_kernel": [True, False],
    "use_bias": [True, False],
    "initial_state": [False, True],
    "stateful": [False, True],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "zero_output_for_mask": [False, True],
}
OF_CELL = (
    "activation",
    "use_kernel",
    "use_bias",
    "dropout",
    "recurrent_dropout",
)
RANDOM = ("dropout", "recurrent_dropout")
OF_LAYER = (
    "unroll",
    "go_backwards",
    "stateful",
    "return_sequences",
    "return_state",
    "zero_output_for_mask",
)


def drawn(seed, **fixed):
    """A case: the options of `fixed`, all others drawn from AXES."""
    rng = np.random.default_rng(seed)
    case = {name: rng.choice(len(values)) for name, values in AXES.items()}
    return {name: AXES[name][i] for name, i in case.items()} | fixed


FULL = ("dtype", "activation", "go_backwards", "mask", "recurrent_dropout")
CASES = [
    drawn(seed, **dict(zip(FULL, values, strict=True)))
    for seed, values in enumerate(
        itertools.product(*(AXES[name] for name in FULL))
    )
]


def data(*shape, phase=0.0, scale=1.0):
    """Deterministic, of both signs, in [0.2, 1] * scale in magnitude."""
    x = np.sin(1 + phase + 1.7 * np.arange(np.prod(shape))).reshape(shape)
    return scale * np.sign(x) * (0.2 + 0.8 * np.abs(x))


def masked(kind, batch=B, time=T):
    """(batch, time), false where a step is to be skipped."""
    if kind is None:
        return None
    lengths = np.maximum(time - np.arange(batch), 1)[:, None]
    mask = np.arange(time) < lengths
    if kind == "left":
        mask = mask[:, ::-1]
    if kind in ("holes", "row", "all"):
        mask = np.sin(3.0 * np.arange(batch * time)).reshape(batch, time) > -0.3
    if kind == "row":
        mask[batch // 2] = False
    return mask & (kind != "all")


def pair(case, bound=None):
    """IndRNN and RNN(IndRNNCell) of the same weights."""
    of_cell = {name: case[name] for name in OF_CELL if name in case}
    of_layer = {name: case[name] for name in OF_LAYER if name in case}
    of_cell |= {"seed": 3, "recurrent_max_abs": bound}
    dtype = {"dtype": case.get("dtype", "float64")}
    cell = IndRNNCell(N, **of_cell, **dtype)
    layers = [
        IndRNN(N, **of_cell, **of_layer, **dtype),
        keras.layers.RNN(cell, **of_layer, **dtype),
    ]
    width = F if case.get("use_kernel", True) else N
    for layer in layers:
        layer.build((B, None, width))
        for i, w in enumerate(layer.trainable_weights):
            scale = 1.3 if w.name == "recurrent_kernel" else 1.0
            w.assign(data(*w.shape, phase=i, scale=scale))
    return layers


def inputs(case, batch=B, time=T):
    """x, initial state (or None), mask (or None)."""
    dtype = case.get("dtype", "float64").removeprefix("mixed_")
    x = data(batch, time, F if case.get("use_kernel", True) else N)
    h = data(batch, N, phase=5) if case.get("initial_state") else None
    mask = masked(case.get("mask"), batch, time)
    return [
        None if value is None else tf.constant(value, kind)
        for value, kind in ((x, dtype), (h, dtype), (mask, "bool"))
    ]


def weighted(y):
    """A sum of y with fixed weights, whatever its shape."""
    weights = tf.sin(1 + 1.7 * tf.range(tf.size(y), dtype="float32"))
    y = tf.cast(y, tf.float64)
    return tf.reduce_sum(y * tf.cast(tf.reshape(weights, tf.shape(y)), y.dtype))


def computed(layer, x, h, mask, training=True):
    """Outputs, states and every gradient of a call (of two, if stateful)."""
    sources = {"x": x} | ({} if h is None else {"initial_state": h})
    result = {}
    with tf.GradientTape() as tape:
        tape.watch(list(sources.values()))
        sources |= {w.name: w.value for w in layer.trainable_weights}
        total = 0.0
        for call in range(2 if layer.stateful else 1):
            y = layer(
                x * (1 - call / 2),
                initial_state=None if call else h,
                mask=mask,
                training=training,
            )
            for i, part in enumerate(tf.nest.flatten(y)):
                result[f"output {call} {i}"] = part
                total += weighted(part)
    gradients = tape.gradient(total, list(sources.values()))
    for name, gradient in zip(sources, gradients, strict=True):
        zeros = tf.zeros_like(sources[name])
        result[f"gradient of {name}"] = zeros if gradient is None else gradient
    if layer.stateful:
        result["state"] = tf.identity(layer.states[0])
    return result


def assert_same(actual, expected, dtype="float64"):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        target = expected[name]
        assert value.shape == target.shape and value.dtype == target.dtype
        target = np.asarray(ops.cast(target, "float64"))
        scale = max(1.0, np.nanmax(np.abs(target), initial=0))
        np.testing.assert_allclose(
            np.asarray(ops.cast(value, "float64")),
            target,
            rtol=0,
            atol=TOLERANCE[dtype] * scale,
            err_msg=name,
        )


def compiled(layer, mode, values):
    """`computed` of a layer; "unknown" hides B (if it may) and T."""
    if mode == "eager":
        return functools.partial(computed, layer)
    given = [value for value in values if value is not None]

    def function(*given):
        given = iter(given)
        return computed(
            layer, *(v if v is None else next(given) for v in values)
        )

    batch = B if layer.stateful else None
    specs = [
        tf.TensorSpec([batch, None, *v.shape[2:]], v.dtype)
        if v is not values[1]
        else tf.TensorSpec([batch, N], v.dtype)
        for v in given
    ]
    function = tf.function(
        function,
        jit_compile=mode == "jit",
        input_signature=specs if mode == "unknown" else None,
    )
    return lambda *values: function(*(v for v in values if v is not None))


def test_cover():
    for a, b in itertools.combinations(AXES, 2):
        seen = {(case[a], case[b]) for case in CASES}
        assert seen == set(itertools.product(AXES[a], AXES[b])), (a, b)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop(case):
    fused, loop = pair(case)
    values = inputs(case)
    assert_same(
        computed(fused, *values), computed(loop, *values), case["dtype"]
    )
    if case["stateful"]:
        fused.reset_state()
        assert not np.any(fused.states[0])


COMPILED = [
    drawn(i, activation=activation)
    for i, activation in enumerate(AXES["activation"] * 2)
]


@pytest.mark.parametrize("mode", TIMES)
@pytest.mark.parametrize("case", COMPILED)
def test_other_modes_and_lengths_equal_the_loop(case, mode):
    times = TIMES[mode]
    if random := mode == "jit" and any(case[name] for name in RANDOM):
        # XLA draws other masks than TensorFlow, and trains Keras' loop only
        # if unrolled, where zeros for masked steps are wrong backwards.
        case, times = {**case, "zero_output_for_mask": False}, (2,)
        _, loop = pair({**case, "unroll": True})
        reference = compiled(loop, mode, inputs(case))
    fused, loop = pair(case)
    if not random:
        reference = functools.partial(computed, loop)
    function = compiled(fused, mode, inputs(case))
    for time in times:
        values = inputs(case, time=time)
        assert_same(function(*values), reference(*values), case["dtype"])


@pytest.mark.parametrize("dtype", AXES["dtype"])
@pytest.mark.parametrize("activation", AXES["activation"])
@pytest.mark.parametrize("mask, go_backwards", [(None, False), ("holes", True)])
def test_long_sequences(dtype, activation, mask, go_backwards):
    case = {
        "dtype": dtype,
        "activation": activation,
        "mask": mask,
        "go_backwards": go_backwards,
        "initial_state": True,
        "return_sequences": True,
        "return_state": True,
    }
    fused, loop = pair(case, bound=2 ** (1 / 784))
    values = inputs(case, time=784)
    expected = compiled(loop, "unknown", values)(*values)
    assert_same(computed(fused, *values), expected, dtype)
    if mask and activation == "relu":
        for mode in ("unknown", "jit"):
            assert_same(compiled(fused, mode, values)(*values), expected, dtype)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("activation", AXES["activation"])
@pytest.mark.parametrize("seed", range(2))
def test_mixed_precision(policy, activation, seed):
    case = drawn(seed, dtype=policy, activation=activation)
    fused, loop = pair(case)
    values = inputs(case)
    actual = computed(fused, *values)
    assert_same(actual, computed(loop, *values), policy)
    assert {w.dtype for w in fused.trainable_weights} == {"float32"}
    assert actual["gradient of recurrent_kernel"].dtype == "float32"
    assert actual["output 0 0"].dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize(
    "dtype, jit_compile, activation",
    [
        ("float32", False, "relu"),
        ("float32", True, "relu"),
        ("float64", False, "relu"),
        ("float64", True, "relu"),
        ("float64", True, "tanh"),
        ("float64", False, softsign),
    ],
)
def test_fit_equals_the_loop(dtype, jit_compile, activation):
    options = {"dtype": dtype, "activation": activation}
    models = [
        keras.Sequential(
            [
                keras.Input((None, F), dtype=dtype),
                keras.layers.Masking(dtype=dtype),
                first,
                second,
                keras.layers.Dense(1, dtype=dtype),
            ]
        )
        for first, second in zip(
            pair({**options, "return_sequences": True}, bound=1.1),
            pair({**options, "use_kernel": False}, bound=1.1),
            strict=True,
        )
    ]
    x = data(3 * B, T, F).astype(dtype)
    x[:, 2] = x[::2, -2:] = 0
    y = data(3 * B, 1, phase=2).astype(dtype)
    models[0].layers[-1].set_weights(models[1].layers[-1].get_weights())
    before = models[0].get_weights()
    for model, jit in zip(models, (jit_compile, False), strict=True):
        model.compile(keras.optimizers.SGD(0.005), "mse", jit_compile=jit)
        model.fit(x, y, batch_size=B, epochs=2, shuffle=False, verbose=0)
    for start, *ends in zip(before, *(m.get_weights() for m in models)):
        assert np.abs(start - ends[1]).max() > 1e-3
        np.testing.assert_allclose(*ends, rtol=0, atol=TOLERANCE[dtype])


def test_dropout_masks_are_those_of_the_loop():
    case = {"dropout": 0.3, "recurrent_dropout": 0.4, "return_sequences": True}
    fused, loop = pair(case)
    plain, _ = pair({**case, "dropout": 0.0, "recurrent_dropout": 0.0})
    x, _, _ = inputs(case)
    first, second = fused(x, training=True), fused(x, training=True)
    np.testing.assert_allclose(first, loop(x, training=True), atol=1e-12)
    np.testing.assert_allclose(second, loop(x, training=True), atol=1e-12)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(fused(x), plain(x))
    assert np.abs(first - fused(x)).max() > 0.1


@pytest.mark.parametrize("activation", AXES["activation"])
def test_without_recurrence_it_is_dense(activation):
    layer, _ = pair({"activation": activation, "return_sequences": True})
    layer.cell.recurrent_kernel.assign(np.zeros(N))
    dense = keras.layers.Dense(N, activation, dtype="float64")
    x = data(B, T, F)
    dense.build(x.shape)
    dense.set_weights([layer.cell.kernel, layer.cell.bias])
    np.testing.assert_allclose(layer(x), dense(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", AXES["mask"])
def test_two_halves_are_the_whole(mask):
    case = {"return_sequences": True, "return_state": True, "mask": mask}
    layer, _ = pair({**case, "zero_output_for_mask": True})
    x, _, mask = inputs(case)
    whole, last = layer(x, mask=mask)
    state, parts = None, []
    for part in (slice(0, 3), slice(3, T)):
        y, state = layer(
            x[:, part],
            initial_state=state,
            mask=None if mask is None else mask[:, part],
        )
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-12)
    np.testing.assert_allclose(state, last, atol=1e-12)


@pytest.mark.parametrize("mask", AXES["mask"])
def test_backwards_is_the_reversed_sequence(mask):
    case = {"return_sequences": True, "mask": mask}
    forward, _ = pair(case)
    backward, _ = pair({**case, "go_backwards": True})
    x, _, mask = inputs(case)
    flipped = None if mask is None else mask[:, ::-1]
    np.testing.assert_array_equal(
        backward(x, mask=mask), forward(x[:, ::-1], mask=flipped)
    )


@pytest.mark.parametrize("activation", AXES["activation"])
@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_nan_stays_in_its_sequence(activation, mode):
    case = {
        "activation": activation,
        "mask": "holes",
        "return_sequences": True,
        "return_state": True,
        "initial_state": True,
    }
    layer, _ = pair(case)
    values = inputs(case)
    function = compiled(layer, mode, values)
    clean = function(*values)
    x = values[0].numpy()
    x[1, 3:5] = np.nan
    dirty = function(tf.constant(x), *values[1:])
    assert np.isnan(dirty["output 0 1"][1]).any()
    others = np.arange(B) != 1
    for name in (
        "output 0 0",
        "output 0 1",
        "gradient of x",
        "gradient of initial_state",
    ):
        np.testing.assert_array_equal(
            clean[name][others], dirty[name][others], err_msg=name
        )


@pytest.mark.parametrize("activation", AXES["activation"])
@pytest.mark.parametrize("mask", ["right", "left", "holes", "row", "all"])
@pytest.mark.parametrize("use_kernel", [True, False])
def test_masked_nan_does_not_leak(activation, mask, use_kernel):
    case = {
        "activation": activation,
        "mask": mask,
        "use_kernel": use_kernel,
        "return_sequences": True,
        "return_state": True,
        "initial_state": True,
    }
    fused, loop = pair(case)
    x, h, mask = inputs(case)
    clean = computed(fused, x, h, mask)
    x = tf.where(mask[:, :, None], x, np.nan)
    assert np.isnan(x).any()
    dirty, of_loop = computed(fused, x, h, mask), computed(loop, x, h, mask)
    for name, value in dirty.items():
        if name == "gradient of kernel":
            assert not (np.isnan(value) & ~np.isnan(of_loop[name])).any()
        else:
            np.testing.assert_array_equal(value, clean[name], err_msg=name)


@pytest.mark.parametrize("as_list", [True, False])
def test_stacked_cells_equal_two_layers(as_list):
    # Keras computes a plain list of cells in its default dtype.
    dtype = "float32" if as_list else "float64"
    x = data(B, T, F).astype(dtype)
    cells = [
        IndRNNCell(N, dtype=dtype),
        IndRNNCell(N, use_kernel=False, dtype=dtype),
    ]
    if not as_list:
        cells = keras.layers.StackedRNNCells(cells, dtype=dtype)
    stack = keras.layers.RNN(cells, return_sequences=True, dtype=dtype)
    stack.build(x.shape)
    case = {"return_sequences": True, "dtype": dtype}
    one, _ = pair(case)
    two, _ = pair({**case, "use_kernel": False})
    stack.set_weights(one.get_weights() + two.get_weights())
    actual, expected = stack(x), two(one(x))
    assert_same({"output": actual}, {"output": expected}, dtype)


def test_bidirectional(tmp_path):
    x = data(B, T, F)
    layer = keras.layers.Bidirectional(
        IndRNN(N, return_sequences=True, dtype="float64"), dtype="float64"
    )
    model = keras.Sequential([keras.Input((T, F), dtype="float64"), layer])
    one, two = layer.forward_layer, layer.backward_layer
    assert isinstance(two, IndRNN) and two.go_backwards
    expected = np.concatenate([one(x), two(x)[:, ::-1]], axis=-1)
    np.testing.assert_array_equal(model(x), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)


def test_time_distributed():
    layer = IndRNN(N, dtype="float64")
    x = data(B, 3, T, F)
    y = keras.layers.TimeDistributed(layer, dtype="float64")(x)
    expected = np.stack([layer(x[:, i]) for i in range(3)], axis=1)
    np.testing.assert_array_equal(y, expected)


OPTIONS = {
    "units": N,
    "activation": "tanh",
    "use_kernel": False,
    "use_bias": False,
    "kernel_initializer": keras.initializers.Constant(2.0),
    "recurrent_initializer": keras.initializers.Constant(0.5),
    "bias_initializer": keras.initializers.Constant(3.0),
    "kernel_regularizer": keras.regularizers.L2(0.1),
    "recurrent_regularizer": keras.regularizers.L2(0.2),
    "bias_regularizer": keras.regularizers.L2(0.3),
    "activity_regularizer": keras.regularizers.L2(0.4),
    "kernel_constraint": keras.constraints.NonNeg(),
    "recurrent_constraint": keras.constraints.MaxNorm(1.0, axis=0),
    "bias_constraint": keras.constraints.MaxNorm(2.0, axis=0),
    "recurrent_min_abs": 0.25,
    "recurrent_max_abs": 1.75,
    "dropout": 0.1,
    "recurrent_dropout": 0.2,
    "seed": 7,
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "stateful": True,
    "unroll": True,
    "zero_output_for_mask": True,
}


def test_config_holds_every_argument():
    parameters = inspect.signature(IndRNN).parameters
    of_cell = inspect.signature(IndRNNCell).parameters
    assert set(parameters) - {"kwargs"} == set(OPTIONS)
    assert all(of_cell[name] == parameters[name] for name in of_cell)
    layer = IndRNN(**OPTIONS, name="memory", dtype="float64")
    config, default = layer.get_config(), IndRNN(N + 1).get_config()
    for name, value in OPTIONS.items():
        assert config[name] != default.get(name), name
        if name != "activation":
            assert getattr(layer, name) == value, name
    assert layer.activation is keras.activations.tanh
    again = IndRNN.from_config(config)
    assert again.get_config() == config
    assert again.name == "memory"
    assert again.dtype == again.cell.dtype == "float64"
    saved = keras.saving.serialize_keras_object(layer)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is IndRNN and loaded.get_config() == config


def small_model(options):
    return keras.Sequential(
        [
            keras.Input((None, F)),
            IndRNN(N, return_sequences=True, **options()),
            IndRNN(N, use_kernel=False, **options()),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {
            "activation": softsign,
            "dropout": 0.2,
            "recurrent_dropout": 0.2,
        },
        lambda: {"recurrent_min_abs": 0.2, "recurrent_max_abs": 0.9},
        lambda: {"activation": keras.layers.PReLU("ones")},
    ],
)
def test_saved_and_cloned_models_predict_the_same(options, tmp_path):
    model, x = small_model(options), data(B, T, F)
    model(x)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    clone = keras.models.clone_model(model)
    clone(x)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(x, verbose=0), expected)


def test_bound_holds_in_the_saved_file(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((T, N)),
            IndRNN(N, recurrent_min_abs=0.5, recurrent_max_abs=1.5),
        ]
    )
    raw = np.array([9.0, -9.0, 0.0, -0.1, 1.0])
    model.layers[0].cell.recurrent_kernel.assign(raw)
    expected = model.predict(data(B, T, N), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.layers[0].cell.recurrent_kernel, [1.5, -1.5, 0.5, -0.5, 1.0]
    )
    actual = loaded.predict(data(B, T, N), verbose=0)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("shape", [(None, None), (None, T), (B, None), (B, T)])
def test_symbolic_shapes(return_sequences, return_state, shape):
    layer = IndRNN(
        N, return_sequences=return_sequences, return_state=return_state
    )
    x = keras.Input(batch_shape=(*shape, F))
    symbolic = tf.nest.flatten(layer(x))
    last = (shape[0], N)
    expected = [(*shape, N) if return_sequences else last]
    expected += [last] if return_state else []
    assert [tuple(y.shape) for y in symbolic] == expected
    actual = tf.nest.flatten(keras.Model(x, symbolic)(data(B, T, F)))
    for y, shape in zip(actual, expected, strict=True):
        sizes = [T if n is None and i else n for i, n in enumerate(shape)]
        assert tuple(y.shape) == (B, *sizes[1:])


def test_activity_regularizer_survives_saving(tmp_path):
    layer = IndRNN(N, activity_regularizer=keras.regularizers.L2(0.25))
    model = keras.Sequential([keras.Input((T, F)), layer])
    x = data(B, T, F).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        y = each(x)
        assert len(each.losses) == 1
        expected = 0.25 * np.sum(y.numpy() ** 2) / B
        np.testing.assert_allclose(each.losses[0], expected, rtol=1e-5)


def test_activation_with_weights():
    activations = [
        keras.layers.PReLU(keras.initializers.Constant(0.3), dtype="float64")
        for _ in range(2)
    ]
    x, h, _ = inputs({"initial_state": True})
    fused, loop = (
        pair({"activation": activation, "return_sequences": True})[i]
        for i, activation in enumerate(activations)
    )
    results = [computed(layer, x, h, None) for layer in (fused, loop)]
    assert activations[0].alpha.shape == activations[1].alpha.shape == (N,)
    assert_same(*(computed(layer, x, h, None) for layer in (fused, loop)))
    gradient = results[0]["gradient of recurrent_kernel"]
    assert np.abs(gradient).max() > 0.1
    with tf.GradientTape() as tape:
        total = weighted(fused(x))
    gradient = tape.gradient(total, activations[0].alpha.value)
    assert np.abs(gradient).min() > 1e-3


def test_activation_of_one_dtype():
    half = tf.constant(0.5, "float64")
    fused, loop = pair({"activation": lambda z: half * z})
    x, _, _ = inputs({})
    np.testing.assert_allclose(fused(x), loop(x), rtol=0, atol=1e-12)


def test_functions_run_eagerly():
    fused, loop = pair({"return_sequences": True})
    values = inputs({"initial_state": True, "mask": "holes"})
    expected = computed(loop, *values)
    tf.config.run_functions_eagerly(True)
    try:
        assert_same(computed(fused, *values), expected)
    finally:
        tf.config.run_functions_eagerly(False)
    assert_same(computed(fused, *values), expected)


def second_gradient(layer, loss, x):
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = loss(layer(x))
        penalty = tf.reduce_sum(inner.gradient(y, x) ** 2)
    return outer.gradient(penalty, x)


@pytest.mark.parametrize("activation", ["tanh", softsign])
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
@pytest.mark.parametrize("loss", [weighted, lambda y: tf.reduce_sum(y**2)])
def test_second_gradients_need_unroll(activation, wrap, loss):
    fused, _ = pair({"activation": activation})
    x, _, _ = inputs({}, time=3)
    with pytest.raises(NotImplementedError, match="`unroll=True`"):
        wrap(lambda x: second_gradient(fused, loss, x))(x)
    unrolled, loop = pair({"activation": activation, "unroll": True})
    actual = wrap(lambda x: second_gradient(unrolled, loss, x))(x)
    assert np.abs(actual).max() > 1e-2
    expected = second_gradient(loop, loss, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_streams_of_unknown_length(jit_compile):
    fused, loop = pair({"return_sequences": True, "dtype": "float32"})
    model = keras.Sequential([keras.Input((None, F)), fused])
    model.compile(jit_compile=jit_compile)
    for batch, time in ((2, 5), (3, 1), (1, 9)):
        x = data(batch, time, F).astype("float32")
        y = model.predict(x, verbose=0)
        np.testing.assert_allclose(y, loop(x), rtol=0, atol=1e-5)


def test_stateful_stream_is_the_whole():
    whole, _ = pair({"return_sequences": True})
    stream, _ = pair({"return_sequences": True, "stateful": True})
    x = data(B, T, F)
    for _ in range(2):
        stream.reset_state()
        parts = [stream(part) for part in np.split(x, [2, 3], axis=1)]
        np.testing.assert_allclose(
            np.concatenate(parts, 1), whole(x), atol=1e-12
        )


@pytest.mark.parametrize("shape", [(B, F), (B, T, F, 1), (F,)])
def test_wrong_rank_is_named(shape):
    with pytest.raises(ValueError) as caught:
        IndRNN(N)(np.ones(shape))
    message = str(caught.value)
    assert "`sequences`" in message and "(batch, time, features)" in message
    assert str(shape) in message


@pytest.mark.parametrize("width", [N - 1, N + 1, 1])
def test_wrong_width_without_kernel_is_named(width):
    for x in (np.ones((B, T, width)), keras.Input((T, width))):
        with pytest.raises(ValueError) as caught:
            IndRNN(N, use_kernel=False)(x)
        message = str(caught.value)
        assert "`inputs`" in message and f"expected {N}" in message
        assert str(width) in message


@pytest.mark.parametrize("shape", [(B, T, F + 1), (B, F)])
def test_other_shape_after_building(shape):
    layer = IndRNN(N)
    layer(np.ones((B, T, F)))
    with pytest.raises(ValueError, match="expected"):
        layer(np.ones(shape))


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("shape", [(B, N + 1), (N,), (B, T, N)])
def test_initial_state_of_wrong_shape_is_named(shape, unroll):
    layer = IndRNN(N, unroll=unroll)
    with pytest.raises(ValueError) as caught:
        layer(np.ones((B, T, F)), initial_state=np.ones(shape))
    message = str(caught.value)
    assert f"`initial_state` must have shape (batch, {N})" in message
    assert str(shape) in message


@pytest.mark.parametrize("flag", OF_LAYER)
@pytest.mark.parametrize("value", [0, 1, None, "yes", []])
def test_flags_must_be_bools(flag, value):
    with pytest.raises(TypeError) as caught:
        IndRNN(N, **{flag: value})
    message = str(caught.value)
    assert f"`{flag}` must be a bool" in message and repr(value) in message


@pytest.mark.parametrize(
    "name, value",
    [
        ("units", "4"),
        ("units", 0),
        ("activation", "nonsense"),
        ("dropout", 1.0),
        ("recurrent_max_abs", -1.0),
        ("recurrent_min_abs", np.nan),
        ("activity_regularizer", "nonsense"),
        ("activity_regularizer", 3),
    ],
)
def test_bad_argument_is_named(name, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        IndRNN(**{"units": N, name: value})
    assert f"`{name}` must" in str(caught.value)
    assert str(value) in str(caught.value)
