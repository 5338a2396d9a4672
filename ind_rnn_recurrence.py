"""The recurrence of IndRNN, h_t = activation(a_t + u * h_{t-1} + b), fused.

Two forms with the same results:

- sequential: one compiled loop over the steps, and one back;
- parallel, for "relu" and "linear": the states of T steps after O(log T)
  dependent ones. A step of either is a clipped affine map of h, and so is one
  after another: chunks of steps become one map each, recursively.

On TensorFlow and JAX. Axis letters: B batch, T time, N units.
"""

import contextlib
import contextvars
import functools
import itertools
import math
import os
import sys

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
CHUNK = 8
# At most so many parts of a batch go side by side, and none of arrays that are
# smaller, where an unknown size counts as 32.
PARTS, SMALL = 8, 2**20
# Unknown lengths are padded to one of these, for each needs programs.
LENGTHS = 2 ** np.arange(4, 31, dtype="int32")

# Of each thread its own: one may export while others train. None: without XLA
# within an exporter, with XLA everywhere else.
_xla = contextvars.ContextVar("xla", default=None)
EXPORTERS = (
    "keras.src.export.",
    "tensorflow.lite.",
    "tensorflow.python.saved_model.",
    "tf2onnx.",
)


@contextlib.contextmanager
def without_xla():
    """Within it, models are traced with Keras' own loop instead of XLA's.

    For what must run where there is no XLA, and is traced by hand: a concrete
    function that goes to `tf.lite.TFLiteConverter.from_concrete_functions`.
    `model.export`, `tf.saved_model.save`, `tf2onnx` and LiteRT's converter of
    Keras models need no such context: they are traced so by themselves. The
    weights are the same, the results too. It holds for the thread that enters
    it, and no other:

        with without_xla():
            step = tf.function(model).get_concrete_function(signature)
    """
    with _set(_xla, False):
        yield


@contextlib.contextmanager
def with_xla():
    """Within it, exporters keep the compiled loop, as training has it.

    For a server that has XLA:

        with with_xla():
            model.export("served")
    """
    with _set(_xla, True):
        yield


@contextlib.contextmanager
def _set(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _has_xla():
    """Whether what is computed or traced now may hold programs of XLA's."""
    if _xla.get() is not None or tf is None or tf.executing_eagerly():
        return _xla.get() is not False
    # No exporter says what it traces for; its name is among the callers'.
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(EXPORTERS):
            return False
        frame = frame.f_back
    return True


def fused_activation(cell):
    """What `recurrence` takes for the activation of a cell.

    None where Keras' loop has to run instead: for an export, on another
    backend, with an activation that is no pure function of its argument.
    """
    activation = cell.activation
    if not (tf or jax) or not _has_xla():
        return None
    if tf and tf.config.functions_run_eagerly():
        return None
    if activation in _PULLBACKS:
        return activation
    if jax or isinstance(activation, keras.layers.Layer):
        return None
    key = activation, cell.units, cell.compute_dtype
    traced = getattr(cell, "traced_activation", None)
    if traced is None or traced.key != key:
        traced = cell.traced_activation = _Traced(*key)
    return traced if traced.is_pure else None


class _Traced:
    """A user's activation, traced once: both passes compute the same."""

    def __init__(self, activation, units, dtype):
        self.key = activation, units, dtype
        signature = tf.TensorSpec((None, units), dtype)
        function = tf.function(activation, autograph=False)
        try:
            self.function = function.get_concrete_function(signature)
        except Exception:  # Keras' loop may run it, or says what is wrong.
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
    u,
    b,
    h0,
    *,
    activation,
    implementation="auto",
    dropout=None,
    mask=None,
    backwards=False,
    moments=False,
):
    """h_t = activation(a_t + u * h_{t-1} + b) for every t, differentiable.

    Arguments:
        a: (B, T, N).
        u: (N,).
        b: (N,), or None.
        h0: (B, N).
        activation: What `fused_activation` found.
        implementation: "sequential", "parallel", or "auto": parallel on a GPU
            where there is such a form. Default: "auto".
        dropout: (B, N), a factor of h_{t-1}; or None. Default: None.
        mask: (B, T) in the order of reading, false where h_t = h_{t-1}; or
            None. Default: None.
        backwards: Whether a is read from its end. Default: False.
        moments: Whether the loop may take mean and variance of h along, both
            (N,) and told with h. It does in the sequential form, without a
            mask, on TensorFlow. Default: False.

    Returns:
        h of shape (B, T, N), in the order of reading.
    """
    b = ops.zeros(a.shape[-1:], a.dtype) if b is None else b
    # Tensors, for variables may change before the backward pass.
    to_tensor = tf.convert_to_tensor if tf else ops.convert_to_tensor
    u, b, h0 = map(to_tensor, (u, b, h0))
    options = {"activation": activation, "dropout": dropout}
    length = a.shape[1]
    parallel = _is_parallel(implementation, activation, a)
    if parallel:
        passes = _parallel_forward, _parallel_backward
    elif parts := _parts(a):
        passes = (
            functools.partial(_forward_in_parts, parts),
            functools.partial(_backward_in_parts, parts),
        )
    else:
        passes = _forward, _backward
    if moments and tf and mask is None and not parallel:
        options["moments"] = True
    if _has_own_program(a):
        options |= {"mask": mask, "backwards": backwards}
        return _differentiable(*passes, a, u, b, h0, options)
    a = ops.flip(a, axis=1) if backwards else a
    a, mask, length = _padded(a, mask)
    options |= {"mask": mask, "backwards": False}
    if not parallel:
        options["length"] = length
    return _differentiable(*passes, a, u, b, h0, options, cut=length)


def _is_parallel(implementation, activation, a):
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
        and activation in (RELU, LINEAR)
        and length is not None
        and length > 2 * CHUNK
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


def _has_own_program(a):
    """Whether to compile for just this length.

    Eagerly, each shape needs programs: the first two lengths have their own,
    all others share those of powers of two.
    """
    length = a.shape[1]
    if length is None or not _is_eager(a):
        return length is not None
    lengths = _own_lengths.setdefault((a.shape[0], a.shape[2], a.dtype), set())
    if len(lengths) < 2:
        lengths.add(length)
    return length in lengths


_own_lengths = {}


def _is_eager(a):
    return tf.executing_eagerly() if tf else not isinstance(a, jax.core.Tracer)


def _padded(a, mask):
    """a and a mask, filled up to one of LENGTHS, and T, a tensor."""
    length = a.shape[1]
    if length is None:
        length = tf.shape(a)[1]
        index = tf.searchsorted(LENGTHS, [length])[0]
        padding = tf.gather(LENGTHS, index) - length
    else:
        padding = LENGTHS[np.searchsorted(LENGTHS, length)] - length
        length = ops.convert_to_tensor(length, "int32")
    pad = tf.pad if tf else ops.pad
    a = pad(a, [[0, 0], [0, padding], [0, 0]])
    mask = None if mask is None else pad(mask, [[0, 0], [0, padding]])
    return a, mask, length


def _differentiable(forward, backward, a, u, b, h0, options, cut=None):
    """h, and what the backward pass needs to know kept for it.

    `cut` is the number of steps without padding. With `moments` among the
    options, they are told with h.
    """
    kept = () if options["activation"] in _PULLBACKS else (a,)
    if jax:

        @jax.custom_gradient
        def recurrence(a, u, b, h0):
            h = forward(a, u, b, h0, **options)
            return h, lambda g: backward(g, h, u, b, h0, **options)

        return recurrence(a, u, b, h0)[:, :cut]

    @tf.custom_gradient
    def recurrence(*arguments):
        result = forward(*map(tf.stop_gradient, arguments), **options)
        moments = ()
        if options.get("moments"):
            result, *moments = result
            moments = _of_all(*moments)
        result.set_shape(a.shape)

        def gradient(g, *of_moments):
            # h, as the tape knows it, is not yet there in forward mode.
            known = result if h is None else h
            if moments:
                length = options.get("length", tf.shape(known)[1])
                count = tf.cast(tf.shape(known)[0] * length, moments[0].dtype)
                of_moments = moments[0], *(x / count for x in of_moments)
            return pullback(g, known, u, b, h0, *kept, *of_moments)

        return (result, *moments), gradient

    @tf.custom_gradient
    def pullback(*arguments):
        def second(*_):
            raise NotImplementedError(
                "The fused recurrence of IndRNN has first gradients in "
                "reverse mode only: for others pass `unroll=True`"
            )

        arguments = [*map(tf.stop_gradient, arguments)]
        count = 5 + len(kept)
        given = {"moments": arguments[count:]} if arguments[count:] else {}
        return backward(*arguments[:count], **options | given), second

    h = None
    h, *moments = recurrence(a, u, b, h0)
    result = h if cut is None else h[:, :cut]
    if moments:
        _tell(result, moments=moments)
    return result


# What one layer tells the next. Keras hands on tensors; they can have
# attributes, as its `_keras_mask` shows. A fact is about the values of its
# tensor, whoever has it. A layer that does not know of facts makes a tensor
# without, and those after it compute all there is to compute.


def _tell(x, **facts):
    """Attach facts to x: `moments`, `affine`, `sum`."""
    for name, value in facts.items():
        setattr(x, f"_ind_rnn_{name}", value)


def _told(x, name):
    """A fact that was attached to x, or None."""
    return getattr(x, f"_ind_rnn_{name}", None)


def _compiled(function=None, **options):
    """A program of XLA's for each shape."""
    if function is None:
        return functools.partial(_compiled, **options)
    if tf:
        return tf.function(
            function, jit_compile=True, autograph=False, **options
        )
    if jax:
        return jax.jit(function, static_argnames=("activation", "backwards"))
    return function


# The sequential form.


@_compiled(reduce_retracing=True)
def _forward(
    a,
    u,
    b,
    h0,
    *,
    activation,
    dropout,
    mask,
    backwards,
    length=None,
    moments=False,
):
    """h; with `moments`, mean and variance (B, N) of each sequence as well."""
    padded = length is not None
    length = length if padded else ops.shape(a)[1]
    u, b, h0 = (_wide(x, activation) for x in (u, b, h0))
    u = u if dropout is None else u * _wide(dropout, activation)
    a = _bits(a)

    def step(t, h, out, *sums):
        s = length - 1 - t if backwards else t
        new = activation(_wide(_at(a, s), activation) + u * h + b)
        h = new if mask is None else ops.where(_at(mask, t), new, h)
        sums = [x + _total(h) for x in sums]
        return t + 1, h, _put(out, t, h), *sums

    sums = [ops.zeros_like(_total(h0))] if moments else []
    _, _, out, *sums = ops.while_loop(
        lambda t, *_: t < length, step, (0, h0, ops.zeros_like(a), *sums)
    )
    out = _numbers(out)
    if not moments:
        return out
    mean = sums[0] / ops.cast(length, sums[0].dtype)
    off = _total(out) - mean[:, None]
    if padded:
        steps = ops.arange(ops.shape(out)[1])[:, None] < length
        off = ops.where(steps, off, ops.zeros_like(off))
    variance = ops.sum(off * off, axis=1) / ops.cast(length, off.dtype)
    return out, mean, variance


def _of_all(means, variances):
    """Mean and variance (N,) from those of B sequences of equal lengths."""
    mean = ops.mean(means, axis=0)
    return mean, ops.mean(variances + ops.square(means - mean), axis=0)


@_compiled(reduce_retracing=True)
def _backward(
    g,
    h,
    u,
    b,
    h0,
    a=None,
    *,
    activation,
    dropout,
    mask,
    backwards,
    length=None,
    moments=None,
):
    """The gradients of a, u, b and h0, from g, that of h.

    With g_t what reaches h_t directly and through h_{t+1}, and
    z_t = a_t + u * h_{t-1} + b:

        delta_t = activation'(z_t) * g_t        the gradient of a_t
        du = sum over B, T of delta_t * h_{t-1}
        db = sum over B, T of delta_t

    `moments` are the mean m of h, and dm / (B T) and dv / (B T), of what
    reaches m and the variance. Through them h_t is reached as well, by
    (dm + 2 dv (h_t - m)) / (B T).
    """
    length = ops.shape(h)[1] if length is None else length
    types = g.dtype, u.dtype, b.dtype, h0.dtype
    u, b, h0 = (_wide(x, activation) for x in (u, b, h0))
    dropout = None if dropout is None else _wide(dropout, activation)
    v = u if dropout is None else u * dropout
    g, h, a = _bits(g), _bits(h), None if a is None else _bits(a)
    # delta_t takes the place of g_t: one array less to move. With a mask, XLA
    # would copy the whole array in every step.
    in_place = mask is None
    if moments:
        mean, d_mean, slope = moments
        slope *= 2
        shift = d_mean - slope * mean

    def step(t, delta, skipped, da, du, db):
        h_t = _wide(_at(h, t), activation)
        du += _total(delta * h_t)
        g_t = _wide(_at(da if in_place else g, t), activation)
        g_t = g_t + v * delta + skipped
        if moments:
            g_t += ops.cast(shift + slope * _total(h_t), g_t.dtype)
        if a is None:
            delta = _PULLBACKS[activation](h_t, g_t)
        else:
            s = length - 1 - t if backwards else t
            previous = ops.where(t > 0, _at(h, ops.maximum(t - 1, 0)), h0)
            z = _at(a, s) + v * previous + b
            with tf.GradientTape() as tape:
                tape.watch(z)
                new = activation(z)
            delta = tape.gradient(new, z, g_t, unconnected_gradients="zero")
            delta.set_shape(z.shape)
        if mask is not None:
            delta = ops.where(_at(mask, t), delta, ops.zeros_like(delta))
            skipped = ops.where(_at(mask, t), ops.zeros_like(g_t), g_t)
        db += _total(delta)
        return t - 1, delta, skipped, _put(da, t, delta), du, db

    zeros = ops.zeros_like(h0)
    _, delta, skipped, da, du, db = ops.while_loop(
        lambda t, *_: t >= 0,
        step,
        (
            length - 1,
            zeros,
            ops.zeros((), h0.dtype) if mask is None else zeros,
            g if in_place else ops.zeros_like(g),
            _total(zeros),
            _total(zeros),
        ),
    )
    da = _numbers(ops.flip(da, axis=1) if backwards else da)
    dh0 = v * delta + skipped
    du += _total(delta * h0)
    du = du if dropout is None else du * _total(dropout)
    return tuple(
        map(ops.cast, (da, ops.sum(du, 0), ops.sum(db, 0), dh0), types)
    )


# A program of XLA's loops in one thread. Side by side, on parts of the batch,
# several use all cores; that pays, though their results must be joined.


def _parts(a):
    """Into how many parts to split a (B, T, N); 0 where that does not pay."""
    if not tf or tf.executing_eagerly() or _on_gpu(a):
        return 0
    # Within a larger program of XLA's, loops run one after another. No public
    # function tells; without this one, such a program would only be slower.
    if tf.__internal__.get_enclosing_xla_context() is not None:
        return 0
    shape = a.shape
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    count = min(threads or os.cpu_count(), shape[0] or PARTS, PARTS)
    small = math.prod(size or 32 for size in shape) < SMALL
    return 0 if count == 1 or small else count


def _split(count, *arrays):
    """A tuple for each part: its rows of the arrays, some of which are None."""
    rows = arrays[0].shape[0] or tf.shape(arrays[0])[0]
    sizes = [(rows + part) // count for part in range(count)]
    return zip(
        *(
            [None] * count if array is None else tf.split(array, sizes)
            for array in arrays
        )
    )


def _forward_in_parts(count, a, u, b, h0, *, dropout, mask, **options):
    parts = _split(count, a, h0, dropout, mask)
    results = [
        _forward(a, u, b, h0, dropout=dropout, mask=mask, **options)
        for a, h0, dropout, mask in parts
    ]
    return tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), *results)


def _backward_in_parts(
    count, g, h, u, b, h0, a=None, *, dropout, mask, **options
):
    parts = _split(count, g, h, h0, a, dropout, mask)
    da, du, db, dh0 = zip(
        *(
            _backward(g, h, u, b, h0, a, dropout=dropout, mask=mask, **options)
            for g, h, h0, a, dropout, mask in parts
        )
    )
    return tf.concat(da, 0), sum(du), sum(db), tf.concat(dh0, 0)


def _wide(x, activation):
    """Half precision in float32, where the activation is known to bear it.

    Processors compute in float32, and sums of many steps need it.
    """
    half = _dtype(x) in ("float16", "bfloat16")
    return ops.cast(x, "float32") if half and activation in _PULLBACKS else x


def _total(x):
    """x, wide enough for sums over B and T."""
    return ops.cast(x, "float64" if _dtype(x) == "float64" else "float32")


def _dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def _bits(x):
    """bfloat16 as integers: of numbers, XLA would convert all in every step."""
    return _view(x, "uint16") if _dtype(x) == "bfloat16" else x


def _numbers(x):
    """What `_bits` was given."""
    return _view(x, "bfloat16") if _dtype(x) == "uint16" else x


def _view(x, dtype):
    """As `ops.view`, which cannot be without a known N."""
    return tf.bitcast(x, dtype) if tf else ops.view(x, dtype)


def _at(x, t):
    """x[:, t] of (B, T, N), or x[:, t, None] of (B, T)."""
    return _numbers(x[:, t] if len(x.shape) == 3 else x[:, t, None])


def _put(x, t, value):
    """x with x[:, t] = value, in place where XLA can."""
    dtype = "bfloat16" if _dtype(x) == "uint16" else _dtype(x)
    value = _bits(ops.cast(value, dtype))
    return ops.slice_update(x, (0, t, 0), value[:, None])


# activation: (its value h, gradient g that reaches h) -> gradient of its input
_PULLBACKS = {
    RELU: lambda h, g: ops.where(h > 0, g, ops.zeros_like(g)),
    keras.activations.tanh: lambda h, g: g * (1 - h * h),
    keras.activations.sigmoid: lambda h, g: g * h * (1 - h),
    LINEAR: lambda h, g: g,
}


# The parallel form. A map is a tuple of arrays: (m, s) is h -> s + m * h, and
# (m, s, low, high) is the same, clipped. That of a step with ReLU is
# (u, a_t + b, 0, infinity), and that of a masked step
# (1, 0, -the largest number, infinity).


@_compiled
def _parallel_forward(a, u, b, h0, *, activation, dropout, mask, backwards):
    s = _wide(ops.flip(a, axis=1) if backwards else a, activation)
    s += _wide(b, activation)
    maps = _factor(u, dropout, activation), s
    if activation is RELU:
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
    return ops.cast(_scan(maps, _wide(h0, activation)), a.dtype)


@_compiled
def _parallel_backward(g, h, u, b, h0, *, activation, dropout, mask, backwards):
    """As `_backward`. With all that reaches h_t in total_t:

    total_t = g_t + j_{t+1} * total_{t+1},    j_t = dh_t / dh_{t-1}
    """
    types = g.dtype, u.dtype, b.dtype, h0.dtype
    g, h, h0 = (_wide(x, activation) for x in (g, h, h0))
    j = _PULLBACKS[activation](h, _factor(u, dropout, activation))
    if mask is not None:
        j = ops.where(mask[:, :, None], j, ops.ones_like(j))
    # From the end; what is behind the last step is multiplied by zero.
    maps = ops.flip(ops.roll(j, -1, axis=1), axis=1), ops.flip(g, axis=1)
    # Finite, for an infinite gradient of what ReLU cuts off is none.
    total = _scan(
        maps,
        ops.zeros_like(h0),
        lambda g, f: tuple(map(_finite, _compose(g, f))),
    )
    total = ops.flip(total, axis=1)
    delta = _PULLBACKS[activation](h, total)
    if mask is not None:
        delta = ops.where(mask[:, :, None], delta, ops.zeros_like(delta))
    before = ops.concatenate([h0[:, None], h[:, :-1]], axis=1)
    du = ops.sum(_total(delta * before), axis=1)
    du = du if dropout is None else du * _total(dropout)
    gradients = (
        ops.flip(delta, axis=1) if backwards else delta,
        ops.sum(du, axis=0),
        ops.sum(_total(delta), axis=(0, 1)),
        j[:, 0] * total[:, 0],
    )
    return tuple(map(ops.cast, gradients, types))


def _factor(u, dropout, activation):
    """The factor of h_{t-1}, the same for all steps: (1 or B, 1, N)."""
    u = _wide(u, activation)[None, None]
    return u if dropout is None else u * _wide(dropout, activation)[:, None]


def _apply(f, h):
    m, s, *bounds = f
    h = s + m * h
    return _clip(h, *bounds) if bounds else h


def _compose(g, f):
    """The map h -> g(f(h))."""
    m, s = _finite(g[0] * f[0]), g[1] + g[0] * f[1]
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


def _finite(x):
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
    if length <= CHUNK:
        steps = [
            tuple(x[:, min(t, x.shape[1] - 1)] for x in maps)
            for t in range(length)
        ]
        return ops.stack(states(steps, h), axis=1)
    count = -(-length // CHUNK)
    # The padding is behind all steps, and what comes of it is cut off.
    padding = [[0, 0], [0, count * CHUNK - length], [0, 0]]
    chunks = [
        x
        if x.shape[1] == 1
        else ops.reshape(ops.pad(x, padding), (-1, count, CHUNK, x.shape[-1]))
        for x in maps
    ]
    steps = [
        tuple(x if x.shape[1] == 1 else x[:, :, t] for x in chunks)
        for t in range(CHUNK)
    ]
    whole = functools.reduce(lambda f, g: compose(g, f), steps)
    ends = _scan(whole, h, compose, apply)
    h = ops.concatenate([h[:, None], ends[:, :-1]], axis=1)
    h = ops.stack(states(steps, h), axis=2)
    h = ops.reshape(h, (-1, count * CHUNK, h.shape[-1]))
    return h[:, :length]
