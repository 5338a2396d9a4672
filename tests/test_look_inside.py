"""look_inside.py: memory lengths, the states of any network, and errors."""

import math

import keras
import numpy as np
import pytest

import look_inside
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from runs import main, refused
from test_examples import write_mnist

T, F, N = 6, 2, 5
# Both signs, the bound, and beyond: none is zero.
U = np.array([0.1, -0.5, 0.9, 1.0, -1.1], "float32")
X = np.sin(1 + np.arange(T * F)).reshape(T, F).astype("float32")


@keras.saving.register_keras_serializable()
class Fixed(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(U, dtype)


def recurrent(**options):
    return IndRNN(
        N, recurrent_initializer=Fixed(), bias_initializer="ones", **options
    )


def states(layer, x, dilation=1):
    """What the docstring of `IndRNNCell` says, in NumPy: (T, N)."""
    kernel, u, bias = layer.get_weights()
    h = [np.zeros(N)] * dilation
    for x_t in x[::-1] if layer.go_backwards else x:
        h.append(np.maximum(x_t @ kernel + u * h[-dilation] + bias, 0))
    h = np.stack(h[dilation:])
    return h[::-1] if layer.go_backwards else h


def test_memory_lengths():
    # 0.1^2 = 0.01, 0.01^1, (-0.1)^2, 0.5^6.64, 0.9^43.7
    found = look_inside.memory_lengths([0.1, 0.01, -0.1, 0.5, 0.9, 0.0])
    expected = [2, 1, 2, math.log2(100), 43.708691, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.isinf(look_inside.memory_lengths([1.0, -1.0, 1.5]))).all()


def inner(layer):
    """A network within a network, in which the layer is."""
    return keras.Sequential([keras.Input((T, F)), layer, keras.layers.ReLU()])


NETWORKS = {
    "plain": lambda layer: layer,
    "twice nested": lambda layer: inner(inner(layer)),
    "bidirectional": keras.layers.Bidirectional,
    "dilated, of no whole rounds": lambda layer: DilatedRNN(
        [layer], dilations=[4], return_sequences=True
    ),
    "keras' RNN": lambda layer: keras.layers.RNN(
        layer.cell,
        return_sequences=layer.return_sequences,
        go_backwards=layer.go_backwards,
    ),
}


CASES = [(kind, {}) for kind in NETWORKS]
for kind in ("plain", "keras' RNN"):
    CASES += [
        (kind, {"return_sequences": True}),
        (kind, {"go_backwards": True}),
    ]


@pytest.mark.parametrize("kind, options", CASES, ids=str)
def test_responses(kind, options):
    model = keras.Sequential(
        [keras.Input((T, F)), NETWORKS[kind](recurrent(**options))]
    )
    before = model(X[None])
    layers = look_inside.recurrent_layers(model)
    assert len(layers) == (2 if kind == "bidirectional" else 1)
    found = look_inside.responses(model, layers, X)
    assert set(found) == set(layers)
    for layer, dilation in layers.items():
        expected = states(layer, X, dilation)
        assert (expected[:, :3] > 0).any()
        # A dilated layer is filled up to whole rounds.
        np.testing.assert_allclose(found[layer][:T], expected, atol=1e-5)
    # The model is as it was.
    np.testing.assert_array_equal(model(X[None]), before)


def test_stateful_models_have_their_batch():
    model = keras.Sequential(
        [keras.Input(batch_shape=(3, T, F)), recurrent(stateful=True)]
    )
    layers = look_inside.recurrent_layers(model)
    (found,) = look_inside.responses(model, layers, X).values()
    np.testing.assert_allclose(found, states(model.layers[0], X), atol=1e-5)


@pytest.fixture
def model(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((T, F)),
            recurrent(return_sequences=True, recurrent_max_abs=1.0),
            recurrent(),
            keras.layers.Dense(1),
        ]
    )
    model.save(tmp_path / "checkpoint.keras")
    return model


def test_draws_what_it_prints(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", X)
    out = tmp_path / "new" / "look.png"
    argv = [tmp_path, "--sequence", tmp_path / "x.npy", "--out", out]
    main(look_inside, argv)
    printed = capsys.readouterr().out.splitlines()
    # The median of 2, 6.6, 43.7 and two that never decay.
    first, second = (layer.name for layer in model.layers[:2])
    assert printed[2:] == [
        f"| {first} | 5 | 44 steps | 40% | 40% |",
        f"| {second} | 5 | 44 steps | 40% | 40% |",
        str(out),
    ]
    assert out.stat().st_size > 1000


def test_pictures_hold_the_data(model):
    layers = look_inside.recurrent_layers(model)
    bottom, top = layers
    weights = {layer: np.array(layer.get_weights()[1]) for layer in layers}
    found = look_inside.responses(model, layers, X)
    figure = look_inside.draw(layers, weights, found, X)
    # Top layer first, the input below.
    memory, picture = figure.axes[0], figure.axes[1]
    assert memory.get_ylabel() == top.name
    points = np.concatenate([line.get_xydata() for line in memory.lines[:2]])
    steps = sorted(map(tuple, points), key=lambda point: point[1])
    np.testing.assert_allclose(
        [step for step, _ in steps[:3]], [2, math.log2(100), 43.7087], rtol=1e-5
    )
    assert steps[3][0] == steps[4][0] > 44  # at "never"
    h = found[top].T  # U is in the order of |u|
    shares = picture.images[0].get_array()
    assert h.max() > 1.1 and np.abs(shares).max() == 1
    np.testing.assert_allclose(
        shares * np.abs(h).max(axis=1, keepdims=True), h, atol=1e-6
    )
    assert len(figure.axes[-1].lines) == F
    assert len(look_inside.draw(layers, weights).axes) == 2


@pytest.mark.parametrize("what", ["adding", "digits.npz"])
def test_sequences_of_the_examples(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "digits.npz")
    shape = (8, 2) if what == "adding" else (784, 1)
    keras.Sequential([keras.Input(shape), recurrent()]).save("best.keras")
    argv = [".", "--sequence", what, "--index", 47]
    main(look_inside, argv)
    assert (tmp_path / "out/look_inside.png").stat().st_size > 1000
    if what != "adding":
        argv[-1] = 48
        refused(look_inside, argv, capsys, "--index must be below 48")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere.keras"], "nowhere.keras"),
        (["."], "expected a best.keras or a checkpoint.keras"),
        (["broken.keras"], "broken.keras"),
        (["lstm.keras"], "expected a network with IndRNN layers, got one of"),
        (["two.keras", "--sequence", "x.npy"], "a model of one input"),
        (["one.keras", "--sequence", "none.npy"], "none.npy"),
        (["one.keras", "--sequence", "broken.keras"], "broken.keras"),
        (["one.keras", "--sequence", "x.npy"], "needs one of shape (6, 3)"),
        (["one.keras", "--sequence", "adding"], "needs one of shape (6, 3)"),
        (["one.keras", "--out", "look.nothing"], "--out look.nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 not really")
    inputs = [keras.Input((T, 3)) for _ in range(2)]
    one = recurrent()(inputs[0])
    keras.Model(inputs[0], one).save("one.keras")
    keras.Model(inputs, keras.layers.add([one, recurrent()(inputs[1])])).save(
        "two.keras"
    )
    keras.Sequential([keras.Input((T, 3)), keras.layers.LSTM(2)]).save(
        "lstm.keras"
    )
    refused(look_inside, argv, capsys, message)
