"""From a trained network to a device: one time step a call, by LiteRT.

A network of recurrent layers becomes a *step model*: one time step and the
states go in, the output and the new states come out. LiteRT's converter writes
it into files of four formats, and LiteRT's interpreter, which needs neither
TensorFlow nor Keras, runs them step by step:

    float32  as trained
    dynamic  weights of matrix products in int8, all else in float32
    int8     weights, activations and states in int8
    int16    weights in int8, activations and states in int16

The task is to classify MNIST digits that come row by row (`--time-steps 28`) or
pixel by pixel (784). For each format it prints the size of the file, the time
of a step in microseconds, the accuracy, and how far the outputs are from those
of the network in Keras. Use `step_model`, `convert` and `Stream` for a
network of your own. Needs `pip install ai-edge-litert`; without it,
TensorFlow's own interpreter runs.

    python examples/streaming.py --data mnist.npz
    python examples/streaming.py --data mnist.npz --model lstm --out out/lstm
"""

import pathlib
import sys
import tempfile
import timeit
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import arguments
import sequential_mnist
import training
from deep_ind_rnn import stacked_ind_rnn

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    Interpreter = tf.lite.Interpreter

FORMATS = ("float32", "dynamic", "int8", "int16")
PIXELS = sequential_mnist.TIME_STEPS
# Layers that treat each time step alone, and all alike.
PER_STEP = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Concatenate,
    keras.layers.Dense,
    keras.layers.LayerNormalization,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
    keras.layers.Rescaling,
    # Older versions of Keras do not have it.
    getattr(keras.layers, "RMSNormalization", keras.layers.LayerNormalization),
)
# Layers that do nothing in inference.
NO_CHANGE = (
    keras.layers.Dropout,
    keras.layers.GaussianNoise,
    keras.layers.SpatialDropout1D,
)
# f(a * x) = a * f(x) for a > 0.
HOMOGENEOUS = (keras.activations.relu, keras.activations.linear)


class RecurrentStep(keras.layers.Layer):
    """One step of a recurrent layer, with its weights: (y, states).

    With `unit` (N,), the state of an IndRNN is stored as h / unit. Its neurons
    are independent and ReLU is homogeneous, so only the rounding changes.
    """

    def __init__(self, layer, unit=None):
        super().__init__(dtype=layer.dtype_policy)
        self.cell = layer.cell
        self.unit = unit
        self.state_sizes = keras.tree.flatten(layer.cell.state_size)

    def call(self, x, states):
        cell = self.cell
        if self.unit is None:
            states = keras.tree.pack_sequence_as(cell.state_size, states)
            y, states = cell(x, states)
            return y, keras.tree.flatten(states)
        a, ((u,), (bias,)) = cell.project(x)
        h = cell.activation((a + bias) / self.unit + u * states[0])
        return h * self.unit, [h]


class RunningMean(keras.layers.Layer):
    """One step of GlobalAveragePooling1D: the mean of all steps so far."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy)
        self.state_sizes = [layer.output.shape[-1], 1]  # mean, count

    def call(self, x, states):
        mean, count = states
        count = count + 1
        mean = mean + (x - mean) / count
        return mean, [mean, count]


class Normalization(keras.layers.Layer):
    """Batch normalization in inference, for inputs of any rank."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy)
        self.layer = layer

    def call(self, x):
        layer = self.layer
        return ops.batch_normalization(
            x,
            layer.moving_mean,
            layer.moving_variance,
            axis=-1,
            offset=layer.beta if layer.center else None,
            scale=layer.gamma if layer.scale else None,
            epsilon=layer.epsilon,
        )


def step_model(model, units=None):
    """The model of one time step, with the weights of a model of sequences.

    Call it for each step of a sequence, with the states that the call before
    returned. It returns what `model` returns for the steps so far, or the last
    step of that with `return_sequences`.

    Arguments:
        model: A Sequential or functional model from (B, T, F) to one output.
            It may have IndRNN, IndyLSTM, IndyGRU, Keras' LSTM, GRU, SimpleRNN
            and RNN, BatchNormalization, GlobalAveragePooling1D, and the layers
            of PER_STEP and NO_CHANGE, stacked, or with residual or dense
            connections. There is no dropout.
        units: A dict {name of a state: (N,)}. A state of an IndRNN with "relu"
            or "linear" is stored divided by its unit.

    Returns:
        A `keras.Model` from {"x": (1, F), "h0": (1, N), "h1": ...} to
        {"y": (1, outputs), "h0": ..., ...}, and the states to start with, a
        dict of zero tensors.

    Raises:
        ValueError: If the model has other inputs, or a layer that cannot be
            turned; the message names it.
    """
    shapes = [x.shape for x in getattr(model, "inputs", None) or []]
    if len(shapes) != 1 or len(shapes[0]) != 3 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must be a Sequential or functional model of one input "
            f"(batch, time, features) and one output, got inputs of {shapes}"
        )
    steps, before, after = {}, {}, {}
    for layer in model.layers:
        check(layer)
        if isinstance(layer, keras.layers.GlobalAveragePooling1D):
            step = RunningMean(layer)
        elif isinstance(layer, keras.layers.RNN):
            unit = (units or {}).get(f"h{len(before)}")
            if getattr(layer, "activation", None) not in HOMOGENEOUS:
                unit = None
            step = RecurrentStep(layer, unit)
        else:
            continue
        steps[layer] = step, []
        for size in step.state_sizes:
            name = f"h{len(before)}"
            before[name] = keras.Input(
                (size,), 1, layer.compute_dtype, name=name
            )
            steps[layer][1].append(name)

    def call(layer, x, *args, **kwargs):
        if isinstance(layer, NO_CHANGE) or is_last_step(layer, args):
            return x
        if isinstance(layer, keras.layers.BatchNormalization):
            return Normalization(layer)(x)
        if layer not in steps:
            return layer(x, *args, **kwargs)
        step, names = steps[layer]
        y, states = step(x, [before[name] for name in names])
        after.update(zip(names, states))
        return y

    x = keras.Input(shapes[0][2:], 1, dtype=model.inputs[0].dtype, name="x")
    # Keras copies a model onto other inputs, but only onto as many.
    extra = [
        keras.Input(h.shape[1:], 1, name=f"state_{name}")
        for name, h in before.items()
    ]
    y = keras.models.clone_model(
        keras.Model([*model.inputs, *extra], model.outputs[0]),
        input_tensors=[x, *before.values()],
        clone_function=lambda layer: layer,
        call_function=call,
    ).outputs[0]
    states = {name: ops.zeros(h.shape, h.dtype) for name, h in before.items()}
    return keras.Model({"x": x, **before}, {"y": y, **after}), states


def is_last_step(operation, args):
    """Whether this is `x[:, -1]` in a functional model."""
    if type(operation).__name__ != "GetItem":
        return False
    if list(args[0]) != [slice(None), -1]:
        raise ValueError(
            "`model` has a slice that cannot be called step by step: expected "
            f"[:, -1], got {args[0]}"
        )
    return True


def check(layer):
    """Raise a ValueError if a layer cannot be called step by step."""
    known = (*PER_STEP, *NO_CHANGE, keras.layers.InputLayer)
    known += keras.layers.RNN, keras.layers.BatchNormalization
    if not isinstance(layer, (*known, keras.layers.GlobalAveragePooling1D)):
        raise ValueError(
            f"`model` has a layer that cannot be called step by step: {layer!r}"
        )
    for name in ("go_backwards", "return_state", "keepdims"):
        if getattr(layer, name, False):
            raise ValueError(
                f"`model` has a layer with `{name}=True`, which cannot be "
                f"called step by step: {layer!r}"
            )
    axis = getattr(layer, "axis", -1)
    if axis not in (-1, [-1], (-1,)):
        raise ValueError(
            "`model` must have layers over its features alone (`axis=-1`), got "
            f"{layer!r} with `axis={axis}`"
        )


def state_units(step, sequences):
    """The largest |state| of each neuron, by name: `units` of `step_model`.

    Neurons with a long memory have large states and small columns of the
    kernel. Quantization has one scale for all, and would round such columns to
    zero. In these units, all columns and states have about the same size.
    """
    stream = Stream(convert(step))
    top = {}
    for x in sequences:
        for inputs in stream.inputs_of(x):
            for name, h in inputs.items():
                top[name] = np.maximum(top.get(name, 0), np.abs(h[0]))
    # A neuron that is dead, or nearly so, has one too.
    return {
        name: np.maximum(h, 1e-3 * h.max()).astype("float32")
        for name, h in top.items()
    }


def convert(step, kind="float32", sequences=None):
    """A step model as the bytes of a .tflite file.

    Arguments:
        step: The model of `step_model`.
        kind: One of FORMATS. Inputs and outputs of all are float32.
        sequences: (count, T, F), float32, from the data. The values that occur
            in them give the ranges of "int8" and "int16".

    Raises:
        ValueError: If `kind` is unknown, or needs sequences.
    """
    if kind not in FORMATS:
        raise ValueError(f"`kind` must be one of {FORMATS}, got {kind!r}")
    if kind in ("int8", "int16") and sequences is None:
        raise ValueError(f"`sequences` must be given for {kind}, got None")
    with tempfile.TemporaryDirectory() as path, warnings.catch_warnings():
        # The converter warns of its own use of the interpreter.
        message = "(?s).*(tf.lite.I|LiteRT i)nterpreter"
        warnings.filterwarnings("ignore", message)
        specs = {
            x.name: tf.TensorSpec(x.shape, x.dtype, x.name) for x in step.inputs
        }
        step.export(path, input_signature=[specs], verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(path)
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind in ("int8", "int16"):
            stream = Stream(convert(step))
            converter.representative_dataset = lambda: (
                inputs for x in sequences for inputs in stream.inputs_of(x)
            )
        if kind == "int16":
            kinds = tf.lite.OpsSet
            converter.target_spec.supported_ops = [
                kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
                kinds.TFLITE_BUILTINS,
            ]
        return converter.convert()


class Stream:
    """A converted step model in LiteRT's interpreter; it keeps the states.

    Arguments:
        content: What `convert` returns, or the content of such a file.

    Call arguments:
        x: (F,), a time step.

    Returns:
        (outputs,).
    """

    def __init__(self, content):
        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        # It is deleted: while it exists, `invoke` raises.
        signature = self.interpreter.get_signature_runner()
        self.inputs = signature.get_input_details()
        self.outputs = signature.get_output_details()
        del signature
        self.reset()

    def reset(self):
        """Begin a new sequence."""
        for tensor in self.inputs.values():
            zeros = np.zeros(tensor["shape"], tensor["dtype"])
            self.interpreter.set_tensor(tensor["index"], zeros)

    def __call__(self, x):
        self._set("x", np.reshape(x, (1, -1)))
        self.interpreter.invoke()
        for name in self.inputs:
            if name != "x":
                self._set(name, self._get(name, self.outputs))
        return self._get("y", self.outputs).ravel()

    def run(self, x):
        """The output after the last step of a sequence (T, F)."""
        self.reset()
        for x_t in x:
            y = self(x_t)
        return y

    def inputs_of(self, x):
        """All inputs of each step of a sequence (T, F), by name."""
        self.reset()
        for x_t in x:
            inputs = {
                name: self._get(name, self.inputs) for name in self.inputs
            }
            yield {**inputs, "x": np.reshape(x_t, (1, -1))}
            self(x_t)

    def _get(self, name, tensors):
        return self.interpreter.get_tensor(tensors[name]["index"])

    def _set(self, name, value):
        self.interpreter.set_tensor(self.inputs[name]["index"], value)


def microseconds(stream):
    """The time of a step in the interpreter, the best of five rounds."""
    return 1e3 * min(timeit.repeat(stream.interpreter.invoke, number=1000))


def digits(args):
    """Training, held-out and test digits, as sequences (B, T, F)."""
    training, held_out, test = sequential_mnist.load_parts(args.data)
    shape = (-1, args.time_steps, PIXELS // args.time_steps)

    def sequences(x):
        return sequential_mnist.prepare(x).reshape(shape)

    x, y = (part[: args.digits] for part in test)
    return (
        (*training, sequences),
        (sequences(held_out[0]), held_out[1]),
        (sequences(x), y),
    )


def build_model(args, steps):
    """A network of --model, from sequences to logits (B, 10), compiled."""
    shape = (args.time_steps, PIXELS // args.time_steps)
    if args.model == "indrnn":
        model = stacked_ind_rnn(
            shape,
            args.units,
            args.layers,
            10,
            dropout=args.dropout,
            long_memory=True,
            normalization="batch",
        )
    else:
        layers = [keras.Input(shape)]
        for index in range(args.layers):
            last = index == args.layers - 1
            layers += [
                arguments.BASELINES[args.model](
                    args.units, return_sequences=not last
                ),
                keras.layers.Dropout(args.dropout),
            ]
        model = keras.Sequential([*layers, keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(
            training.cosine(args.learning_rate, steps, min(500, steps // 2)),
            global_clipnorm=1.0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=training.jit_compile(args),
    )
    return model


def compare(args, model, examples, test):
    """Write all formats into --out; their sizes, times and accuracies."""
    x, y = test
    expected = model.predict(x, batch_size=200, verbose=0)
    answers = expected.argmax(axis=-1)
    metrics = {"keras": {"accuracy": float(np.mean(answers == y))}}
    step, _ = step_model(model)
    scaled, _ = step_model(model, state_units(step, examples))
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        content = convert(step if kind == "float32" else scaled, kind, examples)
        (out / f"step_{kind}.tflite").write_bytes(content)
        stream = Stream(content)
        found = np.stack([stream.run(sequence) for sequence in x])
        metrics[kind] = {
            "kilobytes": round(len(content) / 1024, 1),
            "microseconds": round(microseconds(stream), 1),
            "accuracy": float(np.mean(found.argmax(axis=-1) == y)),
            "same_answers": float(np.mean(found.argmax(axis=-1) == answers)),
            "difference": float(np.abs(found - expected).max()),
        }
    return metrics


def parse(argv):
    parser = arguments.parser(__doc__, "streaming")
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--time-steps", 28, "of a digit; a divisor of its 784 pixels", count),
        ("--layers", 2, "of the network", count),
        ("--units", 64, "in each of the layers", count),
        ("--epochs", 10, "passes over the 55,000 digits for training", count),
        ("--batch-size", 64, "digits in a batch", count),
        (
            "--learning-rate",
            5e-3,
            "of Adam, along a cosine",
            arguments.positive,
        ),
        ("--dropout", 0.0, "after each layer", arguments.rate),
        ("--digits", 10000, "of the test set", count),
        ("--examples", 100, "digits that give ranges", count),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    sequential_mnist.add_data(parser)
    args = parser.parse_args(argv)
    if PIXELS % args.time_steps:
        parser.error(
            "argument --time-steps: must be a divisor of 784, got "
            f"{args.time_steps}"
        )
    return args


def main(argv=None):
    args = parse(argv)
    (x, y, sequences), held_out, test = digits(args)
    steps = max(1, len(x) // args.batch_size)
    rows = training.shuffled(len(x), args.batch_size, args.seed)

    def batch(epoch, step):
        chosen = rows(epoch, step)
        return sequences(x[chosen]), y[chosen]

    model, history = training.train(
        args,
        lambda: build_model(args, args.epochs * steps),
        batch,
        steps,
        validation_data=held_out,
        validation_batch_size=200,
    )
    metrics = compare(args, model, sequences(x[: args.examples]), test)
    training.finish(args, history, metrics, ("accuracy", "val_accuracy"))


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
