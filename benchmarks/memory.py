"""Peak memory of a training step of deep networks over long sequences.

    python benchmarks/memory.py

Six layers of 128 with batch normalization, as in `training_step.py`: forward,
backward, and the update by Adam. Each line has a process of its own, and is the
peak beyond that of a step over 20 time steps. An array is one of (B, T, N).
`--recompute` adds lines where the backward pass computes the activations of
each layer again (`tf.recompute_grad`) instead of keeping them.
"""

import functools
import itertools
import json
import subprocess
import sys
import time

from scaling import peak
from timing import conditions, parser

NAMES = "IndRNN", "LSTM"


def recomputed(model):
    """Functions of the parts of a model, each up to a normalization."""
    import keras
    import tensorflow as tf

    def recompute(part):
        return tf.recompute_grad(lambda x: part(x, training=True))

    ends = [x.output for x in model.layers if "normalization" in x.name]
    bounds = [model.inputs[0], *ends, model.outputs[0]]
    return [recompute(keras.Model(*x)) for x in itertools.pairwise(bounds)]


def measure(args):
    """Peak memory and seconds of one network, in this process."""
    import tensorflow as tf

    import training_step

    time_steps = args.time_steps
    args.network, args.time_steps = "stacked", None
    rows = training_step.IND_RNN | training_step.OTHERS
    kind = "batch" if args.name == "IndRNN" else "batch, of Keras"
    model = rows[args.name, kind](args)
    forward = None
    if args.recompute:
        blocks = recomputed(model)

        def forward(x):
            return functools.reduce(lambda x, block: block(x), blocks, x)

    step = training_step.make_step(model, forward=forward)

    def batch(time_steps):
        x = tf.random.normal((args.batch, time_steps, 1), seed=1)
        return x, tf.zeros(args.batch, "int32")

    step(batch(20))
    before, start = peak(), time.perf_counter()
    step(batch(time_steps))
    found = {"memory": peak() - before, "seconds": time.perf_counter() - start}
    print(json.dumps(found))


def main(argv=None):
    options = parser(__doc__, batch=4, units=128, layers=6, rounds=1)
    options.add_argument(
        "--time-steps", type=int, nargs="+", default=[10_000, 100_000]
    )
    options.add_argument("--recompute", action="store_true")
    options.add_argument("--name", choices=NAMES, help="measure one line")
    args = options.parse_args(argv)
    if args.name:
        (args.time_steps,) = args.time_steps
        return measure(args)
    print(
        f"{args.layers} layers, B = {args.batch}, N = {args.units}, "
        f"{conditions(args)}\n"
        "| T | network | recomputed | peak, MB | arrays | first step, s |\n"
        "|---|---|---|---|---|---|"
    )
    for time_steps in args.time_steps:
        for name in NAMES:
            for flags in ([], ["--recompute"])[: 1 + args.recompute]:
                command = [sys.executable, __file__, "--name", name, *flags]
                for key in ("batch", "units", "layers"):
                    command += [f"--{key}", str(getattr(args, key))]
                command += ["--time-steps", str(time_steps)]
                output = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True
                ).stdout
                found = json.loads(output.splitlines()[-1])
                array = 4 * args.batch * time_steps * args.units
                print(
                    f"| {time_steps:,} | {name} | {'yes' if flags else 'no'} "
                    f"| {found['memory'] / 1e6:,.0f} "
                    f"| {found['memory'] / array:.0f} "
                    f"| {found['seconds']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
