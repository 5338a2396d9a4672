"""What the tests of the examples have in common: runs and their results."""

import csv

import numpy as np
import pytest
import tensorflow as tf

import arguments


def run(example, argv, capsys):
    """Exit code and what was printed on stderr."""
    code = arguments.run(example.main, [str(word) for word in argv])
    return code, capsys.readouterr().err


def history(out):
    """The rows of history.csv but their seconds, which differ."""
    with open(out / "history.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(file)
        ]


# Of distributed_training.py: a small run, but for the folder.
DISTRIBUTED = "--time-steps 20 --units 8 --batch-size 8 --epochs 3"
DISTRIBUTED = [*DISTRIBUTED.split(), "--steps-per-epoch", "10", "--out"]


def variables(out):
    """All variables of the last checkpoint: model and optimizer."""
    latest = tf.train.load_checkpoint(out / "checkpoints")
    return {
        name: latest.get_tensor(name)
        for name in latest.get_variable_to_shape_map()
        if "VARIABLE_VALUE" in name and "save_counter" not in name
    }


def assert_same_run(out, alone):
    found, expected = variables(out), variables(alone)
    assert len(found) > 20 and found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value, expected[name], rtol=0, atol=1e-5, err_msg=name
        )
    for row, other in zip(history(out), history(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-5)
