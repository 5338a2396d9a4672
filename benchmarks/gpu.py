"""IndRNN on a GPU, beside Dense, and LSTM and GRU of cuDNN.

    python benchmarks/gpu.py --picture img/speed/gpu.png

The layer under Keras' JAX backend, compiled by XLA as it is under TensorFlow,
in its two forms; and, where PyTorch is installed, `torch.nn.LSTM` and
`torch.nn.GRU` on the same device, which run cuDNN there. Forward and backward,
F = N, loss sum(y * G), in float32 and bfloat16 (`--dtypes`). "Moved" is what
the recurrence of IndRNN must move at least, five arrays of (B, T, N): W x and
h, h and its gradient, that of W x. What does not fit into the memory of the
device is "memory" in the table. It needs jax, but neither TensorFlow nor a
GPU: on a CPU it shows that it runs.
"""

import functools
import gc
import itertools
import math
import os

os.environ["KERAS_BACKEND"] = "jax"
# The memory of the device is for PyTorch, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import keras  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

from ind_rnn import IndRNN  # noqa: E402
from timing import conditions, medians, parser  # noqa: E402

FORMS = "parallel", "sequential"


def keras_call(layer, x):
    """A compiled call of the gradients of all weights and of x."""
    layer.build(x.shape)
    others = [variable.value for variable in layer.non_trainable_variables]
    shape = *x.shape[:2], layer.units
    weights = jax.random.normal(jax.random.key(1), shape, x.dtype)

    @jax.jit
    def gradients(variables, x):
        def loss(variables, x):
            y, _ = layer.stateless_call(variables, others, x)
            return (y * weights).sum()

        return jax.grad(loss, argnums=(0, 1))(variables, x)

    variables = [variable.value for variable in layer.trainable_variables]
    return lambda _: jax.block_until_ready(gradients(variables, x))


def torch_call(kind, shape, dtype):
    """The same of `torch.nn.LSTM` or `torch.nn.GRU`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"device": device, "dtype": getattr(torch, dtype)}
    layer = kind(shape[-1], shape[-1], batch_first=True, **options)
    x, weights = torch.randn((2, *shape), **options)
    x.requires_grad_()

    def call(_):
        loss = (layer(x)[0] * weights).sum()
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        if device == "cuda":
            torch.cuda.synchronize()
        return gradients

    return call


def measured(make, rounds):
    """Median seconds of the call that `make` makes; None: out of memory."""
    try:
        return medians({"": make()}, None, rounds)[""]
    except Exception as error:
        text = f"{type(error).__name__} {error}"
        if "RESOURCE_EXHAUSTED" in text or "OutOfMemory" in text:
            return None
        raise
    finally:
        gc.collect()
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()


def line(dtype, shape, rounds):
    """{name: seconds, or None} of one size; print them."""
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    x = functools.partial(jax.random.normal, jax.random.key(0), shape, dtype)
    options = {
        "dtype": policy,
        "return_sequences": True,
        "recurrent_max_abs": 2 ** (1 / shape[1]),
    }
    units = shape[-1]
    layers = {
        "Dense": lambda: keras.layers.Dense(units, "relu", dtype=policy),
        **{
            form: lambda form=form: IndRNN(
                units, implementation=form, **options
            )
            for form in FORMS
        },
    }
    makes = {
        name: lambda layer=layer: keras_call(layer(), x())
        for name, layer in layers.items()
    }
    if torch:
        for name in ("LSTM", "GRU"):
            kind = getattr(torch.nn, name)
            makes[name] = lambda kind=kind: torch_call(kind, shape, dtype)
    seconds = {name: measured(make, rounds) for name, make in makes.items()}
    best = min(filter(None, (seconds[form] for form in FORMS)), default=None)
    cells = [
        "memory" if value is None else f"{1e3 * value:.2f}"
        for value in seconds.values()
    ]
    cells += [] if torch else ["-", "-"]
    for above, below in (
        (best, seconds["Dense"]),
        (seconds.get("LSTM"), best),
        (seconds.get("GRU"), best),
    ):
        cells.append(f"{above / below:.2f}" if above and below else "-")
    size = jax.numpy.dtype(dtype).itemsize
    moved = 5 * size * math.prod(shape)
    cells.append(f"{moved / best / 1e9:.0f}" if best else "-")
    sizes = " | ".join(map(str, shape))
    print(f"| {dtype} | {sizes} | {' | '.join(cells)} |", flush=True)
    return seconds


def draw(table, path):
    """LSTM beside the best form of IndRNN, over T."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    lines = {}
    for (dtype, (batch, time_steps, units)), seconds in table.items():
        best = min(filter(None, (seconds[x] for x in FORMS)), default=None)
        if best and seconds.get("LSTM"):
            label = f"{dtype}, B {batch}, N {units}"
            ratio = seconds["LSTM"] / best
            lines.setdefault(label, []).append((time_steps, ratio))
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
        ("--time-steps", [64, 256, 1024, 4096, 16384, 65536]),
        ("--units", [128, 512]),
    ):
        options.add_argument(flag, type=int, nargs="+", default=default)
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
    table = {
        (dtype, shape): line(dtype, shape, args.rounds)
        for dtype in args.dtypes
        for shape in itertools.product(args.batch, args.time_steps, args.units)
    }
    if args.picture:
        draw(table, args.picture)


if __name__ == "__main__":
    main()
