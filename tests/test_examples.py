"""The examples: their data, their files, resuming, and their errors."""

import json
import pathlib

import keras
import numpy as np
import pytest

import addition_rnn
import copy_memory
import draw_curves
import draw_dilated_rnn
import draw_gradients
import arguments
import training
import sequential_mnist
from ind_rnn import IndRNN
from runs import history, run

SLOW = pytest.mark.slow


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


def weights(out):
    model = keras.models.load_model(out / "checkpoint.keras")
    return [v.numpy() for v in model.weights + model.optimizer.variables]


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


def test_adding_batch():
    x, y = addition_rnn.adding_batch(np.random.default_rng(1), 64, 11)
    assert x.shape == (64, 11, 2) and y.shape == (64, 1)
    assert (x[:, :5, 1].sum(axis=1) == 1).all()
    assert (x[:, 5:, 1].sum(axis=1) == 1).all()
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(1), y[:, 0])
    assert 0 <= x.min() and x.max() <= 1


ADDITION = ["--time-steps", "8", "--units", "8", "--steps-per-epoch", "5"]


COPY = ["--time-steps", "9", "--sequences", "64", "--batch-size", "16"]
SMALL = ["--hidden", "4", "3", "--dilations", "1", "5"]
DILATED = ["--model", "dilated", *SMALL]


@pytest.fixture
def mnist(tmp_path):
    path = write_mnist(tmp_path / "mnist.npz")
    return ["--data", path, "--units", "4", "--layers", "2", "--permute"]


@pytest.mark.parametrize("model", ["indrnn", "lstm"])
def test_addition_leaves_its_results(model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*ADDITION, "--model", model, "--epochs", "2", "--out", str(out)]
    addition_rnn.main(argv)
    result = json.loads((out / "result.json").read_text())
    assert result["arguments"]["model"] == model
    assert result["steps"] == 10 and result["seconds"] > 0
    rows = history(out)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert result["metrics"]["test_mse"] == rows[-1]["val_loss"]
    assert (out / "curve.png").stat().st_size > 1000
    assert not list(out.glob("_*"))


@pytest.mark.parametrize(
    "example, choice, layers",
    [
        (addition_rnn, ["--model", "gru"], ["GRU"] * 2),
        (addition_rnn, ["--model", "rnn"], ["SimpleRNN"] * 2),
        (addition_rnn, ["--model", "indylstm"], ["IndyLSTM"] * 2),
        (copy_memory, ["--model", "gru"], ["GRU"] * 2),
        (copy_memory, ["--model", "rnn"], ["SimpleRNN"] * 2),
        (sequential_mnist, ["--model", "gru"], ["GRU"] * 2),
        (sequential_mnist, ["--model", "rnn"], ["SimpleRNN"] * 2),
        (sequential_mnist, [*DILATED, "--cell", "gru"], ["GRU"] * 2),
        (sequential_mnist, [*DILATED, "--cell", "indygru"], ["IndyGRU"] * 2),
        (
            sequential_mnist,
            [*DILATED, "--cell", "rnn"],
            ["SimpleRNNCell"] * 2,
        ),
    ],
)
def test_networks_to_choose_from(example, choice, layers):
    small = {addition_rnn: [], copy_memory: SMALL}
    argv = small.get(example, ["--layers", "2", "--units", "4"])
    args = example.parse([*argv, *choice])
    steps = () if example is addition_rnn else (10,)
    first, *_ = found = [
        layer
        for layer in example.build_model(args, *steps).layers[:-1]
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    found = getattr(first, "cells", found)
    assert [type(layer).__name__ for layer in found] == layers


def test_addition_learns(tmp_path):
    argv = ["--time-steps", "8", "--units", "16", "--epochs", "8"]
    addition_rnn.main([*argv, "--out", str(tmp_path)])
    assert history(tmp_path)[-1]["val_loss"] < addition_rnn.BASELINE / 10


@pytest.mark.parametrize(
    "name",
    ["addition", *(pytest.param(x, marks=SLOW) for x in ("noisy", "copy"))],
)
def test_a_killed_run_resumes_to_the_same_end(
    name, tmp_path, monkeypatch, mnist
):
    noisy = ["--pad-noise", "800", "--batch-size", "8", "--dropout", "0.2"]
    example, argv = {
        "addition": (addition_rnn, ADDITION),
        "noisy": (sequential_mnist, [*mnist, *DILATED, *noisy]),
        "copy": (copy_memory, [*COPY, *SMALL]),
    }[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    argv = [*argv, "--epochs", "3", "--out"]
    example.main([*argv, str(whole)])

    class Kill(BaseException):
        pass

    save, saved = experiment._save, []

    def save_once(model, path):
        if saved:
            raise Kill
        saved.append(save(model, path))

    monkeypatch.setattr(experiment, "_save", save_once)
    with pytest.raises(Kill):
        example.main([*argv, str(killed)])
    # History is one epoch ahead of the checkpoint: the worst moment.
    assert len(history(killed)) == 2
    monkeypatch.setattr(experiment, "_save", save)
    example.main([*argv, str(killed), "--resume"])
    assert history(killed) == history(whole)
    for a, b in zip(weights(killed), weights(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resume_without_a_checkpoint_starts(tmp_path):
    argv = [*ADDITION, "--epochs", "1", "--out", str(tmp_path), "--resume"]
    addition_rnn.main(argv)
    assert len(history(tmp_path)) == 1


def test_resume_refuses_other_arguments(tmp_path, capsys):
    argv = [*ADDITION, "--epochs", "1", "--out", str(tmp_path)]
    addition_rnn.main(argv)
    argv += ["--resume", "--seed", "2"]
    code, error = run(addition_rnn, argv, capsys)
    assert code == 2
    assert "seed was 1, is 2" in error and len(error.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:The object being serialized:UserWarning")
def test_resume_refuses_broken_and_foreign_checkpoints(tmp_path, capsys):
    argv = [*ADDITION, "--epochs", "1", "--out", str(tmp_path)]
    addition_rnn.main(argv)
    checkpoint = tmp_path / "checkpoint.keras"
    whole = checkpoint.read_bytes()
    optimizer = keras.models.load_model(checkpoint)
    optimizer.compile("sgd", "mse")
    function, network = (
        keras.Sequential([keras.Input((8, 2)), layer])
        for layer in (keras.layers.Lambda(lambda x: x), keras.layers.GRU(1))
    )
    network.compile("adam", "mse")
    network.optimizer.build(network.trainable_variables)
    for name, replace in {
        "cut off": lambda path: path.write_bytes(whole[:1000]),
        "function": function.save,
        "network": network.save,
        "optimizer": optimizer.save,
    }.items():
        replace(checkpoint)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        code, error = run(addition_rnn, [*argv, "--resume"], capsys)
        assert code == 2 and "cannot be resumed" in error, name
        assert len(error.splitlines()) == 1, name
        assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_out_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "out"
    path.write_text("mine")
    code, error = run(addition_rnn, [*ADDITION, "--out", str(path)], capsys)
    assert code == 2 and "--out" in error and len(error.splitlines()) == 1
    assert path.read_text() == "mine"


def test_a_diverging_run_says_so_and_keeps_its_checkpoint(tmp_path, capsys):
    def broken(*arguments, batch=addition_rnn.adding_batch):
        x, y = batch(*arguments)
        return x, y * np.nan

    out, finished = ["--out", str(tmp_path)], tmp_path / "checkpoint.keras"
    addition_rnn.main([*ADDITION, "--epochs", "1", *out])
    kept = finished.read_bytes()
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    arguments["epochs"] = 2
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addition_rnn, "adding_batch", broken)
        argv = [*ADDITION, "--epochs", "2", *out, "--resume"]
        code, error = run(addition_rnn, argv, capsys)
    assert code == 2 and "the loss is nan in epoch 2" in error
    assert finished.read_bytes() == kept


def test_seed_decides(tmp_path):
    results = []
    for index, seed in enumerate("112"):
        out = tmp_path / str(index)
        argv = [*ADDITION, "--epochs", "1", "--seed", seed, "--out", str(out)]
        addition_rnn.main(argv)
        results.append(weights(out)[0])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def mnist_error(out, mnist):
    """Of the checkpoint in `out`, in the test digits of a run."""
    digits = np.load(mnist[1])
    rng = np.random.default_rng(sequential_mnist.PERMUTATION_SEED)
    pixels = digits["x_test"].reshape(-1, 784)
    x = sequential_mnist.prepare(pixels, rng.permutation(784))
    model = keras.models.load_model(out / "checkpoint.keras")
    answers = model.predict(x, verbose=0)
    return np.mean(answers.argmax(axis=-1) != digits["y_test"])


@pytest.mark.parametrize("model", ["indrnn", pytest.param("lstm", marks=SLOW)])
def test_mnist_leaves_its_results(model, tmp_path, mnist):
    argv = [*mnist, "--model", model, "--epochs", "1", "--batch-size", "8"]
    sequential_mnist.main([*argv, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 3  # 48 digits, half of them for validation
    error = result["metrics"]["test_error"]
    assert error == pytest.approx(mnist_error(tmp_path, mnist), abs=1e-6)


@pytest.mark.parametrize("cell", ["lstm", pytest.param("indrnn", marks=SLOW)])
def test_mnist_with_a_dilated_network(cell, tmp_path, mnist):
    argv = [*mnist, *DILATED, "--cell", cell, "--epochs", "1"]
    argv += ["--batch-size", "12", "--out", str(tmp_path)]
    sequential_mnist.main(argv)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 2
    error = result["metrics"]["test_error"]
    assert error == pytest.approx(mnist_error(tmp_path, mnist), abs=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        "residual",
        "dilated_residual",
        *(pytest.param(x, marks=SLOW) for x in ("dense", "dilated_stacked")),
    ],
)
def test_mnist_with_a_deep_network(model, tmp_path, mnist):
    small = ["--blocks", "1", "--growth", "2", "--block-sizes", "2", "1"]
    small += ["--dilations", "1", "28", "2", "--units", "8"]
    argv = [*mnist, *small, "--model", model, "--dropout", "0.1"]
    argv += ["--epochs", "1", "--batch-size", "12", "--out", str(tmp_path)]
    sequential_mnist.main(argv)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 2
    error = result["metrics"]["test_error"]
    assert error == pytest.approx(mnist_error(tmp_path, mnist), abs=1e-6)


@pytest.mark.parametrize(
    "model, count",
    [("stacked", 86410), ("residual", 170890), ("dense", 256514)],
)
def test_mnist_networks_have_the_published_size(model, count):
    args = sequential_mnist.parse(["--model", model])
    weights = sequential_mnist.network(args).trainable_weights
    assert sum(np.prod(w.shape) for w in weights) == count


def test_mnist_defaults_depend_on_the_model():
    plain, dilated = map(sequential_mnist.parse, ([], ["--model", "dilated"]))
    assert (plain.epochs, plain.batch_size) == (14, 32)
    assert (dilated.epochs, dilated.batch_size) == (20, 32)
    given = sequential_mnist.parse(["--model", "dilated", "--epochs", "2"])
    assert given.epochs == 2 and dilated.dilations == [2**i for i in range(9)]
    model = sequential_mnist.build_model(dilated, 100)
    assert model.count_params() == 440 + 8 * 820 + 210


def test_mnist_of_the_best_epoch(tmp_path, mnist, capsys):
    out = tmp_path / "out"
    argv = [*mnist, "--pool", "mean", "--shift", "1", "--epochs", "3"]
    argv += ["--weight-decay", "0.1", "--learning-rate", "0.3"]
    sequential_mnist.main([*argv, "--batch-size", "8", "--out", str(out)])
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    rows = history(out)
    best = max(row["val_accuracy"] for row in rows)
    assert metrics["validation_error"] == pytest.approx(1 - best)
    capsys.readouterr()
    # A file, or its directory; --permute is known from its arguments.
    for path in (out, out / "best.keras"):
        sequential_mnist.main([*mnist[:2], "--evaluate", str(path)])
        assert json.loads(capsys.readouterr().out) == metrics
    model = keras.models.load_model(out / "best.keras")
    assert not getattr(model, "optimizer", None)


@pytest.mark.parametrize(
    "column, values, expected",
    [
        ("val_loss", [3.0, 2.0, 2.0, 4.0, 1.0], [1, 1, 1, 0, 1]),
        ("val_accuracy", [0.2, 0.5, 0.5, 0.4, 0.6], [1, 1, 1, 0, 1]),
        ("val_bpc", [3.0, 5.0, 2.0], [1, 0, 1]),
    ],
)
def test_which_epoch_is_best(column, values, expected):
    rows = [{column: value} for value in values]
    found = [
        experiment._is_best(rows[: index + 1], column)
        for index in range(len(rows))
    ]
    assert found == expected


def test_mnist_from_initial_weights(tmp_path, mnist, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    argv = [*mnist, "--model", "stacked", "--epochs", "1"]
    sequential_mnist.main([*argv, "--out", str(first)])
    argv += ["--initial-weights", str(first), "--learning-rate", "1e-12"]
    sequential_mnist.main([*argv, "--seed", "7", "--out", str(second)])
    weights, again = (
        keras.models.load_model(out / "best.keras").trainable_weights
        for out in (first, second)
    )
    for one, other in zip(weights, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)

    argv += ["--units", "5", "--out", str(tmp_path / "third")]
    code, error = run(sequential_mnist, argv, capsys)
    assert code == 2 and "best.keras: not this network" in error
    assert len(error.splitlines()) == 1


def test_evaluate_without_a_network(tmp_path, mnist, capsys):
    keras.Sequential([keras.Input((1,)), keras.layers.ReLU()]).save(
        tmp_path / "alone.keras"
    )
    for name in ("none", "none.keras", "alone.keras"):
        argv = [*mnist, "--evaluate", str(tmp_path / name)]
        code, error = run(sequential_mnist, argv, capsys)
        assert code == 2 and name in error and len(error.splitlines()) == 1


def test_shifted_digits():
    x = np.arange(1, 1 + 200 * 784).reshape(200, 784)
    y = sequential_mnist.shifted(x, 2, np.random.default_rng(1))
    moves = set()
    for before, after in zip(x, y, strict=True):
        before, after = before.reshape(28, 28), after.reshape(28, 28)
        row, column = np.argwhere(after == before[14, 14])[0] - 14
        moves.add((row, column))
        padded = np.pad(before, 2)
        corner = 2 - row, 2 - column
        np.testing.assert_array_equal(
            after, padded[corner[0] :, corner[1] :][:28, :28]
        )
    assert moves == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_decay_is_of_matrices_alone():
    model = keras.Sequential(
        [
            keras.Input((3, 2)),
            IndRNN(4, return_sequences=True),
            keras.layers.BatchNormalization(),
            keras.layers.LSTM(2),
        ]
    )
    optimizer = experiment.AdamW(0.1, weight_decay=0.5)
    model.compile(optimizer)
    weights = model.trainable_weights
    optimizer.build(weights)
    before = [w.numpy() for w in weights]
    optimizer.apply([np.zeros(w.shape, "float32") for w in weights], weights)
    for weight, old in zip(weights, before, strict=True):
        left = 1 if len(weight.shape) == 1 else 1 - 0.1 * 0.5
        np.testing.assert_allclose(weight.numpy(), left * old, rtol=1e-6)


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


@pytest.mark.parametrize("model", ["dilated", pytest.param("lstm", marks=SLOW)])
def test_copy_leaves_its_results(model, tmp_path):
    argv = [*COPY, *SMALL, "--model", model, "--epochs", "1"]
    copy_memory.main([*argv, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    metrics = result["metrics"]
    assert result["steps"] == 4
    network = keras.models.load_model(tmp_path / "checkpoint.keras")
    symbols = np.random.default_rng([1, 1]).integers(0, 8, (1000, 10))
    x, _ = copy_memory.copy_batch(symbols, int(COPY[1]))
    answers = network.predict(x, verbose=0)[:, -10:].argmax(axis=-1)
    assert metrics["recalled"] == pytest.approx(np.mean(answers == symbols))
    # Guessing the symbols, and only them, is what the baseline stands for.
    assert metrics["baseline"] == pytest.approx(10 * np.log(8) / 29)
    assert (tmp_path / "curve.png").stat().st_size > 1000


@SLOW
def test_copy_learns(tmp_path):
    argv = ["--time-steps", "5", "--hidden", "32", "--dilations", "1", "15"]
    argv += ["--sequences", "3200", "--batch-size", "32", "--epochs", "3"]
    copy_memory.main([*argv, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert result["test_loss"] < result["baseline"] / 2


@pytest.mark.parametrize(
    "dilations, distance, path",
    [
        ([1, 2, 4], 7, [0, 1, 2]),
        ([1, 2, 4], 8, [2, 2]),
        ([1, 3, 4], 6, [1, 1]),
        ([2], 3, None),
    ],
)
def test_shortest_path(dilations, distance, path):
    assert draw_dilated_rnn.shortest_path(dilations, distance) == path


def test_draw(tmp_path, capsys):
    path = tmp_path / "new" / "network.png"
    argv = ["--dilations", "1", "3", "--time-steps", "7", "--out", str(path)]
    draw_dilated_rnn.main(argv)
    assert path.stat().st_size > 1000
    code, error = run(draw_dilated_rnn, ["--out", f"{path}.what"], capsys)
    assert code == 2 and "--out" in error and len(error.splitlines()) == 1


def test_draw_curves(tmp_path, capsys):
    for name in ("one", "two"):
        run_of = tmp_path / name
        run_of.mkdir()
        (run_of / "history.csv").write_text(
            "steps,seconds,val\n7,60,3.5\n9,90,2\n"
        )
    read = draw_curves.read
    assert read(tmp_path / "one", "val") == ([1, 1.5], [3.5, 2])
    assert read(tmp_path / "one", "val", "steps") == ([7, 9], [3.5, 2])
    runs = [str(tmp_path / name) for name in ("one", "two")]
    path = str(tmp_path / "curves.png")
    draw_curves.main([*runs, "--column", "val", "--out", path])
    assert capsys.readouterr().out == path + "\n"
    assert pathlib.Path(path).stat().st_size > 1000
    for run_of, column, words in (
        (tmp_path / "none", "val", ["none", "No such file"]),
        (tmp_path / "one", "loss", ["'loss'", "steps, seconds, val"]),
    ):
        code, error = run(
            draw_curves, [str(run_of), "--column", column], capsys
        )
        assert code == 2 and all(word in error for word in words)


@pytest.mark.parametrize(
    "model", ["residual", pytest.param("plain", marks=SLOW)]
)
def test_draw_gradients(model, tmp_path, capsys):
    path = tmp_path / "new" / "gradients.png"
    argv = ["--layers", "3", "--units", "4", "--time-steps", "8", "--steps"]
    argv = [*argv, "12", "--batch-size", "6", "--model", model]
    draw_gradients.main([*argv, "--out", str(path)])
    head, _, *rows, loss, printed = capsys.readouterr().out.splitlines()
    assert head.startswith("| layer |") and printed == str(path)
    table = [[float(cell) for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in table] == [1, 2, 3]
    assert table[-1] == [3, 1, 1, 1, 1]
    assert loss.startswith("loss ") and path.stat().st_size > 1000


def test_gradient_norms_are_those_of_finite_differences():
    args = draw_gradients.parse(["--layers", "3", "--units", "4"])
    args.time_steps = 6
    keras.utils.set_random_seed(1)
    model = draw_gradients.build_model(args)
    x, y = addition_rnn.adding_batch(np.random.default_rng(1), 5, 6)
    norms = draw_gradients.gradient_norms(model, x, y)
    assert norms.shape == (3, 2) and (norms > 0).all()
    _, dense, recurrent = model.layers[:3]
    weights = (dense.kernel, recurrent.cell.recurrent_kernel)
    for weight, norm in zip(weights, norms[0], strict=True):
        start, epsilon = weight.numpy(), 1e-3
        difference = np.zeros(start.shape)
        for index in np.ndindex(*start.shape):
            sides = []
            for sign in (1, -1):
                moved = start.copy()
                moved[index] += sign * epsilon
                weight.assign(moved)
                output = model(x, training=True).numpy()
                sides.append(np.mean(np.square(output - y, dtype="float64")))
            difference[index] = (sides[0] - sides[1]) / (2 * epsilon)
        weight.assign(start)
        assert np.linalg.norm(difference) == pytest.approx(norm, rel=0.02)


def test_prepare_with_noise():
    x = np.arange(2 * 784).reshape(2, 784).astype("uint8")
    rng = np.random.default_rng(3)
    y = sequential_mnist.prepare(x, None, 900, rng)
    assert y.shape == (2, 900, 1) and y.dtype == np.float32
    np.testing.assert_array_equal(y[:, :784], sequential_mnist.prepare(x))
    noise = y[:, 784:]
    assert -1 <= noise.min() < -0.8 and 0.8 < noise.max() <= 1
    assert (noise[0] != noise[1]).all()


def test_prepare():
    x = np.arange(2 * 784).reshape(2, 784).astype("uint8")
    y = sequential_mnist.prepare(x)
    assert y.shape == (2, 784, 1) and y.dtype == np.float32
    assert y.min() == -1 and y.max() == 1
    permutation = np.arange(784)[::-1]
    permuted = sequential_mnist.prepare(x, permutation)
    np.testing.assert_array_equal(permuted, y[:, ::-1])


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


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["No such file"]),
        (b"this is not an npz file", []),
        ({"x_test": np.zeros((3, 5), "uint8")}, ["x_test", "(3, 5)"]),
        ({"y_train": np.zeros(3, "uint8")}, ["y_train", "(3,)"]),
        ({"x_train": np.zeros((48, 28, 28))}, ["x_train", "float64"]),
        ({"y_test": np.full(48, 10)}, ["y_test", "10"]),
        ({"y_train": np.full(48, -3)}, ["y_train", "-3"]),
        ("npy", []),
        ("x_train", ["x_train"]),
        ("truncated", []),
    ],
)
def test_broken_mnist_is_one_line(content, words, tmp_path, capsys):
    path = tmp_path / "mnist.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        write_mnist(path, **content)
    elif content == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif content == "truncated":
        write_mnist(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content is not None:
        np.savez(path, x_test=np.zeros((1, 28, 28), "uint8"))
    argv = ["--data", str(path), "--out", str(tmp_path / "out")]
    code, error = run(sequential_mnist, argv, capsys)
    assert code == 2 and len(error.splitlines()) == 1
    assert "mnist.npz" in error
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "example, argv, word",
    [
        (addition_rnn, ["--time-steps", "1"], "time-steps"),
        (addition_rnn, ["--epochs", "0"], "at least 1, got 0"),
        (addition_rnn, ["--seed", "-1"], "at least 0, got -1"),
        (addition_rnn, ["--batch-size", "2.5"], "batch-size"),
        (addition_rnn, ["--learning-rate", "-1"], "positive, got -1"),
        (addition_rnn, ["--learning-rate", "nan"], "positive, got nan"),
        (addition_rnn, ["--model", "cnn"], "model"),
        (sequential_mnist, ["--dropout", "1"], "dropout"),
        (sequential_mnist, ["--pad-noise", "783"], "at least 784, got 783"),
        (sequential_mnist, ["--weight-decay", "-1"], "negative, got -1"),
        (sequential_mnist, ["--shift", "28"], "at most 27, got 28"),
        (sequential_mnist, ["--dilations", "0"], "at least 1, got 0"),
        (
            sequential_mnist,
            ["--model", "dilated_residual", "--dilations", "1", "2"],
            "odd number of them, got 2",
        ),
        (copy_memory, ["--cell", "elman"], "cell"),
        (copy_memory, ["--time-steps", "0"], "at least 1, got 0"),
        (draw_dilated_rnn, ["--time-steps", "0"], "at least 1, got 0"),
    ],
)
def test_bad_arguments(example, argv, word, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(argv)
    assert stop.value.code == 2 and word in capsys.readouterr().err


def test_hidden_and_dilations_must_agree(tmp_path, capsys):
    argv = [*COPY, "--hidden", "4", "5", "6", "--dilations", "1", "2"]
    code, error = run(copy_memory, [*argv, "--out", str(tmp_path)], capsys)
    assert code == 2 and "--hidden" in error and "3 for 2" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "example", [addition_rnn, copy_memory, sequential_mnist, draw_gradients]
)
def test_help_states_defaults(example, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    options = [line for line in text.splitlines() if line.startswith("  --")]
    assert len(options) >= 8
    assert text.count("default:") >= len(options) - 2  # --resume, --permute


def test_real_mnist():
    path = pathlib.Path(__file__).parents[2] / "shared/data/mnist.npz"
    if not path.exists():
        pytest.skip(f"needs the MNIST file {path.name}")
    (x, y), (x_test, y_test) = sequential_mnist.load_mnist(path)
    assert x.shape == (60000, 784) and x_test.shape == (10000, 784)
    assert np.bincount(y).min() > 5000 and set(y_test) == set(range(10))
