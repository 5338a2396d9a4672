"""The copy problem: write down ten symbols, hundreds of steps after them.

A sequence shows ten symbols of eight kinds, then T - 1 blanks, then eleven
markers. The target is T + 10 blanks and then, at the last ten markers, the ten
symbols. A network without memory can only guess them: a cross entropy of
10 ln 8 / (T + 20) per step. Source: arXiv 1710.02224, section 4.1.

    python examples/copy_memory.py --time-steps 1000
"""

import math
import sys

import keras
import numpy as np

import arguments
import training

SYMBOLS, KINDS = 10, 8
BLANK, MARKER = 8, 9


def baseline(time_steps):
    """The cross entropy per step of a network without memory."""
    return SYMBOLS * math.log(KINDS) / (time_steps + 2 * SYMBOLS)


def copy_batch(symbols, time_steps):
    """x (B, T + 20, 10), one-hot, and y (B, T + 20), from symbols (B, 10)."""
    shape = (len(symbols), time_steps + 2 * SYMBOLS)
    x, y = np.full((2, *shape), BLANK)
    x[:, :SYMBOLS] = y[:, -SYMBOLS:] = symbols
    x[:, -SYMBOLS - 1 :] = MARKER
    return np.eye(KINDS + 2, dtype="float32")[x], y


def build_model(args, steps):
    """A dilated network, or the same stack of plain Keras layers, compiled."""
    length = args.time_steps + 2 * SYMBOLS
    layers = [keras.Input((length, KINDS + 2))]
    if args.model == "dilated":
        layers.append(arguments.dilated(args, length, return_sequences=True))
    else:
        layers += [
            arguments.BASELINES[args.model](units, return_sequences=True)
            for units in arguments.hidden_units(args)
        ]
    layers.append(keras.layers.Dense(KINDS + 1))
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.RMSprop(
            keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=training.jit_compile(args),
    )
    return model


def parse(argv):
    parser = arguments.parser(__doc__, "copy_memory", models=("dilated",))
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--time-steps", 500, "T, from the symbols to the markers", count),
        ("--sequences", 20000, "for training", count),
        ("--epochs", 30, "passes over them", count),
        ("--batch-size", 128, "sequences in a batch", count),
        (
            "--learning-rate",
            3e-3,
            "of RMSProp, falling to 0 along a cosine",
            arguments.positive,
        ),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    arguments.add_dilated(parser, hidden=10)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    steps = max(1, args.sequences // args.batch_size)

    def draw(count, *entropy):
        rng = np.random.default_rng([args.seed, *entropy])
        return rng.integers(0, KINDS, (count, SYMBOLS))

    symbols, test_symbols = draw(args.sequences, 0), draw(1000, 1)

    rows = training.shuffled(args.sequences, args.batch_size, args.seed, 2)

    def batch(epoch, step):
        return copy_batch(symbols[rows(epoch, step)], args.time_steps)

    x, y = copy_batch(test_symbols, args.time_steps)
    model, history = training.train(
        args,
        lambda: build_model(args, args.epochs * steps),
        batch,
        steps,
        validation_data=(x, y),
        validation_batch_size=100,
    )
    logits = model.predict(x, batch_size=100, verbose=0)[:, -SYMBOLS:]
    training.finish(
        args,
        history,
        {
            "test_loss": history[-1]["val_loss"],
            "baseline": baseline(args.time_steps),
            "recalled": float(np.mean(logits.argmax(-1) == test_symbols)),
        },
        curves=("loss", "val_loss"),
        baseline=(baseline(args.time_steps), "no memory"),
        log=True,
    )


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
