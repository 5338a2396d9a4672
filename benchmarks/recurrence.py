"""Time of recurrent layers beside a Dense layer: forward, and with backward.

    python benchmarks/recurrence.py
    python benchmarks/recurrence.py --features 1

All layers read the same array, (B, T, F) or, by default, (B, T, N), and are
timed in one process, round robin; a figure is the median. The loss is
sum(y * G) with a fixed random G, so that the loss itself costs next to nothing.
Then the recurrence alone, without a matrix product, in its two forms, beside
ReLU: one pass over the array. With resets, one step in ten begins a new
sequence.
"""

import keras
import numpy as np
import tensorflow as tf

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from indy import IndyGRU, IndyLSTM
from timing import add_jit, conditions, medians, parser

LAYERS = {
    "Dense + ReLU": lambda n: keras.layers.Dense(n, "relu"),
    "IndRNN": lambda n: IndRNN(n, return_sequences=True, recurrent_max_abs=1.0),
    "RNN(IndRNNCell)": lambda n: keras.layers.RNN(
        IndRNNCell(n, recurrent_max_abs=1.0), return_sequences=True
    ),
    "IndyGRU": lambda n: IndyGRU(n, return_sequences=True),
    "IndyLSTM": lambda n: IndyLSTM(n, return_sequences=True),
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
for layers, name in (
    (LAYERS, "IndRNN"),
    (LAYERS, "IndyLSTM"),
    (ALONE, "IndRNN, sequential"),
    (ALONE, "IndRNN, parallel"),
):
    layers[f"{name}, resets"] = layers[name]


def make_calls(layer, x, weights, jit, **options):
    """The layer's forward pass, and forward and backward pass, compiled."""
    layer(x, **options)
    variables = [variable.value for variable in layer.trainable_variables]

    @tf.function(jit_compile=jit)
    def forward(x):
        return layer(x, **options)

    @tf.function(jit_compile=jit)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, **options) * weights)
        return tape.gradient(loss, [x, *variables])

    return forward, both


def compare(layers, unit, args, x, weights):
    """Print a table; {(name, "forward" or "both"): seconds}."""
    calls = {}
    reset = np.random.default_rng(1).random(x.shape[:2]) < 0.1
    for name, layer in layers.items():
        options = {"reset": reset} if name.endswith("resets") else {}
        forward, both = make_calls(
            layer(args.units), x, weights, args.jit, **options
        )
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
    options = parser(__doc__, batch=32, time_steps=784, units=128, rounds=30)
    add_jit(options)
    options.add_argument(
        "--features", type=int, metavar="F", help="default: as many as units"
    )
    args = options.parse_args(argv)

    shape = (args.batch, args.time_steps, args.units)
    rng = np.random.default_rng(0)
    x, weights = tf.constant(rng.normal(size=(2, *shape)), tf.float32)
    features = args.features or args.units
    few = tf.constant(rng.normal(size=(*shape[:2], features)), tf.float32)
    print(f"(B, T, N) = {shape}, F = {features}, {conditions(args)}")
    seconds = compare(LAYERS, "Dense", args, few, weights)
    print("\nforward + backward:")
    for name, other in (
        ("LSTM", "IndRNN"),
        ("RNN(IndRNNCell)", "IndRNN"),
        ("LSTM", "IndyLSTM"),
        ("GRU", "IndyGRU"),
        ("IndRNN, resets", "IndRNN"),
        ("IndyLSTM, resets", "IndyLSTM"),
    ):
        ratio = seconds[name, "both"] / seconds[other, "both"]
        print(f"{name} / {other}: {ratio:.2f}")
    print()
    seconds = compare(ALONE, "ReLU", args, x, weights)
    array = 4 * x.shape.num_elements()
    bandwidth = 2 * array / seconds["ReLU", "forward"]
    # Read a and write h; then read h and its gradient and write that of a.
    forward, both = (count * array / bandwidth for count in (2, 5))
    print(
        f"\nThe ReLU pass moves {bandwidth / 1e9:.1f} GB/s. What the "
        f"recurrence must move, {2 * array / 1e6:.0f} and "
        f"{5 * array / 1e6:.0f} MB, takes {1e3 * forward:.1f} and "
        f"{1e3 * both:.1f} ms of that."
    )


if __name__ == "__main__":
    main()
