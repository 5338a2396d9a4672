"""What the tests of the examples share: runs, their results, their errors."""

import csv
import json

import keras
import numpy as np
import pytest

import arguments
import training


def main(example, argv, *more):
    """Call the example's `main`; the arguments may be numbers and paths."""
    return example.main([str(word) for word in (*argv, *more)])


def refused(example, argv, capsys, *words):
    """The example ends with code 2 and one line with these words: the line."""
    try:
        code = arguments.run(lambda argv: main(example, argv), argv)
        (error,) = capsys.readouterr().err.splitlines()
    except SystemExit as stop:  # argparse prints the usage first.
        code, error = stop.code, capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    for word in words:
        assert word in error
    return error


def help_of(example, capsys):
    """What --help prints, by option."""
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0
    options = capsys.readouterr().out.split("\n  --")[1:]
    return {f"--{text.split()[0].rstrip(',')}": text for text in options}


def result(out):
    return json.loads((out / "result.json").read_text())


def history(out):
    """The rows of history.csv but their seconds, which differ."""
    with open(out / "history.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(file)
        ]


def variables(path):
    """Those of a saved model, and of its optimizer if it has one."""
    model = keras.models.load_model(path)
    optimizer = getattr(model, "optimizer", None)
    return [
        np.array(v)
        for v in model.weights + (optimizer.variables if optimizer else [])
    ]


def contents(folder):
    """What is in the files of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


class Kill(BaseException):
    """Ends a run as a kill does: nothing is written after it."""


def killed(example, argv, monkeypatch, epoch=2):
    """A run that ends right before it writes the checkpoint of an epoch.

    The other files are ahead of the checkpoint then: the worst moment.
    """
    save = training.save

    def kill(model, path, arguments, history):
        if len(history) == epoch:
            raise Kill
        save(model, path, arguments, history)

    with monkeypatch.context() as patch:
        patch.setattr(training, "save", kill)
        with pytest.raises(Kill):
            main(example, argv)


def resumed(example, argv, folder, monkeypatch):
    """A killed run that is resumed ends like a whole one: its directory."""
    whole, out = folder / "whole", folder / "killed"
    main(example, argv, "--out", whole)
    killed(example, [*argv, "--out", out], monkeypatch)
    assert len(history(out)) == 2 and not (out / "result.json").exists()
    main(example, argv, "--out", out, "--resume")
    assert history(out) == history(whole)
    assert result(out)["metrics"] == result(whole)["metrics"]
    for path in out.glob("*.keras"):
        for a, b in zip(
            variables(path), variables(whole / path.name), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    return out


# A small run of distributed_training.py, but for its folder.
DISTRIBUTED = "--time-steps 20 --units 8 --batch-size 8 --epochs 3"
DISTRIBUTED = [*DISTRIBUTED.split(), "--steps-per-epoch", "10", "--out"]


def assert_same_run(out, alone):
    """But for rounding."""
    found, expected = (
        variables(path / "checkpoint.keras") for path in (out, alone)
    )
    assert len(found) > 20
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-5)
    for row, other in zip(history(out), history(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
