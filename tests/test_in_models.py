"""Every layer, in every place where users put it, on the backend Keras has.

Weights must start, and outputs must be, as in a layer that is built by hand.
Keras traces a subclassed model before it has weights: initializers then run in
a scratch graph first, and once more for the variables.
"""

import functools
import random
import tempfile

import keras
import numpy as np
import pytest

from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_normalization import (
    BatchNormalization,
    TimeStepBatchNormalization,
)
from indy import IndyGRU, IndyLSTM
from indy_cell import IndyGRUCell, IndyLSTMCell
from reset_rnn import Bidirectional, ResetRNN

B, T, F, N = 2, 4, 3, 5
LAYERS = {
    "IndRNN": lambda: IndRNN(N),
    "IndyLSTM": lambda: IndyLSTM(N),
    "IndyGRU": lambda: IndyGRU(N),
    "IndRNNCell": lambda: keras.layers.RNN([IndRNNCell(N), IndRNNCell(N)]),
    "IndyLSTMCell": lambda: keras.layers.RNN(IndyLSTMCell(N)),
    "IndyGRUCell": lambda: keras.layers.RNN(IndyGRUCell(N)),
    "ResetRNN": lambda: ResetRNN(IndRNNCell(N)),
    "Bidirectional": lambda: Bidirectional(IndRNN(N)),
    "DilatedRNN": lambda: DilatedRNN([IndRNN(N), keras.layers.LSTM(N)]),
    "DilatedRNN of SimpleRNN": lambda: DilatedRNN(
        [keras.layers.SimpleRNNCell(N), IndRNNCell(N)], return_sequences=True
    ),
    "BatchNormalization": BatchNormalization,
    "TimeStepBatchNormalization": lambda: TimeStepBatchNormalization(T),
    "stacked_ind_rnn": lambda: stacked_ind_rnn(
        (T, F), N, 2, normalization="batch"
    ),
    "residual_ind_rnn": lambda: residual_ind_rnn((T, F), N, 1),
    "dense_ind_rnn": lambda: dense_ind_rnn((T, F), 2, (1, 1)),
}
MASKED = (
    "IndRNN",
    "IndyLSTM",
    "IndyGRU",
    "ResetRNN",
    "Bidirectional",
    "DilatedRNN",
)


@keras.saving.register_keras_serializable(package="tests")
class Net(keras.Model):
    """A subclassed model: it does not know its layer's shapes."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x, training=False):
        return self.layer(x, training=training)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


@keras.saving.register_keras_serializable(package="tests")
class Block(Net, keras.layers.Layer):
    """A subclassed layer without `build`."""


def of_functional(layer, x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, Block(layer)(inputs)).predict(x, verbose=0)


def of_sequential(layer, x):
    model = keras.Sequential([Block(layer)])
    return model.predict(x, verbose=0)


def of_fit(layer, x):
    model = Net(layer)
    model.compile(keras.optimizers.SGD(0.0), lambda _, y: keras.ops.mean(y))
    fitted = model.fit(x, np.zeros(B), epochs=1, verbose=0)
    assert np.isfinite(fitted.history["loss"]).all()
    return model(x)


def of_nested_and_saved(layer, x):
    model = Net(Block(layer))
    y = model.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    np.testing.assert_allclose(to_numpy(loaded(x)), y, rtol=1e-5, atol=1e-6)
    return y


WAYS = {
    "predict": lambda layer, x: Net(layer).predict(x, verbose=0),
    "fit": of_fit,
    "eager": lambda layer, x: Net(layer)(x),
    "functional": of_functional,
    "Sequential": of_sequential,
    "nested twice, saved": of_nested_and_saved,
}


def to_numpy(y):
    return keras.ops.convert_to_numpy(y)


def made(name):
    random.seed(1)  # from which Keras draws its seeds
    return LAYERS[name]()


def data():
    return np.sin(1.7 * np.arange(1, B * T * F + 1)).reshape(B, T, F)


@functools.cache
def expected(name, moved=False):
    """Weights and outputs of a layer that is built by hand.

    `moved`: after one step of training with a learning rate of zero, which
    moves running statistics.
    """
    layer, x = made(name), data().astype("float32")
    if not layer.built:
        layer.build(x.shape)
    start = [np.array(w) for w in layer.get_weights()]
    if moved:
        layer(x, training=True)
    return start, to_numpy(layer(x))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_weights_and_outputs(name, way):
    layer = made(name)
    y = to_numpy(WAYS[way](layer, data()))
    weights, outputs = expected(name, moved=way == "fit")
    names = [w.path for w in layer.weights]
    for path, value, target in zip(
        names, layer.get_weights(), weights, strict=True
    ):
        if "moving" not in path and "trained" not in path:
            np.testing.assert_allclose(value, target, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(y, outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MASKED)
def test_mask_of_a_layer_before_beside_resets(name):
    """Padded steps do not count: eagerly, compiled, and in a loaded model."""
    tokens = np.array([[1, 2, 3, 0, 0], [4, 3, 2, 1, 3]])
    reset = np.zeros(tokens.shape, "bool")
    reset[:, 1] = True
    inputs = keras.Input((None,), dtype="int32"), keras.Input((None,))
    embedding = keras.layers.Embedding(5, F, mask_zero=True)
    y = made(name)(embedding(inputs[0]), reset=inputs[1])
    model = keras.Model(inputs, y)
    short = to_numpy(model([tokens[:1, :3], reset[:1, :3]]))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    given = [tokens, reset]
    for y in (
        model(given),
        model.predict(given, verbose=0),
        loaded.predict(given, verbose=0),
    ):
        np.testing.assert_allclose(to_numpy(y)[:1], short, rtol=1e-5, atol=1e-6)
