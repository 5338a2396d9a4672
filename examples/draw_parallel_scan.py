"""Draw how the parallel scan works: maps that become one, and chunks of steps.

Explained in docs/parallel_scan.md.

    python examples/draw_parallel_scan.py --out img/parallel_scan
"""

import pathlib
import sys

import numpy as np
from matplotlib import pyplot

import arguments
import training

F, G = (1.0, 0.5, 0.0, np.inf), (-0.5, 2.0, 0.0, np.inf)  # (m, s, low, high)
CHUNK, CHUNKS = 4, 3  # few enough to draw


def apply(f, h):
    m, s, low, high = f
    return np.clip(s + m * h, low, high)


def compose(g, f):
    """The map h -> g(f(h)): the theorem."""
    m, s = g[0] * f[0], g[1] + g[0] * f[1]
    ends = [g[1] + g[0] * bound for bound in f[2:]]
    return m, s, *np.clip([min(ends), max(ends)], g[2], g[3])


def draw_maps(figure):
    h = np.linspace(-2, 5, 400)
    panels = figure.subplots(1, 3, sharey=True)
    for panel, f, name in zip(
        panels, (F, G, compose(G, F)), ("f(h)", "g(h)", "g(f(h))"), strict=True
    ):
        m, s, low, high = f
        panel.plot(h, s + m * h, "--", color="tab:gray", lw=1)
        panel.plot(h, apply(f, h), color="tab:blue", lw=2)
        bounds = f"[{low:g}, {'∞' if np.isinf(high) else f'{high:g}'}]"
        panel.set(title=f"{name}: {s:g} {m:+g} h, in {bounds}", xlabel="h")
        panel.set_ylim(-1.5, 4)
        panel.grid(alpha=0.3)


def draw_scan(figure):
    panel = figure.subplots()
    panel.axis("off")
    arrow = {"arrowstyle": "->", "color": "tab:gray"}
    levels = {"steps": 3.0, "maps": 2.0, "ends": 1.0, "states": 0.0}

    def box(x, level, text, color):
        panel.text(
            x,
            levels[level],
            text,
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "fc": color, "ec": "none"},
        )

    for chunk in range(CHUNKS):
        first = chunk * CHUNK
        middle = first + (CHUNK - 1) / 2
        box(middle, "maps", f"F{chunk + 1}", "lightsteelblue")
        box(middle, "ends", f"h{first + CHUNK}", "moccasin")
        panel.annotate("", (middle, 1.25), (middle, 1.75), arrowprops=arrow)
        if chunk:
            before = (middle - CHUNK + 0.3, 1), (middle - 0.4, 1)
            panel.annotate("", before[1], before[0], arrowprops=arrow)
        for step in range(first, first + CHUNK):
            box(step, "steps", f"f{step + 1}", "whitesmoke")
            box(step, "states", f"h{step + 1}", "honeydew")
            panel.annotate("", (middle, 2.25), (step, 2.75), arrowprops=arrow)
            if chunk:
                start = middle - CHUNK, 0.75
                panel.annotate("", (step, 0.25), start, arrowprops=arrow)
    for level, text in (
        ("steps", "a map for each step"),
        ("maps", "1. one map for each chunk"),
        ("ends", "2. the same problem, shorter"),
        ("states", "3. all states of all chunks"),
    ):
        panel.text(-1, levels[level], text, ha="right", va="center")
    panel.set(xlim=(-4.6, CHUNK * CHUNKS), ylim=(-0.4, 3.4))


def main(argv=None):
    parser = arguments.plain_parser(__doc__)
    parser.add_argument(
        "--out", type=pathlib.Path, default="out/parallel_scan", metavar="DIR"
    )
    args = parser.parse_args(argv)
    for name, draw, size in (
        ("maps", draw_maps, (9, 2.6)),
        ("scan", draw_scan, (9, 3)),
    ):
        figure = pyplot.figure(figsize=size, layout="constrained")
        draw(figure)
        training.save_figure(figure, args.out / f"{name}.png")


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
