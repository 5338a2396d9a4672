"""Time of a training step of a dilated network beside undilated ones.

    python benchmarks/dilated.py

Nine SimpleRNN layers of 20 units on one input pixel, as in arXiv 1710.02224,
section 4.2: dilated (the last output, and the outputs of all steps), as nine
Keras layers, and as one Keras layer of nine cells. All are timed in one
process, round robin; a figure is the median. Then the dilated network alone,
for longer and longer sequences and for first dilations above 1; and how long
it takes to build it and to run its first step.

    python benchmarks/dilated.py --shapes [--threads 1]

Instead, networks of other shapes: beside their matrix products alone, the same
network with Keras' own loop, and Keras' layers without dilations.
"""

import time

import keras
import numpy as np
import tensorflow as tf

from dilated_rnn import DilatedRNN
from timing import add_jit, conditions, medians, parser

LAYERS, UNITS = 9, 20


def cells(count):
    return [keras.layers.SimpleRNNCell(UNITS) for _ in range(count)]


def dilated(first=1, **options):
    """Dilations `first` ... 256: the layers below are left out."""
    dilations = [2**index for index in range(LAYERS) if 2**index >= first]
    return [DilatedRNN(cells(len(dilations)), dilations, **options)]


def all_outputs(first=1):
    """The same, by way of the outputs of all steps."""
    last = keras.layers.Lambda(lambda y: y[:, -1])
    return [*dilated(first, return_sequences=True), last]


def nine_layers():
    return [
        keras.layers.SimpleRNN(UNITS, return_sequences=index < LAYERS - 1)
        for index in range(LAYERS)
    ]


NETWORKS = {
    "dilated": dilated,
    "dilated, all outputs": all_outputs,
    "9 x SimpleRNN": nine_layers,
    "RNN([9 cells])": lambda: [keras.layers.RNN(cells(LAYERS))],
}


def make_step(layers, jit):
    """A training step without its optimizer: the gradients of all weights."""
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            labels = tf.range(tf.shape(x)[0]) % 10
            loss = loss_of(labels, model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    return step


# (B, T, N), number of layers, return_sequences
SHAPES = (
    ((32, 100, 64), 2, False),
    ((32, 784, 128), 3, True),
    ((128, 784, 20), 9, False),
    ((32, 784, 64), 7, True),
)


class KerasLoop(keras.layers.SimpleRNN):
    """A SimpleRNN that DilatedRNN does not run by itself."""


def products(shape, count, x):
    """A step's matrix products alone: of all outputs, forwards and backwards.

    2 B T N^2 in the loop, and twice that backwards; as much between layers.
    """
    batch, time_steps, units = shape
    u = tf.random.stateless_normal((units, units), (0, 1), stddev=units**-0.5)
    sequences = tf.random.stateless_normal((batch * time_steps, units), (0, 2))

    @tf.function(jit_compile=True)
    def loop(h, steps):
        return tf.while_loop(
            lambda t, h: t < steps, lambda t, h: (t + 1, h @ u), (0, h)
        )[1]

    @tf.function
    def step(x, sequences):
        results = []
        for index in range(count):
            dilation = 2**index
            h = tf.ones((batch * dilation, units)) * x[0, 0]
            steps = time_steps // dilation
            results += [loop(h, steps), loop(h + 1, steps)]
            # Each on its own array: equal products would be computed once.
            sequences += 1.0
            results += [tf.matmul(sequences, sequences, transpose_a=True)]
            if index:
                results += [
                    sequences @ u,
                    tf.matmul(sequences, u, transpose_b=True),
                    tf.matmul(sequences, sequences + 1, transpose_a=True),
                ]
        return results

    return lambda x: step(x, sequences)


def compare_shapes(rounds, jit):
    simple = keras.layers.SimpleRNN
    print(
        "| B, T, N | layers | outputs | step, ms | x products | Keras' loop, x "
        "| Keras' layers, x | first step, s |\n" + "|---" * 8 + "|"
    )
    for shape, count, every in SHAPES:
        batch, time_steps, units = shape
        x = inputs(batch, time_steps)
        above = [keras.layers.GlobalAveragePooling1D()] if every else []

        def network(kind):
            layers = [kind(units) for _ in range(count)]
            return [DilatedRNN(layers, return_sequences=every), *above]

        undilated = [
            simple(units, return_sequences=every or index < count - 1)
            for index in range(count)
        ]
        first, step = first_step(lambda: network(simple), x, jit)
        steps = {
            "ours": step,
            "loop": make_step(network(KerasLoop), jit),
            "layers": make_step([*undilated, *above], jit),
        }
        if every:
            steps["products"] = products(shape, count, x)
        seconds = medians(steps, x, rounds)
        ours = seconds["ours"]
        of_products = f"{ours / seconds['products']:.2f}" if every else ""
        print(
            f"| {', '.join(map(str, shape))} | {count} "
            f"| {'all' if every else 'last'} | {1e3 * ours:.1f} "
            f"| {of_products} | {seconds['loop'] / ours:.2f} "
            f"| {seconds['layers'] / ours:.2f} | {first:.1f} |"
        )


def first_step(layers, x, jit):
    """Seconds to build a network and to run its first step, and the step."""
    start = time.perf_counter()
    model = keras.Sequential([keras.Input(x.shape[1:]), *layers()])
    step = make_step(model.layers, jit)
    step(x)
    return time.perf_counter() - start, step


def inputs(batch, time_steps):
    x = np.random.default_rng(0).normal(size=(batch, time_steps, 1))
    return tf.constant(x, tf.float32)


def compare(batch, time_steps, rounds, jit):
    """Print the time of a step of every network, and of its first step."""
    x = inputs(batch, time_steps)
    starts, steps = {}, {}
    for name, layers in NETWORKS.items():
        starts[name], steps[name] = first_step(layers, x, jit)
    seconds = medians(steps, x, rounds)
    print(
        "| network | step, ms | x dilated | first step, s |\n|---|---|---|---|"
    )
    for name in NETWORKS:
        print(
            f"| {name} | {1e3 * seconds[name]:.1f} "
            f"| {seconds[name] / seconds['dilated']:.2f} | {starts[name]:.1f} |"
        )


def first_dilations(batch, time_steps, rounds, jit):
    """Milliseconds of a step by the first dilation: last, all outputs."""
    x = inputs(batch, time_steps)
    print("\n| first dilation | step, ms | all outputs, ms |\n|---|---|---|")
    result = {}
    for first in (1, 2, 4, 8, 16):
        steps = [
            make_step(layers, jit)
            for layers in (dilated(first), all_outputs(first))
        ]
        seconds = medians(dict(enumerate(steps)), x, rounds)
        result[first] = [1e3 * seconds[0], 1e3 * seconds[1]]
        print("| {} | {:.1f} | {:.1f} |".format(first, *result[first]))
    return result


def lengths(batch, every, jit):
    """Milliseconds of a step by T: last outputs, all outputs."""
    print(
        f"\nB = {batch}\n\n| T | step, ms | us per time step | all outputs, ms "
        "| us per time step | first step, s |\n|---|---|---|---|---|---|"
    )
    result = {}
    for length in every:
        x = inputs(batch, length)
        starts, steps = zip(
            *(first_step(layers, x, jit) for layers in (dilated, all_outputs)),
            strict=True,
        )
        seconds = medians(dict(enumerate(steps)), x, 5)
        result[length] = [1e3 * seconds[0], 1e3 * seconds[1]]
        cells = [
            f"{1e3 * seconds[i]:.1f} | {1e6 * seconds[i] / length:.1f}"
            for i in range(2)
        ]
        print(f"| {length} | {' | '.join(cells)} | {max(starts):.1f} |")
    return result


def draw(by_dilation, by_length, path):
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained"
    )
    for axes, times, label in zip(
        panels, (by_dilation, by_length), ("first dilation", "T"), strict=True
    ):
        axes.loglog(list(times), list(times.values()), "o-")
        axes.set(xlabel=label, ylabel="training step, ms")
        axes.set_xticks(list(times), list(times))
        axes.minorticks_off()
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.grid(alpha=0.3)
        axes.legend(["last outputs", "all outputs"])
    figure.savefig(path, dpi=120)


def main(argv=None):
    options = parser(__doc__, batch=128, time_steps=784, rounds=15)
    add_jit(options)
    options.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[1250, 2500, 5000, 10000, 20000],
        help="T of the last table, with an eighth of the batch",
    )
    options.add_argument("--picture", metavar="FILE", help="draw the curves")
    options.add_argument("--shapes", action="store_true")
    options.add_argument("--threads", type=int, default=0, metavar="N")
    args = options.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    if args.shapes:
        print(f"{args.threads or 'all'} threads, {conditions(args)}")
        return compare_shapes(args.rounds, args.jit)
    print(
        f"B = {args.batch}, T = {args.time_steps}, {LAYERS} layers of {UNITS}, "
        f"{conditions(args)}"
    )
    case = args.batch, args.time_steps, args.rounds, args.jit
    compare(*case)
    by_dilation = first_dilations(*case)
    by_length = lengths(max(1, args.batch // 8), args.lengths, args.jit)
    if args.picture:
        draw(by_dilation, by_length, args.picture)


if __name__ == "__main__":
    main()
