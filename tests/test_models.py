"""The shipped models: their files, and the figures that they stand for."""

import json
import pathlib

import keras
import pytest

import action_recognition
import sequential_mnist

ROOT = pathlib.Path(__file__).parents[1]
MODELS = sorted(p for p in (ROOT / "models").iterdir() if p.is_dir())
DATA = ROOT.parent / "shared/data"
EXAMPLES = {
    "mnist": (sequential_mnist, DATA / "mnist.npz"),
    "actions": (action_recognition, DATA / "msr_action3d.zip"),
}


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
    error = min(metrics(folder).values())
    percent = f"{100 * (1 - error):.2f} %"
    assert percent in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_model_has_its_figure(folder, capsys):
    example, data = EXAMPLES[folder.name.split("_")[0]]
    if not data.exists():
        pytest.skip("needs the real data")
    example.main(["--data", str(data), "--evaluate", str(folder)])
    found = json.loads(capsys.readouterr().out)
    # One digit of 10,000 may fall to the other side on another machine.
    assert found == pytest.approx(metrics(folder), abs=3e-4)
