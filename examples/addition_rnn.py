"""The adding problem: remember two numbers out of thousands of steps.

A sequence has two features a step: a random number from [0, 1), and a marker
that is 1 at two steps, one in each half, and 0 elsewhere. The target is the
sum of the two marked numbers. Always answering 1 gives a mean squared error
of 0.167 (1/6); a network without memory does not get below it. Source: arXiv
1803.04831, section 5.1.

    python examples/addition_rnn.py --time-steps 5000
    python examples/addition_rnn.py --time-steps 1000 --seeds 10 --until 0.01

`--seeds` trains one network after the other, in directories of their own, and
prints after how many steps and seconds each was good enough.
"""

import argparse
import pathlib
import statistics
import sys

import keras
import numpy as np

import arguments
import training
from ind_rnn import IndRNN
from ind_rnn_optimizer import TimeScaledAdam

BASELINE = 1 / 6
IND_RNN_RATE, OTHER_RATE = 3e-2, 2e-3  # learning rates


def adding_batch(rng, batch_size, time_steps):
    """x of shape (batch_size, time_steps, 2) and y of shape (batch_size, 1)."""
    x = np.zeros((batch_size, time_steps, 2), "float32")
    x[:, :, 0] = rng.random((batch_size, time_steps))
    rows, half = np.arange(batch_size), time_steps // 2
    first = rng.integers(0, half, batch_size)
    second = rng.integers(half, time_steps, batch_size)
    x[rows, first, 1] = x[rows, second, 1] = 1
    y = x[rows, first, 0] + x[rows, second, 0]
    return x, y[:, None]


def build_model(args):
    """A Dense layer, two recurrent layers and a linear output, compiled.

    Without the Dense layer, only neurons that forget within a step can tell
    the marked numbers from all others. A first layer of IndRNN starts with few
    of them, and with some seeds does not learn.
    """
    bound = 2 ** (1 / args.time_steps)
    layers = [
        keras.Input((args.time_steps, 2)),
        keras.layers.Dense(args.units, "relu"),
    ]
    for last in (False, True):
        options = {"units": args.units, "return_sequences": not last}
        if args.model == "indrnn":
            options |= arguments.start(
                args, bound, last, kernel_initializer="glorot_uniform"
            )
            layers.append(IndRNN(**options))
        else:
            layers.append(arguments.BASELINES[args.model](**options))
    layers.append(keras.layers.Dense(1))
    model = keras.Sequential(layers)
    steps = args.epochs * args.steps_per_epoch
    rate = args.learning_rate
    if rate is None:
        rate = IND_RNN_RATE if args.model == "indrnn" else OTHER_RATE
    model.compile(
        TimeScaledAdam(  # for networks without IndRNN, it is Adam
            training.cosine(rate, steps, min(300, steps // 2)),
            global_clipnorm=1.0,
        ),
        "mse",
        jit_compile=training.jit_compile(args),
    )
    return model


def add_arguments(parser):
    """Add the arguments of the task, the network and its training."""
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--time-steps", 100, "length of a sequence", arguments.count(2)),
        ("--units", 32, "in each layer; the paper has 128", count),
        (
            "--epochs",
            30,
            "each of --steps-per-epoch steps; the paper trains for 60,000 "
            "steps in all, measurement shows that fewer suffice",
            count,
        ),
        (
            "--steps-per-epoch",
            100,
            "between two tests on 1,000 fresh sequences, as in the authors' "
            "code",
            count,
        ),
        ("--batch-size", 50, "sequences in a batch", count),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    parser.add_argument(
        "--learning-rate",
        type=arguments.positive,
        metavar="N",
        help="of `TimeScaledAdam`, after 300 steps of warm-up, falling to 0 "
        "along a cosine; the paper has 2e-4 of Adam, divided by 10 every "
        "20,000 steps (default: "
        f"{IND_RNN_RATE}; other networks: {OTHER_RATE})",
    )
    parser.add_argument(
        "--until",
        type=arguments.positive,
        metavar="N",
        help="stop after the epoch with a test error below this (default: "
        "train for all of --epochs)",
    )
    text = "networks to train, with the seeds --seed, --seed + 1, ..."
    arguments.option(parser, "--seeds", 1, text, type=count)
    arguments.add_start(parser, "default")


def parse(argv):
    parser = arguments.parser(__doc__, "addition_rnn")
    add_arguments(parser)
    return parser.parse_args(argv)


def is_enough(args, history):
    return (
        args.until is not None
        and bool(history)
        and history[-1]["val_loss"] < args.until
    )


def train(args):
    """Train one network; its history."""

    def batch(epoch, step):
        rng = np.random.default_rng([args.seed, 0, epoch, step])
        return adding_batch(rng, args.batch_size, args.time_steps)

    test = adding_batch(
        np.random.default_rng([args.seed, 1]), 1000, args.time_steps
    )
    model, history = training.train(
        args,
        lambda: build_model(args),
        batch,
        args.steps_per_epoch,
        enough=lambda history: is_enough(args, history),
        validation_data=test,
        validation_batch_size=100,
    )
    training.finish(
        args,
        history,
        {"test_mse": history[-1]["val_loss"]},
        curves=("loss", "val_loss"),
        baseline=(BASELINE, "no memory: 0.167"),
        log=True,
    )
    return history


def main(argv=None):
    args = parse(argv)
    if args.seeds == 1:
        train(args)
        return
    found = []
    for seed in range(args.seed, args.seed + args.seeds):
        out = str(pathlib.Path(args.out) / f"seed_{seed}")
        own = {**vars(args), "seed": seed, "seeds": 1, "out": out}
        found.append(train(argparse.Namespace(**own))[-1])
    print("\n| seed | steps | seconds | test error |\n|---|---|---|---|")
    for seed, row in enumerate(found, args.seed):
        print(
            f"| {seed} | {row['steps']} | {row['seconds']:.0f} "
            f"| {row['val_loss']:.2g} |"
        )
    for name, choose in (("median", statistics.median), ("worst", max)):
        steps, seconds, error = (
            choose(row[column] for row in found)
            for column in ("steps", "seconds", "val_loss")
        )
        print(f"| {name} | {steps:.0f} | {seconds:.0f} | {error:.2g} |")


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
