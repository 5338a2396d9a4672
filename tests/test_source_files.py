"""source_files.py: which files it reads, what it trains, and its errors."""

import json

import keras
import numpy as np
import pytest

import source_files
from runs import history, main, result

SMALL = ["--time-steps", "24", "--units", "8", "--layers", "2"]
SMALL = [*SMALL, "--hidden", "8", "--dilations", "1", "2", "4"]
SHORT = ["--epochs", "2", "--steps-per-epoch", "3", "--batch-size", "4"]

SLOW = pytest.mark.slow


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Packages of nine files: their first bytes tell them apart."""

    def find_files(package):
        paths = [tmp_path / f"{package}{index}.py" for index in range(9)]
        for index, path in enumerate(paths):
            start = package[:1].encode() + bytes([240 + index])
            path.write_bytes(start + b"#" * (10 + index))
        return paths

    monkeypatch.setattr(source_files, "find_files", find_files)
    monkeypatch.setattr(source_files, "HELD_OUT", 2)


@pytest.mark.parametrize("package", source_files.PACKAGES)
def test_each_package_has_enough_files(package):
    files = source_files.find_files(package)
    assert len(files) >= 5 * source_files.HELD_OUT
    assert len({*files}) == len(files) and files == sorted(files)
    if package == "python":
        assert not any("site-packages" in path.parts for path in files)
    else:
        assert all(package in path.parts for path in files)
    assert all(
        path.stat().st_size >= source_files.SHORTEST for path in files[::50]
    )


def test_parts_have_no_file_in_common(toys):
    parts = source_files.load_parts(15)  # within or beyond a file
    for label in range(len(source_files.PACKAGES)):
        files = [[bytes(x) for x in part[label]] for part in parts]
        assert [len(part) for part in files] == [5, 2, 2]
        assert len({*sum(files, [])}) == 9
    again = source_files.load_parts(15)
    for one, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(np.stack(one), np.stack(other))
    x, y = source_files.labelled(parts[1])
    assert [chr(c) for c in x[:, 0]] == list("ppnnkktt")
    np.testing.assert_array_equal(y, [0, 0, 1, 1, 2, 2, 3, 3])


def test_batches_have_all_packages_alike():
    parts = [np.full((3 * label + 1, 2), label) for label in range(4)]
    x, y = source_files.draw(parts, 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(x, np.stack([y, y], axis=1))
    assert np.bincount(y).min() > 900


@pytest.mark.parametrize(
    "model",
    ["rnn", *(pytest.param(x, marks=SLOW) for x in ("residual", "dilated"))],
)
def test_run_and_evaluate(model, toys, tmp_path, capsys):
    argv = [*SMALL, *SHORT, "--model", model]
    main(source_files, argv, "--out", tmp_path)
    found, rows = result(tmp_path), history(tmp_path)
    assert found["steps"] == 6 and len(rows) == 2
    if model == "rnn":
        *_, network, _ = keras.models.load_model(tmp_path / "best.keras").layers
        kinds = [type(layer) for layer in network.layers]
        assert kinds == [keras.layers.SimpleRNN] * 2
    best = min(rows, key=lambda row: row["val_loss"])
    error = found["metrics"]["validation_error"]
    assert error == pytest.approx(1 - best["val_accuracy"])
    capsys.readouterr()
    main(source_files, ["--evaluate", tmp_path])
    assert json.loads(capsys.readouterr().out) == found["metrics"]


def test_it_learns(toys, tmp_path):
    argv = [*SMALL, "--epochs", 4, "--steps-per-epoch", 15]
    main(source_files, argv, "--learning-rate", 1e-2, "--out", tmp_path)
    assert history(tmp_path)[-1]["val_accuracy"] == 1
