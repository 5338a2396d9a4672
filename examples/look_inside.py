"""Look inside a trained network: what each of its neurons remembers.

A neuron of an IndRNN depends on its own past alone, through one recurrent
weight u: without input, its state falls to 1 % in log(0.01) / log|u| steps, and
never for |u| >= 1. For each recurrent layer, this draws the memory lengths of
its neurons in the order of |u| and, given a sequence, their states over time,
each relative to its own largest one. Like the figures of arXiv 1803.04831 and
1910.06251. (With relu, a neuron with u < 0 forgets at once: u times its state
is negative, and relu cuts it off.)

    python examples/look_inside.py out/addition_rnn --sequence adding
    python examples/look_inside.py out/sequential_mnist --sequence mnist.npz
    python examples/look_inside.py model.keras --sequence x.npy
"""

import sys

import keras
import numpy as np
from matplotlib import pyplot

import arguments
import deep_ind_rnn  # noqa: F401, registers layers for loading
import training
from addition_rnn import adding_batch
from dilated_rnn import DilatedRNN
from ind_rnn_cell import IndRNNCell
from sequential_mnist import TIME_STEPS, load_mnist, prepare


def recurrent_layers(layer, dilation=1):
    """Find the recurrent layers with an IndRNNCell, bottom first.

    They are `IndRNN` and `keras.layers.RNN` of one `IndRNNCell`, however deeply
    nested in networks and wrappers.

    Returns:
        {layer: dilation}; the dilation is 1 outside a `DilatedRNN`.
    """
    if isinstance(layer, keras.layers.RNN):
        return {layer: dilation} if isinstance(layer.cell, IndRNNCell) else {}
    inside = layer._flatten_layers(include_self=False, recursive=False)
    dilations = {}
    if isinstance(layer, DilatedRNN):
        inside = layer.layers
        dilations = dict(zip(inside, layer.dilations, strict=True))
    found = {}
    for part in inside:
        found |= recurrent_layers(part, dilations.get(part, 1))
    return found


def memory_lengths(u):
    """Steps until a state has decayed to 1 %; infinite for |u| >= 1."""
    size = np.abs(np.asarray(u, "float64"))
    with np.errstate(divide="ignore"):
        steps = np.log(0.01) / np.log(size)
    return np.where(size < 1, steps, np.inf)


def responses(model, layers, x):
    """The states of every layer over one sequence x: {layer: (steps, N)}.

    States are in the order of time. Layers that are not called are left out.
    """
    batch = model.input_shape[0] or 1
    found = {}

    def record(layer):
        inner_loop, wanted = layer.inner_loop, layer.return_sequences

        def recorded(*arguments, **options):
            # Otherwise Keras' own loop returns only the last state.
            layer.return_sequences = True
            result = inner_loop(*arguments, **options)
            layer.return_sequences = wanted
            states = np.asarray(result[1], "float32")
            if layer.go_backwards:
                states = states[:, ::-1]
            # A dilated layer has its phases in the batch axis.
            states = np.moveaxis(states, 1, 0)
            found[layer] = states.reshape(-1, batch, states.shape[-1])[:, 0]
            return result

        layer.inner_loop = recorded
        # A DilatedRNN then calls the layer itself.
        layer.call_dilated = lambda *_, **__: None

    for layer in layers:
        record(layer)
    try:
        model(np.repeat(x[None], batch, axis=0))
    finally:
        for layer in layers:
            del layer.inner_loop, layer.call_dilated
    return found


def read_sequence(what, index, shape):
    """A sequence for a model whose input has a given shape, without batch.

    Raises:
        arguments.UserError: If it cannot be read, or has another shape.
    """
    length = shape[0]
    if what == "adding":
        rng = np.random.default_rng(index)
        x = adding_batch(rng, 1, length or 100)[0][0]
    elif what.endswith(".npz"):
        digits = load_mnist(what)[1][0]
        if index >= len(digits):
            raise arguments.UserError(
                f"--index must be below {len(digits)}, the number of test "
                f"digits, got {index}"
            )
        length = max(length or 0, TIME_STEPS)
        rng = np.random.default_rng(index)
        x = prepare(digits[index : index + 1], length=length, rng=rng)[0]
    else:
        errors = OSError, ValueError
        with (
            arguments.explained(f"--sequence {what}", errors),
            open(what, "rb") as file,
        ):
            x = np.lib.format.read_array(file, allow_pickle=False)
    if len(x.shape) != len(shape) or any(
        n not in (None, found) for n, found in zip(shape, x.shape, strict=True)
    ):
        raise arguments.UserError(
            f"--sequence {what}: the model needs one of shape {shape}, "
            f"got {x.shape}"
        )
    return x


def draw(layers, weights, states=None, x=None):
    """A figure with a row for each layer, bottom last, the input below.

    `weights` are the recurrent weights (N,) of each of `layers`; `states` and
    `x` as in `responses`.
    """
    names = list(layers)
    rows, columns = len(names) + (x is not None), 1 + (x is not None)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(3 + 5 * (columns - 1), 0.9 + 1.6 * rows),
        width_ratios=[1, 2][:columns],
        height_ratios=[1, *[1] * (len(names) - 1), 0.7][:rows],
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    memory = {
        layer: memory_lengths(weights[layer]) * dilation
        for layer, dilation in layers.items()
    }
    finite = [m[np.isfinite(m)].max(initial=10) for m in memory.values()]
    never = 10 ** np.ceil(np.log10(max(finite)) + 0.5)
    for row, layer in zip(grid, reversed(names), strict=False):
        order = np.argsort(np.abs(weights[layer]), kind="stable")
        u, steps = weights[layer][order], memory[layer][order]
        rank = np.arange(len(u))
        for sign, color in ((u >= 0, "tab:blue"), (u < 0, "tab:orange")):
            steps_drawn = np.clip(steps[sign], 0.5, never)
            row[0].plot(steps_drawn, rank[sign], ".", ms=3, color=color)
        row[0].set(ylabel=layer.name, ylim=(-0.5, len(u) - 0.5))
        row[0].grid(alpha=0.3)
        if x is None:
            continue
        row[0].axvline(len(x), color="gray", ls="--", lw=1)
        row[1].set(yticks=[], xlim=(0, len(x)))
        if layer in states:
            h = states[layer][:, order].T
            largest = np.abs(h).max(axis=1, keepdims=True)
            row[1].imshow(
                h / np.where(largest > 0, largest, 1),
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
                aspect="auto",
                origin="lower",
                extent=(0, len(x), -0.5, len(u) - 0.5),
            )
    decades = 10.0 ** np.arange(0, np.log10(never))
    bottom = grid[len(names) - 1][0]
    bottom.set(xscale="log", xlim=(0.4, 2 * never), xlabel="memory, steps")
    bottom.set_xticks(
        [*decades[::2], never],
        [*(f"$10^{{{int(np.log10(d))}}}$" for d in decades[::2]), "never"],
    )
    bottom.minorticks_off()
    bottom.tick_params(labelbottom=True)
    grid[0][0].set_title("memory", fontsize=10)
    if x is not None:
        grid[0][1].set_title("state / its largest size", fontsize=10)
        grid[-1][0].set_axis_off()
        grid[-1][1].plot(np.arange(len(x)) + 0.5, x, lw=1)
        grid[-1][1].set(ylabel="input", xlabel="time step")
    return figure


def summary(layers, weights):
    """A table of the memory of each layer, bottom first: its lines."""
    yield "| layer | units | memory, median | never decays | u < 0 |"
    yield "|---|---|---|---|---|"
    for layer, dilation in layers.items():
        u = weights[layer]
        steps = memory_lengths(u) * dilation
        middle = np.median(steps)
        middle = f"{middle:.0f} steps" if np.isfinite(middle) else "never"
        yield (
            f"| {layer.name} | {len(u)} | {middle} | "
            f"{np.isinf(steps).mean():.0%} | {(u < 0).mean():.0%} |"
        )


def main(argv=None):
    parser = arguments.plain_parser(__doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .keras file, or a directory where an example left one",
    )
    option = arguments.option
    option(
        parser,
        "--sequence",
        None,
        'what the network sees: "adding"; an npz file of MNIST, for a digit of '
        "its test part; an npy file with one input, without batch. Without it, "
        "only memory lengths are drawn",
        metavar="WHAT",
    )
    text = "of the test digit, or of the random adding sequence"
    option(parser, "--index", 0, text, type=arguments.count(0))
    arguments.add_picture(parser, "look_inside")
    args = parser.parse_args(argv)
    model, _ = training.load_network(args.model)
    layers = recurrent_layers(model)
    if not layers:
        raise arguments.UserError(
            f"{args.model}: expected a network with IndRNN layers, got one of "
            + ", ".join(
                sorted({type(layer).__name__ for layer in model.layers})
            )
        )
    weights = {
        layer: np.asarray(layer.cell.bounded_recurrent_kernel, "float32")
        for layer in layers
    }
    x = states = None
    if args.sequence is not None:
        if isinstance(model.input_shape, (list, dict)):
            raise arguments.UserError(
                f"--sequence needs a model of one input, got {args.model} of "
                f"{len(model.input_shape)}"
            )
        x = read_sequence(args.sequence, args.index, model.input_shape[1:])
        states = responses(model, layers, x)
    for line in summary(layers, weights):
        print(line)
    training.save_figure(draw(layers, weights, states, x), args.out)


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
