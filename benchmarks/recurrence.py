"""Time of recurrent layers beside a Dense layer: forward, and with backward.

    python benchmarks/recurrence.py

All layers read the same (B, T, N) array and are timed in one process, round
robin; a figure is the median. The loss is sum(y * G) with a fixed random G, so
that the loss itself costs next to nothing. Then the recurrence alone, without
a matrix product, in its two forms, beside ReLU: one pass over the array.
"""

import argparse
import os
import pathlib
import platform
import time

import keras
import numpy as np
import tensorflow as tf

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

LAYERS = {
    "Dense + ReLU": lambda n: keras.layers.Dense(n, "relu"),
    "IndRNN": lambda n: IndRNN(n, return_sequences=True, recurrent_max_abs=1.0),
    "RNN(IndRNNCell)": lambda n: keras.layers.RNN(
        IndRNNCell(n, recurrent_max_abs=1.0), return_sequences=True
    ),
    "SimpleRNN": lambda n: keras.layers.SimpleRNN(n, return_sequences=True),
    "GRU": lambda n: keras.layers.GRU(n, return_sequences=True),
    "LSTM": lambda n: keras.layers.LSTM(n, return_sequences=True),
}


ALONE = {
    "ReLU": lambda n: keras.layers.Activation("relu"),
    **{
        f"IndRNN, {form}": lambda n, form=form: IndRNN(
            n,
            use_kernel=False,
            return_sequences=True,
            recurrent_max_abs=1.0,
            implementation=form,
        )
        for form in ("sequential", "parallel")
    },
}


def make_calls(layer, x, weights, jit):
    """The layer's forward pass, and forward and backward pass, compiled."""
    layer(x)
    variables = [variable.value for variable in layer.trainable_variables]

    @tf.function(jit_compile=jit)
    def forward(x):
        return layer(x)

    @tf.function(jit_compile=jit)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) * weights)
        return tape.gradient(loss, [x, *variables])

    return forward, both


def medians(calls, x, rounds):
    """Median seconds of each call, taking turns."""
    seconds = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call(x)
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(x)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def processor():
    """Name and number of the processors, as far as the system tells."""
    name, path = platform.processor(), pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(": ")[1]
    return f"{name}, {os.cpu_count()} cores"


def parser(description, rounds):
    """An ArgumentParser for the sizes, and for how they are timed."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--batch", type=int, default=32)
    result.add_argument("--time-steps", type=int, default=784)
    result.add_argument("--units", type=int, default=128)
    result.add_argument("--rounds", type=int, default=rounds)
    result.add_argument("--jit", action="store_true", help="jit_compile=True")
    return result


def conditions(args):
    """How, where and with what the figures below were measured."""
    return (
        f"float32, median of {args.rounds}; {processor()}, TensorFlow "
        f"{tf.__version__}, Keras {keras.__version__}"
        f"{', jit_compile=True' if args.jit else ''}\n"
    )


def compare(layers, unit, args, x, weights):
    """Print a table; {(name, "forward" or "both"): seconds}."""
    calls = {}
    for name, layer in layers.items():
        forward, both = make_calls(layer(args.units), x, weights, args.jit)
        calls[name, "forward"], calls[name, "both"] = forward, both
    seconds = medians(calls, x, args.rounds)
    first, *_ = layers
    ratio = f"x {unit}"
    print(
        f"| layer | forward, ms | {ratio} | forward + backward, ms | {ratio} |"
    )
    print("|---|---|---|---|---|")
    for name in layers:
        cells = []
        for part in ("forward", "both"):
            ratio = seconds[name, part] / seconds[first, part]
            cells += [f"{1e3 * seconds[name, part]:.1f}", f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    return seconds


def main(argv=None):
    args = parser(__doc__, rounds=30).parse_args(argv)

    shape = (args.batch, args.time_steps, args.units)
    rng = np.random.default_rng(0)
    x, weights = tf.constant(rng.normal(size=(2, *shape)), tf.float32)
    print(f"(B, T, N) = {shape}, {conditions(args)}")
    seconds = compare(LAYERS, "Dense", args, x, weights)
    for name in ("LSTM", "RNN(IndRNNCell)"):
        ratio = seconds[name, "both"] / seconds["IndRNN", "both"]
        print(f"\nforward + backward, {name} / IndRNN: {ratio:.1f}")
    print()
    compare(ALONE, "ReLU", args, x, weights)


if __name__ == "__main__":
    main()
