"""Time of a layer, forward and backward, over a grid of shapes.

    python benchmarks/shapes.py

One line for each (B, T, N), with N input features: IndRNN beside Dense + ReLU,
GRU and LSTM, all in one process and in turns. Sizes at which the gates of LSTM
would not fit into memory are left out of its column and GRU's.
"""

import gc
import itertools
import math

import keras

from recurrence import LAYERS, make_calls
from timing import add_jit, conditions, medians, parser

BATCHES, TIMES, UNITS = (1, 8, 128), (50, 5000), (16, 64, 512)
NAMES = "IndRNN", "Dense + ReLU", "GRU", "LSTM"
MOST = 2**26  # elements of (B, T, N) for GRU and LSTM


def line(shape, args):
    """{name: seconds}, forward and backward."""
    names = NAMES if math.prod(shape) <= MOST else NAMES[:2]
    x, weights = (keras.random.normal(shape, seed=seed) for seed in (1, 2))
    calls = {}
    for name in names:
        layer = LAYERS[name](shape[-1])
        _, calls[name] = make_calls(layer, x, weights, args.jit)
    return medians(calls, x, args.rounds)


def main(argv=None):
    options = parser(__doc__, rounds=5)
    add_jit(options)
    args = options.parse_args(argv)
    print(conditions(args))
    print("| (B, T, N) | IndRNN, ms | x Dense | GRU / IndRNN | LSTM / IndRNN |")
    print("|---|---|---|---|---|")
    for shape in itertools.product(BATCHES, TIMES, UNITS):
        seconds = line(shape, args)
        ours = seconds["IndRNN"]
        cells = [f"{1e3 * ours:.2f}", f"{ours / seconds['Dense + ReLU']:.2f}"]
        for name in ("GRU", "LSTM"):
            known = name in seconds
            cells.append(f"{seconds[name] / ours:.1f}" if known else "")
        sizes = ", ".join(f"{size:,}" for size in shape)
        print(f"| ({sizes}) | {' | '.join(cells)} |", flush=True)
        keras.backend.clear_session()
        gc.collect()


if __name__ == "__main__":
    main()
