"""forecasting.py: no leakage, its scores, its files and its errors."""

import keras
import numpy as np
import pytest

import forecasting
import training
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from runs import history, main, refused
from runs import result as result_of

SEASON, LENGTH, HORIZON = 4, 9, 6
TIME = np.arange(200)
TOY = np.sin(TIME * np.pi / 2 + 0.3) + 0.3 * np.cos(1 + TIME**2) + 20
SMALL = ["--series", "toy", "--epochs", "2", "--steps-per-epoch", "5"]
SMALL = [*SMALL, "--units", "4", "--dilations", "1", "3"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A series of its own, and a function that puts other values into it.

    Without XLA, to save time.
    """
    monkeypatch.setattr(training, "jit_compile", lambda args: False)

    def replace(values):
        series = forecasting.Series(
            lambda: values, SEASON, LENGTH, HORIZON, "steps"
        )
        monkeypatch.setitem(forecasting.SERIES, "toy", series)

    replace(TOY)
    return replace


def result(out):
    return result_of(out)["metrics"]


def test_results(tmp_path):
    argv = [*SMALL, "--epochs", 3, "--out", tmp_path]
    main(forecasting, argv)
    found, rows = result(tmp_path), history(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for name in "forecast.png", "curve.png":
        assert (tmp_path / name).stat().st_size > 1000
    # All of it again, with loops.
    network = keras.models.load_model(tmp_path / "best.keras", compile=False)
    assert found["weights"] == network.count_params()
    unit = np.std(
        [
            TOY[end - LENGTH : end] - TOY[end - 1]
            for end in range(LENGTH, 140 - HORIZON + 1)
        ]
    )
    scale = np.mean([abs(TOY[i] - TOY[i - SEASON]) for i in range(SEASON, 140)])

    def errors(first, last):
        seen, targets, naive, drift = [], [], [], []
        for end in range(first, last - HORIZON + 1):
            seen.append(TOY[end - LENGTH : end])
            targets.append(TOY[end : end + HORIZON])
            naive.append(np.tile(seen[-1][-SEASON:], 2)[:HORIZON])
            change = TOY[end - 1] - TOY[end - 1 - SEASON]
            drift.append(naive[-1] + change * np.array([1, 1, 1, 1, 2, 2]))
        seen = np.array(seen)
        y = network((seen - seen[:, -1:])[:, :, None] / unit).numpy()
        forecast = y * unit + seen[:, -1:]
        return [abs(x - np.array(targets)) for x in (forecast, naive, drift)]

    for name, expected in zip(
        ("test", "naive", "drift"), errors(170, 200), strict=True
    ):
        assert found[f"{name}_mae"] == pytest.approx(np.mean(expected), 1e-4)
        mase = np.mean(expected, axis=0) / scale
        assert found[f"{name}_mase"] == pytest.approx(mase.mean(), 1e-4)
        assert list(found[f"{name}_mase_at"]) == ["1", "2", "3", "6"]
        for step, value in found[f"{name}_mase_at"].items():
            assert value == pytest.approx(mase[int(step) - 1], 1e-4)
    best = np.mean(errors(140, 170)[0])
    assert found["val_mase"] == pytest.approx(best / scale, 1e-4)
    lowest = min(row["val_loss"] for row in rows)
    assert lowest * unit == pytest.approx(best, 1e-4)
    main(forecasting, argv, "--resume")
    assert result(tmp_path) == found and history(tmp_path) == rows


@pytest.mark.parametrize(
    "model, layers",
    [
        ("linear", [keras.layers.Flatten]),
        ("indrnn", [IndRNN] * 3),
        ("lstm", [keras.layers.LSTM] * 3),
        ("dilated", [DilatedRNN]),
    ],
)
def test_networks(model, layers):
    argv = [*SMALL, "--model", model, "--layers", "3"]
    network = forecasting.build_model(forecasting.parse(argv))
    assert [type(layer) for layer in network.layers[:-1]] == layers
    assert network(np.ones((2, LENGTH, 1))).shape == (2, HORIZON)


def test_defaults():
    args = forecasting.parse(["--series", "co2", "--model", "indrnn"])
    assert (args.length, args.horizon, args.units) == (104, 26, 96)
    argv = ["--series", "elnino", "--horizon", "3", "--length", "13"]
    args = forecasting.parse(argv)
    assert (args.length, args.horizon, args.units) == (13, 3, 32)


def test_a_linear_network_learns_from_the_past_alone(tmp_path, toy):
    """Other values after the training part change no loss of the training."""
    time = np.arange(800)
    noise = np.random.default_rng(0).normal(size=800)
    season = 5 * np.sin(time * np.pi / 2)
    argv = [*SMALL[:2], "--model", "linear", "--learning-rate", "0.03"]
    argv += ["--epochs", 4, "--length", 13, "--out"]
    losses = []
    for name, later in (("one", noise), ("other", 7 * noise)):
        toy(season + np.where(time < 560, noise, later))
        main(forecasting, [*argv, tmp_path / name])
        losses.append([row["loss"] for row in history(tmp_path / name)])
    assert losses[0] == losses[1]
    found = result(tmp_path / "one")
    # Noise alone has an MAE of 0.80. The naive forecast has sqrt(2) times it.
    assert 0.75 < found["test_mae"] < 0.9 * found["naive_mae"]
    assert found["naive_mae"] < found["drift_mae"]


def test_errors(tmp_path, capsys, monkeypatch):
    words = "argument --length: must be above 4"
    refused(forecasting, ["--series", "toy", "--length", 4], capsys, words)
    argv = ["--series", "toy", "--out", tmp_path, "--horizon"]
    words = "--length and --horizon must be shorter"
    refused(forecasting, [*argv, 31], capsys, words)

    def missing():
        raise ModuleNotFoundError("No module named 'vega_datasets'")

    series = forecasting.SERIES["toy"]._replace(read=missing)
    monkeypatch.setitem(forecasting.SERIES, "toy", series)
    words = "--series toy: No module named"
    refused(forecasting, [*argv, 3], capsys, words)


@pytest.mark.parametrize("name", ["co2", "elnino", "temperature"])
def test_the_series_have_their_seasons(name):
    package = "vega_datasets" if name == "temperature" else "statsmodels"
    pytest.importorskip(package)
    values, season = forecasting.read(name), forecasting.SERIES[name].season
    assert np.isfinite(values).all()
    # Less its trend, it repeats after a season, and not after half of one.
    smooth = np.convolve(values, np.ones(season) / season, "same")
    rest = (values - smooth)[season:-season]
    whole, half = (
        np.corrcoef(rest[lag:], rest[:-lag])[0, 1]
        for lag in (season, season // 2)
    )
    assert whole > 0.5 and half < 0


def test_a_missing_value_is_the_one_before():
    pytest.importorskip("statsmodels")
    from statsmodels.datasets import co2

    raw = co2.load_pandas().data.co2.to_numpy(float)
    assert np.isnan(raw).sum() == 59
    for index, value in enumerate(forecasting.read("co2")):
        past = raw[: index + 1]
        assert value == past[np.isfinite(past)][-1]
