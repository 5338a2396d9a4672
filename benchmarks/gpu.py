"""IndRNN on a GPU, beside Dense and the LSTM of cuDNN.

    python benchmarks/gpu.py

The layer under Keras' JAX backend, compiled by XLA as it is under TensorFlow,
in its two forms; and, where PyTorch is installed, `torch.nn.LSTM` on the same
device, which runs cuDNN there. Forward and backward, F = N, loss sum(y * G).
"Moved" is what the recurrence of IndRNN must move at least, five arrays of
(B, T, N): W x and h, h and its gradient, that of W x. It needs jax, but
neither TensorFlow nor a GPU: on a CPU it shows that it runs.
"""

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


def keras_call(layer, x):
    """A compiled call of the gradients of all weights and of x."""
    layer.build(x.shape)
    others = [variable.value for variable in layer.non_trainable_variables]
    weights = jax.random.normal(jax.random.key(1), (*x.shape[:2], layer.units))

    @jax.jit
    def gradients(variables, x):
        def loss(variables, x):
            y, _ = layer.stateless_call(variables, others, x)
            return (y * weights).sum()

        return jax.grad(loss, argnums=(0, 1))(variables, x)

    variables = [variable.value for variable in layer.trainable_variables]
    return lambda _: jax.block_until_ready(gradients(variables, x))


def torch_call(batch, time_steps, units):
    """The same of `torch.nn.LSTM`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = torch.nn.LSTM(units, units, batch_first=True).to(device)
    shape = batch, time_steps, units
    x, weights = torch.randn((2, *shape), device=device)
    x.requires_grad_()

    def call(_):
        loss = (layer(x)[0] * weights).sum()
        gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
        if device == "cuda":
            torch.cuda.synchronize()
        return gradients

    return call


def line(batch, time_steps, units, rounds):
    """Print the times of one size."""
    shape = batch, time_steps, units
    x = jax.random.normal(jax.random.key(0), shape)
    options = {
        "return_sequences": True,
        "recurrent_max_abs": 2 ** (1 / time_steps),
    }
    calls = {"Dense": keras_call(keras.layers.Dense(units, "relu"), x)}
    for form in ("parallel", "sequential"):
        layer = IndRNN(units, implementation=form, **options)
        calls[form] = keras_call(layer, x)
    if torch:
        calls["LSTM"] = torch_call(*shape)
    seconds = medians(calls, x, rounds)
    best = min(seconds["parallel"], seconds["sequential"])
    moved = 5 * 4 * batch * time_steps * units / best
    cells = [f"{1e3 * seconds[name]:.2f}" for name in calls]
    cells += [] if torch else ["-"]
    ratio = f"{seconds['LSTM'] / best:.1f}" if torch else "-"
    print(
        f"| {batch} | {time_steps} | {units} | {' | '.join(cells)} "
        f"| {best / seconds['Dense']:.2f} | {ratio} | {moved / 1e9:.0f} |",
        flush=True,
    )


def main(argv=None):
    options = parser(__doc__, rounds=20)
    for flag, default in (
        ("--batch", [32, 128]),
        ("--time-steps", [256, 512, 1024, 4096]),
        ("--units", [128, 512]),
    ):
        options.add_argument(flag, type=int, nargs="+", default=default)
    args = options.parse_args(argv)
    packages = ["jax", "keras"] + (["torch"] if torch else [])
    print(
        f"{jax.devices()[0].device_kind}, {conditions(args, packages)}\n"
        "| B | T | N | Dense, ms | IndRNN, parallel, ms | sequential, ms "
        "| LSTM, ms | IndRNN x Dense | LSTM / IndRNN | moved, GB/s |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for batch in args.batch:
        for units in args.units:
            for time_steps in args.time_steps:
                line(batch, time_steps, units, args.rounds)


if __name__ == "__main__":
    main()
