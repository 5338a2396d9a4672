"""IndRNN in LSTM's place: ten tasks, nothing else changed.

    pip install -e ".[benchmarks]"
    python benchmarks/drop_in.py --mnist mnist.npz --ptb ptb --out out/drop_in

Trains every network on every task with Adam and its defaults, and writes a row
for each epoch to `runs.csv` in --out. Stopped, it goes on where it was. Each run
has one core; --jobs of them go side by side.

Seconds are processor time: the median of the training batches times their
number, so that neither compiling nor validation counts.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time

import numpy as np

from drop_in_tasks import TASKS

UNITS, BATCH = 64, 32
FIELDS = (
    "task",
    "model",
    "layers",
    "learning_rate",
    "seed",
    "weights",
    "epoch",
    "seconds",
    "loss",
    "validation_loss",
    "score",
)


@dataclasses.dataclass(frozen=True)
class Run:
    task: str
    model: str
    layers: int
    learning_rate: float
    seed: int
    epochs: int

    @property
    def key(self):
        """What tells this run from others, as it stands in `runs.csv`."""
        return tuple(
            str(getattr(self, name)) for name in FIELDS[:5]
        )


def recurrent_layers(run, task, options):
    """The layers of a network between its inputs and the dense layer on top."""
    import keras

    from deep_ind_rnn import stacked_ind_rnn
    from ind_rnn import IndRNN

    if run.model.startswith("stacked"):
        features = task.x.shape[2] if task.x.ndim == 3 else UNITS
        return [
            stacked_ind_rnn(
                (task.x.shape[1], features),
                num_layers=run.layers,
                return_sequences=task.every_step,
                **options,
            )
        ]
    layer = getattr(keras.layers, run.model, IndRNN)
    return [
        layer(
            UNITS,
            return_sequences=task.every_step or index < run.layers - 1,
            **options,
        )
        for index in range(run.layers)
    ]


def build(run, task, layers):
    """The compiled network of a run."""
    import keras

    inputs = keras.Input(task.x.shape[1:], dtype=task.x.dtype)
    x = inputs
    if task.vocabulary:
        embedding = keras.layers.Embedding(
            task.vocabulary, UNITS, mask_zero=task.mask
        )
        x = embedding(x)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, keras.layers.Dense(task.outputs)(x))
    if task.classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        loss = "mse"
    metrics = ["accuracy"] if task.score == "accuracy" else None
    adam = keras.optimizers.Adam(run.learning_rate)
    model.compile(adam, loss, metrics=metrics)
    return model


def train(run, args):
    """The rows of a run, one for each epoch."""
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    task = TASKS[run.task](args)
    layers = recurrent_layers(run, task, CANDIDATES.get(run.model, lambda task: {})(task))
    model = build(run, task, layers)
    rows, batches = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.process_time()

        def on_train_batch_end(self, batch, logs=None):
            batches.append(time.process_time() - self.start)

        def on_epoch_end(self, epoch, logs=None):
            score = logs[f"val_{task.score}"]
            rows.append(
                {
                    **dict(zip(FIELDS, run.key, strict=False)),
                    "weights": model.count_params(),
                    "epoch": epoch + 1,
                    "seconds": round(
                        float(np.median(batches)) * len(batches), 2
                    ),
                    "loss": f"{logs['loss']:.5g}",
                    "validation_loss": f"{logs['val_loss']:.5g}",
                    "score": f"{score:.5g}",
                }
            )

    model.fit(
        task.x,
        task.y,
        batch_size=BATCH,
        epochs=run.epochs,
        validation_data=(task.x_validation, task.y_validation),
        validation_batch_size=250,
        callbacks=[Watch(), keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )
    return rows


def take_a_core(cores):
    """At the start of a process: one core for all that it computes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def read(path):
    """The rows of `runs.csv`, if there is one."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compute(runs, args):
    """Train what is not yet in `runs.csv`, and add it there."""
    path = args.out / "runs.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[name] for name in FIELDS[:5]) for row in read(path)}
    runs = [run for run in runs if run.key not in done]
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for index in range(args.jobs):
        cores.put(index % os.cpu_count())
    with (
        path.open("a", newline="", encoding="utf-8") as file,
        concurrent.futures.ProcessPoolExecutor(
            args.jobs, context, take_a_core, (cores,)
        ) as pool,
    ):
        writer = csv.DictWriter(file, FIELDS)
        if not file.tell():
            writer.writeheader()
        futures = {pool.submit(train, run, args): run for run in runs}
        for count, future in enumerate(
            concurrent.futures.as_completed(futures), 1
        ):
            writer.writerows(future.result())
            file.flush()
            run = futures[future]
            last = future.result()[-1]
            print(
                f"{count}/{len(runs)} {' '.join(run.key)}: "
                f"{last['score']} after {last['seconds']} s",
                flush=True,
            )


CANDIDATES = {}


def parser():
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--mnist", default="mnist.npz", metavar="FILE")
    result.add_argument("--ptb", default="ptb", metavar="DIR")
    result.add_argument(
        "--out", type=pathlib.Path, default="out/drop_in", metavar="DIR"
    )
    result.add_argument("--jobs", type=int, default=2, metavar="N")
    return result
