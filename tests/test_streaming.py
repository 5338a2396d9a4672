"""streaming.py: step models, LiteRT files of them, the example, its errors."""

import functools

import keras
import numpy as np
import pytest

import streaming
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from indy import IndyGRU, IndyLSTM
from pairs import RMS, fill
from runs import main, result
from test_examples import write_mnist

T, F = 7, 3


def filled(model):
    fill(model.weights, scale=0.8)
    return model


def sequential(*layers):
    return filled(keras.Sequential([keras.Input((T, F)), *layers]))


def stack(layer):
    return sequential(
        layer(5, return_sequences=True),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        layer(4),
        keras.layers.Dense(2),
    )


RECURRENT = [
    IndRNN,
    IndyLSTM,
    IndyGRU,
    keras.layers.LSTM,
    keras.layers.GRU,
    keras.layers.SimpleRNN,
]
MODELS = {
    **{layer.__name__: lambda layer=layer: stack(layer) for layer in RECURRENT},
    "stacked": lambda: filled(
        stacked_ind_rnn((T, F), 4, 2, 2, normalization="batch")
    ),
    "residual": lambda: filled(
        residual_ind_rnn((T, F), 4, 2, 2, normalization="batch")
    ),
    "dense": lambda: filled(dense_ind_rnn((T, F), 2, (2, 1), 2)),
    "rms": lambda: filled(stacked_ind_rnn((T, F), 4, 2, 2, normalization=RMS)),
    "all steps": lambda: filled(
        stacked_ind_rnn((T, F), 4, 2, 2, return_sequences=True)
    ),
    "mean": lambda: sequential(
        IndRNN(4, return_sequences=True),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2),
    ),
    "cells": lambda: sequential(
        keras.layers.RNN([keras.layers.GRUCell(3), keras.layers.LSTMCell(2)])
    ),
}
SEQUENCES = np.random.default_rng(1).normal(size=(6, T, F)).astype("float32")


@functools.cache
def made(name):
    """A model, its step model, and the states to begin with."""
    model = MODELS[name]()
    return model, *streaming.step_model(model)


def stepped(step, states, x):
    """Outputs and states after each step of a sequence."""
    for x_t in x:
        states = step({"x": keras.ops.convert_to_tensor(x_t[None]), **states})
        y = states.pop("y")
        yield y[0], states


@pytest.mark.parametrize("name", MODELS)
def test_steps_give_what_the_sequence_gives(name):
    model, step, start = made(name)
    for x in SEQUENCES[:2]:
        expected = model(x[None])[0]
        found = [y for y, _ in stepped(step, start, x)]
        found = found if len(expected.shape) > 1 else found[-1]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert {*start} == {f"h{n}" for n in range(len(start))} != set()


@pytest.mark.parametrize("name", ["LSTM", "mean"])
def test_float32_file_equals_keras(name):
    model, step, _ = made(name)
    stream = streaming.Stream(streaming.convert(step))
    for x in SEQUENCES[:2]:  # which also shows that `run` begins anew
        expected = model(x[None])[0]
        np.testing.assert_allclose(stream.run(x), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["IndRNN", "stacked"])
def test_units_of_states_change_nothing(name):
    model, step, start = made(name)
    units = streaming.state_units(step, SEQUENCES)
    assert {*units} >= {*start}
    steps = [*stepped(*streaming.step_model(model, units), SEQUENCES[0])]
    expected = model(SEQUENCES[:1])[0]
    np.testing.assert_allclose(steps[-1][0], expected, rtol=1e-4, atol=1e-5)
    for name in start:
        assert 0.1 < np.max([np.abs(h[name]) for _, h in steps[:-1]]) < 1.001


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([IndRNN(3)]), "one input"),
        (lambda: stacked_ind_rnn((T, F), 3, 1, reset=True), "one input"),
        (lambda: sequential(DilatedRNN([IndRNN(3)])), "DilatedRNN"),
        (lambda: sequential(keras.layers.Conv1D(2, 3)), "Conv1D"),
        (lambda: sequential(IndRNN(3, go_backwards=True)), "`go_backwards"),
        (
            lambda: sequential(
                IndRNN(3, return_sequences=True),
                keras.layers.BatchNormalization(axis=1),
            ),
            "axis",
        ),
        (lambda: keras.Model(x := keras.Input((T, F)), x[:, 0]), "slice"),
    ],
)
def test_what_cannot_be_turned(make, message):
    with pytest.raises(ValueError, match=f"`model`.*{message}"):
        streaming.step_model(make())


def test_errors_of_convert():
    _, step, _ = made("IndRNN")
    for kind, message in ("int4", "`kind`.*int4"), ("int8", "`sequences`"):
        with pytest.raises(ValueError, match=message):
            streaming.convert(step, kind)


@pytest.mark.parametrize(
    "model", ["indrnn", pytest.param("lstm", marks=pytest.mark.slow)]
)
def test_from_training_to_files(model, tmp_path):
    argv = "--units 40 --layers 2 --epochs 3 --batch-size 6 --examples 30"
    argv = [*argv.split(), "--digits", 20, "--model", model]
    argv += ["--data", write_mnist(tmp_path / "digits.npz", 60)]
    main(streaming, argv, "--out", tmp_path)
    metrics = result(tmp_path)["metrics"]
    assert {*metrics} == {"keras", *streaming.FORMATS}
    assert metrics["float32"]["difference"] < 1e-4
    sizes = []
    for kind in streaming.FORMATS:
        assert metrics[kind]["difference"] < 0.5
        assert metrics[kind]["same_answers"] >= 0.9
        path = tmp_path / f"step_{kind}.tflite"
        sizes.append(round(path.stat().st_size / 1024, 1))
        assert sizes[-1] == metrics[kind]["kilobytes"]
    # Each one is another format: float32 takes most space.
    assert sizes[0] == max(sizes) and len({*sizes}) == 4
