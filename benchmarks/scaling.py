"""How the time and the memory of IndRNN grow with T, N and B.

    python benchmarks/scaling.py --picture img/speed/scaling.png

Forward and backward of one layer with 128 input features, loss sum(y * G),
beside a Dense layer with ReLU, while one of the sizes changes and the others
stay. Each line is measured in a process of its own, whose peak memory, above
that with the inputs x and G, is given in arrays of (B, T, N) too.
"""

import json
import resource
import subprocess
import sys

from timing import conditions, medians, parser

FEATURES = 128
BASE = {"batch": 32, "time_steps": 784, "units": 128}
AXES = {
    "time_steps": [100, 1000, 10_000, 100_000],
    "units": [16, 64, 256, 1024, 4096],
    "batch": [1, 8, 64, 512],
}


def measure(args):
    """Seconds and peak memory of one size, in this process."""
    import keras
    import tensorflow as tf

    from ind_rnn import IndRNN

    def inputs(time_steps):
        return [
            tf.fill((args.batch, time_steps, size), 0.1)
            for size in (FEATURES, args.units)
        ]

    def gradients_of(layer):
        layer.build((None, None, FEATURES))
        variables = [variable.value for variable in layer.trainable_variables]

        @tf.function
        def call(values):
            x, weights = values
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(layer(x) * weights)
            return tape.gradient(loss, [x, *variables])

        return call

    bound = 2 ** (1 / args.time_steps)
    calls = {
        "IndRNN": gradients_of(
            IndRNN(args.units, return_sequences=True, recurrent_max_abs=bound)
        ),
        "Dense": gradients_of(keras.layers.Dense(args.units, "relu")),
    }
    calls["IndRNN"](inputs(20))  # All but the arrays is in memory now.
    values = inputs(args.time_steps)
    before = peak()
    calls["IndRNN"](values)
    memory = peak() - before
    seconds = medians(calls, values, args.rounds)
    print(json.dumps({"memory": memory, **seconds}))


def peak():
    """The most bytes that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def lines(axis, args):
    """Print the table of one axis; {size: seconds of IndRNN, and of Dense}."""
    sizes = {**BASE, axis: "..."}
    print(
        "(B, T, N) = ({batch}, {time_steps}, {units})\n\n".format(**sizes)
        + "| | IndRNN, ms | Dense, ms | x Dense | IndRNN, ns per element "
        "| peak, MB | arrays |\n|---|---|---|---|---|---|---|"
    )
    result = {}
    for size in AXES[axis]:
        sizes = {**BASE, axis: size}
        command = [sys.executable, __file__, "--rounds", str(args.rounds)]
        for name, value in sizes.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        output = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout
        found = json.loads(output.splitlines()[-1])
        elements = sizes["batch"] * sizes["time_steps"] * sizes["units"]
        ours, dense = found["IndRNN"], found["Dense"]
        print(
            f"| {size} | {1e3 * ours:.2f} | {1e3 * dense:.2f} "
            f"| {ours / dense:.2f} | {1e9 * ours / elements:.2f} "
            f"| {found['memory'] / 1e6:.0f} "
            f"| {found['memory'] / (4 * elements):.1f} |",
            flush=True,
        )
        result[size] = ours, dense
    print()
    return result


def draw(tables, path):
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(tables), figsize=(10, 3.2), layout="constrained", sharey=True
    )
    for axes, (axis, times) in zip(panels, tables.items(), strict=True):
        milliseconds = [[1e3 * t for t in pair] for pair in times.values()]
        axes.loglog(list(times), milliseconds, "o-")
        axes.set(xlabel=axis.replace("_", " "))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="forward and backward, ms")
    panels[0].legend(["IndRNN", "Dense + ReLU"])
    figure.savefig(path, dpi=120)


def main(argv=None):
    options = parser(__doc__, rounds=5)
    options.add_argument("--picture", metavar="FILE", help="draw the curves")
    for name in BASE:
        options.add_argument(
            "--" + name.replace("_", "-"),
            type=int,
            help="measure one size, given by all three",
        )
    args = options.parse_args(argv)
    if args.batch:
        return measure(args)
    print(conditions(args))
    tables = {axis: lines(axis, args) for axis in AXES}
    if args.picture:
        draw(tables, args.picture)


if __name__ == "__main__":
    main()
