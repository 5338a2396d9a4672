"""The examples: killed at any moment, and given data that is not theirs.

With LONG=1 in the environment they are killed ten times in a row, not twice:

    LONG=1 python -m pytest -n 0 tests/test_reliability_of_examples.py
"""

import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest

import action_recognition
import addition_rnn
import language_model
import sequential_mnist
from cases import LONG
from runs import history, run

ROOT = pathlib.Path(__file__).parents[1]
KILLS = 10 if LONG else 2
ADDITION = ["--time-steps", "8", "--units", "8", "--batch-size", "4"]


def weights(out):
    model = keras.models.load_model(out / "checkpoint.keras")
    return [v.numpy() for v in model.weights + model.optimizer.variables]


def start(out, epochs, log):
    """A process of examples/addition_rnn.py that goes on where it was."""
    return subprocess.Popen(
        [sys.executable, ROOT / "examples/addition_rnn.py", *ADDITION]
        + ["--steps-per-epoch", "3", "--epochs", str(epochs)]
        + ["--out", out, "--resume"],
        # Without the notes of TensorFlow's own, some of which come last.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        stdout=log,
        stderr=log,
    )


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_alike(tmp_path):
    """SIGKILL, after a random number of epochs and part of another one."""
    epochs = 4 * KILLS
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    rng = np.random.default_rng(None if KILLS > 2 else 1)
    moments = []
    for _ in range(KILLS):
        before = len(history(killed)) if killed.exists() else 0
        with open(tmp_path / "log", "w+") as log:
            process = start(killed, epochs, log)
            wanted = before + rng.integers(1, 4)
            while not (killed / "history.csv").exists() or (
                len(history(killed)) < wanted
            ):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.wait()
        # Whatever was there is whole; a file begun is called _something.
        files = sorted(path.name for path in killed.iterdir())
        moments.append((len(history(killed)), files))
        if "checkpoint.keras" in files:
            assert (
                zipfile.ZipFile(killed / "checkpoint.keras").testzip() is None
            )
            weights(killed)
    print(moments)
    for out in (killed, whole):
        with open(tmp_path / "log", "w+") as log:
            code = start(out, epochs, log).wait()
        assert code == 0, (tmp_path / "log").read_text()
    assert history(killed) == history(whole)
    assert len(history(whole)) == epochs
    for a, b in zip(weights(killed), weights(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a run of one epoch, by name."""
    out = tmp_path_factory.mktemp("finished")
    argv = ["--steps-per-epoch", "3", "--epochs", "1", "--out", str(out)]
    addition_rnn.main([*ADDITION, *argv])
    return {path.name: path.read_bytes() for path in out.iterdir()}


def half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "name, change",
    [
        ("checkpoint.keras", lambda content: b""),
        ("checkpoint.keras", half),
        ("checkpoint.keras", lambda content: content[:-1]),
        ("checkpoint.keras", lambda content: b"not a model"),
        ("history.csv", lambda content: b""),
        ("history.csv", lambda content: content.splitlines()[0]),
        ("history.csv", half),
        ("history.csv", lambda content: b"date,price\n1,2\n"),
        ("history.csv", lambda content: b"\xff\xfe"),
        ("arguments.json", lambda content: b""),
        ("arguments.json", half),
        ("arguments.json", lambda content: b"[1, 2]"),
        ("arguments.json", lambda content: b'"text"'),
        ("arguments.json", lambda content: b"{}"),
        ("arguments.json", None),
        ("history.csv", None),
    ],
)
def test_what_cannot_be_resumed_is_one_line(
    name, change, finished, tmp_path, capsys
):
    files = dict(finished)
    if change is None:
        del files[name]
    else:
        files[name] = change(files[name])
    files["mine.txt"] = b"mine"
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    argv = [*ADDITION, "--steps-per-epoch", "3", "--epochs", "1", "--resume"]
    code, error = run(addition_rnn, [*argv, "--out", tmp_path], capsys)
    assert code == 2 and len(error.splitlines()) == 1, error
    assert "resume" in error
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == files


@pytest.mark.parametrize("name", ["arguments.json", "checkpoint.keras"])
def test_out_with_folders_in_the_place_of_files(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    code, error = run(addition_rnn, [*ADDITION, "--out", tmp_path], capsys)
    assert code == 2 and len(error.splitlines()) == 1 and "--out" in error
    assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_out_inside_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    argv = [*ADDITION, "--out", tmp_path / "file" / "out"]
    code, error = run(addition_rnn, argv, capsys)
    assert code == 2 and len(error.splitlines()) == 1 and "--out" in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_second_run_into_the_same_directory(tmp_path, capsys):
    """It says which process writes there, and touches nothing."""
    with open(tmp_path / "log", "w+") as log:
        process = start(tmp_path / "out", 1000, log)
        while not (tmp_path / "out/checkpoint.keras").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        for more in ([], ["--resume"]):
            argv = [*ADDITION, "--out", tmp_path / "out", *more]
            code, error = run(addition_rnn, argv, capsys)
            assert code == 2 and len(error.splitlines()) == 1, error
            assert f"process {process.pid} is writing there" in error
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    # Ctrl-C is one line, and the next run goes on.
    text = (tmp_path / "log").read_text()
    last = text.splitlines()[-1]
    assert "Traceback" not in text and last.endswith("with --resume goes on")
    assert not (tmp_path / "out/lock").exists()
    done = history(tmp_path / "out")
    with open(tmp_path / "log", "w+") as log:
        process = start(tmp_path / "out", 1000, log)
        while len(history(tmp_path / "out")) <= len(done):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert history(tmp_path / "out")[: len(done)] == done


FULL = """
import resource
import signal
import sys

sys.path[:0] = sys.argv[1:3]
import addition_rnn
import arguments
import training

write = training.write_history


def fill(out, history):
    write(out, history)
    if len(history) == 2:  # From here on, files end after so many bytes.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


training.write_history = fill
sys.exit(arguments.run(addition_rnn.main, sys.argv[3:]))
"""


def test_full_disk(tmp_path):
    """One line; the last good checkpoint is there, and no part of a file."""
    out = tmp_path / "out"
    argv = [*ADDITION, "--steps-per-epoch", "3", "--epochs", "3", "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", FULL, ROOT, ROOT / "examples", *argv],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "checkpoint.keras cannot be written" in last
    assert "what was there before is kept" in last
    assert {path.name for path in out.iterdir()} == {
        "arguments.json",
        "checkpoint.keras",
        "history.csv",
    }
    model = keras.models.load_model(out / "checkpoint.keras")
    assert int(model.optimizer.iterations) == 3
    with open(tmp_path / "log", "w+") as log:
        assert start(out, 3, log).wait() == 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--seed", str(2**32)], f"--seed: must be at most {2**32 - 1}"),
        (["--seed", "-1"], "--seed: must be at least 0"),
        (["--out", ""], "--out: must be a directory"),
    ],
)
def test_bad_arguments_of_all_examples(argv, words, capsys):
    for example in (addition_rnn, sequential_mnist, language_model):
        with pytest.raises(SystemExit) as caught:
            example.main(argv)
        assert caught.value.code == 2
        assert words in capsys.readouterr().err


class Trap:
    """What, when unpickled, makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def of_objects(path, trap):
    np.savez(path, **dict.fromkeys(MNIST, np.array([Trap(trap)], object)))


def pickled(path, trap):
    path.write_bytes(pickle.dumps(Trap(trap)))


def of_other_members(path, trap):
    with zipfile.ZipFile(path, "w") as file:
        for name in (*MNIST, "files_used"):
            file.writestr(f"{name}.npy", b"no array")
            file.writestr(f"{name}.txt", b"no name of a sequence")


def of_one_damaged_byte(path, trap):
    arrays = dict.fromkeys(MNIST, np.arange(4000.0))
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def huge(path, trap):
    """An array of which there is but the header."""
    header = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}
    np.lib.format.write_array_header_1_0(header, form)
    with zipfile.ZipFile(path, "w") as file:
        for name in MNIST:
            file.writestr(f"{name}.npy", header.getvalue())


MNIST = [f"{kind}_{part}" for part in ("train", "test") for kind in "xy"]


@pytest.mark.parametrize(
    "write", [of_objects, pickled, of_other_members, of_one_damaged_byte, huge]
)
@pytest.mark.parametrize(
    "example, argv",
    [
        (sequential_mnist, []),
        (action_recognition, []),
        (action_recognition, ["--dataset", "ntu"]),
        (language_model, ["--level", "char"]),
    ],
)
def test_foreign_data_is_one_line(write, example, argv, tmp_path, capsys):
    path, trap, out = (tmp_path / name for name in ("data", "trap", "out"))
    with open(tmp_path / "file.npz", "wb"):
        write(tmp_path / "file.npz", trap)
    data = tmp_path / "file.npz"
    if example is language_model:
        path.mkdir()
        for part in ("train", "valid", "test"):
            (path / f"ptb.{part}.txt").write_bytes(data.read_bytes())
        data = path
    elif argv:
        path.mkdir()
        data = data.rename(path / "S001C001P001R001A001.skeleton").parent
    code, error = run(example, [*argv, "--data", data, "--out", out], capsys)
    assert code == 2 and len(error.splitlines()) == 1, error
    assert not trap.exists() and not out.exists()
