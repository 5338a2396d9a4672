"""The fused recurrences of IndRNN, IndyLSTM, IndyGRU; of SimpleRNN, dilated.

A cell defines one step: a function from gates a_t, states and weights to the
next states. Neurons mix in that of SimpleRNN only. The loop over the steps is
here. It has two forms with the same results:

- sequential: one compiled loop over the steps, and one back for gradients;
- parallel, for IndRNN with "relu" and "linear": the scan of `parallel_scan.py`,
  in O(log T) dependent operations.

Each form is a forward and a backward pass. All passes have the same arguments:

    forward(step, a, weights, states, steps) -> all states, last states but h
    backward(step, g, saved, weights, states, steps)
        -> gradients of a, weights and states

On TensorFlow and JAX. Axis letters: B batch, T time, N units, G gates.
"""

import contextlib
import contextvars
import functools
import math
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from ind_rnn_cell import IndRNNStep
from parallel_scan import CHUNK_STEPS, largest, scan

tf = jax = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax

RELU, LINEAR = keras.activations.relu, keras.activations.linear
# activation: (its value h, gradient g that reaches h) -> gradient of its input
ACTIVATION_GRADIENTS = {
    RELU: lambda h, g: ops.where(h > 0, g, ops.zeros_like(g)),
    keras.activations.tanh: lambda h, g: g * (1 - h * h),
    keras.activations.sigmoid: lambda h, g: g * h * (1 - h),
    LINEAR: lambda h, g: g,
}
# A batch is split into at most MAX_BATCH_SPLITS parts that run side by side,
# only if it has MIN_ELEMENTS_TO_SPLIT elements. An unknown size counts as 32.
MAX_BATCH_SPLITS, MIN_ELEMENTS_TO_SPLIT = 8, 2**20
# XLA compiles a program for each length. Unknown lengths are padded to these.
PADDED_LENGTHS = 2 ** np.arange(4, 31, dtype="int32")

# Per thread, since one thread may export while others train. None means: no XLA
# inside an exporter, XLA everywhere else.
_xla = contextvars.ContextVar("xla", default=None)
EXPORTERS = (
    "keras.src.export.",
    "tensorflow.lite.",
    "tensorflow.python.saved_model.",
    "tf2onnx.",
)


@contextlib.contextmanager
def without_xla():
    """A context in which models are traced without XLA, in Keras' own loop.

    Use it when you trace a function yourself and the result must run without
    XLA, for example a concrete function for
    `tf.lite.TFLiteConverter.from_concrete_functions`. `model.export`,
    `tf.saved_model.save`, `tf2onnx` and LiteRT's converter of Keras models do
    not need it: inside these exporters, XLA is off by default. Weights and
    results are the same. It applies to the current thread only:

        with without_xla():
            step = tf.function(model).get_concrete_function(signature)
    """
    with _context_value(_xla, False):
        yield


@contextlib.contextmanager
def with_xla():
    """A context in which exporters keep the compiled loop of training.

    Use it to export for a server that has XLA:

        with with_xla():
            model.export("served")
    """
    with _context_value(_xla, True):
        yield


@contextlib.contextmanager
def _context_value(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _has_xla():
    """Whether the code that is traced now may use XLA."""
    if _xla.get() is not None or tf is None or tf.executing_eagerly():
        return _xla.get() is not False
    # Exporters do not say that they export: look for one among the callers.
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(EXPORTERS):
            return False
        frame = frame.f_back
    return True


class Steps(NamedTuple):
    """What happens at each step. Arrays (B, T) in the order of reading.

    mask: False where a step is skipped, and all states stay as they are.
    reset: True where the states before a step are replaced by zeros.
    length: T, a scalar, where the arrays are padded to more steps than that.
    """

    mask: object = None
    reset: object = None
    length: object = None


class SimpleRNNStep(NamedTuple):
    """h_t = activation(a_t + h_{t-1} @ U + b).

    U (N, N) comes as one axis, (N * N,), as all that the rows of a batch share.
    The last axis of a_t and h_t may hold several vectors of N = `units`, which
    are as rows of their own.
    """

    activation: Callable
    units: int

    def __call__(self, gates, states, weights):
        (a,), (h,), ((u,), (b,)) = gates, states, weights
        return (self.activation(a + self.product(h, u) + b),)

    def product(self, h, u, transpose=False):
        u = ops.reshape(u, (self.units, self.units))
        rows = ops.reshape(h, (-1, self.units))
        rows = ops.matmul(rows, ops.transpose(u) if transpose else u)
        return ops.reshape(rows, ops.shape(h))


def can_compile():
    """Whether the loops here can run where the code is called from.

    If not, Keras' loop has to: in an export, on another backend, or if
    functions run eagerly.
    """
    if not (tf or jax) or not _has_xla():
        return False
    return not tf or not tf.config.functions_run_eagerly()


def fused_step(cell):
    """The step of a cell in the form that `recurrence` takes.

    None if Keras' loop has to run instead: see `can_compile`; or with an
    activation that is not a pure function of its argument.
    """
    if not can_compile():
        return None
    activations = []
    for name in cell.step_type._fields:
        activation = getattr(cell, name)
        if activation not in ACTIVATION_GRADIENTS:
            if jax or isinstance(activation, keras.layers.Layer):
                return None
            # Kept in the cell, so that each activation is traced once.
            traced = vars(cell).setdefault("traced_activations", {})
            key = activation, cell.units, cell.compute_dtype
            if key not in traced:
                traced[key] = _Traced(*key)
            activation = traced[key]
            if not activation.is_pure:
                return None
        activations.append(activation)
    return cell.step_type(*activations)


class _Traced:
    """A user's activation, traced once, for the forward and backward pass."""

    def __init__(self, activation, units, dtype):
        # The loop computes in float32 where the layer computes in half of it.
        dtype = keras.backend.result_type(dtype, "float32")
        signature = tf.TensorSpec((None, units), dtype)
        function = tf.function(activation, autograph=False)
        try:
            self.function = function.get_concrete_function(signature)
        except Exception:  # Keras' loop runs it, or reports what is wrong.
            self.is_pure = False
            return
        graph = self.function.graph
        self.is_pure = not graph.captures and not any(
            operation.op_def.is_stateful for operation in graph.get_operations()
        )

    def __call__(self, z):
        return tf.ensure_shape(self.function(z), z.shape)


def recurrence(
    a,
    weights,
    states,
    *,
    step,
    implementation="auto",
    mask=None,
    reset=None,
):
    """The states of all steps. Differentiable.

        states_t = step(a_t, states_{t-1}, weights)

    Arguments:
        a: (B, T, N), or (B, T, G, N) for a step of G gates.
        weights: Two tuples: factors of h_{t-1}, (N,), or (B, N) if they differ
            from row to row; and biases, (N,).
        states: A tuple of (B, N), before the first step.
        step: One step, from `fused_step`: a tuple of activations that is also
            a function of gates, states and weights, which are tuples of (B, N)
            or broadcast to it.
        implementation: "sequential", "parallel", or "auto": parallel on a GPU
            where there is such a form. Default: "auto".
        mask, reset: As in `Steps`. Default: None.

    Returns:
        h of shape (B, T, N), the first state; and a list of the last states,
        (B, N).
    """
    # As tensors: variables may change before the backward pass.
    to_tensor = tf.convert_to_tensor if tf else ops.convert_to_tensor
    weights, states = keras.tree.map_structure(
        to_tensor, (weights, tuple(states))
    )
    passes = _choose_passes(a, step, implementation)
    steps, length = Steps(mask, reset), None
    eager = tf.executing_eagerly() if tf else not isinstance(a, jax.core.Tracer)
    if a.shape[1] is None or eager:
        # Eagerly, each length would compile a program of its own.
        a, steps = _pad_to_power_of_two(a, steps)
        length = steps.length
    differentiable = _differentiable_on_jax if jax else _differentiable_on_tf
    h, ends = differentiable(passes, step, a, weights, states, steps)
    h = h if length is None else h[:, :length]
    return h, [h[:, -1], *ends]


def dilated_recurrence(a, weights, dilation, **options):
    """The states of all steps, where h_t follows from h_{t-d}, from zeros.

    d steps in a row are one step of d * N neurons:

        (B, T, N) -> (B, T / d, d * N) -> h of T / d steps -> (B, T, N)

    Nothing moves in memory, and the loop is d times shorter.

    Arguments:
        a: (B, T, N).
        weights: As in `recurrence`, of a step of d * N neurons.
        dilation: d.
        **options: As in `recurrence`.

    Returns:
        h of shape (B, T, N).
    """
    batch, length, units = ops.shape(a)
    steps = -(-length // dilation)
    whole = isinstance(length, int) and length % dilation == 0
    if not whole:
        a = ops.pad(a, [[0, 0], [0, steps * dilation - length], [0, 0]])
    h, _ = recurrence(
        ops.reshape(a, (batch, steps, dilation * units)),
        weights,
        (ops.zeros((batch, dilation * units), a.dtype),),
        **options,
    )
    h = ops.reshape(h, (batch, steps * dilation, units))
    return h if whole else h[:, :length]


class _Passes(NamedTuple):
    forward: Callable
    backward: Callable
    saves_gates: bool = False  # for the backward pass, beside all states


def _choose_passes(a, step, implementation):
    length, on_gpu = a.shape[1], _on_gpu(a)
    if implementation == "parallel" and length is None:
        raise ValueError(
            '`implementation="parallel"` must know the number of time '
            "steps when a model is built, got sequences of shape "
            "(batch, None, features)"
        )
    has_scan = step in (IndRNNStep(RELU), IndRNNStep(LINEAR))
    is_long = length is not None and length > 2 * CHUNK_STEPS
    if implementation == "parallel" or (
        implementation == "auto" and on_gpu and has_scan and is_long
    ):
        return _Passes(_parallel_forward, _parallel_backward)
    passes = _Passes(_forward, _backward_recompute, saves_gates=True)
    if isinstance(step, SimpleRNNStep):
        passes = _Passes(_forward, _backward_mixed)
    elif (
        isinstance(step, IndRNNStep) and step.activation in ACTIVATION_GRADIENTS
    ):
        passes = _Passes(_forward, _backward)
    if not on_gpu and (count := _batch_splits(a.shape)):
        passes = _Passes(
            functools.partial(_run_in_splits, count, passes.forward),
            functools.partial(_run_in_splits, count, passes.backward),
            passes.saves_gates,
        )
    return passes


def _on_gpu(a):
    """Whether what is computed from a will be computed on a GPU."""
    if jax:
        device = jax.config.jax_default_device
        return (
            getattr(device, "platform", device) or jax.default_backend()
        ) == "gpu"
    if not tf.config.list_logical_devices("GPU"):
        return False
    # Within `with tf.device(...)`, what is computed carries its name.
    return "CPU" not in tf.identity(a).device.upper()


def _pad_to_power_of_two(a, steps):
    """a and steps, padded to one of PADDED_LENGTHS; `steps.length` is T."""
    length = a.shape[1]
    if length is None:
        length = tf.shape(a)[1]
        index = tf.searchsorted(PADDED_LENGTHS, [length])[0]
        padding = tf.gather(PADDED_LENGTHS, index) - length
    else:
        padding = (
            PADDED_LENGTHS[np.searchsorted(PADDED_LENGTHS, length)] - length
        )
        length = ops.convert_to_tensor(length, "int32")

    def pad(x):
        if x is None:
            return None
        rest = [[0, 0]] * (len(x.shape) - 2)
        return (tf.pad if tf else ops.pad)(x, [[0, 0], [0, padding], *rest])

    return pad(a), Steps(pad(steps.mask), pad(steps.reset), length)


def _differentiable_on_jax(passes, step, a, weights, states, steps):
    """h and the last states but h, with gradients by the backward pass."""

    @jax.custom_gradient
    def run(a, weights, states):
        all_states, ends = passes.forward(step, a, weights, states, steps)
        saved = (a, *all_states) if passes.saves_gates else all_states

        def gradient(g):
            return passes.backward(step, g, saved, weights, states, steps)

        return (all_states[0], *ends), gradient

    h, *ends = run(a, weights, states)
    return h, ends


def _differentiable_on_tf(passes, step, a, weights, states, steps):
    """As `_differentiable_on_jax`."""

    @tf.custom_gradient
    def run(*arguments):
        (result, *others), ends = passes.forward(
            step, *tf.nest.map_structure(tf.stop_gradient, arguments), steps
        )
        result.set_shape((*a.shape[:2], a.shape[-1]))

        def gradient(*g):
            # Through h, the tape sees second gradients. In forward mode `h` is
            # not assigned yet.
            all_states = (result if h is None else h, *others)
            saved = (a, *all_states) if passes.saves_gates else all_states
            backward = functools.partial(passes.backward, step, steps=steps)
            return _first_gradients(backward, g, saved, weights, states)

        return (result, *ends), gradient

    h = None
    h, *ends = run(a, weights, states)
    return h, ends


def _first_gradients(backward, *arguments):
    """The flat results of a backward pass, which have no gradients."""

    def second(*_):
        raise NotImplementedError(
            "A fused recurrence has first gradients in reverse mode only: for "
            "others pass `unroll=True`"
        )

    @tf.custom_gradient
    def run(*arguments):
        arguments = tf.nest.map_structure(tf.stop_gradient, arguments)
        return tuple(tf.nest.flatten(backward(*arguments))), second

    return run(*arguments)


def _compiled(function):
    """Compile with XLA, one program for each step and each shape."""
    if tf:
        compiled = tf.function(function, jit_compile=True, autograph=False)
        # The layers of a network have shapes of their own. TensorFlow would
        # warn after five.
        compiled._omit_frequent_tracing_warning = True
        return compiled
    return jax.jit(function, static_argnums=0) if jax else function


# ---- The sequential form: one loop over the steps ----


@_compiled
def _forward(step, a, weights, states, steps):
    """All states, a tuple of (B, T, N), and the last ones but h, (B, N)."""
    mask, reset, length = steps
    length = ops.shape(a)[1] if length is None else length
    weights, states = _to_float32((weights, states))
    a = _bf16_to_uint16(a)

    def body(t, states, all_states):
        before = _reset_states(states, reset, t)
        states = step(_to_float32(_gates(a, t)), before, weights)
        if mask is not None:
            kept = _at(mask, t)
            states = [ops.where(kept, *x) for x in zip(states, before)]
        all_states = [_put(x, t, h) for x, h in zip(all_states, states)]
        return t + 1, [*states], all_states

    empty = ops.zeros_like(a if len(a.shape) == 3 else a[:, :, 0])
    _, states, all_states = ops.while_loop(
        lambda t, *_: t < length,
        body,
        (0, [*states], [empty] * len(states)),
    )
    all_states = tuple(map(_uint16_to_bf16, all_states))
    dtype = all_states[0].dtype
    return all_states, tuple(ops.cast(x, dtype) for x in states[1:])


@_compiled
def _backward(step, g, saved, weights, states, steps):
    """The gradients of a, weights and states, from g, that of h. Of IndRNN.

    With g_t what reaches h_t directly and through h_{t+1}, and
    z_t = a_t + u * h_{t-1} + b:

        delta_t = activation'(z_t) * g_t        the gradient of a_t
        du = sum over B, T of delta_t * h_{t-1}
        db = sum over B, T of delta_t

    Of SimpleRNN, without du.
    """
    (g,), (h,), (h0,) = g, saved, states
    mixed = isinstance(step, SimpleRNNStep)
    mask, reset, length = steps
    length = ops.shape(h)[1] if length is None else length
    given = h, weights, states
    ((u,), (b,)), h0 = _to_float32((weights, h0))
    g, h = _bf16_to_uint16(g), _bf16_to_uint16(h)
    # delta_t takes the place of g_t: one array less to move. With a mask or
    # resets, XLA would copy the whole array in every step.
    in_place = mask is None and reset is None
    pull_back = ACTIVATION_GRADIENTS[step.activation]

    def to_state_before(delta):
        if mixed:
            return step.product(delta, u, transpose=True)
        return u * delta

    def body(t, delta, skipped, da, du, db):
        h_t = _to_float32(_at(h, t))
        if not mixed:
            du += _to_accumulator(delta * h_t)
        g_t = _to_float32(_at(da if in_place else g, t))
        g_t = g_t + to_state_before(delta) + skipped
        delta = pull_back(h_t, g_t)
        if mask is not None:
            kept = _at(mask, t)
            delta = ops.where(kept, delta, ops.zeros_like(delta))
            skipped = ops.where(kept, ops.zeros_like(g_t), g_t)
        db += _to_accumulator(delta)
        da = _put(da, t, delta)
        (delta,) = _reset_states((delta,), reset, t)
        if mask is not None:
            (skipped,) = _reset_states((skipped,), reset, t)
        return t - 1, delta, skipped, da, du, db

    zeros = ops.zeros_like(h0)
    _, delta, skipped, da, du, db = ops.while_loop(
        lambda t, *_: t >= 0,
        body,
        (
            length - 1,
            zeros,
            ops.zeros((), h0.dtype) if mask is None else zeros,
            g if in_place else ops.zeros_like(g),
            _to_accumulator(zeros),
            _to_accumulator(zeros),
        ),
    )
    if not mixed:
        du += _to_accumulator(delta * h0)
    g_states = (to_state_before(delta) + skipped,)
    return _sum_and_cast((_uint16_to_bf16(da), ((du,), (db,)), g_states), given)


def _backward_mixed(step, g, saved, weights, states, steps):
    """`_backward` of SimpleRNN. One product over B and T is all of du.

    It is outside the compiled program, where XLA takes twice as long for it.
    """
    da, (_, db), g_states = _backward(step, g, saved, weights, states, steps)
    (h,), (h0,) = saved, states
    before = ops.concatenate([h0[:, None], h[:, :-1]], axis=1)
    before = _zero_at_resets(before, steps.reset)
    before, delta = (ops.reshape(x, (-1, step.units)) for x in (before, da))
    du = ops.matmul(ops.transpose(before), delta)
    return da, ((ops.reshape(du, (-1,)),), db), g_states


@_compiled
def _backward_recompute(step, g, saved, weights, states, steps):
    """`_backward` for any step: compute it again, and differentiate it."""
    g, *g_ends = g
    a, *all_states = saved
    mask, reset, length = steps
    length = ops.shape(a)[1] if length is None else length
    given = a, weights, states
    weights, states, g_ends = _to_float32((weights, states, g_ends))
    # Weights have a gradient for each row; they are summed once, at the end.
    rows = ops.zeros_like(states[0])
    a, g, *all_states = map(_bf16_to_uint16, (a, g, *all_states))

    def body(t, g_states, da, sums):
        before = [
            ops.where(t > 0, _to_float32(_at(x, ops.maximum(t - 1, 0))), first)
            for x, first in zip(all_states, states)
        ]
        before = _reset_states(before, reset, t)
        g_after = [g_states[0] + _to_float32(_at(g, t)), *g_states[1:]]
        delta, g_states, g_weights = _step_gradients(
            step,
            _to_float32(_gates(a, t)),
            before,
            keras.tree.map_structure(lambda w: w + rows, weights),
            g_after,
        )
        if mask is not None:
            kept = _at(mask, t)
            delta, g_weights = keras.tree.map_structure(
                lambda x: ops.where(kept, x, ops.zeros_like(x)),
                (delta, g_weights),
            )
            g_states = [ops.where(kept, *x) for x in zip(g_states, g_after)]
        sums = keras.tree.map_structure(
            lambda x, y: x + _to_accumulator(y), sums, g_weights
        )
        da = _put_gates(da, t, delta)
        return t - 1, [*_reset_states(g_states, reset, t)], da, sums

    _, g_states, da, sums = ops.while_loop(
        lambda t, *_: t >= 0,
        body,
        (
            length - 1,
            [rows, *g_ends],
            ops.zeros_like(a),
            keras.tree.map_structure(lambda _: _to_accumulator(rows), weights),
        ),
    )
    return _sum_and_cast((_uint16_to_bf16(da), sums, tuple(g_states)), given)


def _step_gradients(step, gates, states, weights, g):
    """The gradients of a step, from g, those of its new states."""
    if jax:
        g = tuple(g)
        return jax.vjp(step, gates, states, weights)[1](g)
    with tf.GradientTape() as tape:
        tape.watch((gates, states, weights))
        new = step(gates, states, weights)
    gradients = tape.gradient(
        new, (gates, states, weights), tuple(g), unconnected_gradients="zero"
    )
    keras.tree.map_structure(lambda x: x.set_shape(g[0].shape), gradients)
    return gradients


def _sum_and_cast(gradients, given):
    """The gradients in shapes and types of a, weights and states as given.

    Those of weights come for each row, (B, N): sum them where a weight is (N,).
    """
    da, sums, g_states = gradients

    def sum_rows(x, w):
        return ops.sum(x, axis=0) if len(w.shape) == 1 else x

    sums = keras.tree.map_structure(sum_rows, sums, given[1])
    return keras.tree.map_structure(
        lambda x, like: ops.cast(x, like.dtype), (da, sums, g_states), given
    )


# ---- Using all cores ----
# XLA runs a loop in one thread. To use all cores, the batch is split, and each
# part has a loop of its own.


def _batch_splits(shape):
    """Into how many parts to split (B, T, ...). 0: do not split."""
    if not tf or tf.executing_eagerly():
        return 0
    # Inside a larger XLA program, loops run one after another, so splitting
    # does not help. No public function tells whether we are inside one.
    if tf.__internal__.get_enclosing_xla_context() is not None:
        return 0
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    count = min(
        threads or os.cpu_count(),
        shape[0] or MAX_BATCH_SPLITS,
        MAX_BATCH_SPLITS,
    )
    is_small = math.prod(size or 32 for size in shape) < MIN_ELEMENTS_TO_SPLIT
    return 0 if count == 1 or is_small else count


def _run_in_splits(count, function, step, *arguments, **options):
    """Run a pass on each part of the batch, and join the results."""
    results = [
        function(step, *arguments, **options)
        for arguments, options in _split_batch(count, (arguments, options))
    ]
    # Arrays with one axis are gradients of weights, which add up.
    return tf.nest.map_structure(
        lambda *x: sum(x) if len(x[0].shape) == 1 else tf.concat(x, axis=0),
        *results,
    )


def _split_batch(count, arrays):
    """Split arrays (B, ...) along the batch; (N,), T and None go to all."""
    flat = tf.nest.flatten(arrays)
    rows = flat[0].shape[0] or tf.shape(flat[0])[0]
    sizes = [(rows + part) // count for part in range(count)]
    return [
        tf.nest.pack_sequence_as(arrays, part)
        for part in zip(
            *(
                [x] * count
                if x is None or len(x.shape) < 2
                else tf.split(x, sizes)
                for x in flat
            )
        )
    ]


# ---- Types ----


def _to_float32(arrays):
    """Cast half precision to float32, which sums over many steps need.

    It costs nothing: processors compute in float32 anyway.
    """

    def wide(x):
        is_half = _dtype(x) in ("float16", "bfloat16")
        return ops.cast(x, "float32") if is_half else x

    return keras.tree.map_structure(wide, arrays)


def _to_accumulator(x):
    """Cast x to a type for sums over B and T: float32, or float64."""
    return ops.cast(x, "float64" if _dtype(x) == "float64" else "float32")


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _bf16_to_uint16(x):
    """View bfloat16 as integers. XLA would convert the array in every step."""
    return _view(x, "uint16") if _dtype(x) == "bfloat16" else x


def _uint16_to_bf16(x):
    """Undo `_bf16_to_uint16`."""
    return _view(x, "bfloat16") if _dtype(x) == "uint16" else x


def _view(x, dtype):
    """As `ops.view`, which needs a known N."""
    return tf.bitcast(x, dtype) if tf else ops.view(x, dtype)


# ---- One step of arrays ----


def _at(x, t):
    """x[:, t] of (B, T, N), or x[:, t, None] of (B, T)."""
    return _uint16_to_bf16(x[:, t] if len(x.shape) == 3 else x[:, t, None])


def _gates(a, t):
    """A tuple of (B, N) from a (B, T, N) or (B, T, G, N)."""
    if len(a.shape) == 3:
        return (_at(a, t),)
    # One slice each: XLA makes slow programs of slices of slices.
    return tuple(_uint16_to_bf16(a[:, t, gate]) for gate in range(a.shape[2]))


def _reset_states(states, reset, t):
    """The states, with zeros where a sequence begins at step t."""
    if reset is None:
        return states
    begins = _at(reset, t)
    return [ops.where(begins, ops.zeros_like(x), x) for x in states]


def _put(x, t, value):
    """x with x[:, t] = value, in place where XLA can."""
    return _put_at(x, (0, t, 0), value[:, None])


def _put_gates(a, t, gates):
    """`_put` of what `_gates` has read."""
    if len(a.shape) == 3:
        return _put(a, t, gates[0])
    for gate, value in enumerate(gates):
        a = _put_at(a, (0, t, gate, 0), value[:, None, None])
    return a


def _put_at(x, start, value):
    dtype = "bfloat16" if _dtype(x) == "uint16" else _dtype(x)
    return ops.slice_update(x, start, _bf16_to_uint16(ops.cast(value, dtype)))


# ---- The parallel form: a scan over maps ----


@_compiled
def _parallel_forward(step, a, weights, states, steps):
    """As `_forward`. A masked step is the map (1, 0, -largest, infinity)."""
    ((u,), (b,)), (h0,) = _to_float32((weights, states))
    s = _to_float32(a) + _broadcast_over_time(b)
    maps = _broadcast_over_time(u), s
    if step.activation is RELU:
        infinity = ops.full((1, 1, 1), np.inf, s.dtype)
        # Finite: infinity times zero would be NaN.
        s = ops.maximum(s, -largest(s))
        maps = maps[0], s, ops.zeros_like(infinity), infinity
    if steps.mask is not None:
        same = 1, 0, -largest(s), np.inf
        maps = tuple(
            ops.where(steps.mask[:, :, None], x, ops.cast(y, x.dtype))
            for x, y in zip(maps, same)
        )
    maps = _zero_at_resets(maps[0], steps.reset), *maps[1:]
    return (ops.cast(scan(maps, h0), a.dtype),), ()


@_compiled
def _parallel_backward(step, g, saved, weights, states, steps):
    """As `_backward`. total_t is the whole gradient of h_t:

    total_t = g_t + j_{t+1} * total_{t+1},    j_t = dh_t / dh_{t-1}
    """
    given = *saved, weights, states
    (g,), (h,), ((u,), _), (h0,) = _to_float32((g, saved, weights, states))
    mask, reset, _ = steps
    pull_back = ACTIVATION_GRADIENTS[step.activation]
    j = pull_back(h, _broadcast_over_time(u))
    if mask is not None:
        j = ops.where(mask[:, :, None], j, ops.ones_like(j))
    j = _zero_at_resets(j, reset)
    # From the end; what is behind the last step is multiplied by zero.
    maps = ops.flip(ops.roll(j, -1, axis=1), axis=1), ops.flip(g, axis=1)
    total = ops.flip(scan(maps, ops.zeros_like(h0), finite=True), axis=1)
    delta = pull_back(h, total)
    if mask is not None:
        delta = ops.where(mask[:, :, None], delta, ops.zeros_like(delta))
    before = ops.concatenate([h0[:, None], h[:, :-1]], axis=1)
    products = delta * _zero_at_resets(before, reset)
    sums = (ops.sum(_to_accumulator(x), axis=1) for x in (products, delta))
    du, db = ((x,) for x in sums)
    return _sum_and_cast((delta, (du, db), (j[:, 0] * total[:, 0],)), given)


def _broadcast_over_time(weight):
    """(N,) or (B, N), the same for all steps: (1 or B, 1, N)."""
    return ops.reshape(weight, (-1, 1, weight.shape[-1]))


def _zero_at_resets(x, reset):
    """x (B or 1, T or 1, N), with zeros where a sequence begins."""
    if reset is None:
        return x
    return ops.where(reset[:, :, None], ops.zeros_like(x), x)
