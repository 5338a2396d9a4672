"""The fused recurrences of IndRNN, IndyLSTM and IndyGRU.

A cell defines one step: a function from gates a_t, states and weights to the
next states, in which neurons do not mix. The loop over the steps is here. It
has two forms with the same results:

- sequential: one compiled loop over the steps, and one back for gradients;
- parallel, for IndRNN with "relu" and "linear": a scan in O(log T) dependent
  steps. Each step is a clipped affine map of h, and so are several in a row:
  chunks of steps are joined into one map, recursively. The mathematics is in
  docs/parallel_scan.md.

On TensorFlow and JAX. Axis letters: B batch, T time, N units, G gates.
"""

import contextlib
import contextvars
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

tf = jax = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
elif keras.backend.backend() == "jax":
    import jax

RELU, LINEAR = keras.activations.relu, keras.activations.linear
# Steps that become one map in the parallel form.
CHUNK_STEPS = 8
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


class IndRNNStep(NamedTuple):
    """h_t = activation(a_t + u * h_{t-1} + b).

    The steps of all cells are tuples of their activations.
    """

    activation: Callable

    def __call__(self, gates, states, weights):
        (a,), (h,), ((u,), (b,)) = gates, states, weights
        return (self.activation(a + u * h + b),)

    @property
    def pullback(self):
        """A function (h_t, its gradient) -> the gradient of a_t, or None.

        If None, the backward pass computes the step again and differentiates.
        """
        return _PULLBACKS.get(self.activation)


def fused_activations(cell, *activations):
    """The activations of a cell, in the form that `recurrence` takes.

    None if Keras' loop has to run instead: in an export, on another backend,
    or with an activation that is not a pure function of its argument.
    """
    if not (tf or jax) or not _has_xla():
        return None
    if tf and tf.config.functions_run_eagerly():
        return None
    found = tuple(_fused(cell, activation) for activation in activations)
    return None if None in found else found


def _fused(cell, activation):
    if activation in _PULLBACKS:
        return activation
    if jax or isinstance(activation, keras.layers.Layer):
        return None
    # Kept in the cell, so that each activation is traced once.
    all_traced = vars(cell).setdefault("traced_activations", {})
    key = activation, cell.units, cell.compute_dtype
    if key not in all_traced:
        all_traced[key] = _Traced(*key)
    return all_traced[key] if all_traced[key].is_pure else None


class _Traced:
    """A user's activation, traced once, for the forward and backward pass."""

    def __init__(self, activation, units, dtype):
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
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
    moments=False,
):
    """The states of all steps. Differentiable.

        states_t = step(a_t, states_{t-1}, weights)

    Arguments:
        a: (B, T, N), or (B, T, G, N) for a step of G gates.
        weights: Two tuples of (N,): factors of h_{t-1}, and biases.
        states: A tuple of (B, N), before the first step.
        step: One step: a tuple of activations from `fused_activations` that
            is also a function of gates, states and weights, which are tuples
            of (B, N) or broadcast to it.
        implementation: "sequential", "parallel", or "auto": parallel on a GPU
            where there is such a form. Default: "auto".
        dropout: (B, N), one more factor of h_{t-1}; or None. Default: None.
        mask: (B, T) in the order of reading, false where the states stay as
            they are; or None. Default: None.
        reset: (B, T) in the order of reading, true where the states before a
            step are replaced by zeros; or None. Default: None.
        backwards: Whether a is read from its end. Default: False.
        moments: Whether to compute mean and variance of h, both (N,), and
            attach them to h. Only in the sequential form, without a mask, on
            TensorFlow. Default: False.

    Returns:
        h of shape (B, T, N), the first state, in the order of reading; and a
        list of the last states, (B, N).
    """
    # As tensors: variables may change before the backward pass.
    to_tensor = tf.convert_to_tensor if tf else ops.convert_to_tensor
    weights, states = keras.tree.map_structure(
        to_tensor, (weights, tuple(states))
    )
    options = {"step": step, "dropout": dropout}
    length = a.shape[1]
    parallel = _is_parallel(implementation, step, a)
    if parallel:
        passes = _parallel_forward, _parallel_backward
    else:
        passes = _forward, _backward if _pullback(step) else _backward_again
        if parts := _batch_splits(a):
            passes = [
                functools.partial(_run_in_splits, parts, x) for x in passes
            ]
    if moments and tf and mask is None and not parallel:
        passes = functools.partial(passes[0], moments=True), passes[1]
    if _compiles_exact_length(a):
        options |= {"mask": mask, "reset": reset, "backwards": backwards}
        return _differentiable(*passes, a, weights, states, options)
    a = ops.flip(a, axis=1) if backwards else a
    a, mask, reset, length = _pad_to_power_of_two(a, mask, reset)
    options |= {"mask": mask, "reset": reset, "backwards": False}
    if not parallel:
        options["length"] = length
    return _differentiable(*passes, a, weights, states, options, cut=length)


def _pullback(step):
    return getattr(step, "pullback", None)


def _is_parallel(implementation, step, a):
    length = a.shape[1]
    if implementation == "parallel":
        if length is None:
            raise ValueError(
                '`implementation="parallel"` must know the number of time '
                "steps when a model is built, got sequences of shape "
                "(batch, None, features)"
            )
        return True
    return (
        implementation == "auto"
        and step in (IndRNNStep(RELU), IndRNNStep(LINEAR))
        and length is not None
        and length > 2 * CHUNK_STEPS
        and _on_gpu(a)
    )


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


def _compiles_exact_length(a):
    """Whether to compile for exactly this length, without padding.

    Eagerly, every shape would compile. So only the first two lengths have
    programs of their own; all others share those of powers of two.
    """
    length = a.shape[1]
    if length is None or not _is_eager(a):
        return length is not None
    key = a.shape[0], *a.shape[2:], a.dtype
    lengths = _exact_lengths.setdefault(key, set())
    if len(lengths) < 2:
        lengths.add(length)
    return length in lengths


_exact_lengths = {}


def _is_eager(a):
    return tf.executing_eagerly() if tf else not isinstance(a, jax.core.Tracer)


def _pad_to_power_of_two(a, mask, reset):
    """a, mask and reset, padded to one of PADDED_LENGTHS; and T, a tensor."""
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

    def padded(x):
        if x is None:
            return None
        rest = [[0, 0]] * (len(x.shape) - 2)
        return (tf.pad if tf else ops.pad)(x, [[0, 0], [0, padding], *rest])

    return *map(padded, (a, mask, reset)), length


def _differentiable(forward, backward, a, weights, states, options, cut=None):
    """Join a forward and a backward pass: h and the last states.

    `cut` is the number of steps without padding. Moments that the forward pass
    returns are attached to h.
    """
    again = _pullback(options["step"]) is None
    if jax:

        @jax.custom_gradient
        def recurrence(a, weights, states):
            all_states, ends = forward(a, weights, states, **options)
            kept = all_states, a if again else None, weights, states
            return (all_states[0], ends), lambda g: backward(
                *g, *kept, **options
            )

        h, ends = recurrence(a, weights, states)
        h = h[:, :cut]
        return h, [h[:, -1], *ends]

    @tf.custom_gradient
    def recurrence(*arguments):
        arguments = tf.nest.map_structure(tf.stop_gradient, arguments)
        (result, *others), ends, *moments = forward(*arguments, **options)
        moments = _pooled_moments(*moments) if moments else ()
        result.set_shape((*a.shape[:2], a.shape[-1]))

        def gradient(g, *more):
            # h, as the tape knows it, is not yet there in forward mode.
            known = result if h is None else h
            g_ends, g_moments = more[: len(ends)], more[len(ends) :]
            if moments:
                length = options.get("length", tf.shape(known)[1])
                count = tf.cast(tf.shape(known)[0] * length, moments[0].dtype)
                g_moments = moments[0], *(x / count for x in g_moments)
            kept = (known, *others), a if again else None, weights, states
            gradients = pullback(g, g_ends, *kept, g_moments)
            return tf.nest.flatten(gradients)

        return (result, *ends, *moments), gradient

    def pullback(*arguments):
        @tf.custom_gradient
        def differentiable(*tensors):
            def second(*_):
                raise NotImplementedError(
                    "A fused recurrence has first gradients in reverse mode "
                    "only: for others pass `unroll=True`"
                )

            tensors = map(tf.stop_gradient, tensors)
            again = tf.nest.map_structure(
                lambda x: None if x is None else next(tensors), arguments
            )
            gradients = backward(*again, **options)
            return tuple(tf.nest.flatten(gradients)), second

        given = tf.nest.flatten(arguments)
        return differentiable(*(x for x in given if x is not None))

    h = None
    h, *more = recurrence(a, weights, states)
    count = len(states) - 1
    ends, moments = more[:count], more[count:]
    result = h if cut is None else h[:, :cut]
    if moments:
        _attach(result, moments=moments)
    return result, [result[:, -1], *ends]


# ---- Facts attached to tensors ----
# A layer can attach what it knows about its output to the tensor itself, as
# Keras does with `_keras_mask`: for example its mean and variance. The next
# layer may use the fact. Other layers ignore it, and return tensors without it.


def _attach(x, **facts):
    """Attach facts to x: `moments`, `affine` or `sum`."""
    for name, value in facts.items():
        setattr(x, f"_ind_rnn_{name}", value)


def _attached(x, name):
    """The fact attached to x, or None."""
    return getattr(x, f"_ind_rnn_{name}", None)


def _compiled(function=None, **options):
    """Compile with XLA, one program for each shape."""
    if function is None:
        return functools.partial(_compiled, **options)
    if tf:
        return tf.function(
            function, jit_compile=True, autograph=False, **options
        )
    if jax:
        return jax.jit(function, static_argnames=("step", "backwards"))
    return function


# ---- The sequential form: one loop over the steps ----


@_compiled(reduce_retracing=True)
def _forward(
    a,
    weights,
    states,
    *,
    step,
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
    length=None,
    moments=False,
):
    """The states of all steps, (B, T, N) each, and the last ones except h.

    With `moments` also mean and variance of h in each sequence, (B, N).
    """
    padded = length is not None
    length = length if padded else ops.shape(a)[1]
    weights, states = _to_float32((weights, states), step)
    weights = _apply_dropout(weights, dropout)
    a = _bf16_to_uint16(a)

    def body(t, states, out, sums):
        s = length - 1 - t if backwards else t
        before = _reset_states(states, reset, t)
        states = step(_to_float32(_gates(a, s), step), before, weights)
        if mask is not None:
            kept = _at(mask, t)
            states = [ops.where(kept, *x) for x in zip(states, before)]
        sums = [x + _to_accumulator(states[0]) for x in sums]
        out = [_put(x, t, state) for x, state in zip(out, states)]
        return t + 1, [*states], out, sums

    empty = ops.zeros_like(a if len(a.shape) == 3 else a[:, :, 0])
    sums = [ops.zeros_like(_to_accumulator(states[0]))] if moments else []
    _, states, out, sums = ops.while_loop(
        lambda t, *_: t < length,
        body,
        (0, [*states], [empty] * len(states), sums),
    )
    out = tuple(map(_uint16_to_bf16, out))
    ends = tuple(ops.cast(x, out[0].dtype) for x in states[1:])
    if not moments:
        return out, ends
    mean = sums[0] / ops.cast(length, sums[0].dtype)
    off = _to_accumulator(out[0]) - mean[:, None]
    if padded:
        # int32: Keras' default is int64 with `floatx` "float64".
        steps = ops.arange(ops.shape(off)[1], dtype="int32")[:, None] < length
        off = ops.where(steps, off, ops.zeros_like(off))
    variance = ops.sum(off * off, axis=1) / ops.cast(length, off.dtype)
    return out, ends, mean, variance


def _pooled_moments(means, variances):
    """Mean and variance (N,) of all steps, from those of each sequence."""
    mean = ops.mean(means, axis=0)
    return mean, ops.mean(variances + ops.square(means - mean), axis=0)


def _moments_gradient(moments):
    """A function: h_t -> its gradient through the mean and the variance.

        (dm + 2 dv (h_t - m)) / (B T)

    `moments` are the mean m, and the gradients dm / (B T) and dv / (B T) of
    mean and variance.
    """
    if not moments:
        return None
    mean, d_mean, d_variance = moments
    slope = 2 * d_variance
    shift = d_mean - slope * mean
    return lambda h: ops.cast(shift + slope * _to_accumulator(h), h.dtype)


@_compiled(reduce_retracing=True)
def _backward(
    g,
    g_ends,
    all_states,
    a,
    weights,
    states,
    moments=(),
    *,
    step,
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
    length=None,
):
    """The gradients of a, weights and states, from g, that of h. Of IndRNN.

    With g_t what reaches h_t directly and through h_{t+1}, and
    z_t = a_t + u * h_{t-1} + b:

        delta_t = activation'(z_t) * g_t        the gradient of a_t
        du = sum over B, T of delta_t * h_{t-1}
        db = sum over B, T of delta_t

    h is all that is read of the forward pass: a, `g_ends` are not.
    """
    (h,), (h0,) = all_states, states
    length = ops.shape(h)[1] if length is None else length
    given = h, weights, states
    weights, h0 = _to_float32((weights, h0), step)
    (u,), (b,) = _apply_dropout(weights, dropout)
    g, h = _bf16_to_uint16(g), _bf16_to_uint16(h)
    through_moments = _moments_gradient(moments)
    # delta_t takes the place of g_t: one array less to move. With a mask or
    # resets, XLA would copy the whole array in every step.
    in_place = mask is None and reset is None

    def body(t, delta, skipped, da, du, db):
        h_t = _to_float32(_at(h, t), step)
        du += _to_accumulator(delta * h_t)
        g_t = _to_float32(_at(da if in_place else g, t), step)
        g_t = g_t + u * delta + skipped
        if moments:
            g_t += through_moments(h_t)
        delta = step.pullback(h_t, g_t)
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
    da = _uint16_to_bf16(ops.flip(da, axis=1) if backwards else da)
    sums = (du + _to_accumulator(delta * h0),), (db,)
    return _to_given_dtypes((da, sums, (u * delta + skipped,)), given, dropout)


@_compiled(reduce_retracing=True)
def _backward_again(
    g,
    g_ends,
    all_states,
    a,
    weights,
    states,
    moments=(),
    *,
    step,
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
    length=None,
):
    """`_backward` for any step: compute it again, and differentiate it.

    `g_ends` are the gradients of the last states except h.
    """
    length = ops.shape(a)[1] if length is None else length
    given = a, weights, states
    weights, states, g_ends = _to_float32((weights, states, g_ends), step)
    weights = _apply_dropout(weights, dropout)
    # Weights have a gradient for each row; they are summed once, at the end.
    rows = ops.zeros_like(states[0])
    a, g, *all_states = map(_bf16_to_uint16, (a, g, *all_states))
    through_moments = _moments_gradient(moments)

    def body(t, carried, da, sums):
        s = length - 1 - t if backwards else t
        before = [
            ops.where(
                t > 0, _to_float32(_at(x, ops.maximum(t - 1, 0)), step), first
            )
            for x, first in zip(all_states, states)
        ]
        before = _reset_states(before, reset, t)
        g_h = carried[0] + _to_float32(_at(g, t), step)
        if moments:
            g_h += through_moments(_to_float32(_at(all_states[0], t), step))
        reached = [g_h, *carried[1:]]
        delta, carried, of_weights = _step_gradients(
            step,
            _to_float32(_gates(a, s), step),
            before,
            keras.tree.map_structure(lambda w: w + rows, weights),
            reached,
        )
        if mask is not None:
            kept = _at(mask, t)
            delta, of_weights = keras.tree.map_structure(
                lambda x: ops.where(kept, x, ops.zeros_like(x)),
                (delta, of_weights),
            )
            carried = [ops.where(kept, *x) for x in zip(carried, reached)]
        sums = keras.tree.map_structure(
            lambda x, y: x + _to_accumulator(y), sums, of_weights
        )
        da = _put_gates(da, t, delta)
        return t - 1, [*_reset_states(carried, reset, t)], da, sums

    _, carried, da, sums = ops.while_loop(
        lambda t, *_: t >= 0,
        body,
        (
            length - 1,
            [rows, *g_ends],
            ops.zeros_like(a),
            keras.tree.map_structure(lambda _: _to_accumulator(rows), weights),
        ),
    )
    da = _uint16_to_bf16(ops.flip(da, axis=1) if backwards else da)
    return _to_given_dtypes((da, sums, tuple(carried)), given, dropout)


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


def _apply_dropout(weights, dropout):
    """The weights, with the factors of h multiplied by those of dropout."""
    u, b = weights
    if dropout is not None:
        u = tuple(x * ops.cast(dropout, x.dtype) for x in u)
    return u, b


def _to_given_dtypes(gradients, given, dropout):
    """The gradients of a, weights and states, in the types of these.

    Those of the weights come per row (B, N) and without dropout's factors.
    """
    a, (of_u, of_b), states = gradients
    if dropout is not None:
        of_u = tuple(x * _to_accumulator(dropout) for x in of_u)
    sums = keras.tree.map_structure(lambda x: ops.sum(x, 0), (of_u, of_b))
    return keras.tree.map_structure(
        lambda x, like: ops.cast(x, like.dtype), (a, sums, states), given
    )


# ---- Using all cores ----
# XLA runs a loop in one thread. To use all cores, the batch is split, and each
# part has a loop of its own.


def _batch_splits(a):
    """Into how many parts to split a (B, T, ...). 0: do not split."""
    if not tf or tf.executing_eagerly() or _on_gpu(a):
        return 0
    # Inside a larger XLA program, loops run one after another, so splitting
    # does not help. No public function tells whether we are inside one.
    if tf.__internal__.get_enclosing_xla_context() is not None:
        return 0
    shape = a.shape
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    count = min(
        threads or os.cpu_count(),
        shape[0] or MAX_BATCH_SPLITS,
        MAX_BATCH_SPLITS,
    )
    small = math.prod(size or 32 for size in shape) < MIN_ELEMENTS_TO_SPLIT
    return 0 if count == 1 or small else count


def _run_in_splits(
    count, function, *arguments, dropout, mask, reset, **options
):
    """Run a pass on each part of the batch, and join the results."""
    of_rows = {"dropout": dropout, "mask": mask, "reset": reset}
    results = [
        function(*arguments, **of_rows, **options)
        for arguments, of_rows in _split_batch(count, (arguments, of_rows))
    ]
    # Arrays with one axis are gradients of weights, which add up.
    return tf.nest.map_structure(
        lambda *x: sum(x) if len(x[0].shape) == 1 else tf.concat(x, axis=0),
        *results,
    )


def _split_batch(count, arrays):
    """Split arrays (B, ...) along the batch; (N,) and None go to all parts."""
    flat = tf.nest.flatten(arrays)
    rows = flat[0].shape[0] or tf.shape(flat[0])[0]
    sizes = [(rows + part) // count for part in range(count)]
    return [
        tf.nest.pack_sequence_as(arrays, part)
        for part in zip(
            *(
                [x] * count
                if x is None or len(x.shape) == 1
                else tf.split(x, sizes)
                for x in flat
            )
        )
    ]


def _to_float32(arrays, step):
    """Cast half precision to float32, if the activations allow it.

    Processors compute in float32 anyway, and sums over many steps need it. An
    activation of the user's keeps the type that it was traced with.
    """
    bearing = all(activation in _PULLBACKS for activation in step)

    def wide(x):
        half = _dtype(x) in ("float16", "bfloat16")
        return ops.cast(x, "float32") if half and bearing else x

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
    """As `ops.view`, which cannot be without a known N."""
    return tf.bitcast(x, dtype) if tf else ops.view(x, dtype)


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
    anew = _at(reset, t)
    return [ops.where(anew, ops.zeros_like(x), x) for x in states]


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


# activation: (its value h, gradient g that reaches h) -> gradient of its input
_PULLBACKS = {
    RELU: lambda h, g: ops.where(h > 0, g, ops.zeros_like(g)),
    keras.activations.tanh: lambda h, g: g * (1 - h * h),
    keras.activations.sigmoid: lambda h, g: g * h * (1 - h),
    LINEAR: lambda h, g: g,
}


# ---- The parallel form: a scan over maps ----
# A step is a map h_{t-1} -> h_t, stored as a tuple of arrays: (m, s) is the map
# h -> s + m * h, and (m, s, low, high) the same, clipped to [low, high]. A step
# with ReLU is (u, a_t + b, 0, infinity); a masked step is
# (1, 0, -the largest number, infinity).


@_compiled
def _parallel_forward(
    a,
    weights,
    states,
    *,
    step,
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
):
    weights, (h0,) = _to_float32((weights, states), step)
    (u,), (b,) = _apply_dropout(weights, dropout)
    s = _to_float32(ops.flip(a, axis=1) if backwards else a, step)
    s += _broadcast_over_time(b)
    maps = _broadcast_over_time(u), s
    if step.activation is RELU:
        infinity = ops.full((1, 1, 1), np.inf, s.dtype)
        # Finite, for infinity times zero would be no number.
        s = ops.maximum(s, -_largest(s))
        maps = maps[0], s, ops.zeros_like(infinity), infinity
    if mask is not None:
        same = 1, 0, -_largest(s), np.inf
        maps = tuple(
            ops.where(mask[:, :, None], x, ops.cast(y, x.dtype))
            for x, y in zip(maps, same)
        )
    maps = _zero_at_resets(maps[0], reset), *maps[1:]
    return (ops.cast(_scan(maps, h0), a.dtype),), ()


@_compiled
def _parallel_backward(
    g,
    g_ends,
    all_states,
    a,
    weights,
    states,
    moments=(),
    *,
    step,
    dropout=None,
    mask=None,
    reset=None,
    backwards=False,
):
    """As `_backward`. total_t is the whole gradient of h_t:

    total_t = g_t + j_{t+1} * total_{t+1},    j_t = dh_t / dh_{t-1}
    """
    given = *all_states, weights, states
    g, (h,), weights, (h0,) = _to_float32(
        (g, all_states, weights, states), step
    )
    (u,), _ = _apply_dropout(weights, dropout)
    j = step.pullback(h, _broadcast_over_time(u))
    if mask is not None:
        j = ops.where(mask[:, :, None], j, ops.ones_like(j))
    j = _zero_at_resets(j, reset)
    # From the end; what is behind the last step is multiplied by zero.
    maps = ops.flip(ops.roll(j, -1, axis=1), axis=1), ops.flip(g, axis=1)
    # Finite, for an infinite gradient of what ReLU cuts off is none.
    total = _scan(
        maps,
        ops.zeros_like(h0),
        lambda g, f: tuple(map(_clip_to_finite, _compose(g, f))),
    )
    total = ops.flip(total, axis=1)
    delta = step.pullback(h, total)
    if mask is not None:
        delta = ops.where(mask[:, :, None], delta, ops.zeros_like(delta))
    before = ops.concatenate([h0[:, None], h[:, :-1]], axis=1)
    products = delta * _zero_at_resets(before, reset)
    sums = (ops.sum(_to_accumulator(x), axis=1) for x in (products, delta))
    gradients = (
        ops.flip(delta, axis=1) if backwards else delta,
        tuple((x,) for x in sums),
        (j[:, 0] * total[:, 0],),
    )
    return _to_given_dtypes(gradients, given, dropout)


def _broadcast_over_time(weight):
    """(N,) or (B, N), the same for all steps: (1 or B, 1, N)."""
    return ops.reshape(weight, (-1, 1, weight.shape[-1]))


def _zero_at_resets(x, reset):
    """x (B or 1, T or 1, N), with zeros where a sequence begins."""
    if reset is None:
        return x
    return ops.where(reset[:, :, None], ops.zeros_like(x), x)


def _apply(f, h):
    m, s, *bounds = f
    h = s + m * h
    return _clip(h, *bounds) if bounds else h


def _compose(g, f):
    """The map h -> g(f(h))."""
    m, s = _clip_to_finite(g[0] * f[0]), g[1] + g[0] * f[1]
    if len(f) == 2:
        return m, s
    low = _clip(g[1] + g[0] * f[2], *g[2:])
    high = ops.where(g[0] == 0, ops.zeros_like(g[0]), g[0] * f[3])
    high = _clip(g[1] + high, *g[2:])
    low, high = ops.minimum(low, high), ops.maximum(low, high)
    # What overflows is infinite, to be seen, unless a bound holds it back.
    most = ops.where(high < np.inf, _largest(s), np.inf)
    return m, _clip(s, -_largest(s), most), low, high


def _clip(x, low, high):
    """As `ops.clip`, of which old XLA (TensorFlow 2.20) makes NaN a number."""
    return ops.where(x < low, low, ops.where(x > high, high, x))


def _clip_to_finite(x):
    return _clip(x, -_largest(x), _largest(x))


def _largest(x):
    return ops.cast(np.finfo(_dtype(x)).max, x.dtype)


def _scan(maps, h, compose=_compose, apply=_apply):
    """h_t = f_t(h_{t-1}) for every t, in O(log T) dependent steps.

    Chunks of steps become one map each; the states between chunks are those
    of a scan over these; and from there all chunks go on side by side.

    Arguments:
        maps: Arrays (B or 1, T, N or 1) that describe f_1 ... f_T; what has
            one step in place of T is the same for all.
        h: h_0, (B, N).
        compose: (g, f) -> the arrays of h -> g(f(h)).
        apply: (f, h) -> f(h).

    Returns:
        (B, T, N).
    """

    def states(steps, h):
        after = itertools.accumulate(steps, lambda h, f: apply(f, h), initial=h)
        return list(after)[1:]

    length = max(x.shape[1] for x in maps)
    if length <= CHUNK_STEPS:
        steps = [
            tuple(x[:, min(t, x.shape[1] - 1)] for x in maps)
            for t in range(length)
        ]
        return ops.stack(states(steps, h), axis=1)
    count = -(-length // CHUNK_STEPS)
    # The padding is behind all steps, and what comes of it is cut off.
    padding = [[0, 0], [0, count * CHUNK_STEPS - length], [0, 0]]
    chunks = [
        x
        if x.shape[1] == 1
        else ops.reshape(
            ops.pad(x, padding), (-1, count, CHUNK_STEPS, x.shape[-1])
        )
        for x in maps
    ]
    steps = [
        tuple(x if x.shape[1] == 1 else x[:, :, t] for x in chunks)
        for t in range(CHUNK_STEPS)
    ]
    whole = functools.reduce(lambda f, g: compose(g, f), steps)
    ends = _scan(whole, h, compose, apply)
    h = ops.concatenate([h[:, None], ends[:, :-1]], axis=1)
    h = ops.stack(states(steps, h), axis=2)
    h = ops.reshape(h, (-1, count * CHUNK_STEPS, h.shape[-1]))
    return h[:, :length]
