"""Models in files: saved, exported, converted, fed by steps, and broken."""

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
from tensorflow.core.protobuf import saved_model_pb2

from cases import LONG, each_value, more
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
        stacked_ind_rnn, units=4, num_layers=2, dilations=[1, 2]
    ),
    "residual": lambda: deep(
        residual_ind_rnn, units=4, num_blocks=1, normalization=RMS
    ),
    "dense": lambda: deep(
        dense_ind_rnn, growth_rate=2, block_sizes=(1,), dropout=0.2
    ),
    "statistics of steps": lambda: deep(
        stacked_ind_rnn, units=4, num_layers=2, max_steps=6
    ),
}
# Whose recurrences are Keras' own, or those of `DilatedRNN`.
NEVER_XLA = {"RNN", "dilated_rnn"}
every_kind = pytest.mark.parametrize("kind", MODELS)


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


@every_kind
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
    before = other.get_weights()
    status = tf.train.Checkpoint(other).read(saved)
    status.assert_existing_objects_matched()
    # Keras' `StackedRNNCells` holds its cells in a list: nothing is restored.
    restored = before if kind == "RNN" else model(kind).get_weights()
    for a, b in zip(other.get_weights(), restored, strict=True):
        np.testing.assert_array_equal(a, b)


def needs_xla(path):
    """Whether a SavedModel has an operation, or a function, of XLA's."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    found = set()
    for graph in (part.graph_def for part in saved.meta_graphs):
        functions = graph.library.function
        nodes = [*graph.node, *(n for f in functions for n in f.node_def)]
        assert functions and nodes
        found |= {node.op for node in nodes if "Xla" in node.op}
        found |= {
            name
            for thing in (*nodes, *functions)
            for name in ("_XlaMustCompile", "XlaMustCompile")
            if thing.attr[name].b
        }
    return bool(found)


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
@pytest.mark.parametrize("first", range(len(EXPORTS) if LONG else 1))
def test_exported_models_need_neither_xla_nor_ours(first, tmp_path):
    """In a process without both, with batches of any size."""
    exports = itertools.islice(itertools.cycle(EXPORTS.values()), first, None)
    done = export_and_serve(list(zip(MODELS, exports)), tmp_path)
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


@pytest.mark.parametrize("kind", ["DilatedRNN", "RNN"])
def test_export_with_xla(kind, tmp_path):
    with with_xla():
        model(kind).export(tmp_path / "served", verbose=False)
    assert needs_xla(tmp_path / "served") is (kind not in NEVER_XLA)


@pytest.mark.slow
def test_export_with_xla_is_for_a_server_that_has_it(tmp_path):
    with with_xla():
        done = export_and_serve([("IndRNN", EXPORTS["model.export"])], tmp_path)
    assert done.returncode and "XLA_FLAGS" in done.stderr


def specs(model):
    """Of the inputs, by name."""
    return {h.name: tf.TensorSpec(h.shape, name=h.name) for h in model.inputs}


def named(kind):
    """A model of known batch size, whose input has a name."""
    x = keras.Input((T, F), batch_size=B, name="x")
    return keras.Model({"x": x}, model(kind)(x))


def exported(model, path):
    """As a SavedModel without XLA."""
    model.export(path, input_signature=[specs(model)], verbose=False)
    assert not needs_xla(path)
    return path


def runner(content):
    return Interpreter(model_content=content).get_signature_runner()


def converted(path):
    """A SavedModel by LiteRT, as an interpreter's runner."""
    content = tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()
    assert b"Flex" not in content  # builtin operations alone
    return runner(content)


def exported_to_litert(kind, path):
    network = named(kind)
    network.export(
        path := path / "model.tflite",
        format="litert",
        input_signature=[specs(network)],
        verbose=False,
    )
    return runner(path.read_bytes())


def converted_by_litert(kind, path):
    x = keras.Input((T, F), batch_size=B, name="x")
    network = keras.Model(x, model(kind)(x))
    return runner(tf.lite.TFLiteConverter.from_keras_model(network).convert())


OLD_KERAS = fails_on(
    "keras<3.15",
    'has no `format="litert"`, or one with operations of Flex',
    raises=(RuntimeError, ValueError),
)
LITERT = {
    "SavedModel": (
        lambda kind, path: converted(exported(named(kind), path / "served")),
        more(["DilatedRNN", "statistics of steps"], ["IndRNN", "stacked"]),
        [],
    ),
    "export": (exported_to_litert, more(["stacked"], ["IndRNN"]), OLD_KERAS),
    "converter": (converted_by_litert, more(["IndRNN"], ["stacked"]), []),
}


@pytest.mark.parametrize(
    "convert, kind",
    [
        pytest.param(convert, kind, id=f"{name}-{kind}", marks=marks)
        for name, (convert, kinds, marks) in LITERT.items()
        for kind in kinds
    ],
)
def test_litert(convert, kind, tmp_path):
    (y,) = convert(kind, tmp_path)(x=sequences()).values()
    same(y, model(kind)(sequences()))


@pytest.mark.parametrize("kind", more(["DilatedRNN", "stacked"], ["IndRNN"]))
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


def step_of_stack(layers):
    """That of docs/export.md: {x_t, states} -> {y_t, states}."""
    x = keras.Input((1, F), batch_size=1, name="x")
    y, before, after = x, {"x": x}, {}
    for layer in layers:
        if isinstance(layer, IndRNN):
            name = f"h{len(after)}"
            before[name] = keras.Input((layer.units,), batch_size=1, name=name)
            y = layer(y, initial_state=before[name])
            after[name] = keras.ops.reshape(y, (1, layer.units))
        else:
            y = layer(y)
    return keras.Model(before, {"y": y, **after})


def step_of_dilated(layer):
    x = keras.Input((1, F), batch_size=1, name="x")
    before = {
        f"h{index}": keras.Input(size, batch_size=1, name=f"h{index}")
        for index, size in enumerate(layer.state_size)
    }
    y, *after = layer(x, initial_state=list(before.values()))
    after = dict(zip(before, after, strict=True))
    return keras.Model({"x": x, **before}, {"y": y, **after})


def stack():
    network = stacked_ind_rnn(
        (T, F), units=4, num_layers=2, num_outputs=2, return_sequences=True
    )
    network.compile("sgd", "mse")
    network.fit(sequences(), data(B, T, 2), verbose=0)
    return network, step_of_stack(network.layers[1:])


def dilated():
    layer = DilatedRNN(
        [keras.layers.LSTM(4), keras.layers.SimpleRNNCell(5), IndRNN(6)],
        dilations=[1, 2, 5],
        return_sequences=True,
        return_state=True,
    )
    layer.build((1, T, F))
    fill(layer.weights, scale=0.7)
    return lambda x: layer(x)[0], step_of_dilated(layer)


@pytest.mark.parametrize("build", [stack, dilated])
def test_streaming(build, tmp_path):
    """One step at a time, states carried by hand: as the whole sequence."""
    x = tf.constant(sequences()[1:])
    whole, step = build()
    expected = whole(x)
    path = exported(step, tmp_path / "served")
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


MARK = "a_file_was_executed"
# What a file may try: a marshalled lambda, a class of a module, and one that
# nobody knows.
INTRUDERS = {
    "lambda": lambda: keras.saving.serialize_keras_object(
        lambda x: open(MARK, "w")
    ),
    "class": lambda: {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["touch", MARK]},
        "registered_name": None,
    },
    "unknown": lambda: {
        "module": None,
        "class_name": "Unknown",
        "config": {},
        "registered_name": "ind_rnn>Unknown",
    },
}
# Where a config of ours names functions and classes.
PLACES = {
    "activation": ("IndRNN", lambda c: c, "activation"),
    "initializer": ("IndRNN", lambda c: c, "recurrent_initializer"),
    "cell": ("RNN", lambda c: c["cell"]["config"]["cells"], 0),
    "dilated": ("DilatedRNN", lambda c: c["cells"], 0),
}


@pytest.mark.filterwarnings("ignore:The object being serialized:UserWarning")
@pytest.mark.parametrize("intruder, place", each_value(INTRUDERS, PLACES))
def test_loading_executes_nothing(intruder, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, find, key = PLACES[place]

    def intrude(config):
        find(config)[key] = INTRUDERS[intruder]()

    path = tampered(kind, intrude, tmp_path / "model.keras")
    with pytest.raises((TypeError, ValueError)) as error:
        keras.models.load_model(path)
    words = {"lambda": "lambda", "unknown": "Unknown"}
    assert words.get(intruder, "") in str(error.value)
    assert os.listdir() == ["model.keras"]


def test_broken_files(tmp_path):
    """An exception, or, where the damage does not matter, the model."""
    path, x = tmp_path / "model.keras", sequences()
    model("IndRNN").save(path)
    expected, whole = model("IndRNN")(x), path.read_bytes()
    size = len(whole)
    broken = [b"", b"no model" * 100, *(whole[:-n] for n in (1, 25, size // 2))]
    for place in range(0, size, size // 20):
        flipped = bytes(255 - byte for byte in whole[place : place + 8])
        broken.append(whole[:place] + flipped + whole[place + 8 :])
    refused = 0
    for content in broken:
        path.write_bytes(content)
        try:
            loaded = keras.models.load_model(path)
        # h5py's own errors among them
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
            assert str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(loaded(x), expected)
    assert refused >= 10


def test_foreign_and_broken_weights(tmp_path):
    own, path = MODELS["IndRNN"](), tmp_path / "other.weights.h5"
    for other in (
        sequential(IndRNN(6, return_sequences=True), IndRNN(4)),
        sequential(keras.layers.GRU(5), keras.layers.Dense(4)),
    ):
        other.save_weights(path)
        with pytest.raises(ValueError, match="could not be loaded|expected"):
            own.load_weights(path)
    whole = path.read_bytes()
    for content in (b"", b"no weights" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(OSError, match="open file"):
            own.load_weights(path)
