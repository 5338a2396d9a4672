"""The examples: killed at any moment, and resumed.

With LONG=1 in the environment they are killed ten times in a row, not twice:

    LONG=1 python -m pytest -n 0 tests/test_reliability_of_examples.py
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest

import addition_rnn
from cases import LONG
from runs import contents, history, killed, main, refused, result, variables

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLE = [sys.executable, str(ROOT / "examples/addition_rnn.py")]
# TensorFlow's own notes would come last.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
KILLS = 10 if LONG else 2
# A network without XLA, to save time
ADDITION = "--model rnn --time-steps 8 --units 8 --batch-size 4"
ADDITION = [*ADDITION.split(), "--steps-per-epoch", "3", "--epochs"]
PLAIN = [*ADDITION, "1"]


@contextlib.contextmanager
def started(out, log, epochs=1000):
    """A process of examples/addition_rnn.py that goes on where it was.

    Yields the process, and a function that waits for a condition.
    """
    argv = [*ADDITION, str(epochs), "--out", out, "--resume"]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*EXAMPLE, *argv],
            env=ENVIRONMENT,
            stdout=file,
            stderr=file,
        )

    def wait_until(condition):
        while not condition():
            assert process.poll() is None, log.read_text()
            time.sleep(0.002)

    try:
        yield process, wait_until
    finally:
        process.kill()
        process.wait()


def epochs_of(out):
    return len(history(out)) if (out / "history.csv").exists() else 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_alike(tmp_path):
    """SIGKILL, after a random number of epochs and part of another one."""
    epochs, log = 4 * KILLS, tmp_path / "log"
    out, whole = tmp_path / "killed", tmp_path / "whole"
    rng = np.random.default_rng(None if KILLS > 2 else 1)
    for _ in range(KILLS):
        wanted = epochs_of(out) + rng.integers(1, 4)
        with started(out, log, epochs) as (process, wait_until):
            wait_until(lambda wanted=wanted: epochs_of(out) >= wanted)
            time.sleep(rng.uniform(0, 0.15))
        # Whatever is there is whole; a file begun is called _something.
        if (out / "checkpoint.keras").exists():
            variables(out / "checkpoint.keras")
    for path in (out, whole):
        main(addition_rnn, [*ADDITION, epochs, "--out", path, "--resume"])
    assert history(out) == history(whole)
    assert epochs_of(whole) == epochs
    for a, b in zip(
        *(variables(x / "checkpoint.keras") for x in (out, whole)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_second_run_into_the_same_directory(tmp_path, capsys):
    """It says which process writes there, and touches nothing."""
    out, log = tmp_path / "out", tmp_path / "log"
    with started(out, log) as (process, wait_until):
        wait_until((out / "checkpoint.keras").exists)
        words = f"process {process.pid} is writing there"
        for more in ([], ["--resume"]):
            argv = [*ADDITION, 1000, "--out", out, *more]
            refused(addition_rnn, argv, capsys, words)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    # Ctrl-C is one line, and the next run goes on.
    text = log.read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].endswith("with --resume goes on")
    assert not (out / "lock").exists()


@pytest.mark.slow
def test_full_disk(tmp_path, monkeypatch):
    """One line; the last good checkpoint is there, and no part of a file."""
    argv = [*ADDITION, "3", "--out", str(tmp_path), "--resume"]
    killed(addition_rnn, argv, monkeypatch)
    kept = contents(tmp_path)
    # Files end after 4 KB.
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *EXAMPLE, *argv],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "checkpoint.keras cannot be written" in last
    assert "what was there before is kept" in last
    found = contents(tmp_path)
    assert found.keys() == kept.keys()
    assert found["checkpoint.keras"] == kept["checkpoint.keras"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a run of one epoch, by name."""
    out = tmp_path_factory.mktemp("finished")
    main(addition_rnn, [*PLAIN, "--resume", "--out", out])
    return contents(out)


@pytest.fixture
def out(finished, tmp_path):
    """A directory with the files of a run, and one more."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in {**finished, "mine.txt": b"mine"}.items():
        (folder / name).write_bytes(content)
    return folder


def of_another_optimizer(path):
    model = keras.models.load_model(path)
    model.compile("sgd", "mse")
    model.save(path)


def of_another_network(path):
    network = keras.Sequential([keras.Input((8, 2)), keras.layers.GRU(1)])
    network.compile("adam", "mse")
    network.optimizer.build(network.trainable_variables)
    network.save(path)


def of_a_function(path):
    layer = keras.layers.Lambda(lambda x: x)
    keras.Sequential([keras.Input((8, 2)), layer]).save(path)


def as_of(save):
    """A checkpoint with the right arguments and history, and a wrong model."""

    def change(path):
        with zipfile.ZipFile(path) as file:
            run = file.read("run.json")
        save(path)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("run.json", run)

    return change


def first(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


@pytest.mark.filterwarnings("ignore:The object being serialized:UserWarning")
@pytest.mark.parametrize(
    "change",
    [
        first(0),
        first(-1),
        of_another_network,
        as_of(of_another_network),
        as_of(of_another_optimizer),
        as_of(of_a_function),
    ],
)
def test_what_cannot_be_resumed_is_one_line(change, out, capsys):
    change(out / "checkpoint.keras")
    before = contents(out)
    argv = [*PLAIN, "--out", out, "--resume"]
    refused(addition_rnn, argv, capsys, "cannot be resumed")
    assert contents(out) == before


def test_resume_refuses_other_arguments(out, capsys):
    before = contents(out)
    argv = [*PLAIN, "--out", out, "--resume", "--seed", 2, "--units", 9]
    words = "seed was 1, is 2", "units was 8, is 9"
    refused(addition_rnn, argv, capsys, *words)
    assert contents(out) == before


def test_a_new_run_keeps_the_old_one_until_its_first_epoch_ends(
    out, monkeypatch
):
    """And then replaces it; its seed makes it another one."""
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(addition_rnn, "adding_batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(addition_rnn, [*PLAIN, "--seed", 2, "--out", out])
    assert contents(out) == before
    rows = history(out)
    killed(
        addition_rnn, [*PLAIN, "--seed", 2, "--out", out], monkeypatch, epoch=1
    )
    assert not (out / "checkpoint.keras").exists()
    assert json.loads((out / "arguments.json").read_text())["seed"] == 2
    assert history(out) != rows
    main(addition_rnn, [*PLAIN, "--seed", 2, "--out", out, "--resume"])
    assert result(out)["arguments"]["seed"] == 2


def test_a_diverging_run_says_so_and_keeps_its_checkpoint(
    tmp_path, monkeypatch, capsys
):
    def broken(rng, *sizes, batch=addition_rnn.adding_batch):
        x, y = batch(rng, *sizes)
        return x, y * np.nan

    argv = [*ADDITION, 2, "--out", tmp_path]
    killed(addition_rnn, argv, monkeypatch)
    kept = (tmp_path / "checkpoint.keras").read_bytes()
    monkeypatch.setattr(addition_rnn, "adding_batch", broken)
    words = "the loss is nan in epoch 2"
    refused(addition_rnn, [*argv, "--resume"], capsys, words)
    assert (tmp_path / "checkpoint.keras").read_bytes() == kept


@pytest.mark.parametrize(
    "mine, out",
    [
        ("arguments.json/mine.txt", ""),
        ("checkpoint.keras/mine.txt", ""),
        ("mine.txt", "mine.txt"),
        ("mine.txt", "mine.txt/out"),
    ],
)
def test_what_is_in_the_place_of_results_is_kept(mine, out, tmp_path, capsys):
    path = tmp_path / mine
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    refused(addition_rnn, [*PLAIN, "--out", tmp_path / out], capsys, "--out")
    assert path.read_text() == "mine"
