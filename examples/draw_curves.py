"""Draw a column of the histories of several runs into one picture.

python examples/draw_curves.py out/indrnn out/lstm --column val_bpc
"""

import csv
import pathlib
import sys

from matplotlib import pyplot

import arguments
import training


def read(run, column, over="minutes"):
    """(minutes, or training steps; values) of the run with this directory."""
    path = pathlib.Path(run) / "history.csv"
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        values = [float(row[column]) for row in rows]
        if over == "steps":
            return [int(row["steps"]) for row in rows], values
        return [float(row["seconds"]) / 60 for row in rows], values
    except OSError as error:
        raise arguments.UserError(str(error)) from error
    except KeyError as error:
        raise arguments.UserError(
            f"{path}: expected a column {error}, got {', '.join(rows[0])}"
        ) from error
    except (TypeError, ValueError) as error:
        raise arguments.UserError(f"{path}: {error}") from error


def main(argv=None):
    parser = arguments.plain_parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="DIR", help="where runs left their results"
    )
    option = arguments.option
    option(parser, "--column", "val_loss", "of history.csv", metavar="NAME")
    text = "time, or training steps"
    option(parser, "--over", "minutes", text, choices=("minutes", "steps"))
    option(
        parser,
        "--top",
        None,
        "the upper end of the axis",
        type=arguments.positive,
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axis")
    arguments.add_picture(parser, "curves")
    args = parser.parse_args(argv)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for run in args.runs:
        points = read(run, args.column, args.over)
        axes.plot(*points, "o-", ms=3, label=pathlib.Path(run).name)
    axes.set(xlabel=args.over, ylabel=args.column)
    axes.set_yscale("log" if args.log else "linear")
    axes.set_ylim(top=args.top)
    axes.grid(alpha=0.3)
    axes.legend()
    training.save_figure(figure, args.out)


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
