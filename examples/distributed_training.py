"""The adding problem in a loop of its own: alone, or on many devices.

The same loop runs on one device, on all devices of one machine, and on several
machines (workers), with the same result: each device gets a part of the batch,
the gradients are added up, and every device applies the sum.

    python examples/distributed_training.py
    python examples/distributed_training.py --strategy mirrored

Workers are started one by one, each with its own index in TF_CONFIG; they wait
for one another. All must see the directory --out.

    export TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                       "task": {"type": "worker", "index": 0}}'
    python examples/distributed_training.py

If one of them dies, the others end: start all again, with --resume.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import addition_rnn
import arguments
import training

TEST_BATCHES = 20
CLUSTER = (
    '{"cluster": {"worker": ["host:port", ...]}, '
    '"task": {"type": "worker", "index": 0}}'
)


def check_cluster(text):
    """Raise a UserError unless TF_CONFIG names the workers and this one."""
    try:
        config = json.loads(text)
        (workers,) = config["cluster"].values()
        well_formed = (
            config["cluster"].keys() == {"worker"}
            and config["task"]["type"] == "worker"
            and config["task"]["index"] in range(len(workers))
            and all(re.fullmatch(r"\S+:\d+", address) for address in workers)
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        well_formed = False
    if not well_formed:
        raise arguments.UserError(
            f"TF_CONFIG must be like {CLUSTER}, with an index below the number "
            f"of workers; got {text}"
        )


def make_strategy(name):
    """The tf.distribute.Strategy of --strategy and TF_CONFIG."""
    config = os.environ.get("TF_CONFIG")
    if name is None:
        name = "workers" if config else "alone"
    if name == "workers":
        check_cluster(config or "")
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise arguments.UserError(f"TF_CONFIG {config}: {error}") from error
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = tf.config.list_logical_devices(kind)
        return tf.distribute.MirroredStrategy([d.name for d in devices])
    return tf.distribute.get_strategy()


def distributed(strategy, batch, start, stop):
    """An iterator that repeats `batch(start)` ... `batch(stop - 1)`.

    Every worker draws whole batches, and gives each of its replicas its rows.
    """
    replicas = strategy.num_replicas_in_sync

    def of_worker(context):
        count = replicas // context.num_input_pipelines
        first = count * context.input_pipeline_id

        def part(index):
            step, replica = divmod(index, count)
            return tuple(
                np.split(array, replicas)[first + replica]
                for array in batch(start + step)
            )

        return training.batches(part, (stop - start) * count).repeat()

    return iter(strategy.distribute_datasets_from_function(of_worker))


def loop(strategy, model):
    """Functions of a part of a batch: (a training step, the test error).

    Both return the mean squared error of the whole batch.
    """
    replicas = strategy.num_replicas_in_sync

    def error(x, y, training=False):
        loss = tf.reduce_mean(tf.square(model(x, training=training) - y))
        return loss / replicas

    def error_and_gradients(x, y):
        with tf.GradientTape() as tape:
            loss = error(x, y, training=True)
        weights = [w.value for w in model.trainable_weights]
        return loss, tape.gradient(loss, weights)

    def total(value):
        return strategy.reduce("SUM", value, axis=None)

    @tf.function
    def train(x, y):
        loss, gradients = strategy.run(error_and_gradients, (x, y))
        # Added up first: the optimizer clips the norm of the whole gradient.
        gradients = [total(gradient) for gradient in gradients]
        model.optimizer.apply(gradients, model.trainable_weights)
        return total(loss)

    @tf.function
    def test(x, y):
        return total(strategy.run(error, (x, y)))

    return train, test


def parse(argv):
    parser = arguments.parser(__doc__, "distributed_training")
    addition_rnn.add_arguments(parser)
    parser.add_argument(
        "--strategy",
        choices=("alone", "mirrored", "workers"),
        help="one device, all of this machine, or the workers of TF_CONFIG "
        "(default: workers if TF_CONFIG is set, else alone)",
    )
    return parser.parse_args(argv)


def resume(args, strategy, model):
    """Load the checkpoint of --out, if there is one; return its history."""
    out, history = pathlib.Path(args.out), []
    if args.resume and (out / "checkpoint.keras").exists():
        history = training.resume(model, out, vars(args), ("strategy",))
    here = float(len(history))
    mean = strategy.reduce(
        "MEAN", strategy.run(lambda: tf.constant(here)), axis=None
    )
    if mean != here:
        raise arguments.UserError(
            f"--out {out} must be a directory that all workers see: here its "
            f"checkpoint is of epoch {here:.0f}, elsewhere of another"
        )
    return history


def train(args, strategy, writes, interrupt):
    """Train for `args.epochs` epochs, with a checkpoint after each.

    Arguments:
        args: The parsed arguments.
        strategy: The tf.distribute.Strategy.
        writes: Whether this worker is the one that writes into --out.
        interrupt: A `training.Interrupt`.

    Returns:
        The history: a list with one dict for each epoch.
    """
    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        model = addition_rnn.build_model(args)
        model.optimizer.build(model.trainable_weights)
        history = resume(args, strategy, model)

    def batch(*entropy):
        rng = np.random.default_rng([args.seed, *entropy])
        return addition_rnn.adding_batch(rng, args.batch_size, args.time_steps)

    def train_batch(step):
        return batch(0, *divmod(step, args.steps_per_epoch))

    first = len(history) * args.steps_per_epoch
    last = args.epochs * args.steps_per_epoch
    batches = distributed(strategy, train_batch, first, last)
    tests = distributed(strategy, functools.partial(batch, 1), 0, TEST_BATCHES)
    train_step, test_step = loop(strategy, model)
    start = time.perf_counter() - (history[-1]["seconds"] if history else 0)
    for epoch in range(len(history), args.epochs):
        losses = []
        for _ in range(args.steps_per_epoch):
            losses.append(train_step(*next(batches)))
            interrupt.stop_if_asked()
        errors = [test_step(*next(tests)) for _ in range(TEST_BATCHES)]
        history.append(
            {
                "epoch": epoch + 1,
                "steps": (epoch + 1) * args.steps_per_epoch,
                "seconds": round(time.perf_counter() - start, 1),
                "loss": float(np.mean(losses)),
                "val_loss": float(np.mean(errors)),
            }
        )
        print(history[-1], flush=True)
        if not np.isfinite(history[-1]["loss"]):
            raise arguments.UserError(
                f"the loss is {history[-1]['loss']} in epoch {epoch + 1}: try "
                "a lower --learning-rate; the last checkpoint is kept"
            )
        if writes:
            training.write_epoch(model, args, history)
    return history


def main(argv=None):
    args = parse(argv)
    strategy = make_strategy(args.strategy)
    replicas = strategy.num_replicas_in_sync
    if args.batch_size % replicas:
        raise arguments.UserError(
            f"--batch-size must be a multiple of the {replicas} devices, got "
            f"{args.batch_size}"
        )
    resolver = strategy.cluster_resolver
    writes = not (resolver and resolver.task_id)
    out = pathlib.Path(args.out)
    with contextlib.ExitStack() as stack:
        if writes:
            stack.enter_context(training.locked(out))
        interrupt = stack.enter_context(training.Interrupt())
        try:
            history = train(args, strategy, writes, interrupt)
        except tf.errors.UnavailableError as error:
            raise arguments.UserError(
                "another worker has ended: start all again, with --resume"
            ) from error
    if writes:
        training.finish(
            args,
            history,
            {"test_mse": history[-1]["val_loss"]},
            curves=("loss", "val_loss"),
            baseline=(addition_rnn.BASELINE, "no memory: 0.167"),
            log=True,
        )


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
