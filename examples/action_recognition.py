"""Action recognition: what a person does, from the joints of the skeleton.

MSR Action3D is trained on five persons and tested on five others; NTU RGB+D
by persons or by cameras. Where to get them: examples/skeletons.py. Sources:
arXiv 1803.04831 and 1910.06251.

    python examples/action_recognition.py --data msr_action3d.zip
    python examples/action_recognition.py --dataset ntu --data FOLDER

Axis letters: B sequences, F features, C classes.
"""

import json
import pathlib
import sys

import keras
import numpy as np
from matplotlib import pyplot

import arguments
import skeletons
import training
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn

SHORTEST = 0.8  # of a sequence, for a crop
# Defaults that depend on --dataset.
DEFAULTS = {
    "msr": {
        "layers": 3,
        "units": 256,
        "epochs": 25,
        "passes": 4,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "dropout": 0.3,
        "frames": 24,
    },
    "ntu": {
        "layers": 6,
        "units": 512,
        "epochs": 60,
        "passes": 1,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "dropout": 0.25,
        "frames": 20,
    },
}


def split(sequences, args):
    """(for training, for testing), by subject or camera.

    With --hold-out both are from the training part, and the test part is not
    used.

    Raises:
        arguments.UserError: If one of them is empty.
    """
    training = skeletons.DATASETS[args.dataset].training[args.split]
    group = "camera" if args.split == "view" else "subject"
    if args.hold_out is not None and args.hold_out not in training:
        raise arguments.UserError(
            f"--hold-out must be one of {training}, got {args.hold_out}"
        )

    def select(part, choose):
        chosen = [s for s in sequences if choose(getattr(s, group))]
        if not chosen:
            raise arguments.UserError(
                f"--data {args.data}: expected sequences for {part}, got none "
                f"(by {group}; {len(sequences)} sequences in all)"
            )
        return chosen

    if args.hold_out is None:
        test = select("testing", lambda value: value not in training)
    else:
        test = select("--hold-out", lambda value: value == args.hold_out)
    return (
        select(
            "training",
            lambda value: value in training and value != args.hold_out,
        ),
        test,
    )


def network(args, inputs):
    """The network of --model, from (B, frames, inputs) to logits (B, C).

    The outputs of its recurrent layers are averaged over the frames.
    """
    shape = (args.frames, inputs)
    deep = {"dropout": args.dropout, "return_sequences": True}
    deep |= arguments.start(args, 2 ** (1 / args.frames))
    deep |= arguments.normalization(args)
    if args.model == "stacked":
        body = stacked_ind_rnn(shape, args.units, args.layers, **deep)
    elif args.model == "residual":
        body = residual_ind_rnn(shape, args.units, args.blocks, **deep)
    elif args.model == "dense":
        # The proportions of the authors' code: 0.5, 0.1, 0.3.
        body = dense_ind_rnn(
            shape,
            args.growth,
            args.block_sizes,
            input_dropout=args.dropout,
            bottleneck_dropout=args.dropout / 5,
            transition_dropout=args.dropout * 0.6,
            last_dropout=args.dropout,
            **deep,
        )
    else:
        body = plain(args, shape)
    x = keras.layers.GlobalAveragePooling1D()(body.outputs[0])
    x = keras.layers.Dense(len(skeletons.DATASETS[args.dataset].actions))(x)
    return keras.Model(body.inputs[0], x)


def plain(args, shape):
    """Layers to compare with; dropout has one mask for all frames."""
    model = keras.Sequential([keras.Input(shape)])
    for _ in range(args.layers):
        layer = arguments.BASELINES[args.model]
        model.add(layer(args.units, return_sequences=True))
        model.add(keras.layers.SpatialDropout1D(args.dropout))
    return model


def build_model(args, inputs, steps):
    """The network of --model, compiled."""
    model = network(args, inputs)
    warmup = steps // 10
    model.compile(
        keras.optimizers.Adam(
            training.cosine(args.learning_rate, steps, warmup),
            global_clipnorm=1.0,
        ),
        keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1
        ),
        metrics=["accuracy"],
        jit_compile=training.jit_compile(args),
    )
    return model


def inputs(joints, rows, args, rng, training=False):
    """(B, frames, F): a random crop of each of the sequences of `rows`."""
    x = [
        skeletons.crop(joints[row], args.frames, rng, SHORTEST) for row in rows
    ]
    x = np.stack(x)
    x = skeletons.augment(x, rng) if training else x
    return skeletons.features(x, skeletons.DATASETS[args.dataset])


def probabilities(model, joints, args):
    """Class probabilities (count, C), averaged over --test-crops crops.

    The crops depend on --seed alone.
    """
    count, size = len(joints), args.batch_size
    result = 0
    for number in range(args.test_crops):

        def batch(step, number=number):
            rows = np.arange(step * size, (step + 1) * size) % count
            rng = np.random.default_rng([args.seed, 1, number, step])
            return (inputs(joints, rows, args, rng),)

        batches = training.batches(batch, -(-count // size))
        logits = model.predict(batches, verbose=0)[:count].astype(float)
        each = np.exp(logits - logits.max(axis=-1, keepdims=True))
        result = result + each / each.sum(axis=-1, keepdims=True)
    return result / args.test_crops


def confusion(labels, answers, classes):
    """(C, C): how often the class of a row was taken for that of a column."""
    result = np.zeros((classes, classes), int)
    np.add.at(result, (labels, answers), 1)
    return result


def draw_confusion(matrix, names, title, path):
    """A picture of the matrix: colors are shares of a row."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 8 if len(names) <= 20 else 4
    figure, axes = pyplot.subplots(figsize=(8, 7), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="answer", ylabel="action", title=title)
    for row, column in zip(*matrix.nonzero(), strict=True):
        axes.text(
            column,
            row,
            matrix[row, column],
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[row, column] > 0.5 else "black",
        )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(argv):
    models = ("stacked", "residual", "dense")
    parser = arguments.parser(__doc__, "action_recognition", models)
    count = arguments.count(1)
    text = "the data set"
    arguments.option(
        parser, "--dataset", "msr", text, choices=skeletons.DATASETS
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        required=True,
        help="the zip of MSR Action3D, or the folder of NTU RGB+D",
    )
    arguments.option(
        parser,
        "--split",
        "subject",
        "what training and test do not share; view (cameras) is of ntu only",
        choices=("subject", "view"),
    )
    parser.add_argument(
        "--missing",
        metavar="FILE",
        help="for ntu, names of sequences to leave out, as in the published "
        "NTU_RGBD_samples_with_missing_skeletons.txt (default: none)",
    )
    parser.add_argument(
        "--hold-out",
        type=count,
        metavar="N",
        help="a subject (or camera) of the training part to test on instead of "
        "the test part, for choosing settings (default: none)",
    )
    for name, text, kind in (
        ("layers", "of all networks but residual and dense", count),
        ("units", "in each of the layers", count),
        ("epochs", "after each of which there is a checkpoint", count),
        ("passes", "over the training sequences in an epoch", count),
        ("batch_size", "sequences in a batch", count),
        (
            "learning_rate",
            "of Adam, after a tenth of warm-up, falling to 0 along a cosine",
            arguments.positive,
        ),
        ("dropout", "rate, with one mask for all frames", arguments.rate),
        ("frames", "sampled from a sequence; 20 in the papers", count),
    ):
        msr, ntu = DEFAULTS["msr"][name], DEFAULTS["ntu"][name]
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar="N",
            help=f"{text} (default: {msr}; ntu: {ntu})",
        )
    text = "whose probabilities are averaged"
    arguments.option(parser, "--test-crops", 10, text, type=count)
    arguments.add_start(parser, "uniform")
    # As in arXiv 1910.06251.
    arguments.add_deep(parser, growth=48, block_sizes=[8, 6, 4])
    arguments.add_evaluate(parser)
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.dataset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.dataset == "msr" and (args.split, args.missing) != (
        "subject",
        None,
    ):
        parser.error("--split view and --missing are for --dataset ntu")
    return args


def load(args):
    """The Sequences of --dataset, with joints normalized."""
    if args.dataset == "msr":
        sequences = skeletons.load_msr(args.data)
    else:
        sequences = skeletons.load_ntu(args.data, args.missing)
    return [
        sequence._replace(
            joints=skeletons.normalize(
                sequence.joints, skeletons.DATASETS[args.dataset]
            )
        )
        for sequence in sequences
    ]


def evaluate(model, joints, labels, args):
    """The metrics of a trained network, and the matrix of its confusions."""
    answers = probabilities(model, joints, args).argmax(axis=-1)
    actions = skeletons.DATASETS[args.dataset].actions
    part = "test" if args.hold_out is None else "held_out"
    metrics = {
        f"{part}_accuracy": float(np.mean(answers == labels)),
        "sequences": len(labels),
    }
    return metrics, confusion(labels, answers, len(actions))


def main(argv=None):
    args = parse(argv)
    if args.evaluate:
        model, args = training.trained(args)
    actions = skeletons.DATASETS[args.dataset].actions
    (joints, labels), test = (
        ([x.joints for x in part], np.array([x.label for x in part]))
        for part in split(load(args), args)
    )
    if args.evaluate:
        print(json.dumps(evaluate(model, *test, args)[0]))
        return
    total = len(joints) * args.passes
    steps = max(1, total // args.batch_size)
    shuffled = training.shuffled(total, args.batch_size, args.seed)
    one_hot = np.eye(len(actions), dtype="float32")

    def batch(epoch, step):
        rows = shuffled(epoch, step) % len(joints)
        rng = np.random.default_rng([args.seed, 0, epoch, step])
        return inputs(joints, rows, args, rng, True), one_hot[labels[rows]]

    number = batch(0, 0)[0].shape[-1]
    model, history = training.train(
        args,
        lambda: build_model(args, number, args.epochs * steps),
        batch,
        steps,
    )
    metrics, confusions = evaluate(model, *test, args)
    name, accuracy = next(iter(metrics.items()))
    draw_confusion(
        confusions,
        actions,
        f"{args.dataset}, {args.model}: {name.replace('_', ' ')} "
        f"{accuracy:.1%}",
        pathlib.Path(args.out) / "confusion.png",
    )
    training.finish(args, history, metrics, curves=("accuracy",))


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
