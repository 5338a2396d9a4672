"""The example on Penn Treebank: text, segments, carried states, results."""

import concurrent.futures
import itertools
import json
import math
import pathlib
import re
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import language_model as example
import penn_treebank
from runs import contents, history, main, refused, result, resumed

WORDS = "the a cat dog saw ate fish bird <unk> N".split()
V = 9  # symbols of the networks that are not trained
SMALL = ["--units", "4", "--embedding", "5", "--layers", "1", "--blocks", "1"]
SMALL += ["--growth", "1", "--block-sizes", "1", "--batch-size", "3"]
# Few lengths of segments: each one costs a compilation.
TINY = [*SMALL, "--time-steps", "1", "--epoch-steps", "1"]


def write_ptb(path, **texts):
    """Small files of the right form; none where None is given."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("valid", 25), ("test", 9)):
        lines = [
            " ".join(rng.choice(WORDS, rng.integers(3, 8)))
            for _ in range(count)
        ]
        text = "\n".join([*lines, " ".join(WORDS)])
        text = texts.get(part, text)
        if text is not None:
            (path / f"ptb.{part}.txt").write_text(text, encoding="latin-1")
    return str(path)


@pytest.fixture
def ptb(tmp_path):
    (tmp_path / "ptb").mkdir()
    return ["--data", write_ptb(tmp_path / "ptb")]


def parsed(*argv, level="char"):
    return example.parse(["--data", "-", "--level", level, *SMALL, *argv])


def randomise(model, seed=7):
    """Weights and statistics such that the past matters to the outputs."""
    rng = np.random.default_rng(seed)
    for w in model.weights:
        if w.name == "moving_variance":
            value = rng.uniform(0.5, 2, w.shape)
        elif w.name == "recurrent_kernel" and len(w.shape) == 1:
            value = rng.uniform(0.5, 1, w.shape)
        else:
            value = rng.normal(0, 0.5, w.shape)
        w.assign(value)
    return model


def text_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, V, length).astype("int32")


def nats(logits, y):
    """(B, T): the cross entropy of every single symbol."""
    logits = np.array(logits, "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(logits, y[:, :, None], axis=-1)[:, :, 0]


@pytest.mark.parametrize(
    "level, expected",
    [
        ("char", list("the_cat_sat\na_mat\n")),
        ("word", ["the", "cat", "sat", "\n", "a", "mat", "\n"]),
    ],
)
def test_load_text(level, expected, tmp_path):
    text = " the cat sat \n\n  a  mat\n  \n"
    parts = {"train": text, "valid": "a mat\n", "test": " the mat"}
    symbols, texts = penn_treebank.load_text(
        write_ptb(tmp_path, **parts), level
    )
    assert symbols == sorted(set(expected))
    assert [symbols[index] for index in texts["train"]] == expected
    assert all(texts[part].dtype == np.int32 for part in parts)
    assert [len(texts[part]) for part in ("valid", "test")] == (
        [6, 8] if level == "char" else [3, 3]
    )
    assert symbols[texts["test"][-1]] == penn_treebank.END
    text = penn_treebank.text_of(expected, level)
    assert text == "the cat sat\na mat\n"
    symbols = ["\n", "a", "\n", "\n", "b", "\n"]
    assert penn_treebank.text_of(symbols, level) == "\na\n\nb\n"


@pytest.mark.parametrize(
    "texts, words",
    [
        ({"valid": None}, ["ptb.valid.txt", "No such file"]),
        ({"train": "caf\xe9\n"}, ["ptb.train.txt", "utf-8"]),
        ({"train": "\n  \n"}, ["ptb.train.txt", "expected words, got none"]),
        ({"valid": "a zebra xyz\n"}, ["ptb.valid.txt", "'xyz', 'zebra'"]),
        # Too little for the rows of a batch
        ({"valid": "the cat saw\n"}, ["batch"]),
        ({"train": " ".join(WORDS), "valid": "a cat saw"}, ["batch"]),
    ],
)
def test_broken_text_is_one_line(texts, words, tmp_path, capsys):
    data, out = write_ptb(tmp_path, **texts), tmp_path / "out"
    argv = ["--level", "word", "--data", data, "--out", out]
    refused(example, argv, capsys, "--data", *words)
    assert not out.exists()


def test_real_text():
    path = pathlib.Path(__file__).parents[2] / "shared/data/ptb"
    if not path.exists():
        pytest.skip(f"needs the Penn Treebank in {path.name}")
    for level, count, lengths in (
        ("char", 50, [5_017_482, 393_042, 442_423]),
        ("word", 10_000, [929_589, 73_760, 82_430]),
    ):
        symbols, texts = penn_treebank.load_text(path, level)
        assert len(symbols) == count
        assert [len(texts[x]) for x in ("train", "valid", "test")] == lengths


@pytest.mark.parametrize(
    "length, time_steps",
    [(3000, 50), (500, 7), (30, 1)]
    + [(length, 50) for length in (2, 3, 49, 61, 75)],
)
def test_segments_cover_the_rows(length, time_steps):
    unit = max(1, time_steps // 10)
    most = time_steps + 2 * unit
    segments = penn_treebank.Segments(length, time_steps, 1)
    steps = [
        segments(step) for step in range(max(50, 5 * length // time_steps))
    ]
    starts = [step for step, (*_, first) in enumerate(steps) if first]
    for (_, before, _), (start, stop, first) in itertools.pairwise(steps):
        assert 0 <= start < stop <= length - 1
        assert start <= time_steps if first else start == before
        if length > most:
            assert unit <= stop - start <= most and (stop - start) % unit == 0
        if first:  # The pass before has used the whole rows.
            assert length - 1 - most < before
    assert starts[0] == 0 and len(starts) >= 4
    if time_steps > 1 and length > 100:
        passes = [steps[a:b] for a, b in itertools.pairwise(starts[:4])]
        assert passes[0] != passes[1] != passes[2]


def test_mean_length_of_segments():
    segments = penn_treebank.Segments(200_000, 50, 1)
    steps = [segments(step) for step in range(3500)]
    lengths = np.array([stop - start for start, stop, _ in steps])
    assert sum(first for *_, first in steps) == 1
    assert 0.95 < lengths.mean() / 50 < 1.0
    assert 0.02 < (lengths < 38).mean() < 0.09  # one in twenty of about half


def test_segments_depend_on_entropy_and_step_alone(monkeypatch):
    """A dataset reads ahead in a thread while the callback asks as well."""
    a, b, c, d = (
        penn_treebank.Segments(900, 20, *x) for x in ([3], [3], [4], [3])
    )
    expected = [a(step) for step in range(200)]
    assert [b(step) for step in reversed(range(200))] == expected[::-1]
    assert [c(step) for step in range(200)] != expected
    one_pass = penn_treebank.Segments.one_pass

    def slow(self, number):
        time.sleep(0.002)
        return one_pass(self, number)

    monkeypatch.setattr(penn_treebank.Segments, "one_pass", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        twice = [step for step in range(200) for _ in range(2)]
        found = list(threads.map(d, twice))
    assert found[::2] == found[1::2] == expected


@pytest.mark.parametrize("model", ["residual", "stacked", "dense", "lstm"])
def test_evaluate_counts_every_symbol_and_carries_states(model):
    judge = randomise(example.twin(parsed("--model", model), V, 2))
    text = text_of(2 * 60 + 1)
    rows = text[:-1].reshape(2, 60)
    x, y = rows[:, :-1], rows[:, 1:]
    example.reset_states(judge)
    expected, after_a_past = (nats(judge(x), y).mean() for _ in range(2))
    assert abs(after_a_past - expected) > 2e-5  # above the tolerance below
    for chunk in (7, 7, 100):  # 59 steps: the last chunk of 7 is one of 3
        found = example.evaluate(judge, text, chunk)
        assert found == pytest.approx(expected, abs=1e-5)


def test_symbol_dropout_drops_a_symbol_everywhere():
    layer = example.SymbolDropout(0.25, 200, seed=3)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 200, (8, 500))
    x = rng.normal(size=(8, 500, 3)).astype("float32")
    factor = np.array(layer([x, indices], training=True)) / x
    of_symbol = np.full(200, np.nan)
    of_symbol[indices] = factor[:, :, 0]
    expected = np.repeat(of_symbol[indices][:, :, None], 3, axis=-1)
    np.testing.assert_allclose(factor, expected, rtol=1e-5)
    kept = of_symbol > 0
    np.testing.assert_allclose(of_symbol[kept], 4 / 3, rtol=1e-5)
    assert (of_symbol[~kept] == 0).all() and 0.6 < kept.mean() < 0.9
    np.testing.assert_array_equal(layer([x, indices]), x)


def test_weights_are_tied():
    model = randomise(example.network(parsed("--model", "stacked"), V, 1))
    (matrix,) = [w for w in model.weights if set(w.shape) == {V, 5}]
    x = text_of(6)[None]
    np.testing.assert_array_equal(model.layers[1](x), matrix.numpy()[x])
    features = keras.Model(model.input, model.layers[-1].output)(x)
    example.reset_states(model)
    expected = features @ matrix.numpy().T
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["residual", "stacked", "dense", "lstm"])
def test_dropout_is_where_it_was_asked_for(model):
    argv = ["--dropout", "0.5", "--embedding-dropout", "0.1"]
    args = parsed("--model", model, *argv, "--last-dropout", "0.3")

    def rates(network):
        for layer in network.layers:
            if isinstance(layer, keras.Model):
                yield from rates(layer)
            elif isinstance(layer, keras.layers.Dropout) and layer.rate:
                yield round(layer.rate, 3)

    inner = {"residual": [0.5] * 3, "stacked": [0.5], "lstm": [0.5]}
    inner["dense"] = [0.1, 0.4, 0.5]
    found = sorted(rates(example.network(args, V, 2)))
    assert found == sorted([0.1, *inner[model], 0.3])


def schedule(args, history=(), segments=lambda step: (0, 1, False)):
    """A Schedule, its model, and a function of its learning rates."""
    model = types.SimpleNamespace(
        layers=[], optimizer=types.SimpleNamespace(), stop_training=False
    )
    callback = example.Schedule(args, history, segments, lambda model: 0)
    callback.set_model(model)

    def rate(batch):
        callback.on_train_batch_begin(batch)
        return model.optimizer.learning_rate / args.learning_rate

    return callback, model, rate


def rows_of(losses, seconds=0.0):
    return [{"val_loss": loss, "seconds": seconds} for loss in losses]


COSINE = ["--schedule", "cosine", "--epochs", "4"]


@pytest.mark.parametrize(
    "argv, losses, batch, expected",
    [
        # The warm-up
        ([], [], 0, 1 / 200),
        ([], [], 99, 0.5),
        ([], [3], 0, 151 / 200),
        ([], [3], 140, 1),
        (COSINE, [3, 3], 0, 0.5),
        (COSINE, [3, 3, 3], 149, 0),
        # Plateaus
        (["--patience", "2"], [3, 2, 2], 7, 1),
        (["--patience", "1"], [3, 4, 5], 7, 0.04),
        (["--patience", "2"], [3, 4, 2, 3], 7, 1),
        # Better than before is not a new best.
        (["--patience", "2"], [3, 4, 5, 4, 5], 7, 0.04),
        (["--patience", "2"], [3, 4, 5, 2, 3, 4, 5], 7, 0.04),
        (["--patience", "2"], [1, math.nan, math.nan], 7, 0.2),
    ],
)
def test_learning_rate(argv, losses, batch, expected):
    args = parsed("--epoch-steps", "150", *argv)
    *_, rate = schedule(args, rows_of(losses))
    assert rate(batch) == pytest.approx(expected, abs=1e-5)


def test_the_time_decides_with_minutes(monkeypatch):
    now = [100.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(example, "time", clock)
    args = parsed("--schedule", "cosine", "--minutes", "2")
    callback, model, rate = schedule(args, rows_of([3], seconds=50.0))
    now[0] += 10
    assert rate(0) == pytest.approx(0.5)
    callback.on_train_batch_end(0)
    assert not model.stop_training
    now[0] += 60
    callback.on_train_batch_end(1)
    assert model.stop_training and rate(2) == pytest.approx(0)
    now[0] += 60
    assert rate(3) == pytest.approx(0)


def test_states_are_reset_before_an_epoch_and_a_pass():
    resets = []
    layer = types.SimpleNamespace(stateful=True)
    layer.reset_state = lambda: resets.append(batch)
    _, model, rate = schedule(
        parsed("--epoch-steps", "10"),
        rows_of([3]),
        lambda step: (0, 1, step in (12, 15)),
    )
    model.layers.append(layer)
    for batch in range(7):
        rate(batch)
    assert resets == [0, 2, 5]


def test_defaults_depend_on_the_level():
    argv = ["--data", "-", "--level", "word", "--dropout", "0", "--units", "7"]
    args = example.parse(argv)
    assert (args.dropout, args.units, args.layers) == (0, 7, 2)


@pytest.mark.parametrize(
    "model, level",
    [
        ("stacked", "char"),
        pytest.param("lstm", "word", marks=pytest.mark.slow),
    ],
)
def test_results_of_a_killed_run(
    model, level, ptb, tmp_path, monkeypatch, capsys
):
    """All again, with the network of the best epoch, which is not the last."""
    argv = [*ptb, *TINY, "--model", model, "--level", level, "--epochs", 3]
    argv += ["--dropout", 0.3, "--embedding-dropout", 0.2]
    argv += ["--last-dropout", 0.3, "--patience", 1, "--epoch-steps", 3]
    argv += ["--learning-rate", 100, "--sample", 7, "--dynamic"]
    out = resumed(example, argv, tmp_path, monkeypatch)
    args = example.parse([str(word) for word in argv])
    metrics, printed = result(out)["metrics"], capsys.readouterr().out
    symbols, texts = penn_treebank.load_text(ptb[1], level)
    best = keras.models.load_model(out / "best.keras", compile=False)
    judge, reader = (
        example.twin(args, len(symbols), rows, source=best) for rows in (10, 1)
    )
    text = example.sample(args, reader, symbols, 7)
    assert len(re.findall(r"\S+|\n" if level == "word" else "(?s).", text)) == 7
    assert text in printed
    rows = history(out)
    losses = [row["val_loss"] for row in rows]
    assert rows[0]["learning_rate"] == pytest.approx(100 * 3 / 200)
    found = {
        "validation": example.evaluate(judge, texts["valid"]),
        "test": example.evaluate(reader, texts["test"]),
        "dynamic": example.dynamic_evaluation(
            args, reader, texts["test"], texts["train"]
        ),
    }
    assert found["validation"] == pytest.approx(min(losses))
    assert losses[-1] > min(losses)
    weights = reader.trainable_weights
    expected = {"parameters": sum(np.prod(w.shape) for w in weights)}
    for part, value in found.items():
        name = {"char": "bpc", "word": "perplexity"}[level]
        score = math.exp(value) if level == "word" else value / math.log(2)
        expected[f"{part}_{name}"] = pytest.approx(score, rel=1e-5)
    assert metrics == expected
    main(example, [*ptb, "--level", level, "--evaluate", out])
    del metrics[f"dynamic_{name}"]
    assert json.loads(capsys.readouterr().out) == pytest.approx(metrics)


def test_sample_follows_the_seed_and_the_temperature():
    args = parsed()
    symbols = [penn_treebank.END, *"abcdefg", "_"]
    reader = randomise(example.twin(parsed("--model", "stacked"), V, 1))
    text = example.sample(args, reader, symbols, 12)
    args.seed = 2
    assert example.sample(args, reader, symbols, 12) != text
    # Nearly at 0 it is the likeliest symbol, whatever the seed.
    args.temperature = 1e-4
    cold = example.sample(args, reader, symbols, 9)
    example.reset_states(reader)
    index, likeliest = 0, []
    for _ in range(9):
        logits = np.array(reader(np.array([[index]], "int32")))[0, -1]
        index = int(logits.argmax())
        likeliest.append(symbols[index])
    assert cold == "".join(likeliest).replace("_", " ")


def test_resuming_a_finished_run_trains_no_further(ptb, tmp_path):
    """Its time has ended; what comes after the training may differ."""
    out = tmp_path / "out"
    argv = [*ptb, *TINY, "--level", "word", "--model", "stacked"]
    argv += ["--minutes", "0.002", "--schedule", "cosine", "--epochs", 2]
    argv += ["--out", out]
    main(example, argv)
    before, files = result(out), contents(out)
    assert len(history(out)) == before["steps"] == 1
    main(example, argv, "--resume", "--sample", 5)
    for name in ("history.csv", "checkpoint.keras", "best.keras"):
        assert contents(out)[name] == files[name]
    del before["arguments"]
    assert before.items() <= result(out).items()


def test_dynamic_evaluation_equals_its_formula():
    rate, decay = 1e-3, 0.4  # beyond the clip for some weights
    argv = ["--dynamic-rate", str(rate), "--dynamic-decay", str(decay)]
    args = parsed("--model", "stacked", *argv)
    model = randomise(example.twin(args, V, 1))
    bound = args.recurrent_max_abs
    for layer in example.stateful_layers(model):
        layer.cell.recurrent_kernel.assign([bound] * 4)
    text, training_text = text_of(55), text_of(70, 1)
    weights = [w.value for w in model.trainable_weights]
    start = [w.numpy() for w in weights]

    def segments(text):
        example.reset_states(model)
        for first in range(0, len(text) - 1, 20):
            x, y = text[:-1][first:][:20], text[1:][first:][:20]
            with tf.GradientTape() as tape:
                scores = model(x[None])
                losses = keras.ops.sparse_categorical_crossentropy(
                    y[None], scores, from_logits=True
                )
                loss = keras.ops.mean(losses)
            gradients = tape.gradient(loss, weights)
            yield losses, [np.array(tf.convert_to_tensor(g)) for g in gradients]

    of_training = [gradients for _, gradients in segments(training_text)]
    roots = [
        np.sqrt(np.mean(np.square(gradients), axis=0))
        for gradients in zip(*of_training, strict=True)
    ]
    mean = np.mean([r.mean() for r in roots])
    assert any((decay * r / mean > 1).any() for r in roots)
    losses, beyond = [], 0
    for of_segment, gradients in segments(text):
        losses += list(np.array(of_segment)[0])
        for w, g, r, w0 in zip(weights, gradients, roots, start, strict=True):
            value = w.numpy() - rate * g / (r + 1e-5)
            pull = np.minimum(r / mean, 1 / decay)
            value += decay * pull * (w0 - w.numpy())
            if "recurrent_kernel" in w.name:
                beyond += (abs(value) > bound).sum()
                value = np.clip(value, -bound, bound)
            w.assign(value)
    expected = [w.numpy() for w in weights]
    others = [w.numpy() for w in model.non_trainable_weights]
    for w, value in zip(weights, start, strict=True):
        w.assign(value)
    found = example.dynamic_evaluation(args, model, text, training_text)
    assert len(losses) == 54 and beyond
    assert found == pytest.approx(np.mean(losses), abs=1e-5)
    for w, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(w.numpy(), value, rtol=1e-4, atol=1e-5)
    for w, value in zip(model.non_trainable_weights, others, strict=True):
        np.testing.assert_array_equal(w, value)
