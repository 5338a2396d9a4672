"""Sequential MNIST: the 784 pixels of a digit, one at a time.

The network reads a digit pixel by pixel, row by row, and classifies it after
the last pixel. `--permute` first puts the pixels into one fixed random order,
which leaves only long-range structure. `--pad-noise` appends uniform noise. The
epoch with the best accuracy on held-out digits is the one that is tested.
Sources: arXiv 1803.04831, section 5.2; arXiv 1710.02224, section 4.2.

    python examples/sequential_mnist.py --data mnist.npz
    python examples/sequential_mnist.py --model dilated --permute
    python examples/sequential_mnist.py --model mixed --layers 4 --permute
    python examples/sequential_mnist.py --evaluate out/sequential_mnist
"""

import json
import sys

import keras
import numpy as np

import arguments
import training
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from dilated_rnn import mixed_rnn
from ind_rnn import IndRNN

TIME_STEPS = 784
PERMUTATION_SEED = 92916  # the one of the DilatedRNN authors' code
VALIDATION = 5000  # of the 60,000 training digits
# Defaults that depend on --model: of the dilated network, and of all others.
DILATED = {
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "dropout": 0.02,
}
OTHERS = {
    "epochs": 14,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "dropout": 0.0,
}


def load_mnist(path=None):
    """(x_train, y_train), (x_test, y_test); images uint8 (count, 784).

    From an npz file with these keys, or from `keras.datasets.mnist`.

    Raises:
        arguments.UserError: If they cannot be read.
    """
    source = f"--data {path}"
    if path is None:
        source = "keras.datasets.mnist (instead, give --data PATH)"
    # A broken file or network may raise anything.
    with arguments.explained(source, Exception):
        if path is None:
            train, test = keras.datasets.mnist.load_data()
        else:
            with open(path, "rb") as file, np.load(file) as data:
                train, test = (
                    # NumPy returns other members as bytes.
                    tuple(np.asarray(data[f"{name}_{part}"]) for name in "xy")
                    for part in ("train", "test")
                )
    for part, (x, y) in (("train", train), ("test", test)):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or not len(x):
            raise arguments.UserError(
                f"{source}: expected x_{part} of shape (count, 28, 28) and "
                f"y_{part} of shape (count,), got {x.shape} and {y.shape}"
            )
        if x.dtype != np.uint8 or y.dtype.kind not in "iu":
            raise arguments.UserError(
                f"{source}: expected x_{part} of type uint8 and integers in "
                f"y_{part}, got {x.dtype} and {y.dtype}"
            )
        if y.min() < 0 or y.max() > 9:
            raise arguments.UserError(
                f"{source}: expected y_{part} from 0 to 9, "
                f"got {y.min()} to {y.max()}"
            )
    return tuple((x.reshape(-1, TIME_STEPS), y) for x, y in (train, test))


def load_parts(path=None):
    """Digits for training, those held out, and those for the test."""
    (x, y), test = load_mnist(path)
    count = len(x) - min(VALIDATION, len(x) // 2)
    return (x[:count], y[:count]), (x[count:], y[count:]), test


def shifted(x, pixels, rng):
    """Digits (B, 784), each moved by up to `pixels` in both directions."""
    margin = ((0, 0), (pixels, pixels), (pixels, pixels))
    padded = np.pad(x.reshape(-1, 28, 28), margin)
    corners = rng.integers(0, 2 * pixels + 1, (2, len(x), 1))
    rows, columns = corners + np.arange(28)
    digits = np.arange(len(x))[:, None, None]
    return padded[digits, rows[:, :, None], columns[:, None]].reshape(x.shape)


def prepare(x, permutation=None, length=TIME_STEPS, rng=None):
    """Pixels 0 ... 255 of shape (B, 784) to -1 ... 1 of shape (B, length, 1).

    The steps after the 784 pixels are noise from `rng`, uniform over -1 ... 1.
    """
    x = x if permutation is None else x[:, permutation]
    x = x / 127.5 - 1
    if length > TIME_STEPS:
        noise = rng.uniform(-1, 1, (len(x), length - TIME_STEPS))
        x = np.concatenate([x, noise], axis=1)
    return x[:, :, None].astype("float32")


def build_model(args, steps):
    """The network of --model, compiled."""
    model = network(args)
    if args.initial_weights:
        set_weights(model, args.initial_weights)
    compile_classifier(
        model, args, steps, warmup=500, weight_decay=args.weight_decay
    )
    return model


def compile_classifier(model, args, steps, warmup, weight_decay):
    """Compile a model that ends in logits, for labels (B,).

    The optimizer is AdamW with the learning rate of `cosine`, over all `steps`
    of a run. It decays matrices only: not recurrent weights of IndRNN, biases,
    or the scales of normalization.
    """
    optimizer = keras.optimizers.AdamW(
        training.cosine(args.learning_rate, steps, min(warmup, steps // 2)),
        weight_decay=weight_decay,
        global_clipnorm=1.0,
    )
    vectors = [v for v in model.trainable_variables if len(v.shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=training.jit_compile(args),
    )


def set_weights(model, path):
    """Set the weights of `model` to those of another run or file."""
    other, path = training.load_network(path)
    with arguments.explained(f"{path}: not this network", ValueError):
        model.set_weights(other.get_weights())


def network(args):
    """The network of --model, from pixels to logits (B, 10)."""
    body = recurrent_network(args, return_sequences=args.pool == "mean")
    x = body.outputs[0]
    if args.pool == "mean":
        x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(body.inputs[0], keras.layers.Dense(10)(x))


def recurrent_network(args, return_sequences):
    """From pixels to the features of the last step, or of all steps."""
    shape = (args.pad_noise, 1)
    deep = {"dropout": args.dropout, "return_sequences": return_sequences}
    deep["long_memory"] = not return_sequences
    deep |= arguments.start(args, 2 ** (1 / args.pad_noise))
    deep |= arguments.normalization(args)
    if args.model == "stacked":
        return stacked_ind_rnn(shape, args.units, args.layers, **deep)
    with_dilations = {**deep, "dilations": args.dilations, "long_memory": False}
    count = len(args.dilations)
    if args.model == "dilated_stacked":
        return stacked_ind_rnn(shape, args.units, count, **with_dilations)
    if args.model == "dilated_residual":
        blocks = count // 2
        return residual_ind_rnn(shape, args.units, blocks, **with_dilations)
    if args.model == "residual":
        return residual_ind_rnn(shape, args.units, args.blocks, **deep)
    if args.model == "dense":
        # The proportions of arXiv 1910.06251: 0.2 and 0.1.
        half = args.dropout / 2
        return dense_ind_rnn(
            shape,
            args.growth,
            args.block_sizes,
            input_dropout=args.dropout,
            bottleneck_dropout=half,
            transition_dropout=half,
            **deep,
        )
    if args.model == "dilated":
        options = {"return_sequences": return_sequences}
        layers = [
            arguments.dilated(args, args.pad_noise, args.dropout, **options)
        ]
    elif args.model == "mixed":
        layers = [
            mixed_rnn(
                args.units, args.layers, return_sequences=return_sequences
            )
        ]
    else:
        layers = plain_layers(args, return_sequences)
    return keras.Sequential([keras.Input(shape), *layers])


def plain_layers(args, return_sequences):
    """Layers of IndRNN, with batch normalization, or plain ones of Keras."""
    layers = []
    for index in range(args.layers):
        last = index == args.layers - 1 and not return_sequences
        options = {"units": args.units, "return_sequences": not last}
        if args.model == "indrnn":
            layers += ind_rnn_layer(args, last, **options)
        else:
            layers.append(arguments.BASELINES[args.model](**options))
    return layers


def ind_rnn_layer(args, last, units, return_sequences):
    """IndRNN, batch normalization, and dropout with one mask for all steps."""
    bound = 2 ** (1 / args.pad_noise)
    options = {"units": units, "return_sequences": return_sequences}
    options |= arguments.start(
        args, bound, last, kernel_initializer="he_normal"
    )
    layers = [
        IndRNN(recurrent_max_abs=bound, **options),
        keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
    ]
    if args.dropout > 0:
        name = "SpatialDropout1D" if return_sequences else "Dropout"
        layers.append(getattr(keras.layers, name)(args.dropout))
    return layers


def add_data(parser):
    """Add --data: where `load_parts` finds the digits."""
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="npz with x_train, y_train, x_test, y_test "
        "(default: download it by keras.datasets.mnist)",
    )


def parse(argv):
    models = ("indrnn", "stacked", "residual", "dense", "dilated_stacked")
    models += ("dilated_residual", "dilated", "mixed")
    parser = arguments.parser(__doc__, "sequential_mnist", models)
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--layers", 6, "of plain networks; as in 1803.04831", count),
        ("--units", 128, "in each of the layers, as in the papers", count),
        (
            "--pad-noise",
            TIME_STEPS,
            "length of a sequence: noise after the 784 pixels",
            arguments.count(TIME_STEPS),
        ),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    arguments.add_start(parser, "default")
    # As in arXiv 1910.06251.
    arguments.add_deep(parser, growth=16, block_sizes=[8, 6, 4])
    arguments.add_dilated(parser, hidden=20)
    for name, text, kind in (
        ("epochs", "passes over the 57,000 digits for training", count),
        ("batch_size", "digits in a batch, as in the papers", count),
        (
            "learning_rate",
            "of Adam, after 500 steps of warm-up, falling to 0 along a "
            "cosine; 2e-4 in 1803.04831, and 1e-3 of RMSProp in 1710.02224",
            arguments.positive,
        ),
        (
            "dropout",
            "rate, between the layers of all but Keras' own networks, with one "
            "mask for all steps; 0.1 in 1910.06251 over hundreds of epochs",
            arguments.rate,
        ),
    ):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar="N",
            help=f"{text} (default: {OTHERS[name]}; dilated: {DILATED[name]})",
        )
    add_data(parser)
    parser.add_argument(
        "--permute", action="store_true", help="one fixed order of the pixels"
    )
    arguments.option(
        parser,
        "--pool",
        "last",
        "what the digit is classified by: the features of the last step, or "
        "their mean over all steps",
        choices=("last", "mean"),
    )
    arguments.option(
        parser,
        "--shift",
        0,
        "each training digit is moved by up to this number of pixels in both "
        "directions, differently in each epoch",
        type=arguments.count(0, 27),
    )
    arguments.option(
        parser,
        "--weight-decay",
        0.0,
        "of AdamW, for matrices only",
        type=arguments.not_negative,
    )
    parser.add_argument(
        "--initial-weights",
        metavar="FILE",
        help="start with the weights of a .keras file, or of a directory that "
        "this example left, instead of random ones (default: none)",
    )
    arguments.add_evaluate(parser)
    args = parser.parse_args(argv)
    for name, value in (DILATED if args.model == "dilated" else OTHERS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.model == "mixed" and (args.layers < 2 or args.dropout):
        parser.error(
            "--model mixed must have at least 2 --layers and no --dropout, got "
            f"{args.layers} and {args.dropout}"
        )
    count = len(args.dilations)
    if args.model == "dilated_residual" and count % 2 == 0:
        parser.error(
            "--dilations of --model dilated_residual must be 2 for each block "
            f"and 1 for the end, an odd number of them, got {count}"
        )
    return args


class Digits:
    """The digits of --data as the sequences that `args` describe."""

    def __init__(self, args):
        self.args = args
        self.training, self.validation, self.test = load_parts(args.data)
        self.permutation = None
        if args.permute:
            rng = np.random.default_rng(PERMUTATION_SEED)
            self.permutation = rng.permutation(TIME_STEPS)

    def sequences(self, x, *entropy, shift=0):
        """Pixels (B, 784) as inputs (B, T, 1): noise depends on `entropy`."""
        rng = np.random.default_rng([self.args.seed, *entropy])
        x = shifted(x, shift, rng) if shift else x
        return prepare(x, self.permutation, self.args.pad_noise, rng)

    def held_out(self):
        x, y = self.validation
        return self.sequences(x, 0), y

    def errors(self, model):
        """The error rates on the held-out digits and on the test digits."""

        def error(x, y):
            answers = model.predict(x, batch_size=200, verbose=0)
            return float(np.mean(answers.argmax(axis=-1) != y))

        x, y = self.test
        return {
            "validation_error": error(*self.held_out()),
            "test_error": error(self.sequences(x, 1), y),
        }


def main(argv=None):
    args = parse(argv)
    if args.evaluate:
        model, args = training.trained(args)
        print(json.dumps(Digits(args).errors(model)))
        return
    digits = Digits(args)
    x, y = digits.training
    steps = max(1, len(x) // args.batch_size)
    rows = training.shuffled(len(x), args.batch_size, args.seed)

    def batch(epoch, step):
        chosen = rows(epoch, step)
        inputs = digits.sequences(x[chosen], epoch, step, shift=args.shift)
        return inputs, y[chosen]

    _, history = training.train(
        args,
        lambda: build_model(args, args.epochs * steps),
        batch,
        steps,
        best="val_accuracy",
        validation_data=digits.held_out(),
        validation_batch_size=200,
    )
    model, _ = training.load_network(args.out)
    training.finish(
        args, history, digits.errors(model), ("accuracy", "val_accuracy")
    )


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
