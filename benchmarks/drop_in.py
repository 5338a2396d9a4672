"""IndRNN in LSTM's place: thirteen tasks, nothing else changed.

    pip install -e ".[benchmarks]"
    python benchmarks/drop_in.py --mnist mnist.npz --ptb ptb --out out/drop_in
    python benchmarks/drop_in.py --mnist mnist.npz --ptb ptb --study gates \
        --out out/gates

`--study gates` is of IndyLSTM and IndyGRU, and of how their weights start;
`--study bound` of `recurrent_max_abs`, and of time constants at their quantiles
(all else was run with drawn ones); `--study networks` of the networks to
begin with, beside LSTM and GRU; into the same --out, `--study house` of all
others of this library, and `--study normalization` of deep networks. The first
two were run before there were the tasks ordered, next_hour and weather.

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

import keras
import tensorflow as tf

from drop_in_networks import BOUNDS, INDY, NORMALIZATIONS, build
from drop_in_tasks import TASKS

BATCH, EPOCHS = 32, 4
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
GATES_OF_KERAS = ("LSTM", (1,), 1e-3), ("GRU", (1,), 1e-3)
GATES = (
    ("IndRNN", (1, 2), 1e-3),
    ("IndyLSTM", (1, 2), 1e-3),
    ("IndyGRU", (1, 2), 1e-3),
)
STARTS_OF_GATES = (
    "uniform",
    "zeros",
    "positive",
    "time constants",
    "chrono",
    "wide",
    "wide, time constants",
)
GATES_CANDIDATES = tuple(
    (f"{model}, {start}", (1,), 1e-3)
    for model in INDY
    for start in STARTS_OF_GATES
)
BOUND_CANDIDATES = tuple(
    run
    for name in (*BOUNDS, "quantiles")
    for run in ((name, (2, 4), 1e-3), (name, (2,), 3e-3))
)
PEERS = (
    ("LSTM", (1, 2), 1e-3),
    ("GRU", (1, 2), 1e-3),
)
CHOSEN = (
    ("mixed", (2, 3), 1e-3),
    ("IndRNN", (2,), 1e-3),
)
HOUSE = (
    ("SimpleRNN", (1, 2), 1e-3),
    ("dilated SimpleRNN", (2, 3, 4, 0), 1e-3),
    ("mixed", (4,), 1e-3),
    ("SimpleRNN over IndRNN", (3,), 1e-3),
    ("dilated, in turn", (4, 0), 1e-3),
    ("dilated IndRNN", (4, 0), 1e-3),
    ("stacked, dilated", (6,), 1e-3),
    ("residual, dilated", (2,), 1e-3),
)
NORMALIZED = (
    *((name, (6,), 1e-3) for name in NORMALIZATIONS),
    ("residual", (5,), 1e-3),
    ("residual, batch", (5,), 1e-3),
)
# By --study: what sets the time, what trains for as long, and other starts.
STUDIES = {
    "ind_rnn": (KERAS_STUDY, STUDY, CANDIDATES),
    "gates": (GATES_OF_KERAS, GATES, GATES_CANDIDATES),
    "bound": ((), (), BOUND_CANDIDATES),
    "networks": (PEERS, CHOSEN, ()),
    "house": ((), HOUSE, ()),
    "normalization": ((), NORMALIZED, ()),
}
# Which of them train on, for as long as LSTM of so many layers.
IN_THE_TIME_OF_LSTM = {name: 2 for name, *_ in CHOSEN + HOUSE + NORMALIZED}
IN_THE_TIME_OF_LSTM |= {"IndRNN": 1, "IndyLSTM": 1, "IndyGRU": 1}


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


def train(run, args):
    """The rows of a run, one for each epoch."""
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
        shuffle=task.shuffle,
        verbose=0,
    )
    return rows


def take_one_core():
    """At the start of a process: one thread for all that it computes."""
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


def runs_of(models, seed):
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
    result.add_argument("--study", choices=STUDIES, default="ind_rnn")
    result.add_argument("--seeds", type=int, default=3, metavar="N")
    result.add_argument("--jobs", type=int, default=2, metavar="N")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    of_keras, ours, candidates = STUDIES[args.study]
    for seed in range(args.seeds):
        compute(runs_of(of_keras, seed), args)
        rows = read(args.out / "runs.csv")
        runs = runs_of(ours, seed)
        compute([with_time_of_lstm(run, rows) for run in runs], args)
    for seed in range(args.seeds):
        compute(runs_of(candidates, seed), args)


if __name__ == "__main__":
    main()
