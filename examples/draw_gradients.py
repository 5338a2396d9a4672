"""Gradients of deep networks, layer by layer, before and after training.

A network of many IndRNN layers learns the adding problem. For each recurrent
layer, bottom first, this prints and draws the norms of the gradients of its
recurrent weights and of the kernel in front of it, relative to those of the top
layer. Like figure 5 of arXiv 1803.04831.

    python examples/draw_gradients.py --model residual --layers 21
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from matplotlib import pyplot

import arguments
import training
from addition_rnn import BASELINE, adding_batch
from deep_ind_rnn import residual_ind_rnn, stacked_ind_rnn
from ind_rnn import IndRNN


def build_model(args):
    """A network of `args.layers` recurrences to one number, compiled."""
    options = {
        "input_shape": (args.time_steps, 2),
        "units": args.units,
        "num_outputs": 1,
        "long_memory": True,
        "normalization": None if args.model == "plain" else "batch",
    }
    if args.model == "residual":
        model = residual_ind_rnn(num_blocks=args.layers // 2, **options)
    else:
        model = stacked_ind_rnn(num_layers=args.layers, **options)
    model.compile(
        keras.optimizers.Adam(args.learning_rate, global_clipnorm=1.0), "mse"
    )
    return model


def gradient_norms(model, x, y):
    """The norms (layers, 2) of the gradients of kernels and of u.

    A layer is a recurrence and the dense layer in front of it, bottom first.
    """
    dense = [
        layer for layer in model.layers if isinstance(layer, keras.layers.Dense)
    ]
    recurrent = [layer for layer in model.layers if isinstance(layer, IndRNN)]
    weights = [
        weight.value
        for first, second in zip(dense, recurrent, strict=False)
        for weight in (first.kernel, second.cell.recurrent_kernel)
    ]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    norms = [float(tf.norm(g)) for g in tape.gradient(loss, weights)]
    return np.reshape(norms, (-1, 2))


def draw(norms, title):
    """A figure of {when: norms (layers, 2)}, each over that of the top."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for when, color in zip(norms, ("tab:gray", "tab:blue"), strict=True):
        share = norms[when] / norms[when][-1]
        layers = range(1, len(share) + 1)
        for column, name, style in ((0, "kernel", "o-"), (1, "u", "^--")):
            axes.plot(
                layers,
                share[:, column],
                style,
                color=color,
                label=f"{name}, {when}",
            )
    axes.set(
        yscale="log",
        xlabel="recurrent layer, bottom first",
        ylabel="gradient norm / top layer's",
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def parse(argv):
    parser = arguments.plain_parser(__doc__)
    option, count = arguments.option, arguments.count
    option(
        parser,
        "--model",
        "residual",
        "the network; plain is stacked without batch normalization",
        choices=("residual", "stacked", "plain"),
    )
    for flag, default, text, kind in (
        ("--layers", 21, "recurrent layers, odd if residual", count(3)),
        ("--units", 64, "in each of them", count(1)),
        ("--time-steps", 100, "length of a sequence", count(2)),
        ("--batch-size", 50, "sequences in a batch", count(1)),
        ("--steps", 500, "of training", count(1)),
        ("--learning-rate", 1e-3, "of Adam", arguments.positive),
        ("--seed", 1, "of weights and data", count(0)),
    ):
        option(parser, flag, default, text, type=kind)
    arguments.add_picture(parser, "gradients")
    args = parser.parse_args(argv)
    if args.model == "residual" and args.layers % 2 == 0:
        parser.error(f"--layers must be odd if residual, got {args.layers}")
    return args


def main(argv=None):
    args = parse(argv)
    keras.utils.set_random_seed(args.seed)
    model = build_model(args)

    def batch(step):
        rng = np.random.default_rng([args.seed, step])
        return adding_batch(rng, args.batch_size, args.time_steps)

    losses, norms = [], {"before": gradient_norms(model, *batch(0))}
    for step in range(args.steps):
        losses.append(float(model.train_on_batch(*batch(step))))
        model.reset_metrics()
    norms["after"] = gradient_norms(model, *batch(args.steps))

    print("| layer | kernel, before | u, before | kernel, after | u, after |")
    print("|---|---|---|---|---|")
    shares = [part / part[-1] for part in norms.values()]
    for layer, row in enumerate(np.concatenate(shares, axis=1), start=1):
        cells = " | ".join(f"{share:.2g}" for share in row)
        print(f"| {layer} | {cells} |")
    first, last = (np.mean(part) for part in (losses[:10], losses[-10:]))
    print(
        f"loss {first:.4f} -> {last:.4f} in {args.steps} steps "
        f"(no memory: {BASELINE:.4f})"
    )
    figure = draw(norms, f"{args.model}, {args.layers} layers")
    training.save_figure(figure, args.out)


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
