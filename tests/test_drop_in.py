"""The drop-in study: its tasks, its resumable runs, and its tables."""

import argparse
import itertools
import multiprocessing.pool
import pathlib

import keras
import numpy as np
import pytest

import drop_in
import drop_in_networks
import drop_in_report
import drop_in_tasks
from ind_rnn import IndRNN


def test_made_tasks():
    """The same ones each time, and with their answers."""
    tasks, again = (
        [
            drop_in_tasks.TASKS[name](None)
            for name in ("adding", "copy", "narma")
        ]
        for _ in range(2)
    )
    for task, other in zip(tasks, again, strict=True):
        for field in ("x", "y", "x_validation", "y_validation"):
            values = getattr(task, field)
            assert np.isfinite(values).all() and values.dtype.itemsize == 4
            np.testing.assert_array_equal(values, getattr(other, field))
        assert len(task.x) == len(task.y) > len(task.x_validation) > 0
    adding, copy, _ = tasks
    np.testing.assert_allclose(
        np.sum(adding.x[:, :, 0] * adding.x[:, :, 1], axis=1),
        adding.y[:, 0],
        1e-5,
    )
    symbols = copy.x.argmax(axis=2)
    np.testing.assert_array_equal(symbols[:, :3] @ [25, 5, 1], copy.y)
    assert (symbols[:, 3:-1] == 5).all()


def test_windows_for_validation_do_not_overlap_those_for_training():
    x, y = drop_in_tasks._windows(np.arange(300.0), 20, 5)
    np.testing.assert_array_equal(x[7, :, 0], np.arange(7, 27))
    assert y[7] == 7 + 20 + 5 - 1
    task = drop_in_tasks._in_time(x, y, gap=24)
    assert task.y.max() < task.x_validation.min()


ADDING = drop_in_tasks.Task(
    *[np.ones((4, 9, 2), "float32"), np.ones((4, 1), "float32")] * 2
)
WORDS = drop_in_tasks.Task(
    *[np.ones((4, 9), "int32"), np.ones(4, "int32")] * 2,
    outputs=3,
    score="accuracy",
    vocabulary=5,
    mask=True,
)
MODELS = dict.fromkeys(
    name
    for studies in drop_in.STUDIES.values()
    for models in studies
    for name, *_ in models
)


# A nested functional model obeys a mask, and hands none on.
@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
@pytest.mark.parametrize(
    "model, data",
    [("LSTM", WORDS), ("stacked", WORDS), *((x, ADDING) for x in MODELS)],
)
def test_networks(model, data):
    network = drop_in.build(drop_in.Run("any", model, 2, 2e-3, 0), data)
    assert network.output_shape == (None, data.outputs)
    assert network.optimizer.learning_rate == np.float32(2e-3)
    if model.startswith("stacked") or model in drop_in_networks.BUILDERS:
        return
    kind = drop_in_networks.layer_type(model)
    assert kind.__name__ == model.split(",")[0] or kind is IndRNN
    start = drop_in_networks.options(model, 9)
    found = [x.get_config() for x in network.layers if isinstance(x, kind)]
    for every_step, config in zip((True, False), found, strict=True):
        expected = kind(64, return_sequences=every_step, **start)
        assert {**expected.get_config(), "name": config["name"]} == config


@pytest.mark.parametrize("gates", [3, 4])
def test_gates_of_chrono(gates):
    time_steps, units = 100, 5000
    keras.utils.set_random_seed(0)
    start = drop_in_networks.chrono(gates, time_steps)
    bias = start((gates * units,) if gates == 4 else (2, gates * units))
    parts = np.reshape(bias, (-1, units))
    keep = parts[1 if gates == 4 else 0]
    signs = [-1, 1, 0, 0] if gates == 4 else [1, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(parts, np.outer(signs, keep))
    np.testing.assert_allclose(
        np.quantile(1 + np.exp(keep), [0, 0.5, 1]),
        [2, 51, time_steps],
        rtol=0.05,
    )


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

    def pool(jobs, *_, **__):
        return multiprocessing.pool.ThreadPool(jobs)

    context = argparse.Namespace(Pool=pool)
    monkeypatch.setattr(
        drop_in.multiprocessing, "get_context", lambda method: context
    )
    return argparse.Namespace(out=tmp_path / "out", jobs=1)


def test_runs_resume(small, monkeypatch):
    models = [("LSTM", (1,), 1e-3), ("IndRNN", (1, 2), 1e-3)]
    runs = drop_in.runs_of(models, 0) + drop_in.runs_of(models, 1)
    assert len(runs) == 6
    broken = ("IndRNN", 0)

    def train(run, args):
        if (run.model, run.seed) == broken:
            raise Stop
        key = zip(drop_in.KEY, run.key, strict=True)
        return [{**dict.fromkeys(drop_in.FIELDS, 3), **dict(key)}]

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


def report(name, *argv):
    folder = pathlib.Path(drop_in.__file__).parent
    drop_in_report.main([str(folder / f"{name}.csv"), *argv])
    return (folder / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("study", ["ind_rnn", "gates", "bound", "networks"])
def test_the_tables_in_the_files_are_those_of_the_runs(study, capsys):
    name = "drop_in" if study == "ind_rnn" else f"drop_in_{study}"
    expected = report(name, "--study", study)
    assert capsys.readouterr().out == expected


def test_pictures(tmp_path, capsys):
    sizes = []
    for index, options in enumerate(
        (
            ["--tasks", "rows", "--networks", "deep"],  # not in these runs
            ["--tasks", "rows"],
            [],
        )
    ):
        picture = tmp_path / "img" / f"{index}.png"
        argv = ["--study", "gates", "--picture", str(picture), *options]
        report("drop_in_gates", *argv)
        sizes.append(picture.stat().st_size)
    assert 2000 < sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(SystemExit):
        report("drop_in", "--picture", "none.png", "--tasks", "columns")
    assert "--tasks: {'columns'}" in capsys.readouterr().err
