"""The drop-in study: its tasks, its resumable runs, and its tables."""

import argparse
import csv
import itertools
import multiprocessing.pool

import keras
import numpy as np
import pytest

import drop_in
import drop_in_networks
import drop_in_report
import drop_in_tasks
from ind_rnn import IndRNN

MADE = "adding", "copy", "narma"


@pytest.mark.parametrize("name", MADE)
def test_made_tasks(name):
    task = drop_in_tasks.TASKS[name](None)
    again = drop_in_tasks.TASKS[name](None)
    for field in ("x", "y", "x_validation", "y_validation"):
        values = getattr(task, field)
        assert np.isfinite(values).all() and values.dtype.itemsize == 4
        np.testing.assert_array_equal(values, getattr(again, field))
    assert len(task.x) == len(task.y) > len(task.x_validation) > 0
    assert task.x.ndim == 3


def test_adding_and_copy_have_their_answers():
    task = drop_in_tasks.adding(None)
    np.testing.assert_allclose(
        np.sum(task.x[:, :, 0] * task.x[:, :, 1], axis=1), task.y[:, 0], 1e-5
    )
    task = drop_in_tasks.copy(None)
    first = task.x[:, :3].argmax(axis=2)
    np.testing.assert_array_equal(first @ [25, 5, 1], task.y)
    assert (task.x[:, 3:-1].argmax(axis=2) == 5).all()


def test_windows_for_validation_do_not_overlap_those_for_training():
    x, y = drop_in_tasks._windows(np.arange(300.0), 20, 5)
    np.testing.assert_array_equal(x[7, :, 0], np.arange(7, 27))
    assert y[7] == 7 + 20 + 5 - 1
    task = drop_in_tasks._in_time(x, y, gap=24)
    assert task.y.max() < task.x_validation.min()


# A nested functional model obeys a mask, and hands none on.
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize("task", ["adding", "words"])
@pytest.mark.parametrize(
    "model",
    dict.fromkeys(
        name
        for studies in drop_in.STUDIES.values()
        for models in studies
        for name, *_ in models
    ),
)
def test_networks(model, task):
    layers = 6 if model.startswith("stacked") else 2
    run = drop_in.Run(task, model, layers, 2e-3, 0)
    data = {
        "adding": drop_in_tasks.Task(
            *[np.ones((4, 9, 2), "float32"), np.ones((4, 1), "float32")] * 2
        ),
        "words": drop_in_tasks.Task(
            *[np.ones((4, 9), "int32"), np.ones(4, "int32")] * 2,
            outputs=3,
            score="accuracy",
            vocabulary=5,
            mask=True,
        ),
    }[task]
    network = drop_in.build(run, data)
    if (model, task) == ("IndRNN", "adding"):
        assert network.count_params() == 64 * (2 + 2) + 64 * (64 + 2) + 65
    assert network.output_shape == (None, data.outputs)
    assert network.optimizer.learning_rate == np.float32(2e-3)
    if layers == 2:
        start = drop_in_networks.options(model, 9)
        kind = drop_in_networks.layer_type(model)
        assert kind.__name__ == model.split(",")[0] or kind is IndRNN
        layers = [x for x in network.layers if isinstance(x, kind)]
        assert len(layers) == 2
        for layer, (name, given) in itertools.product(layers, start.items()):
            if name.endswith("initializer"):
                given = keras.initializers.get(given)
            assert described(getattr(layer, name)) == described(given)


def described(value):
    if hasattr(value, "get_config"):
        return type(value), value.get_config()
    return getattr(value, "__qualname__", value)


@pytest.mark.parametrize("gates", [3, 4])
def test_gates_of_chrono(gates):
    time_steps, units = 100, 5000
    keras.utils.set_random_seed(0)
    start = drop_in_networks.chrono(gates, time_steps)
    bias = start((gates * units,) if gates == 4 else (2, gates * units))
    if gates == 3:
        assert not np.any(bias[1])
        bias = bias[0]
    parts = np.reshape(bias, (gates, units))
    keep = parts[1 if gates == 4 else 0]
    tau = 1 + np.exp(keep)
    np.testing.assert_allclose(
        np.quantile(tau, [0.0, 0.5, 1.0]), [2, 51, time_steps], rtol=0.05
    )
    others = parts.sum(axis=0) - keep
    np.testing.assert_allclose(others, -keep if gates == 4 else 0 * keep)


class Stop(Exception):
    pass


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One process, one task and one epoch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 64, 5, 1)).astype("float32")
    task = drop_in_tasks.Task(x[0], x[0][:, -1], x[1], x[1][:, -1])
    monkeypatch.setattr(drop_in, "TASKS", {"last": lambda args: task})
    monkeypatch.setattr(drop_in, "EPOCHS", 1)

    def pool(jobs, initializer, maxtasksperchild):
        return multiprocessing.pool.ThreadPool(jobs)

    context = argparse.Namespace(Pool=pool)
    monkeypatch.setattr(
        drop_in.multiprocessing, "get_context", lambda method: context
    )
    return argparse.Namespace(out=tmp_path / "out", jobs=1)


def row_of(task, model, layers, seed, weights, epoch, seconds, score):
    row = (task, model, layers, 0.001, seed, weights, epoch, seconds)
    return dict(zip(drop_in.FIELDS, [*row, *[score] * 3], strict=True))


def test_runs_resume(small, monkeypatch):
    models = [("LSTM", (1,), 1e-3), ("IndRNN", (1, 2), 1e-3)]
    runs = drop_in.runs_of(models, 0) + drop_in.runs_of(models, 1)
    assert len(runs) == 6
    broken = ("IndRNN", 0)

    def train(run, args):
        if (run.model, run.seed) == broken:
            raise Stop
        return [row_of("last", run.model, run.layers, run.seed, 9, 1, 0.2, 3)]

    monkeypatch.setattr(drop_in, "train", train)
    with pytest.raises(Stop):
        drop_in.compute(runs, small)
    path = small.out / "runs.csv"
    before = path.read_text()
    assert before.count("last,LSTM,1,0.001,0,") == 1
    broken = None
    drop_in.compute(runs, small)
    assert path.read_text().startswith(before)
    rows = drop_in.read(path)
    keys = {tuple(row[name] for name in drop_in.KEY) for row in rows}
    assert keys == {run.key for run in runs} and len(rows) == 6
    drop_in.compute(runs, small)
    assert drop_in.read(path) == rows


def test_ind_rnn_trains_as_long_as_lstm(small, monkeypatch):
    ticks = itertools.count()
    clock = argparse.Namespace(process_time=lambda: next(ticks) / 100)
    monkeypatch.setattr(drop_in, "time", clock)
    lstm = drop_in.Run("last", "LSTM", 1, 1e-3, 0)
    run = drop_in.Run("last", "IndRNN", 1, 1e-3, 0)
    (row,) = drop_in.train(lstm, small)
    assert row["weights"] == 4 * 64 * (1 + 64 + 1) + 65
    row = {**row, "epoch": "1", "seconds": "0.2"}
    run = drop_in.with_time_of_lstm(run, [row])
    assert run.seconds == 0.2
    rows = drop_in.train(run, small)
    assert rows[0]["weights"] == 64 * (1 + 2) + 65
    # Two batches in an epoch, each from one tick to the next
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert [float(row["seconds"]) for row in rows] == pytest.approx(
        np.arange(1, 11) / 50
    )
    other = drop_in.Run("last", "uniform", 1, 1e-3, 0)
    assert drop_in.with_time_of_lstm(other, [row]).seconds == 0


def write_runs(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, drop_in.FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def test_report(tmp_path, capsys):
    """Means, spread, time and verdicts of a file made by hand."""
    path = tmp_path / "runs.csv"
    short = [0.4, 0.3, 0.2, 0.2, 0.1, 0.001]
    rows = [
        row_of(task, model, 1, seed, 100, epoch, epoch * seconds, score)
        for task, model, seed, scores, seconds in (
            ("adding", "LSTM", 0, [0.4, 0.3, 0.3, 0.3], 5),
            ("adding", "LSTM", 1, [0.4, 0.3, 0.2, 0.1], 5),
            ("adding", "IndRNN", 0, short, 4),
            ("adding", "IndRNN", 1, short, 4),
            ("rows", "LSTM", 0, [0.4, 0.5, 0.6, 0.7], 5),
            ("rows", "IndRNN", 0, [0.4, 0.5, 0.6, 0.6, 0.6], 4),
        )
        for epoch, score in enumerate(scores, 1)
    ]
    write_runs(path, rows)
    picture = tmp_path / "img" / "picture.png"
    drop_in_report.main([str(path), "--picture", str(picture)])
    text = capsys.readouterr().out
    # Five epochs of IndRNN in the 20 seconds of LSTM, and the spread of two
    assert "| adding | **0.100 ± 0.000** | 0.200 ± 0.141 | – |" in text
    assert "| rows | 0.600 | **0.700** | – |" in text
    assert "IndRNN is at least as good as LSTM on 1 of 2; not on rows." in text
    assert picture.stat().st_size > 10_000

    some = tmp_path / "some.png"
    argv = [str(path), "--picture", str(some), "--tasks", "rows"]
    drop_in_report.main(argv)
    without_networks = tmp_path / "none.png"
    argv[2] = str(without_networks)
    drop_in_report.main([*argv, "--networks", "deep"])  # not in these runs
    sizes = [p.stat().st_size for p in (without_networks, some, picture)]
    assert sizes == sorted(set(sizes))
    with pytest.raises(SystemExit):
        drop_in_report.main([*argv, "columns"])
    assert "--tasks: {'columns'}" in capsys.readouterr().err


def test_report_of_gates(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    runs = [(model, 1) for model in ("LSTM", "GRU", "IndRNN")]
    runs += [(model, n) for model in ("IndyLSTM", "IndyGRU") for n in (1, 2)]
    runs += [(name, 1) for name, *_ in drop_in.GATES_CANDIDATES]
    rows = []
    for (model, layers), epoch in itertools.product(runs, range(1, 5)):
        score = 0.5 + 0.1 * (model in ("IndyLSTM", "GRU")) + 0.01 * epoch
        weights = 100 * layers
        rows.append(
            row_of("rows", model, layers, 0, weights, epoch, epoch, score)
        )
    write_runs(path, rows)
    picture = tmp_path / "gates.png"
    argv = [str(path), "--study", "gates", "--picture", str(picture)]
    drop_in_report.main(argv)
    text = capsys.readouterr().out
    one_layer = "**0.640** | 0.540 | 0.540 | **0.640** | 0.540"
    assert f"| rows | {one_layer} |" in text
    assert "IndyLSTM is at least as good as LSTM on 1 of 1." in text
    assert "IndyLSTM, 1 is at least as good as LSTM, 1 on 1 of 1." in text
    assert text.count("is at least as good as uniform, within 2%") == 2
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    "task, a, b, slack, expected",
    [
        ("rows", 0.9, 0.8, 0, True),
        ("rows", 0.79, 0.8, 0, False),
        ("rows", 0.79, 0.8, 0.02, True),
        ("adding", 0.1, 0.2, 0, True),
        ("adding", 0.2, 0.1, 0, False),
        ("adding", 0.101, 0.1, 0.02, True),
    ],
)
def test_is_better(task, a, b, slack, expected):
    assert drop_in_report.is_better(task, a, b, slack) == expected
