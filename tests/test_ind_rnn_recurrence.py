"""The two forms of IndRNN's recurrence, and what their programs are made of."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import ind_rnn_recurrence
import parallel_scan
from cases import each_value, every_drawn_pair, every_pair
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell, IndRNNStep
from ind_rnn_recurrence import PADDED_LENGTHS, Steps, fused_step, without_xla
from pairs import (
    B,
    F,
    N,
    assert_close,
    assert_same,
    compiled,
    computed,
    data,
    fails_on,
    inputs,
    masked,
    pair,
    softsign,
)
from parallel_scan import CHUNK_STEPS

T = 19
FORMS = ("sequential", "parallel")


@pytest.mark.parametrize(
    "activation, dtype, masked",
    every_pair(
        [keras.activations.relu, softsign],
        ["float32", "bfloat16"],
        [False, True],
    ),
)
def test_loops_copy_no_whole_array(activation, dtype, masked, request):
    """One copy of (B, T, N) a step would make the time quadratic in T."""
    if activation is softsign and dtype == "bfloat16" and not masked:
        request.applymarker(
            fails_on(
                "tensorflow<2.21",
                "XLA converts the array in each step, on some processors",
                strict=False,
            )
        )
    x, u, h0 = (tf.ones(s, dtype) for s in ((B, T, N), (N,), (B, N)))
    step, weights = IndRNNStep(activation), ((u,), (u,))
    passes = ind_rnn_recurrence._choose_passes(x, step, "sequential")
    saved = (x, x) if passes.saves_gates else (x,)
    for function, given in (
        (passes.forward, (x, weights, (h0,))),
        (passes.backward, ((x,), saved, weights, (h0,))),
    ):

        @tf.function(jit_compile=True, autograph=False)
        def call(*tensors):
            *tensors, flags = tensors
            flags = flags if masked else None
            tensors = tf.nest.pack_sequence_as(given, tensors)
            return function(step, *tensors, Steps(flags, flags))

        hlo = call.experimental_get_compiler_ir(
            *tf.nest.flatten(given), tf.ones((B, T), tf.bool)
        )(stage="optimized_hlo")
        assert hlo.count(" while(") == 1
        loop, _ = hlo.split("ENTRY")
        assert "dynamic-update-slice" in loop
        assert not re.search(rf"\[{B},{T},{N}\]\S* (copy|convert)\(", loop)


OF_PARALLEL = {
    # The last chunk, and the last chunk of chunks, has one step.
    "time": (CHUNK_STEPS + 1, CHUNK_STEPS**2 + 1),
    "activation": ("relu", "linear"),
    "go_backwards": (False, True),
    "recurrent_dropout": (0.0, 0.4),
    "initial_state": (False, True),
    "use_bias": (False, True),
    "mask": (None, "holes", "left"),
}


@pytest.mark.parametrize("case", every_drawn_pair(OF_PARALLEL, 100))
def test_parallel_equals_the_loop(case):
    always = "return_sequences", "return_state"
    case = {**case, **dict.fromkeys(always, True), "implementation": "parallel"}
    time = case["time"]
    parallel, loop = pair(case, bound=2 ** (1 / time))
    values = inputs(case, time=time)
    # Eagerly, lengths are padded to full chunks; XLA draws other masks.
    mode = "function" if case["recurrent_dropout"] else "jit"
    function = compiled(parallel, mode, values)
    assert_same(function(*values), computed(loop, *values))


def test_a_step_that_forgets_all():
    """0 * infinity, as at a reset, is no bound. Without XLA, which hides it."""
    m = np.full((1, 24, 2), 0.9)
    m[:, 10] = 0
    s = np.ones_like(m)
    s[:, 12:16, 0] = -1
    h, expected = np.zeros((1, 2)), []
    for t in range(24):
        h = np.maximum(s[:, t] + m[:, t] * h, 0)
        expected.append(h[0])
    bounds = np.zeros((1, 1, 1)), np.full((1, 1, 1), np.inf)
    found = parallel_scan.scan((m, s, *bounds), np.zeros((1, 2)))
    assert_close(found[0], np.stack(expected), 1e-12)


def test_parallel_has_few_dependent_steps(monkeypatch):
    """Each entry counts the steps, one after another, that it depends on."""

    def later(g, f, finite):
        return tuple(np.maximum(x, y) + 1 for x, y in zip(g, f, strict=True))

    def applied(f, h):
        return np.maximum(np.maximum(*f), h) + 1

    monkeypatch.setattr(parallel_scan, "compose", later)
    monkeypatch.setattr(parallel_scan, "apply", applied)
    for time in (1, 2, 8, 9, 64, 65, 1000, 100_000):
        start = np.zeros((1, time, 1)), np.zeros((1, 1, 1))
        depth = parallel_scan.scan(start, np.zeros((1, 1)))
        assert depth.shape == (1, time, 1)
        levels = next(n for n in itertools.count(1) if CHUNK_STEPS**n >= time)
        assert np.max(depth) <= (2 * CHUNK_STEPS - 1) * levels
    assert np.max(depth) < 100


def test_impossible_implementations():
    for options, name in (
        ({"implementation": "fast"}, "implementation"),
        ({"implementation": None}, "implementation"),
        ({"implementation": "parallel", "activation": "tanh"}, "activation"),
        ({"implementation": "parallel", "unroll": True}, "unroll"),
    ):
        with pytest.raises(ValueError, match=f"`{name}"):
            IndRNN(4, **options)
    layer = IndRNN(4, implementation="parallel")
    call = tf.function(layer, input_signature=[tf.TensorSpec((2, None, 3))])
    with pytest.raises(ValueError, match='`implementation="parallel"`.*None'):
        call.get_concrete_function()


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    "activation, time, fits",
    [("relu", 40, True), ("linear", 40, True), ("tanh", 40, False),
     ("relu", 16, False), ("relu", None, False)],
)  # fmt: skip
def test_automatic_choice(monkeypatch, activation, time, fits, on_gpu):
    monkeypatch.setattr(ind_rnn_recurrence, "_on_gpu", lambda a: on_gpu)
    activation = keras.activations.get(activation)
    a = keras.KerasTensor((B, time, N))
    for form, expected in (("auto", fits and on_gpu), ("sequential", False)):
        step = IndRNNStep(activation)
        found = ind_rnn_recurrence._choose_passes(a, step, form).forward
        assert (found is ind_rnn_recurrence._parallel_forward) is expected


@pytest.mark.parametrize(
    "case, mode, batch",
    each_value(
        [("relu", None), ("relu", "holes"), (softsign, "left")],
        ["function", "unknown"],
        [B, B, 1],
    ),
)
def test_parts_of_a_batch(monkeypatch, case, mode, batch):
    """Three of them, of unequal sizes; of an unknown batch some are empty."""
    monkeypatch.setattr(ind_rnn_recurrence, "MAX_BATCH_SPLITS", 3)
    monkeypatch.setattr(ind_rnn_recurrence, "MIN_ELEMENTS_TO_SPLIT", 0)
    monkeypatch.setattr(ind_rnn_recurrence.os, "cpu_count", lambda: 3)
    sizes = []
    forward = ind_rnn_recurrence._forward

    def spy(step, a, *arguments):
        sizes.append(a.shape[0])
        return forward(step, a, *arguments)

    monkeypatch.setattr(ind_rnn_recurrence, "_forward", spy)
    activation, mask = case
    case = {
        "activation": activation,
        "mask": mask,
        "go_backwards": mask == "left",
        "recurrent_dropout": 0.4,
        "initial_state": mask is not None,
        "return_sequences": True,
        "return_state": True,
    }
    fused, loop = pair(case)
    values = inputs(case, batch=batch)
    expected = computed(loop, *values)
    assert_same(compiled(fused, mode, values)(*values), expected)
    if mode == "unknown":
        assert sizes == [None] * 3
    else:
        assert sizes == ([1, 1, 2] if batch == B else [1])


@pytest.mark.parametrize(
    "shape, threads, parts",
    [
        ((32, 784, 128), 2, 2),
        ((32, 784, 128), 1, 0),
        ((32, 784, 128), 64, ind_rnn_recurrence.MAX_BATCH_SPLITS),
        ((None, 784, 128), 2, 2),
        ((3, 100_000, 128), 4, 3),
        ((1, 100_000, 128), 2, 0),
        ((32, 50, 300), 2, 0),
        ((None, None, 128), 2, 0),
    ],
)
def test_number_of_parts(monkeypatch, shape, threads, parts):
    """None within XLA, where a program has one thread, and none eagerly."""
    monkeypatch.setattr(ind_rnn_recurrence.os, "cpu_count", lambda: threads)
    found = []

    def count():
        found.append(ind_rnn_recurrence._batch_splits(shape))

    count(), tf.function(count, jit_compile=True)(), tf.function(count)()
    assert found == [0, 0, parts]


PASSES = "_forward", "_backward", "_parallel_forward", "_parallel_backward"


@pytest.mark.parametrize(
    "mode, form, mask",
    [
        ("unknown", "sequential", None),
        ("eager", "sequential", "holes"),
        ("eager", "parallel", None),
    ],
)
def test_many_lengths_need_few_programs(monkeypatch, mode, form, mask):
    """They share those of powers of two, in whatever order they come."""
    passes, lengths = {**vars(ind_rnn_recurrence)}, set()
    for name in PASSES:

        def spy(step, x, *args, name=name, **kwargs):
            length = tf.shape(tf.nest.flatten(x)[0])[1]
            tf.numpy_function(lambda t: lengths.add(int(t)), [length], [])
            return passes[name](step, x, *args, **kwargs)

        monkeypatch.setattr(ind_rnn_recurrence, name, spy)
    case = {
        "mask": mask,
        "go_backwards": mask is None,
        "initial_state": True,
        "recurrent_dropout": 0.3,
        "return_sequences": True,
        "return_state": True,
        "implementation": form,
    }
    fused, loop = pair(case)
    function = compiled(fused, mode, inputs(case))
    for time in (20, 3, 2, 16, 17, 32, 33):
        values = inputs(case, time=time)
        assert_same(function(*values), computed(loop, *values))
    assert lengths == {16, 32, 64} <= {*PADDED_LENGTHS}


def test_where_a_layer_runs(monkeypatch):
    """On a machine with a GPU, a layer may run on the CPU."""
    monkeypatch.setattr(
        ind_rnn_recurrence.tf.config,
        "list_logical_devices",
        lambda kind: ["a GPU"],
    )
    on_gpu, found = ind_rnn_recurrence._on_gpu, []

    @tf.function
    def call(x):
        with tf.device("CPU:0"):
            found.append(on_gpu(x))
        found.append(on_gpu(x))
        with tf.device("GPU:0"):
            found.append(on_gpu(x))
        return x

    call.get_concrete_function(tf.TensorSpec((2,)))
    assert found == [False, True, True]
    with tf.device("CPU:0"):
        assert not on_gpu(tf.ones(2))


TEMPERATURE = tf.Variable(0.5, dtype="float64")
SLOPE = tf.constant(0.5, "float64")
# Whose output is no function of z alone.
IMPURE = {
    "layer with weights": keras.layers.PReLU("ones", dtype="float64"),
    "layer with other state": keras.layers.Dropout(0.5, dtype="float64"),
    "noise": lambda z: z + tf.random.normal(tf.shape(z), dtype=z.dtype),
    "Keras' noise": lambda z: keras.random.dropout(z, 0.5),
    "outer tensor": lambda z: SLOPE * z,
    "variable": lambda z: z * tf.cast(TEMPERATURE, z.dtype),
    "numpy_function": lambda z: tf.ensure_shape(
        tf.numpy_function(np.tanh, [z], z.dtype), z.shape
    ),
}


@pytest.mark.parametrize("name", IMPURE)
def test_an_activation_that_is_no_function_takes_keras_loop(name):
    layer = IndRNN(N, activation=IMPURE[name], dtype="float64")
    assert fused_step(layer.cell) is None
    assert layer(data(B, T, F)).shape == (B, N)


def test_an_activation_is_traced_once_and_both_passes_see_that():
    calls, slope = [], [0.5]

    def activation(z):
        calls.append(1)
        return slope[0] * z

    fused, _ = pair({"activation": activation})
    _, loop = pair({"activation": lambda z: 0.5 * z})
    x, _, _ = inputs({})
    results = []
    for layer in (loop, fused):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        slope[0] = 9.0 if layer is fused else 0.5  # between the passes
        results.append((y, tape.gradient(y, x)))
    assert_close(*results, 1e-10)
    fused(x), fused(x[:2])
    tf.function(fused)(x)
    assert calls == [1]


def test_tracing_an_activation_draws_no_random_numbers():
    drawn = []
    for activation in (softsign, lambda z: z + keras.random.normal(z.shape)):
        keras.utils.clear_session()  # old Keras: or the last draws go on
        keras.utils.set_random_seed(3)
        keras.random.normal((1,))
        cell = IndRNNCell(N, activation=activation)
        fused_step(cell)
        drawn.append(float(keras.random.normal((1,))[0]))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "dtype, form", [("float16", "sequential"), ("bfloat16", "parallel")]
)
def test_half_precision_adds_up_in_single(dtype, form):
    """100 steps of u = 1 lose no more than the rounding of the result."""
    x = tf.fill((1, 100, 2), tf.constant(0.34, dtype))
    layer = IndRNN(
        2,
        use_kernel=False,
        use_bias=False,
        recurrent_initializer="ones",
        implementation=form,
        dtype=dtype,
    )
    result = layer(x)
    assert result.dtype == dtype
    expected = tf.cast(100 * tf.cast(x[:, 0], "float32"), dtype)
    np.testing.assert_array_equal(result, expected)


SPIKE = np.array([[1.0]] * 2 + [[0.0]] * 18)


@pytest.mark.parametrize(
    "u, x, reset_at",
    [
        # u^T is infinite; ReLU keeps some states at zero, others at limits.
        ([4.5, -4.5, -9.0, 0.9], abs(data(120, 4)) * [-1, 1, -1, 1], None),
        ([1.0], 3e38 * SPIKE, None),  # Infinity is to be seen.
        # Gradients after the reset overflow, and must not reach those before.
        ([4.5], np.ones((120, 1)), 10),
    ],
)
def test_extreme_numbers(u, x, reset_at):
    x = tf.constant(x[None], "float32")
    reset = None if reset_at is None else np.arange(120)[None] == reset_at
    outputs, gradients = [], []
    for form in FORMS:
        layer = IndRNN(
            len(u),
            use_kernel=False,
            return_sequences=True,
            implementation=form,
        )
        layer.build(x.shape)
        layer.set_weights([np.array(u), np.zeros(len(u))])

        @tf.function
        def call(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, reset=reset)
            return y, tape.gradient(y, x)[:, :reset_at]

        for results, value in zip((outputs, gradients), call(x)):
            results.append(value.numpy())
    assert not np.isnan(outputs).any() and np.isfinite(gradients).all()
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_without_xla_may_be_nested():
    cell = IndRNNCell(2)
    with without_xla():
        with without_xla():
            pass
        assert fused_step(cell) is None
    assert fused_step(cell) is not None


@pytest.mark.parametrize(
    "activation, dilation, mask, reset, parts",
    each_value(
        ["tanh", "relu", "sigmoid", "linear"],
        [1, 3],
        [None, "holes", "left"],
        [False, True],
        [1, 3],
    ),
)
def test_neurons_that_mix(
    monkeypatch, activation, dilation, mask, reset, parts
):
    """SimpleRNN with d vectors side by side, against one step at a time."""
    monkeypatch.setattr(ind_rnn_recurrence, "MAX_BATCH_SPLITS", parts)
    monkeypatch.setattr(ind_rnn_recurrence, "MIN_ELEMENTS_TO_SPLIT", 0)
    monkeypatch.setattr(ind_rnn_recurrence.os, "cpu_count", lambda: parts)
    activation = keras.activations.get(activation)
    step = ind_rnn_recurrence.SimpleRNNStep(activation, N)
    a, u, b, h0 = (
        tf.constant(data(*shape, phase=phase))
        for phase, shape in enumerate(
            [(B, T, dilation * N), (N, N), (dilation * N,), (B, dilation * N)]
        )
    )
    u *= 0.4
    mask = masked(mask, B, T)
    reset = np.sin(np.arange(B * T)).reshape(B, T) > 0.7 if reset else None

    def loop(a, u, b, h):
        outputs = []
        for t in range(T):
            before = h if reset is None else h * ~reset[:, t, None]
            vectors = tf.reshape(before, (-1, N)) @ u
            h = activation(a[:, t] + tf.reshape(vectors, h.shape) + b)
            if mask is not None:
                h = tf.where(mask[:, t, None], h, before)
            outputs.append(h)
        return tf.stack(outputs, axis=1), h

    def fused(a, u, b, h):
        weights = (tf.reshape(u, (-1,)),), (b,)
        h, (last,) = ind_rnn_recurrence.recurrence(
            a, weights, (h,), step=step, mask=mask, reset=reset
        )
        return h, last

    def results(call):
        with tf.GradientTape() as tape:
            tape.watch((a, u, b, h0))
            h, last = call(a, u, b, h0)
            loss = tf.reduce_sum(h * data(*h.shape, phase=5))
            loss += tf.reduce_sum(last * data(*last.shape, phase=6))
        return h, last, *tape.gradient(loss, (a, u, b, h0))

    expected = tf.function(results)(loop)
    assert_close(tf.function(results)(fused), expected, 1e-12)
    assert_close(results(fused), expected, 1e-12)
