"""The adding problem: remember two numbers out of thousands of steps.

A sequence has two features a step: a random number from [0, 1), and a marker
that is 1 at two steps, one in each half, and 0 elsewhere. The target is the
sum of the two marked numbers. Always answering 1 gives a mean squared error
of 0.167 (1/6): what a network without memory stays at. Source: arXiv
1803.04831, section 5.1.

    python examples/addition_rnn.py --time-steps 1000
"""

import sys

import experiment
import keras
import numpy as np

from ind_rnn import IndRNN

BASELINE = 1 / 6


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
    """Two recurrent layers and a linear output, compiled."""
    bound = 2 ** (1 / args.time_steps)
    layers = [keras.Input((args.time_steps, 2))]
    for last in (False, True):
        options = {"units": args.units, "return_sequences": not last}
        if args.model == "indrnn":
            # The last layer keeps what it sees: its weights start near 1.
            lowest = 1 / bound if last else 0.0
            layers.append(
                IndRNN(
                    recurrent_max_abs=bound,
                    recurrent_initializer=keras.initializers.RandomUniform(
                        lowest, bound
                    ),
                    **options,
                )
            )
        else:
            baselines = {
                "lstm": keras.layers.LSTM,
                "gru": keras.layers.GRU,
                "rnn": keras.layers.SimpleRNN,
            }
            layers.append(baselines[args.model](**options))
    layers.append(keras.layers.Dense(1))
    model = keras.Sequential(layers)
    steps = args.epochs * args.steps_per_epoch
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(args.learning_rate, steps),
            global_clipnorm=1.0,
        ),
        "mse",
        jit_compile=args.model == "indrnn",
    )
    return model


def parse(argv):
    parser = experiment.parser(
        __doc__,
        "addition_rnn",
        ("indrnn", "lstm", "gru", "rnn"),
        epochs=(30, "of --steps-per-epoch steps each; the paper trains for "
                "60,000 steps in all, measurement shows fewer suffice"),
        batch_size=(50, "sequences in a batch"),
        learning_rate=(2e-3, "of Adam, falling to 0 along a cosine; the "
                       "paper has 2e-4, divided by 10 every 20,000 steps"),
    )  # fmt: skip
    count = experiment.positive(int)
    parser.add_argument(
        "--time-steps", type=count, default=100, metavar="N",
        help="length of a sequence, at least 2 (default: 100, as in the paper)",
    )  # fmt: skip
    parser.add_argument(
        "--units", type=count, default=128, metavar="N",
        help="in each of the two layers (default: 128, as in the paper)",
    )  # fmt: skip
    parser.add_argument(
        "--steps-per-epoch", type=count, default=100, metavar="N",
        help="between two tests on 1,000 fresh sequences "
        "(default: 100, as in the authors' code)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.time_steps < 2:
        parser.error(f"--time-steps must be at least 2, got {args.time_steps}")
    return args


def main(argv=None):
    args = parse(argv)

    def batch(epoch, step):
        rng = np.random.default_rng([args.seed, 0, epoch, step])
        return adding_batch(rng, args.batch_size, args.time_steps)

    test = adding_batch(
        np.random.default_rng([args.seed, 1]), 1000, args.time_steps
    )
    model, history = experiment.train(
        args,
        lambda: build_model(args),
        batch,
        args.steps_per_epoch,
        validation_data=test,
        validation_batch_size=100,
    )
    experiment.finish(
        args,
        history,
        {"test_mse": history[-1]["val_loss"]},
        curves=("loss", "val_loss"),
        baseline=(BASELINE, "no memory: 0.167"),
        log=True,
    )


if __name__ == "__main__":
    sys.exit(experiment.run(main, None))
