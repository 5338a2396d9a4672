"""An exact parallel scan over steps with ReLU, or without an activation.

A step is a map h_{t-1} -> h_t. It is stored as arrays with one number for each
neuron: (m, s) is the affine map h -> s + m * h, and (m, s, low, high) is the
same map clipped to [low, high]. A step with ReLU is (u, a_t + b, 0, infinity).

Both kinds are closed under composition. With f = (m, s, low, high) and
g = (m', s', low', high'),

    g(f(h)) = clip(s' + m' s + m' m h,  low'', high'')

where low'' and high'' are what g makes of the bounds of f, in order. So several
steps in a row are one map again, and T steps take O(log T) dependent
operations. docs/parallel_scan.md has the proof.

Axis letters: B batch, T time, N units.
"""

import functools
import itertools

import keras
import numpy as np
from keras import ops

CHUNK_STEPS = 8  # steps that become one map


def scan(maps, h, finite=False):
    """h_t = f_t(h_{t-1}) for every t, in O(log T) dependent operations.

    The steps of a chunk are joined into one map. A scan over these maps gives
    the states between chunks. From there, all chunks run side by side.

    Arguments:
        maps: Arrays (B or 1, T, N or 1) that describe f_1 ... f_T. An array
            with one step in place of T is the same for all steps.
        h: h_0, (B, N).
        finite: Whether to clip maps and states to finite numbers, as sums of
            gradients need: inf * 0 would be NaN where the slope of ReLU is 0.
            Default: False.

    Returns:
        (B, T, N).
    """
    length = max(x.shape[1] for x in maps)
    if length <= CHUNK_STEPS:
        steps = [
            tuple(x[:, min(t, x.shape[1] - 1)] for x in maps)
            for t in range(length)
        ]
        return ops.stack(_states(steps, h, finite), axis=1)
    count = -(-length // CHUNK_STEPS)
    # The padding follows all steps, and its states are cut off below.
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
    joined = functools.reduce(lambda f, g: compose(g, f, finite), steps)
    ends = scan(joined, h, finite)
    h = ops.concatenate([h[:, None], ends[:, :-1]], axis=1)
    h = ops.stack(_states(steps, h, finite), axis=2)
    h = ops.reshape(h, (-1, count * CHUNK_STEPS, h.shape[-1]))
    return h[:, :length]


def _states(steps, h, finite):
    """The states after each of the steps, from the state h before them."""

    def step(h, f):
        return clip_to_finite(apply(f, h)) if finite else apply(f, h)

    return list(itertools.accumulate(steps, step, initial=h))[1:]


def apply(f, h):
    """f(h)."""
    m, s, *bounds = f
    h = s + m * h
    return clip(h, *bounds) if bounds else h


def compose(g, f, finite=False):
    """The map h -> g(f(h)). `finite`: as in `scan`, for affine maps."""
    m, s = clip_to_finite(g[0] * f[0]), g[1] + g[0] * f[1]
    if len(f) == 2:
        return m, clip_to_finite(s) if finite else s
    low = clip(g[1] + g[0] * f[2], *g[2:])
    high = ops.where(g[0] == 0, ops.zeros_like(g[0]), g[0] * f[3])
    high = clip(g[1] + high, *g[2:])
    low, high = ops.minimum(low, high), ops.maximum(low, high)
    # An overflow stays infinite and visible, unless a bound holds it back.
    most = ops.where(high < np.inf, largest(s), np.inf)
    return m, clip(s, -largest(s), most), low, high


def clip(x, low, high):
    """`ops.clip`, but NaN stays NaN in old XLA (TensorFlow 2.20), too."""
    return ops.where(x < low, low, ops.where(x > high, high, x))


def clip_to_finite(x):
    return clip(x, -largest(x), largest(x))


def largest(x):
    """The largest finite number of the type of x."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.cast(np.finfo(dtype).max, x.dtype)
