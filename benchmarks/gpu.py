"""IndRNN on a GPU, beside Dense, and LSTM and GRU of cuDNN.

    python benchmarks/gpu.py --picture img/speed/gpu.png

The layer under Keras' JAX backend, compiled by XLA as it is under TensorFlow,
in its two forms; and, where PyTorch is installed, `torch.nn.LSTM` and
`torch.nn.GRU` on the same device, which run cuDNN there. Forward and backward,
F = N, loss sum(y * G), in float32 (its matrix products in TF32, as both
libraries have it by default) and bfloat16 (`--dtypes`). "Moved" is what the
recurrence of IndRNN must move at least, five arrays of (B, T, N): W x and h, h
and its gradient, that of W x. What does not fit into the memory of the device
is "memory" in the table, what raises another error "fails", and cuDNN with
gates of 2^31 numbers or more is "skipped". A call is repeated `--rounds` times,
or for `--seconds`, but at least three times. It needs jax, but neither
TensorFlow nor a GPU: on a CPU it shows that it runs.
"""

import concurrent.futures
import functools
import gc
import itertools
import math
import os
import sys
import threading
import time

os.environ["KERAS_BACKEND"] = "jax"
# The memory of the device is for PyTorch, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

from ind_rnn import IndRNN  # noqa: E402
from timing import conditions, parser  # noqa: E402

FORMS = "parallel", "sequential"
COLUMNS = "Dense", *FORMS, "LSTM", "GRU"
LOCK = threading.Lock()  # Keras builds and traces in one thread at a time.


def compiled(name, shape, dtype):
    """A program of XLA: the gradients of all weights of a layer, and of x.

    Returns:
        The program, a function of weights, x and G, and the weights.
    """
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    units = shape[-1]
    with LOCK:
        if name == "Dense":
            layer = keras.layers.Dense(units, "relu", dtype=policy)
        else:
            layer = IndRNN(
                units,
                implementation=name,
                recurrent_max_abs=2 ** (1 / shape[1]),
                return_sequences=True,
                dtype=policy,
            )
        layer.build(shape)
        variables = [x.value for x in layer.trainable_variables]
        others = [x.value for x in layer.non_trainable_variables]

        def loss(variables, x, g):
            y, _ = layer.stateless_call(variables, others, x)
            return (y * g).sum()

        x = jax.ShapeDtypeStruct(shape, dtype)
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
        lowered = gradients.lower(variables, x, x)
    return lowered.compile(), variables


def keras_call(future, name, shape, dtype):
    """A call of what `compiled` returned, or will now return."""
    try:
        program, variables = future.result()
    except Exception:  # The memory was too small for all compilers at once.
        program, variables = compiled(name, shape, dtype)
    x, g = jax.random.normal(jax.random.key(0), (2, *shape), dtype)
    return lambda: jax.block_until_ready(program(variables, x, g))


def torch_call(kind, shape, dtype):
    """The same of `torch.nn.LSTM` or `torch.nn.GRU`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"device": device, "dtype": getattr(torch, dtype)}
    layer = kind(shape[-1], shape[-1], batch_first=True, **options)
    x, weights = torch.randn((2, *shape), **options)
    x.requires_grad_()

    def call():
        loss = (layer(x)[0] * weights).sum()
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        if device == "cuda":
            torch.cuda.synchronize()
        return gradients

    return call


def measured(make, args):
    """Median seconds of the call that `make` makes; a word where it fails."""
    try:
        call, times = make(), []
        call()
        while len(times) < 3 or (
            len(times) < args.rounds and sum(times) < args.seconds
        ):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return float(np.median(times))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if "RESOURCE_EXHAUSTED" in text or "OutOfMemory" in text:
            return "memory"
        print(text[:300], file=sys.stderr)
        return "fails"
    finally:
        call = None
        gc.collect()
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()


def torch_seconds(sizes, args):
    """{dtype, shape: {name: seconds}} of cuDNN; without PyTorch, of nothing.

    Before all else, because JAX keeps the memory it has once had.
    """
    kinds = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU} if torch else {}
    return {
        (dtype, shape): {
            # With larger gates, cuDNN accesses memory that is not its own,
            # and the process ends.
            name: measured(lambda: torch_call(kind, shape, dtype), args)
            if 4 * math.prod(shape) < 2**31
            else "skipped"
            for name, kind in kinds.items()
        }
        for dtype, shape in sizes
    }


def compiled_programs(sizes):
    """{dtype, shape: {name: future of `compiled`}}.

    All of them before the first is timed: to compile takes longest.
    """
    with concurrent.futures.ThreadPoolExecutor() as executor:
        return {
            (dtype, shape): {
                name: executor.submit(compiled, name, shape, dtype)
                for name in ("Dense", *FORMS)
            }
            for dtype, shape in sizes
        }


def print_line(dtype, shape, seconds):
    def ratio(above, below):
        return f"{above / below:.2f}" if above and below else "-"

    best = fastest(seconds)
    dense, lstm, gru = (number(seconds, x) for x in ("Dense", "LSTM", "GRU"))
    size = jax.numpy.dtype(dtype).itemsize
    moved = 5 * size * math.prod(shape)
    cells = [
        *(dtype, *shape),
        *(
            f"{1e3 * x:.2f}" if isinstance(x, float) else x
            for x in (seconds.get(name, "-") for name in COLUMNS)
        ),
        *(ratio(best, dense), ratio(lstm, best), ratio(gru, best)),
        f"{moved / best / 1e9:.0f}" if best else "-",
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def number(seconds, name):
    """The seconds of a column, or None where there are none."""
    value = seconds.get(name)
    return value if isinstance(value, float) else None


def fastest(seconds):
    """The seconds of the faster form of IndRNN, or None."""
    return min(
        filter(None, (number(seconds, form) for form in FORMS)), default=None
    )


def draw(table, path):
    """LSTM beside the best form of IndRNN, over T."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    lines = {}
    for (dtype, (batch, time_steps, units)), seconds in table.items():
        best, lstm = fastest(seconds), number(seconds, "LSTM")
        if best and lstm:
            label = f"{dtype}, B {batch}, N {units}"
            lines.setdefault(label, []).append((time_steps, lstm / best))
    for label, points in lines.items():
        axes.loglog(*zip(*points), "o-", label=label)
    axes.set(xlabel="time steps", ylabel="LSTM / IndRNN")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend()
    figure.savefig(path, dpi=120)


def main(argv=None):
    options = parser(__doc__, rounds=20)
    for flag, default in (
        ("--batch", [32, 256]),
        ("--time-steps", [64, 256, 1024, 4096, 16384]),
        ("--units", [128, 512]),
    ):
        options.add_argument(flag, type=int, nargs="+", default=default)
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options.add_argument("--picture", metavar="FILE", help="draw the ratios")
    args = options.parse_args(argv)
    packages = ["jax", "keras"] + (["torch"] if torch else [])
    print(
        f"{jax.devices()[0].device_kind}, {conditions(args, packages)}\n"
        "| dtype | B | T | N | Dense, ms | IndRNN, parallel, ms | sequential, "
        "ms | LSTM, ms | GRU, ms | IndRNN x Dense | LSTM / IndRNN | "
        "GRU / IndRNN | moved, GB/s |\n" + "|---" * 13 + "|"
    )
    shapes = itertools.product(args.batch, args.time_steps, args.units)
    sizes = [*itertools.product(args.dtypes, shapes)]
    table = torch_seconds(sizes, args)
    for (dtype, shape), programs in compiled_programs(sizes).items():
        seconds = table[dtype, shape]
        for name, program in programs.items():
            make = functools.partial(keras_call, program, name, shape, dtype)
            seconds[name] = measured(make, args)
        print_line(dtype, shape, seconds)
    if args.picture:
        draw(table, args.picture)


if __name__ == "__main__":
    main()
