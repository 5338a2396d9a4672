"""What the examples have in common: arguments, resumable training, results.

Every example leaves in its `--out` directory:

    arguments.json    what it was started with
    checkpoint.keras  model and optimizer after the last whole epoch
    best.keras        the model with the best validation, where one is kept,
                      without optimizer: what --evaluate takes
    history.csv       the metrics and cumulated seconds of every epoch
    curve.png         their picture
    result.json       at the end: arguments, metrics, steps, seconds
"""

import argparse
import contextlib
import csv
import functools
import json
import math
import os
import pathlib
import signal
import sys
import time
import zipfile

import keras
import matplotlib
import numpy as np

from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from indy import IndyGRU, IndyLSTM

try:
    import fcntl
except ImportError:  # Windows: nothing tells that --out is in use.
    fcntl = None

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


class UserError(Exception):
    """What the user can mend: ends an example with one line and code 2."""


STEPS_PER_EXECUTION = 20  # on JAX


# The networks to compare with: plain layers, Keras' own and elementwise ones.
BASELINES = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
    "indylstm": IndyLSTM,
    "indygru": IndyGRU,
}


# What a dilated network may be made of.
CELLS = {**BASELINES, "indrnn": IndRNN}


def parser(description, name, models=("indrnn",)):
    """An ArgumentParser with the arguments that all examples share.

    `models` are the networks to choose from besides BASELINES; the first is
    the default.
    """
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = tuple(dict.fromkeys([*models, *BASELINES]))
    option(result, "--model", models[0], "the network", choices=models)
    text = "of weights, data and order, below 2^32"
    option(result, "--seed", 1, text, type=count(0, 2**32 - 1))
    text = "where results go"
    option(result, "--out", f"out/{name}", text, type=directory, metavar="DIR")
    result.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --out, if there is one",
    )
    return result


def option(parser, flag, default, text, **options):
    """Add an argument whose help states its default."""
    if "type" in options:
        options.setdefault("metavar", "N")
    parser.add_argument(
        flag, default=default, help=f"{text} (default: {default})", **options
    )


def add_dilated(parser, hidden, layers=9):
    """Add --cell, --hidden and --dilations: a network of dilated layers."""
    text = "of the dilated network"
    option(parser, "--cell", "rnn", f"the cells {text}", choices=CELLS)
    option(
        parser,
        "--hidden",
        [hidden],
        f"units {text}, for each layer, or one number for all",
        type=count(1),
        nargs="+",
    )
    option(
        parser,
        "--dilations",
        [2**index for index in range(layers)],
        f"dilations {text}, bottom layer first",
        type=count(1),
        nargs="+",
    )


def add_normalization(parser, models):
    """Add --normalization and --place, of deep networks."""
    option(
        parser,
        "--normalization",
        "batch",
        f"of --model {models}",
        choices=("batch", "layer", "rms", "none"),
    )
    option(
        parser,
        "--place",
        "after",
        "of the normalization: after or before the recurrence",
        choices=("after", "before"),
    )


def add_deep(parser, growth, block_sizes):
    """Add options of deep networks: normalization, and sizes of some."""
    add_normalization(parser, "stacked, residual and dense")
    text = "of --model residual; as in 1910.06251"
    option(parser, "--blocks", 5, text, type=count(1))
    text = "features that each layer of --model dense adds"
    option(parser, "--growth", growth, text, type=count(1))
    text = "layers in the blocks of --model dense"
    option(parser, "--block-sizes", block_sizes, text, type=count(1), nargs="+")


def add_start(parser, default):
    """Add --start: what recurrent weights are before training."""
    option(
        parser,
        "--start",
        default,
        "recurrent weights: uniform over [0, bound], as in the papers, or the "
        "default of the library",
        choices=("uniform", "default"),
    )


def check_rates(parser, args, *names):
    """Refuse dropout rates that are not in [0, 1)."""
    for name in names:
        rate = getattr(args, name)
        if not 0 <= rate < 1:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} must be in [0, 1), got {rate}")


def add_evaluate(parser):
    """Add --evaluate: a trained network, in place of training one."""
    parser.add_argument(
        "--evaluate",
        metavar="FILE",
        help="test the network of a .keras file, or of a directory that this "
        "example left, and train none; arguments.json beside it says how it "
        "was trained (default: none)",
    )


def trained(args, afterwards=()):
    """The network of --evaluate, and the arguments of the run that left it.

    Where data are is up to `args` alone, and so is `afterwards`, as in `train`.

    Raises:
        UserError: If they cannot be read.
    """
    model, path = load_network(args.evaluate)
    try:
        saved = dict(json.loads(path.with_name("arguments.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--evaluate {args.evaluate}: {error}") from error
    given = {
        name: value
        for name, value in vars(args).items()
        if name in ("data", "evaluate", *afterwards)
    }
    return model, argparse.Namespace(**{**vars(args), **saved, **given})


def load_network(path):
    """The model of a .keras file, or of a directory that an example left.

    Returns:
        The model, without optimizer, and the path of its file.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        files = [path / f"{name}.keras" for name in ("best", "checkpoint")]
        path = next(filter(pathlib.Path.exists, files), None)
        if path is None:
            raise UserError(
                f"{files[0].parent}: expected a best.keras or a "
                "checkpoint.keras in it, got neither"
            )
    try:
        return keras.models.load_model(path, compile=False), path
    except Exception as error:  # what a broken or foreign file may raise
        raise UserError(f"{path}: {error}") from error


def set_weights(model, path):
    """Set the weights of `model` to those of `load_network(path)`.

    Raises:
        UserError: If it cannot be read, or their shapes differ.
    """
    other, path = load_network(path)
    try:
        model.set_weights(other.get_weights())
    except ValueError as error:
        raise UserError(f"{path}: not this network: {error}") from error


def start(args, bound, last=False, **others):
    """The arguments of a network or layer for --start.

    `others` belong to the uniform start. With it, the last layer keeps what it
    sees: its weights start near 1.
    """
    if args.start == "default":
        return {}
    lowest = 1 / bound if last else 0.0
    uniform = keras.initializers.RandomUniform(lowest, bound)
    return {"recurrent_initializer": uniform, **others}


def hidden_structs(args):
    """The units of each layer, from --hidden and --dilations."""
    layers = len(args.dilations)
    hidden = args.hidden * layers if len(args.hidden) == 1 else args.hidden
    if len(hidden) != layers:
        raise UserError(
            "--hidden must have one number, or one for each of --dilations: "
            f"got {len(hidden)} for {layers}"
        )
    return hidden


def dilated(args, time_steps, dropout=0.0, **options):
    """The DilatedRNN of --cell, --hidden and --dilations.

    `dropout` is that of the inputs of each layer but the first one.
    """
    cells = []
    for units, dilation in zip(
        hidden_structs(args), args.dilations, strict=True
    ):
        of_cell = {"dropout": dropout if cells else 0.0}
        if args.cell == "indrnn":
            # A layer of dilation d runs over T / d steps.
            of_cell["recurrent_max_abs"] = 2 ** (dilation / time_steps)
        cells.append(CELLS[args.cell](units, **of_cell))
    return DilatedRNN(cells, args.dilations, **options)


def normalization(args):
    """The arguments of a deep network for --normalization and --place."""
    kind = None if args.normalization == "none" else args.normalization
    if kind is None and args.place != "after":
        raise UserError(f"--normalization none has no --place {args.place}")
    return {"normalization": kind, "place": args.place}


def jit_compile(args):
    """Whether XLA is faster for the whole step.

    It is not for the loops of Keras, nor for deep networks: `training_step.py`
    among the benchmarks, with and without `--jit`. JAX has no other compiler.
    """
    if tf is None:
        return "auto"
    if args.model == "dilated":
        return args.cell in ("rnn", "indrnn")
    deep = ("stacked", "residual", "dense")
    deep += ("dilated_stacked", "dilated_residual")
    return args.model not in (*BASELINES, *deep)


@keras.saving.register_keras_serializable(package="ind_rnn_examples")
class AdamW(keras.optimizers.AdamW):
    """AdamW that decays matrices alone.

    Recurrent weights of IndRNN, biases, and the scales of normalization, all
    of them vectors, keep their sizes.
    """

    def build(self, variables):
        vectors = [v for v in variables if len(v.shape) < 2]
        self.exclude_from_weight_decay(var_list=vectors)
        super().build(variables)


def cosine(learning_rate, steps, warmup):
    """A schedule: up to `learning_rate` in `warmup` steps, then to 0."""
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - warmup,
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


def compile_classifier(model, args, steps, warmup, weight_decay):
    """Compile a model that ends in logits, for labels (B,).

    AdamW with a learning rate as in `cosine`, over all `steps` of a run.
    """
    model.compile(
        AdamW(
            cosine(args.learning_rate, steps, min(warmup, steps // 2)),
            weight_decay=weight_decay,
            global_clipnorm=1.0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile(args),
    )


def count(minimum, maximum=math.inf):
    """An argparse type: an integer from `minimum` to `maximum`."""

    def integer(text):
        value = int(text)
        for wrong, limit in (
            (value < minimum, f"at least {minimum}"),
            (value > maximum, f"at most {maximum}"),
        ):
            if wrong:
                raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    return integer


def positive(text):
    """An argparse type: a finite number above zero."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def not_negative(text):
    """An argparse type: a finite number, zero or above."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def directory(text):
    """An argparse type: the name of a directory."""
    if not text:
        raise argparse.ArgumentTypeError("must be a directory, got ''")
    return text


def run(main, argv):
    """`main(argv)`, with what ends it as one line on stderr.

    Returns:
        The exit code: 2 after a UserError, 130 after Ctrl-C.
    """
    stopped = []

    def stop(*_):
        stopped.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        return main(argv)
    except UserError as error:
        line, code = f"error: {error}", 2
    except BaseException:
        # TensorFlow may make another exception of a KeyboardInterrupt.
        if not stopped:
            raise
        line, code = "stopped; the same command with --resume goes on", 130
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    name = pathlib.Path(sys.argv[0]).name
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return code


class Interrupt(keras.callbacks.Callback):
    """Within it, Ctrl-C waits for the end of a batch; a second one does not.

    In the midst of one, TensorFlow may swallow it.
    """

    asked = False

    def __enter__(self):
        self.before = signal.signal(signal.SIGINT, self.ask)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.before)

    def ask(self, number, frame):
        if self.asked:
            self.before(number, frame)
        self.asked = True

    def stop_if_asked(self, *_, **__):
        if self.asked:
            self.before(signal.SIGINT, None)

    on_train_batch_end = on_test_batch_end = stop_if_asked


def shuffled(count, batch_size, *entropy):
    """(epoch, step) -> the indices of a batch, shuffled anew in each epoch."""

    @functools.lru_cache(maxsize=1)
    def order(epoch):
        return np.random.default_rng([*entropy, epoch]).permutation(count)

    def rows(epoch, step):
        return order(epoch)[step * batch_size :][:batch_size]

    return rows


def batches(batch, steps, free=()):
    """A dataset of `batch(0)` ... `batch(steps - 1)`, tuples of arrays.

    `free` are the axes in which their shapes may differ.
    """
    if tf is None:
        return _Batches(batch, steps)
    signature = tuple(
        tf.TensorSpec(
            [None if i in free else n for i, n in enumerate(x.shape)], x.dtype
        )
        for x in batch(0)
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: map(batch, range(steps)), output_signature=signature
    ).apply(tf.data.experimental.assert_cardinality(steps))
    # There is nothing to tune, and at the end of each epoch Keras would wait
    # for the tuning thread to wake up, for up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options).prefetch(2)


class _Batches(keras.utils.PyDataset):
    """What `batches` returns where there is no tf.data: on JAX."""

    def __init__(self, batch, steps):
        # Not with more workers, of which Keras 3.15 loses the first batch.
        super().__init__(workers=1)
        self.batch, self.steps = batch, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        return self.batch(step)


def train(
    args,
    build,
    batch,
    steps,
    callbacks=lambda history: [],
    enough=lambda history: False,
    best=None,
    free=(),
    afterwards=(),
    **fit_options,
):
    """Train for `args.epochs` epochs; leave a checkpoint after each.

    What an epoch sees depends on `args.seed` and its number alone, and a
    checkpoint holds all that changes, so that a resumed run ends where an
    uninterrupted one does.

    Arguments:
        args: The parsed arguments.
        build: () -> a compiled model.
        batch: (epoch, step) -> one batch (x, y).
        steps: Batches in an epoch.
        callbacks: history -> the callbacks of the next epoch.
        enough: history -> whether to stop here.
        best: A column of the history: the model for which it was lowest, or
            highest if it is an accuracy, is left in best.keras; of equal ones
            the last.
        free: The axes in which the shapes of batches may differ.
        afterwards: Names of arguments that do not touch the training, so that
            a resumed run may be given others.
        **fit_options: Passed to `keras.Model.fit`.

    Returns:
        The model, and its history: a list with one dict for each epoch.
    """
    out = pathlib.Path(args.out)
    with locked(out), Interrupt() as interrupt:
        model, history = None, []
        if args.resume:
            model, history = _resume(out, build, vars(args), afterwards)
        if model is None:
            keras.utils.set_random_seed(args.seed)
            model = build()
            begin(args, out)
        if tf is None:
            # Keras waits for JAX after every execution.
            model.steps_per_execution = min(steps, STEPS_PER_EXECUTION)
        while len(history) < args.epochs and not enough(history):
            epoch = len(history)
            start = time.perf_counter()
            _seed(model, [args.seed, epoch])
            logs = model.fit(
                batches(functools.partial(batch, epoch), steps, free),
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[
                    keras.callbacks.TerminateOnNaN(),
                    interrupt,
                    *callbacks(history),
                ],
                **fit_options,
            ).history
            for name in ("loss", best or "loss"):
                if not math.isfinite(logs[name][-1]):
                    raise UserError(
                        f"the {name} is {logs[name][-1]} in epoch {epoch + 1}: "
                        "try a lower --learning-rate; the last checkpoint is "
                        "kept"
                    )
            seconds = time.perf_counter() - start
            seconds += history[-1]["seconds"] if history else 0
            history.append(
                {
                    "epoch": epoch + 1,
                    "steps": int(model.optimizer.iterations),
                    "seconds": round(seconds, 1),
                    **{name: values[-1] for name, values in logs.items()},
                }
            )
            # The history first: a resumed run drops what is ahead of its model.
            write_history(out, history)
            if best and _is_best(history, best):
                _save_network(model, out / "best.keras")
            _save(model, out / "checkpoint.keras")
        return model, history


@contextlib.contextmanager
def locked(out):
    """Within it, no other process trains into `out`, a path.

    Raises:
        UserError: If one does, or `out` cannot be written to.
    """
    path = out / "lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise UserError(f"--out {out}: {error}") from error
    with file:
        if fcntl:
            try:  # The system takes it back however a process ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise UserError(
                    f"--out {out}: process {file.read().strip()} is writing "
                    "there; wait for its end, or take another directory"
                ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def begin(args, out):
    """Make the directory `out`, a path, for a new run: arguments.json in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoint.keras", "best.keras"):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error}") from error
    _write(out / "arguments.json", json.dumps(vars(args), indent=2))


def finish(args, history, metrics, curves, baseline=None, log=False):
    """Write result.json and curve.png, and print the metrics.

    `curves` are the columns of the history to draw, `baseline` a pair of a
    value and its name, `log` a logarithmic axis.
    """
    out = pathlib.Path(args.out)
    result = {
        "arguments": vars(args),
        "metrics": metrics,
        "steps": history[-1]["steps"],
        "seconds": history[-1]["seconds"],
    }
    _write(out / "result.json", json.dumps(result, indent=2))
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.set_yscale("log" if log else "linear")
    for name in curves:
        axes.plot(
            [row["steps"] for row in history],
            [row[name] for row in history],
            label=name,
        )
    if baseline:
        axes.axhline(baseline[0], color="gray", ls="--", label=baseline[1])
        axes.set_ylim(top=10 * baseline[0])
    axes.set(xlabel="training steps", title=f"{out.name}: {args.model}")
    axes.grid(alpha=0.3)
    axes.legend()
    with _replacing(out / "curve.png") as path:
        figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(json.dumps({**metrics, "seconds": result["seconds"]}))


def save_figure(figure, path):
    """Write a picture to `path`, which names its format, and print the path.

    Raises:
        UserError: If it cannot be written.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {path}: {error}") from error
    pyplot.close(figure)
    print(path)


def _resume(out, build, arguments, afterwards):
    """The checkpointed model and its history, or (None, []) without one."""
    checkpoint = out / "checkpoint.keras"
    if not checkpoint.exists():
        return None, []
    check_arguments(out, arguments, afterwards)
    try:
        model = keras.models.load_model(checkpoint)
    except (
        OSError,
        EOFError,
        KeyError,
        RuntimeError,  # h5py's, of a damaged file
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{out} cannot be resumed: {error}") from error
    if _kind(model) != _kind(build()):
        raise UserError(
            f"{out} cannot be resumed: checkpoint.keras holds another network "
            "or optimizer"
        )
    return model, read_history(out, int(model.optimizer.iterations))


def check_arguments(out, arguments, afterwards=()):
    """Raise a UserError unless a run began with the same arguments.

    Arguments:
        out: The path of its results.
        arguments: A dict of those it is resumed with.
        afterwards: As in `train`.
    """
    try:
        started = dict(json.loads((out / "arguments.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{out} cannot be resumed: {error}") from error
    changed = [
        f"{name} was {started.get(name)}, is {value}"
        for name, value in arguments.items()
        if name not in ("resume", "out", "data", *afterwards)
        and started.get(name) != value
    ]
    if changed:
        raise UserError(
            "--resume needs the arguments of the first start: "
            + "; ".join(changed)
        )


def read_history(out, steps):
    """The history of `out`, a path, up to the step of its checkpoint.

    Raises:
        UserError: If it cannot be read, or does not come to that step.
    """
    try:
        with open(out / "history.csv", newline="") as file:
            history = [
                {key: float(value) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
        history = [row for row in history if row["steps"] <= steps]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{out} cannot be resumed: {error}") from error
    if not history or history[-1]["steps"] != steps:
        raise UserError(
            f"{out} cannot be resumed: expected a row of {steps} steps, those "
            "of its checkpoint, in history.csv"
        )
    for row in history:
        row.update(epoch=int(row["epoch"]), steps=int(row["steps"]))
    return history


def _kind(model):
    return [w.shape for w in model.weights], type(model.optimizer)


def _seed(model, entropy):
    """Set the states of dropout, which Keras does not save with a model."""
    rng = np.random.default_rng(entropy)
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            variable.assign(rng.integers(2**31, size=variable.shape))


def write_history(out, history):
    """Write history.csv, the dicts of all epochs, into the path `out`."""
    with (
        _replacing(out / "history.csv") as path,
        open(path, "w", newline="") as file,
    ):
        writer = csv.DictWriter(file, history[-1])
        writer.writeheader()
        writer.writerows(history)


def _is_best(history, column):
    """Whether the last row has the best value of a column so far."""
    values = [row[column] for row in history]
    return values[-1] == (max if "accuracy" in column else min)(values)


def _write(path, text):
    with _replacing(path) as temporary:
        temporary.write_text(text + "\n")


def _save(model, path):
    with _replacing(path) as temporary:
        model.save(temporary)


def _save_network(model, path):
    """Save a model without its optimizer."""
    with _replacing(path) as temporary:
        model.save(temporary)
        keras.models.load_model(temporary, compile=False).save(temporary)


@contextlib.contextmanager
def _replacing(path):
    """A path to write to, which takes the place of `path` once it is whole.

    Raises:
        UserError: If it cannot be written, as on a full disk. Then nothing is
            left of it, and what was at `path` stays.
    """
    temporary = path.with_name("_" + path.name)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"--out {path.parent}: {path.name} cannot be written, what was "
            f"there before is kept: {error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
