"""Draw a dilated network: its connections, and the shortest path through it.

Layer l is connected with itself d_l steps before. The strong line is a
shortest path from the first input to the last output. Like the figures of arXiv
1710.02224.

    python examples/draw_dilated_rnn.py --dilations 1 2 4 8
"""

import sys

from matplotlib import patches, pyplot

import arguments
import training
from dilated_rnn import mean_recurrent_length


def shortest_path(dilations, distance):
    """The layers whose connections bridge `distance` steps, bottom first.

    As few layers as possible; None if it cannot be done.
    """
    paths = [[]]
    for steps in range(1, distance + 1):
        candidates = [
            [*paths[steps - d], layer]
            for layer, d in enumerate(dilations)
            if d <= steps and paths[steps - d] is not None
        ]
        paths.append(min(candidates, key=len, default=None))
    path = paths[distance]
    return path if path is None else sorted(path)


def draw(dilations, time_steps):
    """A figure of a network with the given dilations, over some steps."""
    layers = len(dilations)
    figure, axes = pyplot.subplots(
        figsize=(0.5 * time_steps + 2, 0.9 * layers + 1.6),
        layout="constrained",
    )
    faint = {"color": "lightgray", "lw": 1, "zorder": 1}
    strong = {"color": "tab:red", "lw": 2.5, "zorder": 3}

    def up(time, layer, style):
        axes.plot([time, time], [layer - 1, layer], **style)

    def along(time, layer, style):
        """A recurrent connection, from one step to `dilation` steps later."""
        bend = -0.35 if dilations[layer] > 1 else 0
        axes.add_patch(
            patches.FancyArrowPatch(
                (time, layer),
                (time + dilations[layer], layer),
                connectionstyle=f"arc3,rad={bend / dilations[layer] ** 0.5}",
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=4,
                shrinkB=4,
                **style,
            )
        )

    for time in range(time_steps):
        for layer in range(layers + 1):
            up(time, layer, faint)
    for layer, dilation in enumerate(dilations):
        for time in range(time_steps - dilation):
            # Steps that belong to one sequence have one shade.
            shade = pyplot.colormaps["Blues"](
                0.35 + 0.5 * (time % dilation + 1) / dilation
            )
            along(time, layer, {"color": shade, "lw": 1, "zorder": 2})
    path = shortest_path(dilations, time_steps - 1)
    if path is not None:
        time = 0
        for layer in range(layers + 1):
            up(time, layer, strong)
            for _ in range(path.count(layer)):
                along(time, layer, strong)
                time += dilations[layer]
    rows = ["input", *(f"dilation {d}" for d in dilations), "output"]
    for row in range(-1, layers + 1):
        color = "white" if row in (-1, layers) else "lightsteelblue"
        axes.scatter(
            range(time_steps),
            [row] * time_steps,
            s=60,
            color=color,
            edgecolors="black",
            zorder=4,
        )
    axes.set(
        yticks=range(-1, layers + 1),
        yticklabels=rows,
        xticks=range(time_steps),
        xlabel="time step",
        title=f"mean recurrent length {mean_recurrent_length(dilations):.2f}",
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def main(argv=None):
    parser = arguments.plain_parser(__doc__)
    option, count = arguments.option, arguments.count(1)
    text = "of the layers, bottom layer first"
    option(parser, "--dilations", [1, 2, 4, 8], text, type=count, nargs="+")
    option(parser, "--time-steps", 16, "to draw", type=count)
    arguments.add_picture(parser, "dilated_rnn")
    args = parser.parse_args(argv)
    figure = draw(args.dilations, args.time_steps)
    training.save_figure(figure, args.out)


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
