"""Training that can be resumed, and its results.

Every example leaves in its `--out` directory, after the first epoch:

    arguments.json    what it was started with
    checkpoint.keras  model and optimizer after the last whole epoch
    best.keras        the model with the best validation, where one is kept,
                      without optimizer: what --evaluate takes
    history.csv       the metrics and cumulated seconds of every epoch
    curve.png         their picture
    result.json       at the end: arguments, metrics, steps, seconds

A run that is killed at any moment and resumed ends with the same weights as one
that is not. Keras' `BackupAndRestore`, `CSVLogger` and `ModelCheckpoint` cannot
promise this: they write their files in place, one by one.
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
import warnings
import zipfile

import keras
import matplotlib
import numpy as np

from arguments import UserError, explained

try:
    import fcntl
except ImportError:  # On Windows, nothing detects that --out is in use.
    fcntl = None

tf = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def jit_compile(args):
    """Whether XLA is faster for the whole training step.

    It is slower for the loops of Keras and for deep networks: see
    `training_step.py` among the benchmarks. JAX has no other compiler.
    """
    if tf is None:
        return "auto"
    if args.model == "dilated":
        return args.cell in ("rnn", "indrnn")
    return args.model in ("indrnn", "linear")


def cosine(learning_rate, steps, warmup):
    """A schedule: up to `learning_rate` in `warmup` steps, then to 0."""
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )


def shuffled(count, batch_size, *entropy):
    """(epoch, step) -> the indices of a batch, in a new order each epoch."""

    @functools.lru_cache(maxsize=1)
    def order(epoch):
        return np.random.default_rng([*entropy, epoch]).permutation(count)

    def rows(epoch, step):
        return order(epoch)[step * batch_size :][:batch_size]

    return rows


def batches(batch, steps, free=()):
    """A dataset of `batch(0)` ... `batch(steps - 1)`, tuples of arrays.

    Their shapes may differ in the axes `free`.
    """
    if tf is None:
        return Batches(batch, steps)
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


class Batches(keras.utils.PyDataset):
    """What `batches` returns on JAX, where there is no tf.data."""

    def __init__(self, batch, steps):
        # With more workers, Keras 3.15 loses the first batch.
        super().__init__(workers=1)
        self.batch, self.steps = batch, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        return self.batch(step)


class Interrupt(keras.callbacks.Callback):
    """Inside its `with`, Ctrl-C waits for the end of a batch.

    TensorFlow may swallow one that comes within a batch. A second Ctrl-C does
    not wait.
    """

    asked = False

    def __enter__(self):
        self.before = signal.signal(signal.SIGINT, self.ask)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGINT, self.before)

    def ask(self, *_):
        self.stop_if_asked()
        self.asked = True

    def stop_if_asked(self, *_, **__):
        if self.asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_test_batch_end = stop_if_asked


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

    What an epoch sees depends only on `args.seed` and its number.

    Arguments:
        args: The parsed arguments.
        build: () -> a compiled model.
        batch: (epoch, step) -> one batch (x, y).
        steps: Batches in an epoch.
        callbacks: history -> the callbacks of the next epoch.
        enough: history -> whether to stop here.
        best: A column of the history: best.keras is the model with its lowest
            value, or its highest if it is an accuracy; the last of equal ones.
        free: The axes in which the shapes of batches may differ.
        afterwards: Names of arguments that do not affect the training, so that
            a resumed run may change them.
        **fit_options: Passed to `keras.Model.fit`.

    Returns:
        The model, and its history: a list with one dict for each epoch.
    """
    out = pathlib.Path(args.out)
    with locked(out), Interrupt() as interrupt:
        keras.utils.set_random_seed(args.seed)
        model, history = build(), []
        if args.resume and (out / "checkpoint.keras").exists():
            history = resume(model, out, vars(args), afterwards)
        if tf is None:
            # Keras waits for JAX after every execution.
            model.steps_per_execution = min(steps, 20)
        while len(history) < args.epochs and not enough(history):
            epoch, start = len(history), time.perf_counter()
            seed_dropout(model, [args.seed, epoch])
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
            row = {"epoch": epoch + 1, "steps": int(model.optimizer.iterations)}
            row["seconds"] = round(seconds, 1)
            row |= {name: values[-1] for name, values in logs.items()}
            history.append(row)
            write_epoch(model, args, history, best)
        return model, history


def seed_dropout(model, entropy):
    """Set the states of dropout, which Keras does not save with a model."""
    rng = np.random.default_rng(entropy)
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            variable.assign(rng.integers(2**31, size=variable.shape))


def is_best(values, column):
    """Whether the last value of a column of the history is its best."""
    return values[-1] == (max if "accuracy" in column else min)(values)


@contextlib.contextmanager
def locked(out):
    """Keep other processes from training into the directory `out`, a path."""
    path = out / "lock"
    with explained(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    with file:
        if fcntl:
            try:  # The system releases the lock however a process ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"--out {out}: process {path.read_text()} is writing "
                    "there; wait for its end, or take another directory"
                ) from error
        path.write_text(str(os.getpid()))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path):
    """A path to write to, which replaces `path` once it is whole.

    If it cannot be written, as on a full disk, `path` stays as it was.
    """
    temporary = path.with_name("_" + path.name)
    try:
        with explained(
            f"--out {path.parent}: {path.name} cannot be written, what was "
            "there before is kept"
        ):
            yield temporary
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save(model, path, arguments, history):
    """Save a model, its optimizer, and all else that a resumed run needs."""
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as file:
            file.writestr("run.json", json.dumps([arguments, history]))


def write_json(path, value):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_epoch(model, args, history, best=None):
    """Write what an epoch leaves in --out, as the module's docstring says.

    The first epoch removes what an earlier run left. The checkpoint comes last:
    a resumed run repeats the epoch of files that are ahead of it.
    """
    out = pathlib.Path(args.out)
    if len(history) == 1:
        with explained(f"--out {out}"):
            for name in ("checkpoint.keras", "best.keras"):
                (out / name).unlink(missing_ok=True)
        write_json(out / "arguments.json", vars(args))
    with replacing(out / "history.csv") as path:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, history[-1])
            writer.writeheader()
            writer.writerows(history)
    if best and is_best([row[best] for row in history], best):
        with replacing(out / "best.keras") as path:
            model.save(path)
            # Without optimizer
            keras.models.load_model(path, compile=False).save(path)
    save(model, out / "checkpoint.keras", vars(args), history)


def resume(model, out, arguments, afterwards=()):
    """Load the checkpoint of `out` into the model; return its history.

    The run must have begun with the same `arguments`, except `afterwards`.
    """
    path = out / "checkpoint.keras"
    with explained(f"{out} cannot be resumed", Exception):
        with zipfile.ZipFile(path) as file:
            started, history = json.loads(file.read("run.json"))
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
        model.optimizer.build(model.trainable_variables)
        with warnings.catch_warnings():
            # Keras only warns if the file is of another optimizer.
            warnings.filterwarnings("error", "Skipping variable loading")
            model.load_weights(path)
    return history


def load_network(path):
    """The model of a .keras file, or of the results in a directory.

    Returns:
        The model, without optimizer, and the path of its file.
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
    with explained(path, Exception):
        return keras.models.load_model(path, compile=False), path


def trained(args, afterwards=()):
    """The network of --evaluate, and the arguments that it was trained with.

    --data and the names in `afterwards` keep the values of `args`.
    """
    model, path = load_network(args.evaluate)
    with explained(f"--evaluate {args.evaluate}", Exception):
        saved = dict(json.loads(path.with_name("arguments.json").read_text()))
    for name in ("data", "evaluate", *afterwards):
        if name in args:
            saved[name] = getattr(args, name)
    return model, argparse.Namespace(**{**vars(args), **saved})


def finish(args, history, metrics, curves, baseline=None, log=False):
    """Write result.json and curve.png, and print the metrics.

    `curves` are the columns of the history to draw, `baseline` a pair of a
    value and its name, `log` makes the axis logarithmic.
    """
    out = pathlib.Path(args.out)
    last = {name: history[-1][name] for name in ("steps", "seconds")}
    result = {"arguments": vars(args), "metrics": metrics, **last}
    write_json(out / "result.json", result)
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.set_yscale("log" if log else "linear")
    steps = [row["steps"] for row in history]
    for name in curves:
        axes.plot(steps, [row[name] for row in history], label=name)
    if baseline:
        axes.axhline(baseline[0], color="gray", ls="--", label=baseline[1])
        axes.set_ylim(top=10 * baseline[0])
    axes.set(xlabel="training steps", title=f"{out.name}: {args.model}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, out / "curve.png")
    print(json.dumps({**metrics, "seconds": last["seconds"]}))


def save_figure(figure, path):
    """Write a picture to `path`, which names its format, and print the path."""
    path = pathlib.Path(path)
    with explained(f"--out {path}", (OSError, ValueError)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    print(path)
