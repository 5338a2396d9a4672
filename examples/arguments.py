"""The command lines of the examples, and what their common options mean."""

import argparse
import contextlib
import math
import pathlib
import sys

import keras

from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from indy import IndyGRU, IndyLSTM

# The layers to compare with: Keras' own, and elementwise ones.
BASELINES = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
    "indylstm": IndyLSTM,
    "indygru": IndyGRU,
}
# What a dilated network may be made of.
CELLS = {**BASELINES, "indrnn": IndRNN}


class UserError(Exception):
    """An error that the user can mend: one line, and exit code 2."""


@contextlib.contextmanager
def explained(text, kinds=OSError):
    """Turn errors of some kinds into a UserError that begins with `text`."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{text}: {error}") from error


def run(main, argv):
    """Call `main(argv)`; report errors of the user and Ctrl-C in one line.

    Returns:
        The exit code: 2 after a UserError, 130 after Ctrl-C.
    """
    try:
        return main(argv)
    except UserError as error:
        line, code = f"error: {error}", 2
    except KeyboardInterrupt:
        line, code = "stopped; the same command with --resume goes on", 130
    name = pathlib.Path(sys.argv[0]).name
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return code


def checked(kind, condition, fits):
    """An argparse type: a value of `kind` that `fits` says is right."""

    def value(text):
        result = kind(text)
        if not fits(result):
            raise argparse.ArgumentTypeError(f"must be {condition}, got {text}")
        return result

    return value


def count(minimum, maximum=math.inf):
    """An argparse type: an integer from `minimum` to `maximum`."""
    condition = f"at least {minimum}"
    if maximum < math.inf:
        condition = f"from {minimum} to {maximum}"
    return checked(int, condition, lambda n: minimum <= n <= maximum)


positive = checked(float, "positive", lambda x: 0 < x < math.inf)
not_negative = checked(float, "at least 0", lambda x: 0 <= x < math.inf)
rate = checked(float, "in [0, 1)", lambda x: 0 <= x < 1)


def parser(description, name, models=("indrnn",)):
    """An ArgumentParser with the options that all training examples share.

    `models` are the networks to choose from besides BASELINES; the first is
    the default.
    """
    result = plain_parser(description)
    models = tuple(dict.fromkeys([*models, *BASELINES]))
    option(result, "--model", models[0], "the network", choices=models)
    text = "of weights, data and order, below 2^32"
    option(result, "--seed", 1, text, type=count(0, 2**32 - 1))
    directory = checked(str, "a directory", bool)
    text = "where results go"
    option(result, "--out", f"out/{name}", text, type=directory, metavar="DIR")
    result.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --out, if there is one",
    )
    return result


def plain_parser(description):
    """An ArgumentParser that keeps the line breaks of its description."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def option(parser, flag, default, text, **options):
    """Add an option whose help states its default."""
    if "type" in options:
        options.setdefault("metavar", "N")
    parser.add_argument(
        flag, default=default, help=f"{text} (default: {default})", **options
    )


def add_picture(parser, name):
    """Add --out of an example that draws one picture."""
    text = "the picture to write, png, pdf or svg"
    option(parser, "--out", f"out/{name}.png", text, metavar="FILE")


def add_start(parser, default):
    """Add --start: how recurrent weights are initialized."""
    option(
        parser,
        "--start",
        default,
        "recurrent weights: uniform over [0, bound], as in the papers, or the "
        "default of the library",
        choices=("uniform", "default"),
    )


def start(args, bound, last=False, **others):
    """The arguments of a network or layer for --start.

    The uniform start also takes `others`. With it, the weights of the last
    layer start near 1, so that it keeps what it sees.
    """
    if args.start == "default":
        return {}
    lowest = 1 / bound if last else 0.0
    uniform = keras.initializers.RandomUniform(lowest, bound)
    return {"recurrent_initializer": uniform, **others}


def add_normalization(parser, models):
    """Add --normalization and --normalize-first, of deep networks."""
    option(
        parser,
        "--normalization",
        "batch",
        f"of --model {models}",
        choices=("batch", "layer", "rms", "none"),
    )
    parser.add_argument(
        "--normalize-first",
        action="store_true",
        help="normalize before each recurrence (default: after it)",
    )


def normalization(args):
    """The arguments of a deep network for the options of the same names."""
    if args.normalization != "none":
        return {
            "normalization": args.normalization,
            "normalize_first": args.normalize_first,
        }
    if args.normalize_first:
        raise UserError("--normalize-first needs a --normalization, got none")
    return {"normalization": None}


def add_deep(parser, growth, block_sizes):
    """Add the options of deep networks."""
    add_normalization(parser, "stacked, residual and dense")
    text = "of --model residual; as in 1910.06251"
    option(parser, "--blocks", 5, text, type=count(1))
    text = "features that each layer of --model dense adds"
    option(parser, "--growth", growth, text, type=count(1))
    text = "layers in the blocks of --model dense"
    option(parser, "--block-sizes", block_sizes, text, type=count(1), nargs="+")


def add_dilated(parser, hidden, layers=9):
    """Add --cell, --hidden and --dilations: a network of dilated layers."""
    text = "of the dilated network"
    option(parser, "--cell", "rnn", f"the cells {text}", choices=CELLS)
    units = f"units {text}, for each layer, or one number for all"
    option(parser, "--hidden", [hidden], units, type=count(1), nargs="+")
    text = f"dilations {text}, bottom layer first"
    default = [2**index for index in range(layers)]
    option(parser, "--dilations", default, text, type=count(1), nargs="+")


def hidden_units(args):
    """The units of each layer, from --hidden and --dilations."""
    layers = len(args.dilations)
    hidden = args.hidden * layers if len(args.hidden) == 1 else args.hidden
    if len(hidden) != layers:
        raise UserError(
            "--hidden must have one number, or one for each of --dilations: "
            f"got {len(hidden)} for {layers}"
        )
    return hidden


def dilated(args, time_steps, dropout=0.0, **options):
    """The DilatedRNN of --cell, --hidden and --dilations.

    `dropout` applies to the inputs of each layer but the first.
    """
    cells = []
    for units, dilation in zip(hidden_units(args), args.dilations, strict=True):
        of_cell = {"dropout": dropout if cells else 0.0}
        if args.cell == "indrnn":
            # A layer of dilation d runs over T / d steps.
            of_cell["recurrent_max_abs"] = 2 ** (dilation / time_steps)
        cells.append(CELLS[args.cell](units, **of_cell))
    return DilatedRNN(cells, args.dilations, **options)


def add_evaluate(parser):
    """Add --evaluate: test a trained network instead of training one."""
    parser.add_argument(
        "--evaluate",
        metavar="FILE",
        help="test the network of a .keras file, or of the results of this "
        "example in a directory; arguments.json beside it says how the "
        "network was trained (default: none)",
    )
