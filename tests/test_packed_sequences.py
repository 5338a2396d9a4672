"""examples/packed_sequences.py: four ways to batch sentences, one function."""

import collections
import itertools

import keras
import numpy as np
import pytest

import packed_sequences as example
from cases import each_value
from packed_sequences import BATCHES, END, LAYERS, PADDING
from runs import history, refused, result, resumed
from test_language_model import write_ptb

SMALL = "--units 4 --embedding 3 --symbols 60 --time-steps 16".split()


def parsed(*argv):
    return example.parse(["--data", "-", *SMALL, *argv])


def sentences(*sizes):
    """Of the symbols 2, 3, 4, ... and an end each."""
    return [np.array([END, *range(2, size + 1), END]) for size in sizes]


def draw(name, found, epoch=0):
    rng = np.random.default_rng(epoch)
    return BATCHES[name](parsed("--batches", name), found, rng)


def test_sentences_of_a_text(tmp_path):
    data = write_ptb(
        tmp_path, train="ab  a \n\n c b\n", valid="c\n", test="b\n"
    )
    symbols, found = example.load_sentences(data)
    assert symbols[END] == "\n" and sorted(symbols[2:]) == list("_abc")
    assert None is symbols[PADDING]
    text = [["\n" + "ab_a" + "\n", "\nc_b\n"], ["\nc\n"]]
    for part, lines in zip(("train", "valid"), text, strict=True):
        written = ["".join(symbols[i] for i in line) for line in found[part]]
        assert written == lines
        assert all(line.dtype == "int32" for line in found[part])


def pieces(x):
    """(row, start, stop) of each sentence in rows (B, T)."""
    for row, inputs in enumerate(x):
        size = np.count_nonzero(inputs)
        assert not inputs[size:].any()
        starts = np.flatnonzero(inputs == END)
        assert size == 0 or starts[0] == 0
        for start, stop in itertools.pairwise([*starts, size]):
            yield row, start, stop


@pytest.mark.parametrize("name", BATCHES)
def test_batches_hold_each_sentence_once(name):
    found = sentences(*range(1, 15), *range(2, 20, 2))
    epochs = [draw(name, found, epoch) for epoch in range(3)]
    assert len({len(batches) for batches in epochs}) == 1
    orders = []
    for batches in epochs:
        rows = batches
        if name == "stream":  # segments of the same rows
            x, y = (np.concatenate(z, axis=1) for z in zip(*batches))
            assert {z.shape[1] for z, _ in batches} == {16}
            rows = [(x, y)]
        read = []
        for x, y in rows:
            assert x.dtype == y.dtype == "int32" and x.shape == y.shape
            np.testing.assert_array_equal(x == PADDING, y == PADDING)
            for row, start, stop in pieces(x):
                part = [*x[row, start:stop], y[row, stop - 1]]
                assert part[1:] == [*y[row, start:stop]]
                read.append(tuple(int(i) for i in part))
        assert collections.Counter(read) == collections.Counter(
            tuple(map(int, sentence)) for sentence in found
        )
        orders.append(read)
    assert orders[0] != orders[1] and orders[1] != orders[2]
    share = example.padding(epochs[0])
    steps = sum(y.size for _, y in epochs[0])
    assert share == pytest.approx(1 - sum(map(example.size, found)) / steps)
    ends_alone = {"padded": 18, "bucketed": 32}
    if name in ends_alone:
        assert {x.shape[1] for x, _ in epochs[0]} == {ends_alone[name]}


def test_rows_that_get_no_sentence():
    x, y = draw("stream", sentences(9, 2))[0]
    assert x.shape == (4, 16)
    assert np.count_nonzero(x) == 11
    assert sorted(np.count_nonzero(x, axis=1))[:2] == [0, 0]


def test_packing():
    found = sentences(5, 4, 3, 3, 2, 2, 1)
    rows = example.pack(found, 5)
    sizes = [[*map(example.size, row)] for row in rows]
    assert sizes == [[5], [4, 1], [3, 2], [3, 2]]


def test_bits_per_character():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 3, 4)).astype("float32")
    y = np.array([[1, 3, 0], [2, 0, 0]])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    bits = -np.log2([p[0, 0, 1], p[0, 1, 3], p[1, 0, 2]])
    metric = example.BitsPerCharacter()
    metric.update_state(y[:1, :2], logits[:1, :2])  # another length
    metric.update_state(y[1:], logits[1:])
    assert float(metric.result()) == pytest.approx(bits.mean(), rel=1e-5)


@pytest.mark.parametrize("model, name", each_value(LAYERS, BATCHES))
def test_each_sentence_is_read_alone(model, name):
    found = sentences(7, 3, 18, 1, 12, 5, 9)
    args = parsed("--model", model, "--batches", name)
    batches = draw(name, found)
    rows = len(batches[0][0]) if name == "stream" else None
    network = example.build_model(args, 20, rows)
    rng = np.random.default_rng(2)
    for weight in network.weights:
        weight.assign(rng.normal(size=weight.shape))
    alone = example.build_model(args, 20)
    alone.set_weights(network.get_weights())
    if name == "stream":  # the states of another epoch
        network.predict_on_batch(batches[-1][0][:, ::-1])
    logits = [network.predict_on_batch(x) for x, _ in batches]
    parts = [(x, z) for (x, _), z in zip(batches, logits, strict=True)]
    if name == "stream":
        parts = [[np.concatenate(z, axis=1) for z in zip(*parts)]]
    count = 0
    for x, of_batch in parts:
        for row, start, stop in pieces(x):
            expected = alone.predict_on_batch(x[[row], start:stop])
            np.testing.assert_allclose(
                of_batch[row, start:stop], expected[0], rtol=1e-4, atol=1e-5
            )
            count += 1
    assert count == len(found)


SLOW = ("padded", "lstm"), ("bucketed", "indygru"), ("packed", "indrnn")


@pytest.mark.parametrize(
    "name, model",
    [("stream", "indylstm")]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_results_of_a_killed_run(name, model, tmp_path, monkeypatch):
    argv = ["--data", write_ptb(tmp_path), *SMALL, "--batches", name]
    argv += ["--model", model, "--epochs", 2, "--sentences", 30]
    argv += ["--layers", 1]
    out = resumed(example, argv, tmp_path, monkeypatch)
    metrics, rows = result(out)["metrics"], history(out)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert 0 < metrics["padding"] < 1
    assert metrics["validation_bpc"] == min(row["val_bpc"] for row in rows)
    stream = metrics.get("test_bpc_of_a_stream")
    if model == "lstm":
        assert stream is None
    else:
        assert stream == pytest.approx(metrics["test_bpc"], rel=1e-4)
    best = keras.models.load_model(out / "best.keras")
    assert best.input_shape[1] is None


@pytest.mark.parametrize("name", ["packed", "stream"])
def test_layers_without_resets_are_refused(name, capsys):
    argv = ["--data", "-", "--model", "gru", "--batches", name]
    refused(example, argv, capsys, "gru has no resets", f"got {name}")
