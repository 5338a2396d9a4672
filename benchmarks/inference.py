"""Time of one step, as on a stream, and of whole sequences, for B = 1.

    python benchmarks/inference.py

Two layers of 128 units. "A step" is one of 100 calls from Python of a compiled
function from (x_t, states) to (y_t, states); "in a loop" is a step of the same
function inside a loop of TensorFlow's; "whole" is a step of a sequence in one
call. All are timed in one process, round robin; a figure is the median.
"""

import keras
import tensorflow as tf

from ind_rnn import IndRNN
from timing import conditions, medians, parser

CALLS = 100
LAYERS = {
    "IndRNN": IndRNN,
    "SimpleRNN": keras.layers.SimpleRNN,
    "GRU": keras.layers.GRU,
    "LSTM": keras.layers.LSTM,
}


def calls(kind, x):
    """A step, steps in a loop, and a whole sequence, of two such layers."""
    batch, time_steps, units = x.shape
    layers = [
        kind(units, return_sequences=True, return_state=True) for _ in range(2)
    ]
    first = x[:, :1]
    for layer in layers:
        layer(first)  # makes its weights
    states = [layer.get_initial_state(batch) for layer in layers]

    def run(x, states):
        after = []
        for layer, state in zip(layers, states, strict=True):
            x, *state = layer(x, initial_state=state)
            after.append(state)
        return x, after

    step = tf.function(run)

    @tf.function
    def loop(x):
        def body(t, states, outputs):
            y, states = run(x[:, t, None], states)
            return t + 1, states, outputs.write(t, y[:, 0])

        outputs = tf.TensorArray("float32", time_steps)
        _, _, outputs = tf.while_loop(
            lambda t, *_: t < time_steps, body, (0, states, outputs)
        )
        return outputs.stack()

    @tf.function
    def whole(x):
        return run(x, states)[0]

    return {
        "step": lambda x: [step(first, states) for _ in range(CALLS)],
        "loop": loop,
        "whole": whole,
    }


def main(argv=None):
    options = parser(__doc__, batch=1, time_steps=1000, units=128, rounds=30)
    args = options.parse_args(argv)
    x = tf.fill((args.batch, args.time_steps, args.units), 0.1)
    seconds = medians(
        {
            (name, part): call
            for name, kind in LAYERS.items()
            for part, call in calls(kind, x).items()
        },
        x,
        args.rounds,
    )
    print(
        f"Two layers, (B, T, N) = ({args.batch}, {args.time_steps}, "
        f"{args.units}), {conditions(args)}\n"
        "| layer | a step, us | in a loop, us | whole, us a step "
        "| whole, ms |\n|---|---|---|---|---|"
    )
    for name in LAYERS:
        step, loop, whole = (
            1e6 * seconds[name, part] for part in ("step", "loop", "whole")
        )
        print(
            f"| {name} | {step / CALLS:.0f} | {loop / args.time_steps:.1f} "
            f"| {whole / args.time_steps:.2f} | {whole / 1e3:.2f} |"
        )


if __name__ == "__main__":
    main()
