"""The examples: their data, their networks, their results, their options."""

import io
import json
import os
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import action_recognition
import addition_rnn
import arguments
import copy_memory
import draw_curves
import draw_dilated_rnn
import draw_gradients
import forecasting
import language_model
import packed_sequences
import sequential_mnist
import source_files
import streaming
import training
from ind_rnn import IndRNN
from runs import help_of, history, main, refused, result, resumed

SLOW = pytest.mark.slow
COPY = "--time-steps 9 --sequences 64 --batch-size 16".split()
SMALL = "--hidden 4 3 --dilations 1 5".split()
DILATED = ["--model", "dilated", *SMALL]
DATA = ["--data", "-"]


def write_mnist(path, count=48, **changes):
    """A small file of the right form: an image is brighter for a higher y."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        y = rng.integers(0, 10, count)
        noise = rng.integers(0, 20, (count, 28, 28))
        arrays[f"x_{part}"] = (noise + 25 * y[:, None, None]).astype("uint8")
        arrays[f"y_{part}"] = y.astype("uint8")
    np.savez(path, **{**arrays, **changes})
    return str(path)


@pytest.fixture
def mnist(tmp_path):
    path = write_mnist(tmp_path / "mnist.npz")
    return ["--data", path, "--units", "4", "--layers", "2", "--permute"]


@pytest.fixture(autouse=True)
def without_xla(monkeypatch):
    """To save time; what is not about this compiles as a user's run does."""
    if training.tf:
        monkeypatch.setattr(training, "jit_compile", lambda args: False)


@pytest.mark.parametrize("free, lengths", [([], (4, 4, 4)), ([1], (4, 2, 5))])
def test_batches(free, lengths):
    def batch(step):
        x = np.full((2, lengths[step]), step, "int32")
        return x, x[:, :1] + 0.5

    found = training.batches(batch, 3, free)
    assert len(found) == 3
    # A thread that tunes would be waited for, for up to a minute.
    assert found.options().autotune.enabled is False
    for step, (x, y) in enumerate(found.as_numpy_iterator()):
        np.testing.assert_array_equal(x, batch(step)[0])
        np.testing.assert_array_equal(y, batch(step)[1])
        assert (x.dtype, y.dtype) == ("int32", "float64")


def test_the_best_epoch_is_the_last_of_equal_ones():
    assert training.is_best([3.0, 2.0, 2.0], "val_loss")
    assert not training.is_best([3.0, 2.0, 4.0], "val_bpc")
    assert training.is_best([0.2, 0.5, 0.5], "val_accuracy")
    assert not training.is_best([0.2, 0.5, 0.4], "val_accuracy")


def test_which_networks_are_compiled(monkeypatch):
    monkeypatch.undo()
    compiled = {"indrnn", "linear", "dilated rnn", "dilated indrnn"}
    for name in (*compiled, "lstm", "residual", "dilated gru"):
        model, _, cell = name.partition(" ")
        args = types.SimpleNamespace(model=model, cell=cell)
        assert training.jit_compile(args) == (name in compiled)


def test_normalization():
    argv = ["--normalization", "rms", "--normalize-first"]
    for argv, expected in (
        (argv, {"normalization": "rms", "normalize_first": True}),
        (["--normalization", "none"], {"normalization": None}),
    ):
        args = sequential_mnist.parse(argv)
        assert arguments.normalization(args) == expected


@pytest.mark.parametrize(
    "example, choice, kind",
    [
        (addition_rnn, ["--model", "indylstm"], "IndyLSTM"),
        (copy_memory, ["--model", "gru"], "GRU"),
        (sequential_mnist, ["--model", "gru"], "GRU"),
        (sequential_mnist, [*DILATED, "--cell", "indygru"], "IndyGRU"),
        (sequential_mnist, [*DILATED, "--cell", "rnn"], "SimpleRNNCell"),
    ],
)
def test_networks_to_choose_from(example, choice, kind):
    small = {addition_rnn: [], copy_memory: SMALL}
    argv = small.get(example, ["--layers", "2", "--units", "4"])
    args = example.parse([*argv, *choice])
    steps = () if example is addition_rnn else (10,)
    first, *_ = found = [
        layer
        for layer in example.build_model(args, *steps).layers
        if not isinstance(layer, keras.layers.InputLayer | keras.layers.Dense)
    ]
    found = getattr(first, "cells", found)
    assert [type(layer).__name__ for layer in found] == [kind] * 2


def test_mixed_digits(capsys):
    argv = ["--model", "mixed", "--units", "4"]
    args = sequential_mnist.parse([*argv, "--layers", "3"])
    (layer,) = sequential_mnist.recurrent_network(args, True).layers
    kinds = [type(cell).__name__ for cell in layer.cells]
    assert kinds == ["SimpleRNNCell", "SimpleRNNCell", "IndRNN"]
    for wrong in (["--layers", "1"], ["--dropout", "0.1"]):
        with pytest.raises(SystemExit):
            sequential_mnist.parse([*argv, *wrong])
        assert "--model mixed must have at least 2" in capsys.readouterr().err


@SLOW
@pytest.mark.parametrize("name", ["noisy", "copy"])
def test_a_killed_run_resumes_to_the_same_end(
    name, tmp_path, monkeypatch, mnist
):
    monkeypatch.undo()
    noisy = ["--pad-noise", 800, "--batch-size", 8, "--dropout", 0.2]
    example, argv = {
        "noisy": (sequential_mnist, [*mnist, *DILATED, *noisy]),
        "copy": (copy_memory, [*COPY, *SMALL]),
    }[name]
    resumed(example, [*argv, "--epochs", 2], tmp_path, monkeypatch)


def test_addition_learns_and_leaves_its_results(tmp_path, monkeypatch):
    monkeypatch.undo()
    argv = ["--time-steps", 8, "--units", 16, "--epochs", 4]
    main(addition_rnn, argv, "--out", tmp_path)
    found, rows = result(tmp_path), history(tmp_path)
    assert found["arguments"]["model"] == "indrnn"
    assert found["steps"] == 400 and found["seconds"] > 0
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert found["metrics"]["test_mse"] == rows[-1]["val_loss"]
    assert rows[-1]["val_loss"] < addition_rnn.BASELINE / 10
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert not list(tmp_path.glob("_*"))


def test_addition_with_several_seeds(tmp_path, capsys):
    argv = ["--time-steps", 8, "--units", 4, "--epochs", 3, "--seeds", 2]
    argv += ["--steps-per-epoch", 2, "--out", tmp_path]
    main(addition_rnn, argv, "--until", 1e-9)
    runs = [history(tmp_path / f"seed_{seed}") for seed in (1, 2)]
    assert [len(run) for run in runs] == [3, 3] and runs[0] != runs[1]
    table = capsys.readouterr().out.split("| seed |")[1].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in table]
    assert [row[:2] for row in rows] == [
        [name, "6"] for name in ("1", "2", "median", "worst")
    ]
    errors = [run[-1]["val_loss"] for run in runs]
    assert rows[-1][3] == f"{max(errors):.2g}"
    # Good enough after the first epoch, whatever --resume finds
    main(addition_rnn, argv, "--until", 1e9, "--seed", 3)
    assert len(history(tmp_path / "seed_4")) == 1


def test_adding_batch():
    x, y = addition_rnn.adding_batch(np.random.default_rng(1), 64, 11)
    assert x.shape == (64, 11, 2) and y.shape == (64, 1)
    assert (x[:, :5, 1].sum(axis=1) == 1).all()
    assert (x[:, 5:, 1].sum(axis=1) == 1).all()
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(1), y[:, 0])
    assert 0 <= x.min() and x.max() <= 1


SLOW_ONES = ["residual", "dense", "dilated_stacked", "dilated_residual"]
SLOW_ONES += ["lstm", "dilated indrnn"]


@pytest.mark.parametrize(
    "model", ["indrnn", *(pytest.param(x, marks=SLOW) for x in SLOW_ONES)]
)
def test_mnist_leaves_the_results_of_its_best_epoch(
    model, mnist, tmp_path, capsys
):
    model, *cell = model.split()
    argv = [*mnist, "--model", model, *(["--cell", *cell] if cell else [])]
    argv += "--blocks 1 --growth 2 --block-sizes 2 1 --dropout 0.1".split()
    argv += "--hidden 4 --dilations 1 28 2 --pool mean --shift 1".split()
    argv += "--weight-decay 0.1 --learning-rate 0.3 --epochs 3".split()
    main(sequential_mnist, argv, "--batch-size", 8, "--out", tmp_path)
    metrics = result(tmp_path)["metrics"]
    assert result(tmp_path)["steps"] == 9  # half of 48 digits are held out
    best = max(row["val_accuracy"] for row in history(tmp_path))
    assert metrics["validation_error"] == pytest.approx(1 - best)
    # The error of best.keras in the test digits
    digits = np.load(mnist[1])
    rng = np.random.default_rng(sequential_mnist.PERMUTATION_SEED)
    pixels = digits["x_test"].reshape(-1, 784)
    x = sequential_mnist.prepare(pixels, rng.permutation(784))
    model = keras.models.load_model(tmp_path / "best.keras")
    assert not getattr(model, "optimizer", None)
    answers = model.predict(x, verbose=0).argmax(axis=-1)
    error = np.mean(answers != digits["y_test"])
    assert metrics["test_error"] == pytest.approx(error, abs=1e-6)
    # --permute is known from its arguments.
    capsys.readouterr()
    main(sequential_mnist, [*mnist[:2], "--evaluate", tmp_path])
    assert json.loads(capsys.readouterr().out) == metrics


def test_mnist_from_initial_weights(tmp_path, mnist, capsys):
    argv = [*mnist, "--model", "stacked", "--initial-weights", str(tmp_path)]
    args = sequential_mnist.parse(argv)
    first = sequential_mnist.network(args)
    first.save(tmp_path / "best.keras")
    second = sequential_mnist.build_model(args, steps=9)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    argv += ["--units", 5, "--out", tmp_path / "out"]
    refused(sequential_mnist, argv, capsys, "best.keras: not this network")


@pytest.mark.parametrize(
    "model, count, epochs",
    [
        ("stacked", 86410, 14),
        ("residual", 170890, 14),
        ("dense", 256514, 14),
        ("dilated", 440 + 8 * 820 + 210, 20),
    ],
)
def test_mnist_defaults_are_the_published_ones(model, count, epochs):
    args = sequential_mnist.parse(["--model", model])
    weights = sequential_mnist.network(args).trainable_weights
    assert sum(np.prod(w.shape) for w in weights) == count
    assert args.epochs == epochs
    argv = ["--model", model, "--epochs", "2"]
    assert sequential_mnist.parse(argv).epochs == 2


def test_evaluate_without_a_network(tmp_path, mnist, capsys):
    keras.Sequential([keras.Input((1,)), keras.layers.ReLU()]).save(
        tmp_path / "alone.keras"
    )
    for name in ("none", "none.keras", "alone.keras"):
        argv = [*mnist, "--evaluate", tmp_path / name]
        refused(sequential_mnist, argv, capsys, name)


def test_shifted_digits():
    x = np.arange(1, 1 + 200 * 784).reshape(200, 784)
    y = sequential_mnist.shifted(x, 2, np.random.default_rng(1))
    moves = set()
    for before, after in zip(x, y, strict=True):
        before, after = before.reshape(28, 28), after.reshape(28, 28)
        row, column = np.argwhere(after == before[14, 14])[0] - 14
        moves.add((row, column))
        padded = np.pad(before, 2)[2 - row :, 2 - column :]
        np.testing.assert_array_equal(after, padded[:28, :28])
    assert moves == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_prepare():
    x = np.arange(2 * 784).reshape(2, 784).astype("uint8")
    y = sequential_mnist.prepare(x)
    assert y.shape == (2, 784, 1) and y.dtype == np.float32
    assert y.min() == -1 and y.max() == 1
    permuted = sequential_mnist.prepare(x, np.arange(784)[::-1])
    np.testing.assert_array_equal(permuted, y[:, ::-1])
    rng = np.random.default_rng(3)
    noisy = sequential_mnist.prepare(x, None, 900, rng)
    assert noisy.shape == (2, 900, 1) and noisy.dtype == np.float32
    np.testing.assert_array_equal(noisy[:, :784], y)
    noise = noisy[:, 784:]
    assert -1 <= noise.min() < -0.8 and 0.8 < noise.max() <= 1
    assert (noise[0] != noise[1]).all()


def test_decay_is_of_matrices_alone():
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            IndRNN(4, return_sequences=True),
            keras.layers.BatchNormalization(),
            keras.layers.LSTM(2),
        ]
    )
    args = types.SimpleNamespace(learning_rate=0.1, model="stacked")
    sequential_mnist.compile_classifier(model, args, 9, 0, weight_decay=0.5)
    optimizer, weights = model.optimizer, model.trainable_weights
    optimizer.build(weights)
    before = [w.numpy() for w in weights]
    optimizer.apply([np.zeros(w.shape, "float32") for w in weights], weights)
    for weight, old in zip(weights, before, strict=True):
        left = 1 if len(weight.shape) == 1 else 1 - 0.1 * 0.5
        np.testing.assert_allclose(weight.numpy(), left * old, rtol=1e-6)


def test_last_layer_starts_near_one():
    args = sequential_mnist.parse(["--start", "uniform"])
    model = sequential_mnist.build_model(args, 100)
    bound = 2 ** (1 / 784)
    layers = [x for x in model.layers if hasattr(x, "recurrent_max_abs")]
    assert len(layers) == 6
    for layer in layers:
        u = layer.cell.recurrent_kernel.numpy()
        assert layer.recurrent_max_abs == bound and u.max() <= bound
        assert (u.min() >= 1 / bound) == (layer is layers[-1])


def of_objects(path):
    """Objects that make a folder when they are unpickled."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (f"{path}.trap",)

    np.savez(path, x_train=np.array([Trap()], object))


def of_other_members(path):
    with zipfile.ZipFile(path, "w") as file:
        for part in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{part}.npy", b"no array")


def huge(path):
    """An array of which there is but the header."""
    header = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}
    np.lib.format.write_array_header_1_0(header, form)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x_train.npy", header.getvalue())


@pytest.mark.parametrize(
    "content, words",
    [
        ({"x_test": np.zeros((3, 5), "uint8")}, ["x_test", "(3, 5)"]),
        ({"y_train": np.zeros(3, "uint8")}, ["y_train", "(3,)"]),
        ({"x_train": np.zeros((48, 28, 28))}, ["x_train", "float64"]),
        ({"y_test": np.full(48, 10)}, ["y_test", "10"]),
        ({"y_train": np.full(48, -3)}, ["y_train", "-3"]),
        (lambda path: path.write_bytes(b"no zip"), []),
        (of_objects, ["allow_pickle"]),
        (of_other_members, ["x_train", "()"]),
        (huge, []),
    ],
)
def test_broken_mnist_is_one_line(content, words, tmp_path, capsys):
    path = tmp_path / "mnist.npz"
    if callable(content):
        content(path)
    else:
        write_mnist(path, **content)
    argv = ["--data", path, "--out", tmp_path / "out"]
    refused(sequential_mnist, argv, capsys, "mnist.npz", *words)
    assert {*tmp_path.iterdir()} == {path}


def test_copy_batch():
    symbols = np.random.default_rng(1).integers(0, 8, (5, 10))
    x, y = copy_memory.copy_batch(symbols, 7)
    assert x.shape == (5, 27, 10) and y.shape == (5, 27)
    assert (x.sum(axis=-1) == 1).all()
    x = x.argmax(axis=-1)
    np.testing.assert_array_equal(x[:, :10], symbols)
    np.testing.assert_array_equal(y[:, -10:], symbols)
    assert (x[:, 10:16] == copy_memory.BLANK).all()
    assert (x[:, 16:] == copy_memory.MARKER).all()
    assert (y[:, :17] == copy_memory.BLANK).all()


def test_copy_learns_and_leaves_its_results(tmp_path):
    argv = "--time-steps 5 --hidden 32 --dilations 1 15 --sequences 800"
    argv = [*argv.split(), "--batch-size", 16, "--epochs", 2]
    main(copy_memory, argv, "--out", tmp_path)
    found = result(tmp_path)["metrics"]
    network = keras.models.load_model(tmp_path / "checkpoint.keras")
    symbols = np.random.default_rng([1, 1]).integers(0, 8, (1000, 10))
    x, _ = copy_memory.copy_batch(symbols, 5)
    answers = network.predict(x, verbose=0)[:, -10:].argmax(axis=-1)
    assert found["recalled"] == pytest.approx(np.mean(answers == symbols))
    # Guessing the symbols, and only them, is what the baseline stands for.
    assert found["baseline"] == pytest.approx(10 * np.log(8) / 25)
    assert found["test_loss"] < found["baseline"] / 2


def test_shortest_path():
    path = draw_dilated_rnn.shortest_path
    assert path([1, 2, 4], 7) == [0, 1, 2]
    assert path([1, 2, 4], 8) == [2, 2]
    assert path([1, 3, 4], 6) == [1, 1]
    assert path([2], 3) is None


def test_draw(tmp_path, capsys):
    path = tmp_path / "new" / "network.png"
    argv = ["--dilations", "1", "3", "--time-steps", "7", "--out", str(path)]
    draw_dilated_rnn.main(argv)
    assert path.stat().st_size > 1000
    refused(draw_dilated_rnn, ["--out", f"{path}.what"], capsys, "--out")


def test_draw_curves(tmp_path, capsys):
    (tmp_path / "history.csv").write_text(
        "steps,seconds,val\n7,60,3.5\n9,90,2\n"
    )
    read = draw_curves.read
    assert read(tmp_path, "val") == ([1, 1.5], [3.5, 2])
    assert read(tmp_path, "val", "steps") == ([7, 9], [3.5, 2])
    path = tmp_path / "curves.png"
    argv = [tmp_path, tmp_path, "--column", "val", "--out", path]
    main(draw_curves, argv)
    assert capsys.readouterr().out == f"{path}\n"
    assert path.stat().st_size > 1000
    for run_of, column, words in (
        (tmp_path / "none", "val", ["none", "No such file"]),
        (tmp_path, "loss", ["'loss'", "steps, seconds, val"]),
    ):
        refused(draw_curves, [run_of, "--column", column], capsys, *words)


def test_draw_gradients(tmp_path, capsys):
    path = tmp_path / "new" / "gradients.png"
    argv = "--layers 3 --units 4 --time-steps 8 --steps 12 --batch-size 6"
    main(draw_gradients, [*argv.split(), "--out", path])
    head, _, *rows, loss, printed = capsys.readouterr().out.splitlines()
    assert head.startswith("| layer |") and printed == str(path)
    table = [[float(cell) for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in table] == [1, 2, 3]
    assert table[-1] == [3, 1, 1, 1, 1]
    assert loss.startswith("loss ") and path.stat().st_size > 1000


def test_gradient_norms():
    args = draw_gradients.parse(["--layers", "3", "--units", "4"])
    args.time_steps = 6
    model = draw_gradients.build_model(args)
    x, y = addition_rnn.adding_batch(np.random.default_rng(1), 5, 6)
    weights = [
        weight.value
        for weight in model.trainable_weights
        if weight.name.endswith("kernel")
    ][:-1]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    expected = np.reshape(
        [np.linalg.norm(g) for g in tape.gradient(loss, weights)], (3, 2)
    )
    norms = draw_gradients.gradient_norms(model, x, y)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "example, argv, words",
    [
        (addition_rnn, ["--time-steps", 1], "at least 2, got 1"),
        (addition_rnn, ["--learning-rate", 0], "positive, got 0"),
        (addition_rnn, ["--seed", 2**32], f"from 0 to {2**32 - 1}"),
        (addition_rnn, ["--out", ""], "--out: must be a directory"),
        (sequential_mnist, ["--dropout", 1], "--dropout: must be in [0, 1)"),
        (sequential_mnist, ["--pad-noise", 783], "at least 784, got 783"),
        (sequential_mnist, ["--shift", 28], "from 0 to 27, got 28"),
        (
            sequential_mnist,
            ["--model", "dilated_residual", "--dilations", 1, 2],
            "odd number of them, got 2",
        ),
        (draw_gradients, ["--layers", 4], "odd if residual, got 4"),
        (language_model, ["--dropout", 1], "in [0, 1), got 1"),
        (action_recognition, [*DATA, "--split", "view"], "--dataset ntu"),
        (action_recognition, [*DATA, "--missing", "y"], "--dataset ntu"),
        (action_recognition, ["--dropout", 1], "in [0, 1), got 1"),
        (streaming, ["--time-steps", 30], "--time-steps: must be a divisor"),
    ],
)
def test_bad_arguments(example, argv, words, capsys):
    refused(example, argv, capsys, words)


def test_normalize_first_needs_a_normalization(mnist, tmp_path, capsys):
    argv = [*mnist, "--model", "stacked", "--normalization", "none"]
    argv += ["--normalize-first", "--out", tmp_path / "out"]
    refused(sequential_mnist, argv, capsys, "--normalize-first needs")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "example",
    [
        action_recognition,
        addition_rnn,
        copy_memory,
        draw_curves,
        draw_dilated_rnn,
        draw_gradients,
        forecasting,
        language_model,
        packed_sequences,
        sequential_mnist,
        source_files,
        streaming,
    ],
)
def test_options(example, capsys):
    """Help states their defaults, and no number may be negative or NaN."""
    options = help_of(example, capsys)
    without = {name for name in options if "default:" not in options[name]}
    # Switches, and what must be given
    assert without <= {
        *("--resume", "--permute", "--dynamic", "--log"),
        *("--data", "--level", "--minutes"),
    }
    numbers = [name for name, text in options.items() if text.split()[1] == "N"]
    assert numbers
    for name in numbers:
        error = refused(example, [name, -1], capsys, f"argument {name}: must ")
        assert "got -1" in error
        refused(example, [name, "nan"], capsys, f"argument {name}")
