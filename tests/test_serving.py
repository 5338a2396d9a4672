"""Models in files: saved, exported, converted, and fed by steps."""

import functools
import itertools
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import DilatedRNN, dilated_rnn
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import with_xla
from pairs import RMS, assert_close, data, fails_on, fill, reloaded, softsign

B, T, F = 2, 9, 3


def sequential(*layers, time=T):
    return keras.Sequential([keras.Input((time, F)), *layers])


def deep(network, **options):
    options |= {"num_outputs": 2, "kernel_initializer": "glorot_uniform"}
    return network((T, F), **options)


MODELS = {
    "IndRNN": lambda: sequential(
        IndRNN(
            4,
            activation=softsign,
            return_sequences=True,
            recurrent_min_abs=0.2,
            recurrent_max_abs=0.5,
            dropout=0.2,
            recurrent_dropout=0.2,
        ),
        IndRNN(4, activation="tanh", use_kernel=False, go_backwards=True),
    ),
    "IndRNN, masked": lambda: sequential(
        keras.layers.Masking(), IndRNN(4), keras.layers.Dense(2)
    ),
    "IndRNN, any T": lambda: sequential(IndRNN(4), time=None),
    "RNN": lambda: sequential(
        keras.layers.RNN([IndRNNCell(5), IndRNNCell(4, use_bias=False)])
    ),
    "Bidirectional": lambda: sequential(keras.layers.Bidirectional(IndRNN(4))),
    "DilatedRNN": lambda: sequential(
        DilatedRNN(
            [keras.layers.LSTM(4), keras.layers.SimpleRNNCell(5), IndRNN(6)],
            dilations=[1, 2, 5],
        ),
    ),
    "dilated_rnn": lambda: sequential(dilated_rnn("RNN", [4, 5], [2, 4])),
    "stacked": lambda: deep(
        stacked_ind_rnn,
        units=4,
        num_layers=2,
        dilations=[1, 2],
        normalization="batch",
    ),
    "residual": lambda: deep(
        residual_ind_rnn, units=4, num_blocks=1, normalization=RMS
    ),
    "dense": lambda: deep(
        dense_ind_rnn, growth_rate=2, block_sizes=(1,), dropout=0.2
    ),
    "statistics of steps": lambda: deep(
        stacked_ind_rnn,
        units=4,
        num_layers=2,
        normalization="batch",
        max_steps=6,
    ),
}


@functools.cache
def model(kind):
    result = MODELS[kind]()
    fill(result.weights, scale=0.7)
    return result


def sequences(batch=B, time=T):
    x = data(batch, time, F).astype("float32")
    x[0, -2:] = 0  # masked, where there is a mask
    return x


def same(actual, expected, name=""):
    assert np.abs(expected).max() > 0.01
    assert_close(actual, expected, 1e-5, name)


@pytest.mark.parametrize("kind", MODELS)
def test_saved_and_cloned_models(kind, tmp_path):
    x, path = sequences(), tmp_path / "model.weights.h5"
    expected = model(kind)(x)
    loaded = reloaded(model(kind), tmp_path)
    np.testing.assert_array_equal(loaded(x), expected)

    model(kind).save_weights(path)
    other = MODELS[kind]()
    assert not np.array_equal(other(x), expected)
    other.load_weights(path)
    np.testing.assert_array_equal(other(x), expected)

    clone = keras.models.clone_model(model(kind))
    clone.set_weights(model(kind).get_weights())
    np.testing.assert_array_equal(clone(x), expected)

    saved = tf.train.Checkpoint(model(kind)).write(str(tmp_path / "saved"))
    fill(other.weights, scale=0.1)
    status = tf.train.Checkpoint(other).read(saved)
    status.assert_existing_objects_matched()
    if kind != "RNN":  # Keras restores nothing of what it holds in a list.
        np.testing.assert_array_equal(other(x), expected)


def needs_xla(path):
    """Whether a SavedModel has an operation, or a function, of XLA's."""
    return b"Xla" in (path / "saved_model.pb").read_bytes()


SERVER = """
import os
import sys

import numpy as np
import tensorflow as tf

for name in os.listdir():
    served = tf.saved_model.load(f"{name}/served")
    serve = served.signatures["serving_default"]
    ((argument, _),) = serve.structured_input_signature[1].items()
    for batch in (2, 5):
        x = tf.constant(np.load(f"{name}/x{batch}.npy"))
        (y,) = serve(**{argument: x}).values()
        np.save(f"{name}/y{batch}.npy", y)
assert not {"ind_rnn", "ind_rnn_cell", "dilated_rnn"} & {*sys.modules}
"""


def serve_without_xla(path):
    """SERVER in a process that ends at its first program of XLA's."""
    return subprocess.run(
        [sys.executable, "-c", SERVER],
        cwd=path,
        env={**os.environ, "XLA_FLAGS": "--there_is_no_xla"},
        capture_output=True,
        text=True,
    )


def archive(model, path):
    exporter = keras.export.ExportArchive()
    exporter.track(model)
    signature = [tf.TensorSpec((None, *model.input_shape[1:]))]
    exporter.add_endpoint("serve", model.call, signature)
    exporter.write_out(path, verbose=False)


EXPORTS = {
    "model.export": lambda model, path: model.export(path, verbose=False),
    "ExportArchive": archive,
    "tf.saved_model.save": lambda model, path: tf.saved_model.save(
        model, str(path)
    ),
}


def export_and_serve(exports, folder):
    """Export (kind, how), and have a process without XLA serve them."""
    for kind, export in exports:
        (folder / kind).mkdir()
        export(model(kind), folder / kind / "served")
        for batch in (2, 5):
            np.save(folder / kind / f"x{batch}.npy", sequences(batch))
    return serve_without_xla(folder)


@pytest.mark.slow
def test_exported_models_need_neither_xla_nor_ours(tmp_path):
    """In a process without both, with batches of any size."""
    exports = zip(MODELS, itertools.cycle(EXPORTS.values()))
    done = export_and_serve(exports, tmp_path)
    assert not done.returncode, done.stderr
    for kind, batch in itertools.product(MODELS, (2, 5)):
        assert not needs_xla(tmp_path / kind / "served"), kind
        y = np.load(tmp_path / kind / f"y{batch}.npy")
        same(y, model(kind)(sequences(batch)), kind)


def test_export_after_training(tmp_path):
    """What `fit` and `predict` have traced, with XLA, is not in the file."""
    network, x = sequential(IndRNN(4, name="recur")), sequences()
    network.compile("sgd", "mse", jit_compile=False)
    network.fit(x, data(B, 4), verbose=0)
    expected = network.predict(x, verbose=0)
    for name, export in EXPORTS.items():
        path = tmp_path / name
        export(network, path)
        assert not needs_xla(path)
        served = tf.saved_model.load(path).signatures["serving_default"]
        same(*served(tf.constant(x)).values(), expected)


def test_export_with_xla(tmp_path):
    with with_xla():
        model("DilatedRNN").export(tmp_path / "served", verbose=False)
    assert needs_xla(tmp_path / "served")


@pytest.mark.slow
def test_export_with_xla_is_for_a_server_that_has_it(tmp_path):
    with with_xla():
        done = export_and_serve([("IndRNN", EXPORTS["model.export"])], tmp_path)
    assert done.returncode and "XLA_FLAGS" in done.stderr


def specs(model):
    """Of the inputs, by name."""
    return {h.name: tf.TensorSpec(h.shape, name=h.name) for h in model.inputs}


def exported(model, path, signature):
    """As a SavedModel without XLA."""
    model.export(path, input_signature=signature, verbose=False)
    assert not needs_xla(path)
    return path


def runner(content):
    return Interpreter(model_content=content).get_signature_runner()


def converted(path):
    """A SavedModel by LiteRT, as an interpreter's runner."""
    content = tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()
    assert b"Flex" not in content  # builtin operations alone
    return runner(content)


def by_saved_model(network, path):
    signature = [*specs(network).values()]
    return converted(exported(network, path / "served", signature))


def by_export(network, path):
    path, signature = path / "model.tflite", [*specs(network).values()]
    network.export(
        path, format="litert", input_signature=signature, verbose=False
    )
    return runner(path.read_bytes())


def by_converter(network, path):
    return runner(tf.lite.TFLiteConverter.from_keras_model(network).convert())


OLD_KERAS = fails_on(
    "keras<3.15",
    'has no `format="litert"`, or one with operations of Flex',
    raises=(RuntimeError, ValueError),
)


@pytest.mark.parametrize(
    "convert, kind",
    [
        (by_saved_model, "DilatedRNN"),
        (by_saved_model, "statistics of steps"),
        pytest.param(by_export, "stacked", marks=OLD_KERAS),
        (by_converter, "IndRNN"),
    ],
)
def test_litert(convert, kind, tmp_path):
    x = keras.Input((T, F), batch_size=B, name="x")
    run = convert(keras.Model(x, model(kind)(x)), tmp_path)
    (y,) = run(x=sequences()).values()
    same(y, model(kind)(sequences()))


@pytest.mark.parametrize("kind", ["DilatedRNN", "stacked"])
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx(kind, tmp_path):
    path = str(tmp_path / "model.onnx")
    # Keras exports to ONNX only what has been called.
    expected = {batch: model(kind)(sequences(batch)) for batch in (2, 5)}
    model(kind).export(path, format="onnx", verbose=False)
    served = onnxruntime.InferenceSession(path)
    (x,) = served.get_inputs()
    for batch, y in expected.items():
        same(*served.run(None, {x.name: sequences(batch)}), y)


def test_streaming(tmp_path):
    """One step at a time, states carried by hand: as the whole sequence."""
    layer = DilatedRNN(
        [keras.layers.LSTM(4), keras.layers.SimpleRNNCell(5), IndRNN(6)],
        dilations=[1, 2, 5],
        return_sequences=True,
        return_state=True,
    )
    layer.build((1, T, F))
    fill(layer.weights, scale=0.7)
    x = tf.constant(sequences()[1:])
    expected, *_ = layer(x)

    first = keras.Input((1, F), batch_size=1, name="x")
    before = {
        f"h{index}": keras.Input(size, batch_size=1, name=f"h{index}")
        for index, size in enumerate(layer.state_size)
    }
    y, *after = layer(first, initial_state=list(before.values()))
    after = dict(zip(before, after, strict=True))
    step = keras.Model({"x": first, **before}, {"y": y, **after})
    path = exported(step, tmp_path / "served", [specs(step)])
    served = tf.saved_model.load(path)
    edge = converted(path)

    def on_edge(inputs):
        return edge(**{name: np.asarray(h) for name, h in inputs.items()})

    for call in (step, served.serve, on_edge):
        h = {i.name: tf.zeros(i.shape) for i in step.inputs if i.name != "x"}
        for t in range(T):
            h = dict(call({"x": x[:, t : t + 1], **h}))
            same(h.pop("y"), expected[:, t : t + 1])


def tampered(kind, change, path):
    """The saved model, its config changed in place by `change`."""
    model(kind).save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    change(config["config"]["layers"][1]["config"])
    parts["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return path


# Where a config of ours names functions and classes.
PLACES = {
    "activation": ("IndRNN", lambda c: c, "activation"),
    "initializer": ("IndRNN", lambda c: c, "recurrent_initializer"),
    "cell": ("RNN", lambda c: c["cell"]["config"]["cells"], 0),
    "dilated": ("DilatedRNN", lambda c: c["cells"], 0),
}


@pytest.mark.filterwarnings("ignore:The object being serialized:UserWarning")
@pytest.mark.parametrize("place", PLACES)
def test_loading_executes_nothing(place, tmp_path, monkeypatch):
    """A lambda in the place of a function or class of a config is refused."""
    monkeypatch.chdir(tmp_path)
    kind, find, key = PLACES[place]

    def intrude(config):
        find(config)[key] = keras.saving.serialize_keras_object(
            lambda x: open("a_file_was_executed", "w")
        )

    path = tampered(kind, intrude, tmp_path / "model.keras")
    with pytest.raises((TypeError, ValueError), match="lambda"):
        keras.models.load_model(path)
    assert os.listdir() == ["model.keras"]
