"""The private parts of Keras, TensorFlow and JAX that this project relies on.

CONTRIBUTING.md lists them: where each is used, why, and what happens when it
goes. Each has its test here, so that an upgrade that changes it fails here.
"""

import ast
import inspect
import pathlib
import re

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf

import ind_rnn_recurrence
from ind_rnn_cell import IndRNNCell
from ind_rnn_recurrence import EXPORTERS
from reset_rnn import MaskAndReset

ROOT = pathlib.Path(__file__).parents[1]
TESTED = set()


def relies_on(name):
    """Mark the test of one row of the table."""

    def mark(function):
        TESTED.add(name)
        return function

    return mark


def read_table():
    """{name: files} of the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("| private API | where |")[1].split("\n\n")[0]
    cells = [row.split(" | ") for row in table.splitlines()[2:]]
    return {
        row[0].strip("| `"): re.findall(r"`([\w/]+\.py)`", row[1])
        for row in cells
    }


TABLE = read_table()


def test_every_row_has_its_test():
    assert {*TABLE} == TESTED


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_row_is_in_use(name):
    """A name begins with what its files use, without the classes before it."""
    words = [x.split(".")[-1] for x in name.split(":")[0].split(", ")]
    if words[-1].endswith("_mask"):
        words.append("_mask")  # A file may compose a name: f"get_{name}_mask".
    assert TABLE[name]
    for file in TABLE[name]:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert any(re.search(rf"(\b|}}){word}\b", text) for word in words), file


def private_names(tree):
    """The private names that a module uses and that are not its own."""
    own, used = {*dir(MaskAndReset)}, set()  # those of named tuples
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            used |= {*node.module.split(".")}
        elif isinstance(node, ast.Attribute):
            assigned = isinstance(node.ctx, ast.Store)
            (own if assigned else used).add(node.attr)
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            if getattr(node.func, "id", None) in ("getattr", "hasattr"):
                used.add(getattr(node.args[1], "value", ""))
    return {
        name
        for name in used - own
        if re.fullmatch(r"_[a-z]\w*|__internal__|src|python", str(name))
    }


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.py"), *ROOT.glob("examples/*.py")],
    ids=lambda path: path.name,
)
def test_nothing_private_is_missing_in_the_table(path):
    names = re.findall(r"\w+", " ".join(TABLE))
    assert private_names(ast.parse(path.read_text("utf-8"))) <= {*names}


X = np.arange(1.0, 25).reshape(2, 4, 3).astype("float32") / 10


@relies_on("RNN.inner_loop: sequences, initial_state, mask, training")
@pytest.mark.parametrize("return_sequences", [True, False])
def test_inner_loop(return_sequences):
    """`call` hands its mask on as it is, and returns what the loop does."""
    signature = inspect.signature(keras.layers.RNN.inner_loop)
    names = "self sequences initial_state mask training".split()
    assert [*signature.parameters] == names
    pair = object(), object()

    class Layer(keras.layers.RNN):
        def inner_loop(self, sequences, initial_state, mask, training=False):
            assert isinstance(initial_state, list)
            assert mask is pair and training
            return X[:, 0], X[:, 1:], [X[:, 1]]

    options = {"return_state": True, "return_sequences": return_sequences}
    layer = Layer(keras.layers.SimpleRNNCell(3), **options)
    layer.build(X.shape)
    y, state = layer.call(X, mask=pair, training=True)
    np.testing.assert_array_equal(y, X[:, 1:] if return_sequences else X[:, 0])
    np.testing.assert_array_equal(state, X[:, 1])


@relies_on("RNN.inner_loop: of a layer without weights")
def test_inner_loop_of_any_object():
    """The cell may be any object with `state_size` and `call`."""

    class Cell:
        state_size = 3

        def call(self, inputs, states):
            return inputs + states[0], [inputs + states[0]]

        __call__ = call

    layer = keras.layers.RNN(Cell(), return_sequences=True)
    last, outputs, (state,) = layer.inner_loop(X, [np.zeros((2, 3))], None)
    np.testing.assert_allclose(outputs, np.cumsum(X, axis=1), rtol=1e-5)
    np.testing.assert_allclose([last, state], [outputs[:, -1]] * 2)


@relies_on("Bidirectional.call: hands its mask on")
def test_mask_of_bidirectional():
    seen = []

    class Layer(keras.layers.RNN):
        def call(self, sequences, initial_state=None, mask=None, training=None):
            seen.append(mask)
            return super().call(sequences)

    with keras.saving.custom_object_scope({"Layer": Layer}):  # it is copied
        layer = keras.layers.Bidirectional(Layer(keras.layers.SimpleRNNCell(2)))
    layer.build(X.shape)
    layer.call(X, mask=MaskAndReset(np.ones((2, 4)), np.zeros((2, 4))))
    assert [type(mask) for mask in seen] == [MaskAndReset] * 2
    assert {"forward_layer", "backward_layer"} <= {*dir(layer)}


CELLS = keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell
every_cell = pytest.mark.parametrize("cell_type", CELLS)


def random(cell_type):
    return cell_type(3, dropout=0.5, recurrent_dropout=0.5, use_bias=False)


@relies_on("dropout_mask_count")
@relies_on("get_dropout_mask, get_recurrent_dropout_mask")
@every_cell
def test_dropout_masks(cell_type):
    """They return the same mask until a layer's call has ended."""
    cell, x = random(cell_type), np.ones((50, 3), "float32")
    if cell_type is not keras.layers.SimpleRNNCell:
        masks_of_gates = random(cell_type).get_dropout_mask(x)
        assert cell.dropout_mask_count == len(masks_of_gates) in (3, 4)
        cell.dropout_mask_count = None  # One for all gates.
    for get in (cell.get_dropout_mask, cell.get_recurrent_dropout_mask):
        mask = np.asarray(get(x))
        assert mask.shape == x.shape and {*mask.flat} == {0.0, 2.0}
        np.testing.assert_array_equal(get(x), mask)
    keras.layers.RNN(cell)(np.ones((50, 4, 3)))
    assert (np.asarray(cell.get_recurrent_dropout_mask(x)) != mask).any()


@relies_on("_dropout_mask, _recurrent_dropout_mask")
@every_cell
def test_dropout_masks_that_are_set(cell_type):
    """A mask in the attribute is the one that is used, and is then removed."""
    cell, plain = random(cell_type), cell_type(3, use_bias=False)
    layer, expected = keras.layers.RNN(cell), keras.layers.RNN(plain)
    layer.build(X.shape), expected.build(X.shape)
    kernel, recurrent = cell.get_weights()
    count = getattr(cell, "dropout_mask_count", None)
    mask = np.ones((2, 3), "float32")
    for i, h in ((1, 1), (0, 1), (1, 0)):
        cell._dropout_mask = [i * mask] * count if count else i * mask
        cell._recurrent_dropout_mask = [h * mask] * count if count else h * mask
        plain.set_weights([kernel, recurrent * h])
        y = layer(X, training=True)
        np.testing.assert_allclose(y, expected(X * i), rtol=1e-5, atol=1e-6)
        assert cell._dropout_mask is cell._recurrent_dropout_mask is None


@relies_on("sequences_mask: filled in by Layer.__call__")
def test_sequences_mask():
    class Masks(keras.layers.Layer):
        supports_masking = True

        def call(self, sequences, mask=None, reset=None, sequences_mask=None):
            return sequences_mask

    tokens = np.array([[1, 0, 2]])
    embedding = keras.layers.Embedding(5, 2, mask_zero=True)

    def mask(tokens):
        return Masks()(embedding(tokens), reset=tokens)

    for function in (mask, tf.function(mask)):
        np.testing.assert_array_equal(function(tokens), tokens > 0)


@relies_on("object.__setattr__, vars: bypass Layer.__setattr__")
def test_tracking():
    variables = [keras.Variable(np.zeros(2), trainable=False)]
    layer = keras.layers.Layer()
    object.__setattr__(layer, "states", variables)
    vars(layer)["traced"] = variables
    assert not layer.variables and layer.states is layer.traced
    layer.tracked = variables
    assert len(layer.variables) == 1


@relies_on("Optimizer._trainable_variables, _get_variable_index, update_step")
def test_optimizer():
    """The variable of a step has the place of the one that was built with."""
    seen = []

    class Optimizer(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            seen.append(self._trainable_variables[index])
            assert gradient.shape == variable.shape
            # A rate for each number, as TimeScaledAdam has it.
            rate = keras.ops.cast(learning_rate, "float32")
            super().update_step(gradient, variable, rate * [1.0, 0.0])

    variables = [keras.Variable(np.ones(2, "float32")) for _ in range(2)]
    variables[1].ind_rnn_neurons = "found"
    optimizer = Optimizer(0.1)
    optimizer.build(variables)
    gradients = [tf.ones(2)] * 2
    tf.function(lambda: optimizer.apply(gradients, variables))()
    assert seen[0] is variables[0] and seen[1].ind_rnn_neurons == "found"
    np.testing.assert_allclose(variables[1], [0.9, 1.0], rtol=1e-5)


@relies_on("build_config: of a serialized layer")
def test_build_config():
    cell = keras.layers.SimpleRNNCell(2)
    serialize = keras.saving.serialize_keras_object
    assert "build_config" not in serialize(cell)
    cell.build((None, 3))
    config = serialize(cell)
    deserialize = keras.saving.deserialize_keras_object
    assert config["build_config"] and deserialize(config).built
    del config["build_config"]
    assert not deserialize(config).built


@relies_on("BatchNormalization: call, weights, options")
def test_batch_normalization():
    layer = keras.layers.BatchNormalization()
    names = [*inspect.signature(layer.call).parameters]
    assert names == ["inputs", "training", "mask"]
    layer.build((None, 4, 3))
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        assert getattr(layer, name).shape == (3,)
    options = {"scale": True, "center": True, "axis": -1, "synchronized": False}
    assert {name: getattr(layer, name) for name in options} == options
    # An option that we do not know could be another that we would ignore.
    known = {*options, "momentum", "epsilon", "name", "kwargs"}
    known |= {"renorm", "renorm_clipping", "renorm_momentum"}
    ending = ("_initializer", "_regularizer", "_constraint")
    for name in inspect.signature(keras.layers.BatchNormalization).parameters:
        assert name in known or name.endswith(ending), name


@relies_on("Layer._flatten_layers: include_self, recursive")
def test_flatten_layers():
    inner = keras.Sequential([keras.layers.Dense(1)])
    model = keras.Sequential([keras.Input((2,)), inner])
    found = model._flatten_layers(include_self=False, recursive=False)
    assert inner in found and inner.layers[0] not in found
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2))
    found = layer._flatten_layers(include_self=False, recursive=False)
    assert {*found} == {layer.forward_layer, layer.backward_layer}


@relies_on("tf.__internal__.get_enclosing_xla_context")
def test_xla_context():
    context, found = tf.__internal__.get_enclosing_xla_context, []

    def trace(x):
        found.append(context() is not None)
        return x

    trace(0)
    tf.function(trace)(tf.ones(2))
    tf.function(trace, jit_compile=True)(tf.ones(2))
    assert found == [False, False, True]


@relies_on("FuncGraph.captures, op_def.is_stateful")
@pytest.mark.parametrize(
    "function, captures, is_stateful",
    [
        (tf.nn.relu, 0, False),
        (lambda x, outer=tf.ones(2): x + outer, 1, False),
        (lambda x: x + tf.random.normal((2,)), 0, True),
        (lambda x: tf.py_function(np.abs, [x], tf.float32), 0, True),
    ],
)
def test_what_a_function_holds(function, captures, is_stateful):
    traced = tf.function(lambda x: function(x))
    graph = traced.get_concrete_function(tf.TensorSpec((2,))).graph
    assert len(graph.captures) == captures
    found = [x.op_def.is_stateful for x in graph.get_operations()]
    assert any(found) == is_stateful


@relies_on("tf.function: _omit_frequent_tracing_warning")
@pytest.mark.parametrize("omit", [False, True])
def test_warning_of_frequent_tracing(omit, caplog):
    def twice(x):
        return 2 * x

    function = tf.function(twice)
    function._omit_frequent_tracing_warning = omit
    tf.get_logger().propagate, before = True, tf.get_logger().propagate
    for length in range(1, 9):
        function(tf.ones(length))
    tf.get_logger().propagate = before
    assert ("triggered tf.function retracing" in caplog.text) is not omit


@relies_on("tf.raw_ops.FusedBatchNormV3")
def test_fused_batch_norm():
    """Its variance is that of a sample; empty statistics mean training."""
    x = np.sin(1 + np.arange(5 * 4 * 3)).reshape(5, 4, 1, 3).astype("float32")
    gamma, beta = np.float32([1, 2, 3]), np.float32([4, 5, 6])
    none = tf.zeros((0,))
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=1e-5
    )
    m, v = tf.nn.moments(x, [0, 1, 2])
    expected = tf.nn.batch_normalization(x, m, v, beta, gamma, 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, m, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, v * 20 / 19, rtol=1e-4)


def tf2onnx(model, folder):
    import tf2onnx

    signature = [tf.TensorSpec((1, 4, 3))]
    tf2onnx.convert.from_function(tf.function(model), signature)


# How each exporter is called. A model is traced, and then forgotten.
EXPORTS = {
    "keras.src.export.": lambda model, folder: model.export(
        folder, verbose=False
    ),
    "tensorflow.python.saved_model.": tf.saved_model.save,
    "tensorflow.lite.": lambda model, folder: (
        tf.lite.TFLiteConverter.from_keras_model(model).convert()
    ),
    "tf2onnx.": tf2onnx,
}


@relies_on("sys._getframe: the names of exporters' modules")
@pytest.mark.parametrize("prefix", EXPORTS)
def test_frames_of_exporters(prefix, tmp_path, monkeypatch):
    """While they trace, a function of theirs is among the callers."""
    assert {*EXPORTS} == {*EXPORTERS}
    monkeypatch.setattr(ind_rnn_recurrence, "EXPORTERS", (prefix,))
    found, cell = [], IndRNNCell(2)

    class Layer(keras.layers.Layer):
        def call(self, x):
            if not tf.executing_eagerly():
                found.append(ind_rnn_recurrence.fused_step(cell) is None)
            return x

    model = keras.Sequential([keras.Input((4, 3), batch_size=1), Layer()])
    model.compile()
    model.predict(X[:1], verbose=0)
    count = len(found)
    assert count and not any(found)
    EXPORTS[prefix](model, str(tmp_path / "model"))
    assert len(found) > count and all(found[count:])


@relies_on("jax.config.jax_default_device, jax.core.Tracer")
def test_jax():
    assert jax.config.jax_default_device is None
    device = jax.devices("cpu")[0]
    with jax.default_device(device):
        assert jax.config.jax_default_device.platform == "cpu"
    with jax.default_device("cpu"):
        found = jax.config.jax_default_device
        assert getattr(found, "platform", found) == "cpu"
    tracers = []
    jax.jit(lambda x: tracers.append(isinstance(x, jax.core.Tracer)))(1.0)
    assert tracers == [True]
    assert not isinstance(jax.numpy.ones(2), jax.core.Tracer)
