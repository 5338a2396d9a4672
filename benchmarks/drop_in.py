"""IndRNN in LSTM's place: ten tasks, nothing else changed.

    pip install -e ".[benchmarks]"
    python benchmarks/drop_in.py --mnist mnist.npz --ptb ptb --out out/drop_in

Trains every network on every task with Adam, and writes a row for each epoch to
`runs.csv` in --out. Stopped, it goes on where it was; `drop_in_report.py` makes
the tables and the picture. Each run has one core; --jobs of them go side by
side.

Seconds are processor time: the median of the training batches times their
number, so that neither compiling nor validation counts. Networks train for four
epochs; IndRNN and `stacked_ind_rnn` with their defaults go on until they have
had the time of LSTM.
"""

import argparse
import csv
import dataclasses
import functools
import multiprocessing
import pathlib
import statistics
import time

from drop_in_tasks import TASKS

UNITS, BATCH, EPOCHS = 64, 32, 4
KEY = "task", "model", "layers", "learning_rate", "seed"
FIELDS = (
    *KEY,
    "weights",
    "epoch",
    "seconds",
    "loss",
    "validation_loss",
    "score",
)
KERAS = "LSTM", "GRU", "SimpleRNN"
# (model, numbers of layers, learning rate)
KERAS_STUDY = (
    ("LSTM", (1, 2, 4), 1e-3),
    ("GRU", (1, 2), 1e-3),
    ("SimpleRNN", (1, 2), 1e-3),
    ("LSTM", (1,), 3e-3),
)
STUDY = (
    ("IndRNN", (1, 2, 4), 1e-3),
    ("uniform", (1, 2, 4), 1e-3),
    ("stacked", (6,), 1e-3),
    ("stacked, uniform", (6,), 1e-3),
    ("IndRNN", (1,), 3e-3),
)
CANDIDATES = (
    ("all positive", (2,), 1e-3),
    ("half negative", (2,), 1e-3),
    ("longest 1000", (2,), 1e-3),
    ("glorot", (2,), 1e-3),
    ("he", (1, 2), 1e-3),
    ("he, gain^1", (1, 2, 4), 1e-3),
    ("fan_avg", (1, 2, 4), 1e-3),
    ("gain^1", (2,), 1e-3),
    ("gain^.75", (2,), 1e-3),
    ("gain^.5", (2,), 1e-3),
    ("uniform, gain", (2,), 1e-3),
    ("stacked, time constants", (6,), 1e-3),
    ("stacked, not normalized", (6,), 1e-3),
)
# Which of them train on, for as long as LSTM of so many layers.
IN_THE_TIME_OF_LSTM = {"IndRNN": 1, "stacked": 2}
# `stacked_ind_rnn` of 6 layers has the weights of LSTM of 2 layers.
STACKED_UNITS = 96


def options(model, time_steps):
    """The arguments of a network of IndRNN layers: what its start is."""
    import keras

    from ind_rnn_cell import TimeConstants, UnitGain

    def gain(initializer=None, **arguments):
        return {"kernel_initializer": UnitGain(initializer, **arguments)}

    def tau(**arguments):
        return {"recurrent_initializer": TimeConstants(**arguments)}

    uniform = keras.initializers.RandomUniform(0.0, 1.0)
    return {
        "IndRNN": {},
        # The default before this study
        "uniform": {
            "kernel_initializer": "glorot_uniform",
            "recurrent_initializer": uniform,
        },
        "stacked": {},
        "stacked, uniform": {
            "recurrent_initializer": keras.initializers.RandomUniform(
                0.0, 2 ** (1 / time_steps)
            )
        },
        "stacked, time constants": tau(),
        "stacked, not normalized": {"batch_normalization": None},
        "all positive": tau(negative=0.0),
        "half negative": tau(negative=0.5),
        "longest 1000": {**gain(time_steps=1000), **tau(longest=1000)},
        "glorot": gain("glorot_uniform"),
        "he": gain("he_uniform"),
        "fan_avg": gain(
            keras.initializers.VarianceScaling(2.0, "fan_avg", "uniform")
        ),
        "gain^1": gain(exponent=1.0),
        "gain^.75": gain(exponent=0.75),
        "gain^.5": gain(exponent=0.5),
        "he, gain^1": gain("he_uniform", exponent=1.0),
        "uniform, gain": {"recurrent_initializer": uniform},
    }[model]


@dataclasses.dataclass(frozen=True)
class Run:
    """A network, a task and a seed, and how long to train."""

    task: str
    model: str
    layers: int
    learning_rate: float
    seed: int
    seconds: float = 0.0  # at least EPOCHS, and then until these have passed

    @property
    def key(self):
        """What tells this run from others, as it stands in `runs.csv`."""
        return tuple(str(getattr(self, name)) for name in KEY)


def build(run, task):
    """The compiled network of a run."""
    import keras

    from deep_ind_rnn import stacked_ind_rnn
    from ind_rnn import IndRNN

    x = inputs = keras.Input(task.x.shape[1:], dtype=task.x.dtype)
    if task.vocabulary:
        embedding = keras.layers.Embedding(
            task.vocabulary, UNITS, mask_zero=task.mask
        )
        x = embedding(x)
    time_steps = task.x.shape[1]
    if run.model.startswith("stacked"):
        x = stacked_ind_rnn(
            (time_steps, x.shape[-1]),
            STACKED_UNITS,
            run.layers,
            return_sequences=task.every_step,
            **options(run.model, time_steps),
        )(x)
    else:
        for index in range(run.layers):
            of_layer = {
                "return_sequences": task.every_step or index < run.layers - 1
            }
            if run.model in KERAS:
                layer = getattr(keras.layers, run.model)(UNITS, **of_layer)
            else:
                start = options(run.model, time_steps)
                layer = IndRNN(UNITS, **of_layer, **start)
            x = layer(x)
    model = keras.Model(inputs, keras.layers.Dense(task.outputs)(x))
    loss = "mse"
    if task.classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
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
    model = build(run, task)
    rows, batches = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.process_time()

        def on_train_batch_end(self, batch, logs=None):
            batches.append(time.process_time() - self.start)

        def on_epoch_end(self, epoch, logs=None):
            seconds = statistics.median(batches) * len(batches)
            row = {
                "weights": model.count_params(),
                "epoch": epoch + 1,
                "seconds": f"{seconds:.2f}",
                "loss": f"{logs['loss']:.5g}",
                "validation_loss": f"{logs['val_loss']:.5g}",
                "score": f"{logs['val_' + task.score]:.5g}",
            }
            rows.append({**dict(zip(KEY, run.key, strict=True)), **row})
            self.model.stop_training = (
                epoch + 1 >= EPOCHS and seconds >= run.seconds
            )

    model.fit(
        task.x,
        task.y,
        batch_size=BATCH,
        epochs=EPOCHS * 100,
        validation_data=(task.x_validation, task.y_validation),
        validation_batch_size=250,
        callbacks=[Watch()],
        verbose=0,
    )
    return rows


def take_one_core():
    """At the start of a process: one thread for all that it computes."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def read(path):
    """The rows of a `runs.csv`, if there is one."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compute(runs, args):
    """Train what is not yet in `runs.csv`, and add it there."""
    path = args.out / "runs.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    done = {tuple(row[name] for name in KEY) for row in read(path)}
    runs = [run for run in runs if run.key not in done]
    if not runs:
        return
    pool = multiprocessing.get_context("spawn").Pool(
        args.jobs,
        take_one_core,
        maxtasksperchild=40,  # what is compiled stays in memory
    )
    with path.open("a", newline="", encoding="utf-8") as file, pool:
        writer = csv.DictWriter(file, FIELDS)
        if not file.tell():
            writer.writeheader()
        work = functools.partial(train, args=args)
        for count, rows in enumerate(pool.imap_unordered(work, runs), 1):
            writer.writerows(rows)
            file.flush()
            last = rows[-1]
            print(
                f"{count}/{len(runs)}",
                *(last[name] for name in KEY),
                f"{last['score']} after {last['seconds']} s",
                flush=True,
            )


def study(models, seed):
    """The runs of these models with one seed."""
    return [
        Run(task, model, count, rate, seed)
        for model, layers, rate in models
        for count in layers
        for task in TASKS
    ]


def with_time_of_lstm(run, rows):
    """The run, with the median time that LSTM took for the same task."""
    layers = IN_THE_TIME_OF_LSTM.get(run.model)
    seconds = [
        float(row["seconds"])
        for row in rows
        if (row["task"], row["model"], row["layers"], row["epoch"])
        == (run.task, "LSTM", str(layers), str(EPOCHS))
    ]
    seconds = statistics.median(seconds) if seconds else 0.0
    return dataclasses.replace(run, seconds=seconds)


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
    result.add_argument("--seeds", type=int, default=3, metavar="N")
    result.add_argument("--jobs", type=int, default=2, metavar="N")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    for seed in range(args.seeds):
        compute(study(KERAS_STUDY, seed), args)
        rows = read(args.out / "runs.csv")
        runs = study(STUDY, seed)
        compute([with_time_of_lstm(run, rows) for run in runs], args)
    for seed in range(args.seeds):
        compute(study(CANDIDATES, seed), args)


if __name__ == "__main__":
    main()
