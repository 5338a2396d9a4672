"""The shipped models: their files, and the figures that they stand for."""

import json
import pathlib
import zipfile

import keras
import pytest

import sequential_mnist

ROOT = pathlib.Path(__file__).parents[1]
MODELS = sorted(p for p in (ROOT / "models").iterdir() if p.is_dir())
MNIST = ROOT.parent / "shared/data/mnist.npz"


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_models_are_small():
    sizes = [
        sum(file.stat().st_size for file in folder.iterdir())
        for folder in MODELS
    ]
    assert sizes and max(sizes) <= 3e6 and sum(sizes) <= 12e6


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_model_says_how_it_was_trained(folder):
    model = keras.models.load_model(folder / "best.keras")
    assert model.count_params() > 1000
    arguments = json.loads((folder / "arguments.json").read_text())
    assert not arguments["resume"] and "/" not in arguments["data"]
    percent = f"{100 * (1 - metrics(folder)['test_error']):.2f} %"
    assert percent in (ROOT / "README.md").read_text()
    with zipfile.ZipFile(folder / "best.keras") as file:
        saved = json.loads(file.read("metadata.json"))
    # The oldest one that must read it: models/README.md
    assert saved["keras_version"].startswith("3.8.")


@pytest.mark.slow
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_model_has_its_figure(folder, capsys):
    if not MNIST.exists():
        pytest.skip("needs the real data")
    argv = ["--data", str(MNIST), "--evaluate", str(folder)]
    sequential_mnist.main(argv)
    found = json.loads(capsys.readouterr().out)
    # Some digits of 10,000 may fall to the other side on another machine.
    assert found == pytest.approx(metrics(folder), abs=3e-4)
