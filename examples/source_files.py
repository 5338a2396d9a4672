"""Sixteen thousand steps of real data: whose source file is this?

A network reads a Python file byte by byte, to its end or for `--time-steps`
bytes; shorter files are padded with zeros. After the last step it names the
package that the file belongs to: Python's standard library, NumPy, Keras or
TensorFlow. The clues, such as imports, usually come within the first thousand
bytes, so the network has to remember them for fifteen thousand steps. The files
are those of the installation that runs this.

The epoch with the lowest loss on held-out files is the one that is tested.

    python examples/source_files.py
    python examples/source_files.py --model dilated
    python examples/source_files.py --model lstm --epochs 3
"""

import importlib.util
import json
import pathlib
import sys
import sysconfig

import keras
import numpy as np

import arguments
import sequential_mnist
import training
from deep_ind_rnn import residual_ind_rnn, stacked_ind_rnn

PACKAGES = ("python", "numpy", "keras", "tensorflow")
SHORTEST = 1000  # bytes of a file
HELD_OUT = 50  # files of each package for validation, and as many for the test


def find_files(package):
    """The paths of all source files of a package, in a fixed order."""
    if package == "python":
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    else:
        root = pathlib.Path(importlib.util.find_spec(package).origin).parent
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if "site-packages" not in path.relative_to(root).parts
        and path.stat().st_size >= SHORTEST
    ]


def read(path, time_steps):
    """The first bytes of a file, padded with zeros: (T,), uint8."""
    with open(path, "rb") as file:
        found = np.frombuffer(file.read(time_steps), "uint8")
    return np.pad(found, (0, time_steps - len(found)))


def load_parts(time_steps):
    """(training, validation, test): for each package an array (files, T)."""
    training, validation, test = [], [], []
    for label, package in enumerate(PACKAGES):
        files = find_files(package)
        order = np.random.default_rng([0, label]).permutation(len(files))
        x = np.stack([read(files[index], time_steps) for index in order])
        validation.append(x[:HELD_OUT])
        test.append(x[HELD_OUT : 2 * HELD_OUT])
        training.append(x[2 * HELD_OUT :])
    return training, validation, test


def labelled(parts):
    """x (files, T) and y (files,), from one array for each package."""
    y = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate(parts), y


def draw(parts, batch_size, rng):
    """A batch in which all packages are equally likely."""
    y = rng.integers(0, len(parts), batch_size)
    x = [parts[label][rng.integers(len(parts[label]))] for label in y]
    return np.stack(x), y


def build_model(args, steps):
    """Bytes (B, T) to logits (B, 4), compiled."""
    inputs = keras.Input((args.time_steps,), dtype="uint8")
    x = keras.layers.Embedding(256, args.features)(inputs)
    x = recurrent_network(args)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(PACKAGES))(x))
    sequential_mnist.compile_classifier(
        model, args, steps, warmup=100, weight_decay=0.01
    )
    return model


def recurrent_network(args):
    """From features of all steps to those of the last step."""
    shape = (args.time_steps, args.features)
    if args.model in ("stacked", "residual"):
        build = {"stacked": stacked_ind_rnn, "residual": residual_ind_rnn}
        return build[args.model](
            shape,
            args.units,
            args.layers,
            long_memory=True,
            **arguments.normalization(args),
        )
    if args.model == "dilated":
        layers = [arguments.dilated(args, args.time_steps)]
    else:
        layer = arguments.BASELINES[args.model]
        layers = [
            layer(args.units, return_sequences=index < args.layers - 1)
            for index in range(args.layers)
        ]
    return keras.Sequential([keras.Input(shape), *layers])


def parse(argv):
    models = ("stacked", "residual", "dilated")
    parser = arguments.parser(__doc__, "source_files", models)
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--time-steps", 16384, "bytes of a file", count),
        ("--features", 32, "of the embedding of a byte", count),
        ("--units", 64, "in each layer", count),
        ("--layers", 4, "layers, or residual blocks", count),
        ("--epochs", 20, "each of --steps-per-epoch steps", count),
        ("--steps-per-epoch", 50, "between two validations", count),
        ("--batch-size", 16, "files in a batch", count),
        (
            "--learning-rate",
            2e-3,
            "of AdamW, after 100 steps of warm-up, falling to 0 along a cosine",
            arguments.positive,
        ),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    arguments.add_normalization(parser, "stacked and residual")
    arguments.add_dilated(parser, hidden=40, layers=13)
    arguments.add_evaluate(parser)
    return parser.parse_args(argv)


def errors(model, parts):
    """The error rates on the held-out files and on the test files."""

    def error(part):
        x, y = labelled(part)
        answers = model.predict(x, batch_size=20, verbose=0)
        return float(np.mean(answers.argmax(axis=-1) != y))

    _, validation, test = parts
    return {
        "validation_error": error(validation),
        "test_error": error(test),
    }


def main(argv=None):
    args = parse(argv)
    if args.evaluate:
        model, args = training.trained(args)
        print(json.dumps(errors(model, load_parts(args.time_steps))))
        return
    parts = load_parts(args.time_steps)

    def batch(epoch, step):
        rng = np.random.default_rng([args.seed, epoch, step])
        return draw(parts[0], args.batch_size, rng)

    _, history = training.train(
        args,
        lambda: build_model(args, args.epochs * args.steps_per_epoch),
        batch,
        args.steps_per_epoch,
        best="val_loss",
        validation_data=labelled(parts[1]),
        validation_batch_size=20,
    )
    model, _ = training.load_network(args.out)
    training.finish(
        args, history, errors(model, parts), ("accuracy", "val_accuracy")
    )


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
