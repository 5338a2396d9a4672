"""The tables and the picture of `drop_in.py`, from its `runs.csv`.

    python benchmarks/drop_in_report.py out/drop_in/runs.csv \
        --picture img/drop_in/drop_in.png
    python benchmarks/drop_in_report.py out/gates/runs.csv --study gates \
        --picture img/drop_in/gates.png
    python benchmarks/drop_in_report.py out/bound/runs.csv --study bound
    python benchmarks/drop_in_report.py out/networks/runs.csv --study networks \
        --picture img/drop_in/networks.png
    python benchmarks/drop_in_report.py benchmarks/drop_in_networks.csv \
        --study networks --tasks pixels narma adding \
        --picture img/drop_in/first.png

A figure is the mean over the seeds and their standard deviation; accuracies are
those of rows, pixels, permuted and words, all others losses. A score after some
time is the best one up to then, as early stopping would keep it.
"""

import argparse
import pathlib
import statistics

from drop_in import CANDIDATES, EPOCHS, HOUSE, STARTS_OF_GATES, STUDY, read
from drop_in_networks import BOUNDS

ACCURACIES = "rows", "pixels", "permuted", "words"
CHOSEN = "wide, time constants"  # of STARTS_OF_GATES


class Study:
    """The runs: rows of epochs by (task, model, layers, learning rate)."""

    def __init__(self, rows):
        self.runs = {}
        for row in rows:
            key = row["task"], row["model"], int(row["layers"])
            seeds = self.runs.setdefault(
                (*key, float(row["learning_rate"])), {}
            )
            seeds.setdefault(row["seed"], []).append(row)
        self.tasks = list(dict.fromkeys(row["task"] for row in rows))

    def seeds(self, task, model, layers, rate=1e-3):
        return list(self.runs.get((task, model, layers, rate), {}).values())

    def after(self, epoch, column="score"):
        """Values of each seed after so many epochs, as a function."""
        return lambda task, *run: [
            float(rows[epoch - 1][column]) for rows in self.seeds(task, *run)
        ]

    def within(self, layers):
        """Values of each seed in the time of LSTM with so many layers."""

        def values(task, *run):
            best = max if task in ACCURACIES else min
            seconds = self.after(EPOCHS, "seconds")(task, "LSTM", layers)
            time = statistics.median(seconds) if seconds else 0.0
            return [
                best(
                    float(row["score"])
                    for row in rows
                    if row is rows[0] or float(row["seconds"]) <= time
                )
                for rows in self.seeds(task, *run)
            ]

        return values


def is_better(task, a, b, slack=0.0):
    """Whether score a is at least as good as b, less `slack` of b."""
    if task in ACCURACIES:
        return a >= b * (1 - slack)
    return a <= b * (1 + slack)


def text(values):
    """Mean and standard deviation; large numbers by themselves."""
    mean = statistics.mean(values)
    if mean >= 1000:
        return f"{mean:,.0f}"
    digits = 1 if mean >= 10 else 3 if mean >= 0.1 else 4
    result = f"{mean:.{digits}f}"
    if len(values) > 1:
        result += f" ± {statistics.stdev(values):.{digits}f}"
    return result


def table(
    study, title, columns, rivals=((0, 1),), slack=0.0, score=True, facts=0
):
    """A table of (name, values of a task, run), and who of two rivals is ahead.

    The last columns, so many as `facts`, are no scores.
    """
    print(f"\n{title}\n")
    print("| task |" + "".join(f" {name} |" for name, *_ in columns))
    print("|---|" + "---|" * len(columns))
    verdicts = {pair: ([], []) for pair in rivals}
    for task in study.tasks:
        cells = [values(task, *run) for _, values, run in columns]
        if not all(cells[index] for pair in rivals for index in pair):
            continue
        means = [cell and statistics.mean(cell) for cell in cells]
        shown = [text(cell) if cell else "–" for cell in cells]
        if score:
            best = (max if task in ACCURACIES else min)(
                mean for mean in means[: len(means) - facts] if mean != []
            )
            shown = [
                f"**{cell}**" if mean == best else cell
                for cell, mean in zip(shown, means, strict=True)
            ]
        print(f"| {task} |" + "".join(f" {cell} |" for cell in shown))
        for (a, b), (wins, losses) in verdicts.items():
            won = is_better(task, means[a], means[b], slack)
            (wins if won else losses).append(task)
    for (a, b), (wins, losses) in verdicts.items():
        if score and wins + losses:
            within = f", within {slack:.0%}," if slack else ""
            print(
                f"\n{columns[a][0]} is at least as good as {columns[b][0]}"
                f"{within} on {len(wins)} of {len(wins + losses)}"
                + (f"; not on {', '.join(losses)}." if losses else ".")
            )


def tables(study):
    last, first = study.after(EPOCHS), study.after(1, "loss")
    seconds, weights = study.after(EPOCHS, "seconds"), study.after(1, "weights")
    one, two = study.within(1), study.within(2)
    table(
        study,
        "One layer of 64 for another, in the time of four epochs of LSTM",
        [
            ("IndRNN", one, ("IndRNN", 1)),
            ("LSTM", one, ("LSTM", 1)),
            ("GRU", one, ("GRU", 1)),
            ("SimpleRNN", one, ("SimpleRNN", 1)),
            ("IndRNN, 2 layers", one, ("IndRNN", 2)),
            ("IndRNN, 4 layers", one, ("IndRNN", 4)),
        ],
    )
    table(
        study,
        "As many weights: four layers of IndRNN for one of LSTM, as much time",
        [
            ("IndRNN, 4 layers", one, ("IndRNN", 4)),
            ("LSTM", one, ("LSTM", 1)),
            ("weights of IndRNN", weights, ("IndRNN", 4)),
            ("weights of LSTM", weights, ("LSTM", 1)),
        ],
        facts=2,
    )
    table(
        study,
        "`stacked_ind_rnn`, 6 layers of 96, for 2 of LSTM, as much time",
        [
            ("stacked_ind_rnn", two, ("stacked", 6)),
            ("LSTM, 2 layers", two, ("LSTM", 2)),
            ("GRU, 2 layers", two, ("GRU", 2)),
            ("weights of stacked_ind_rnn", weights, ("stacked", 6)),
            ("weights of LSTM", weights, ("LSTM", 2)),
        ],
        facts=2,
    )
    table(
        study,
        "Loss of the first epoch",
        [
            (f"{name}, {layers}", first, (model, layers))
            for name, model in (
                ("IndRNN", "IndRNN"),
                ("uniform start", "uniform"),
                ("LSTM", "LSTM"),
            )
            for layers in (1, 2, 4)
        ],
        score=False,
    )
    table(
        study,
        "Seconds of four epochs",
        [
            (f"{model}, {layers}", seconds, (model, layers))
            for model, layers in (
                ("IndRNN", 1),
                ("IndRNN", 2),
                ("IndRNN", 4),
                ("stacked", 6),
                ("SimpleRNN", 1),
                ("GRU", 1),
                ("LSTM", 1),
                ("LSTM", 2),
                ("LSTM", 4),
            )
        ],
        score=False,
    )
    for layers in (1, 2, 4):
        table(
            study,
            f"The start: {layers} layers, after four epochs",
            [
                ("new", last, ("IndRNN", layers)),
                ("uniform", last, ("uniform", layers)),
                ("LSTM", last, ("LSTM", layers)),
            ],
            slack=0.02,
        )
    table(
        study,
        "Learning rate 3e-3, one layer, in the time of four epochs of LSTM",
        [
            ("IndRNN", one, ("IndRNN", 1, 3e-3)),
            ("LSTM", one, ("LSTM", 1, 3e-3)),
        ],
    )
    table(
        study,
        "Candidates: two layers, after four epochs",
        [(name, last, (name, 2)) for name in candidates(2)],
    )
    table(
        study,
        "Candidates: `stacked_ind_rnn`, after four epochs",
        [(name, last, (name, 6)) for name in candidates(6)],
        slack=0.02,
    )


def tables_of_gates(study):
    last, weights = study.after(EPOCHS), study.after(1, "weights")
    one, seconds = study.within(1), study.after(EPOCHS, "seconds")
    table(
        study,
        "One layer of 64 for another, in the time of four epochs of LSTM",
        [
            ("IndyLSTM", one, ("IndyLSTM", 1)),
            ("LSTM", one, ("LSTM", 1)),
            ("IndyGRU", one, ("IndyGRU", 1)),
            ("GRU", one, ("GRU", 1)),
            ("IndRNN", one, ("IndRNN", 1)),
        ],
        rivals=((0, 1), (2, 3)),
    )
    table(
        study,
        "As many weights: two layers for one, in the time of LSTM",
        [
            ("IndyLSTM, 2 layers", one, ("IndyLSTM", 2)),
            ("LSTM", one, ("LSTM", 1)),
            ("IndyGRU, 2 layers", one, ("IndyGRU", 2)),
            ("GRU", one, ("GRU", 1)),
            ("IndRNN, 2 layers", one, ("IndRNN", 2)),
            ("weights of IndyLSTM", weights, ("IndyLSTM", 2)),
            ("weights of LSTM", weights, ("LSTM", 1)),
        ],
        rivals=((0, 1), (2, 3)),
        facts=2,
    )
    runs = [
        (model, layers)
        for layers in (1, 2)
        for model in ("IndyLSTM", "IndyGRU", "IndRNN")
    ]
    runs += [("LSTM", 1), ("GRU", 1)]
    names = [f"{model}, {layers}" for model, layers in runs]
    rivals = ((0, len(runs) - 2), (1, len(runs) - 1))
    columns = [(name, last, run) for name, run in zip(names, runs, strict=True)]
    table(study, "After four epochs, by layers", columns, rivals)
    columns = [(name, seconds, run) for name, _, run in columns]
    table(study, "Seconds of four epochs", columns, rivals, score=False)
    for model in ("IndyLSTM", "IndyGRU"):
        starts = sorted(STARTS_OF_GATES, key=lambda start: start != CHOSEN)
        columns = [(start, last, (f"{model}, {start}", 1)) for start in starts]
        title = f"The start of {model}: one layer, after four epochs"
        table(study, title, columns, slack=0.02)


def tables_of_bound(study):
    last = study.after(EPOCHS)
    for layers, rate in ((2, 1e-3), (2, 3e-3), (4, 1e-3)):
        how = f"{layers} layers, Adam {rate:g}, after four epochs"
        table(
            study,
            f"The bound: {how}",
            [(name, last, (name, layers, rate)) for name in BOUNDS],
            rivals=[(index, 0) for index in range(1, len(BOUNDS))],
            slack=0.02,
        )
        start = {"quantiles": "quantiles", "drawn": "bound 2^(1/T)"}
        table(
            study,
            f"Time constants: {how}",
            [(name, last, (run, layers, rate)) for name, run in start.items()],
            slack=0.02,
        )


# (name, model, layers): `mixed_rnn` first
OF_NETWORKS = (
    ("mixed_rnn", "mixed", 2),
    ("mixed_rnn, 3 layers", "mixed", 3),
    ("LSTM", "LSTM", 1),
    ("LSTM, 2 layers", "LSTM", 2),
    ("GRU", "GRU", 1),
    ("GRU, 2 layers", "GRU", 2),
    ("IndRNN, 2 layers", "IndRNN", 2),
)


# Deep networks: (model, layers or blocks)
DEEP = {
    "stacked": ("stacked, not normalized", 6),
    "stacked, batch": ("stacked", 6),
    "stacked, layer": ("stacked, layer", 6),
    "stacked, rms": ("stacked, rms", 6),
    "residual": ("residual", 5),
    "residual, batch": ("residual, batch", 5),
}


def tables_of_networks(study):
    last, first = study.after(EPOCHS), study.after(1, "loss")
    seconds, weights = study.after(EPOCHS, "seconds"), study.after(1, "weights")

    def compared(title, values, names, rivals, **options):
        columns = [
            (name, values, run) for name, *run in OF_NETWORKS if name in names
        ]
        table(study, title, columns, rivals, **options)

    everyone = [name for name, *_ in OF_NETWORKS]
    compared(
        "In the time of four epochs of one LSTM layer",
        study.within(1),
        ["mixed_rnn", "mixed_rnn, 3 layers", "LSTM", "GRU", "IndRNN, 2 layers"],
        ((0, 2), (0, 3), (1, 2), (1, 3), (0, 4)),
    )
    compared(
        "In the time of four epochs of two LSTM layers",
        study.within(2),
        ["mixed_rnn", "mixed_rnn, 3 layers", "LSTM, 2 layers", "GRU, 2 layers"],
        ((0, 2), (0, 3), (1, 2), (1, 3), (0, 1)),
    )
    compared(
        "After four epochs each",
        last,
        everyone,
        tuple((0, index) for index in range(2, 6)),
    )
    for title, values in (
        ("Loss of the first epoch", first),
        ("Seconds of four epochs", seconds),
        ("Weights", weights),
    ):
        compared(title, values, everyone, (), score=False)

    def that_ran(runs):
        """The columns of those of these runs that are in the study."""
        return [
            (name, study.within(2), run)
            for name, run in runs.items()
            if any(study.seeds(task, *run) for task in study.tasks)
        ]

    others = that_ran(
        {
            f"{name}, {count or 'T'} layers": (name, count)
            for name, counts, _ in HOUSE
            for count in counts
        }
    )
    if others:
        table(
            study,
            "The others, in the time of four epochs of two LSTM layers",
            [("mixed_rnn", study.within(2), ("mixed", 2)), *others],
        )
    if deep := that_ran(DEEP):
        table(
            study,
            "Deep networks, in the time of four epochs of two LSTM layers",
            [("LSTM, 2 layers", study.within(2), ("LSTM", 2)), *deep],
            rivals=((1, 0), (1, 2), (1, 3), (1, 4), (5, 0), (5, 6)),
        )


def candidates(layers):
    """The names of all starts of IndRNN with so many layers, new one first."""
    models = STUDY + CANDIDATES
    return dict.fromkeys(name for name, counts, _ in models if layers in counts)


TABLES = {
    "ind_rnn": tables,
    "gates": tables_of_gates,
    "bound": tables_of_bound,
    "networks": tables_of_networks,
}
# What a picture shows: label, model, layers, color.
NETWORKS = {
    "ind_rnn": (
        ("LSTM", "LSTM", 1, "tab:red"),
        ("GRU", "GRU", 1, "tab:orange"),
        ("IndRNN", "IndRNN", 1, "tab:blue"),
        ("IndRNN, 4 layers", "IndRNN", 4, "tab:green"),
    ),
    "gates": (
        ("LSTM", "LSTM", 1, "tab:red"),
        ("GRU", "GRU", 1, "tab:orange"),
        ("IndRNN", "IndRNN", 1, "tab:blue"),
        ("IndyLSTM", "IndyLSTM", 1, "tab:green"),
        ("IndyLSTM, 2 layers", "IndyLSTM", 2, "tab:olive"),
        ("IndyGRU", "IndyGRU", 1, "tab:purple"),
    ),
    "networks": (
        ("LSTM", "LSTM", 1, "tab:red"),
        ("LSTM, 2 layers", "LSTM", 2, "tab:pink"),
        ("GRU", "GRU", 1, "tab:orange"),
        ("mixed_rnn", "mixed", 2, "tab:blue"),
        ("mixed_rnn, 3 layers", "mixed", 3, "tab:cyan"),
        ("IndRNN, 2 layers", "IndRNN", 2, "tab:green"),
    ),
    "deep": (
        ("LSTM, 2 layers", "LSTM", 2, "tab:red"),
        ("GRU, 2 layers", "GRU", 2, "tab:orange"),
        ("stacked_ind_rnn, 6 layers", "stacked", 6, "tab:green"),
    ),
}


def draw(study, networks, tasks, path):
    """Scores over seconds, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(max(9, 2.8 * columns), 0.4 + 2.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    for panel, task in zip(axes.flat, tasks, strict=False):
        for label, model, layers, color in networks:
            runs = study.seeds(task, model, layers)
            if not runs:
                continue
            curves = [
                statistics.mean(float(run[epoch][column]) for run in runs)
                for column in ("seconds", "score")
                for epoch in range(min(map(len, runs)))
            ]
            half = len(curves) // 2
            panel.plot(curves[:half], curves[half:], color=color, label=label)
            panel.plot(curves[0], curves[half], "o", color=color, ms=3)
        better = "accuracy" if task in ACCURACIES else "loss"
        panel.set(title=f"{task}: {better}", xscale="log")
        panel.xaxis.set_minor_formatter("")
        if task not in ACCURACIES:
            panel.set_yscale("log")
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("seconds of training, one core")
    lines, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=pathlib.Path, help="a runs.csv")
    parser.add_argument("--study", choices=TABLES, default="ind_rnn")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE")
    parser.add_argument(
        "--networks",
        choices=NETWORKS,
        help="what the picture shows (default: that of the study)",
    )
    parser.add_argument(
        "--tasks", nargs="+", help="in the picture (default: all)"
    )
    args = parser.parse_args(argv)
    study = Study(read(args.runs))
    TABLES[args.study](study)
    if args.picture:
        tasks = args.tasks or study.tasks
        if unknown := set(tasks) - set(study.tasks):
            parser.error(f"--tasks: {unknown} not in {study.tasks}")
        if (args.networks or args.study) not in NETWORKS:
            parser.error("--picture: this study needs --networks")
        networks = NETWORKS[args.networks or args.study]
        draw(study, networks, tasks, args.picture)


if __name__ == "__main__":
    main()
