"""What the tests of the examples have in common: runs and their results."""

import csv

import experiment


def run(example, argv, capsys):
    """Exit code and what was printed on stderr."""
    code = experiment.run(example.main, [str(word) for word in argv])
    return code, capsys.readouterr().err


def history(out):
    """The rows of history.csv but their seconds, which differ."""
    with open(out / "history.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(file)
        ]
