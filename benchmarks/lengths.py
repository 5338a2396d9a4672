"""A stream of batches with 200 different lengths: IndRNN beside Keras' layers.

    python benchmarks/lengths.py

Each layer is trained for two epochs on the same batches, each of another
length, with `keras.Model.fit`. A figure is the seconds of an epoch, with
compilation. Programs are those that XLA has compiled.

    python benchmarks/lengths.py --eager --lengths 40

calls the layers outside of a `tf.function` instead, all in one process:
predictions for batches of 40 lengths, drawn from 1 to 200, then gradients.
"""

import os
import re
import subprocess
import sys
import time

from timing import parser

LAYERS = ("IndRNN", "SimpleRNN", "GRU", "LSTM")


def network(name, args):
    import keras

    from ind_rnn import IndRNN

    layer = IndRNN if name == "IndRNN" else getattr(keras.layers, name)
    return keras.Sequential(
        [
            keras.Input((None, args.features)),
            layer(args.units, return_sequences=True),
            layer(args.units),
            keras.layers.Dense(1),
        ]
    )


def eager(args):
    """Print the seconds of calls outside of a function."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    lengths = rng.choice(np.arange(1, 201), args.lengths, replace=False)
    print("| layer | predictions, s | the same again, s | gradients, s |")
    print("|---|---|---|---|")
    for name in LAYERS:
        model, seconds = network(name, args), []
        for with_gradients in (False, False, True):
            start = time.perf_counter()
            for length in lengths:
                x = tf.ones((args.batch, length, args.features))
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(model(x))
                if with_gradients:
                    tape.gradient(loss, model.trainable_weights)
            seconds.append(f"{time.perf_counter() - start:.1f}")
        print(f"| {name} | {' | '.join(seconds)} |")


def epochs(name, args):
    """Seconds of two epochs, in this process."""
    import numpy as np
    import tensorflow as tf

    model = network(name, args)
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    lengths = rng.permutation(np.arange(1, args.lengths + 1))

    def batches():
        for length in lengths:
            yield (
                tf.ones((args.batch, length, args.features)),
                tf.ones((args.batch, 1)),
            )

    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((args.batch, None, args.features)),
            tf.TensorSpec((args.batch, 1)),
        ),
    ).apply(tf.data.experimental.assert_cardinality(len(lengths)))
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    for _ in range(2):
        start = time.perf_counter()
        model.fit(dataset, verbose=0)
        print(f"seconds {time.perf_counter() - start}")


def main(argv=None):
    options = parser(__doc__, lengths=200, batch=32, features=16, units=128)
    options.add_argument("--layer", choices=LAYERS, help="this one alone")
    options.add_argument("--eager", action="store_true", help="see above")
    args = options.parse_args(argv)
    if args.eager:
        return eager(args)
    if args.layer:
        return epochs(args.layer, args)
    print("| layer | first epoch, s | second epoch, s | XLA programs |")
    print("|---|---|---|---|")
    for name in LAYERS:
        # A process for each: the next one would find its programs.
        words = (sys.argv[1:] if argv is None else argv) + ["--layer", name]
        result = subprocess.run(
            [sys.executable, __file__, *words],
            # TensorFlow logs each program that XLA compiles.
            env={
                **os.environ,
                "TF_CPP_MIN_LOG_LEVEL": "0",
                "TF_CPP_VMODULE": "device_compiler=1",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        first, second = re.findall(r"^seconds (\S+)$", result.stdout, re.M)
        programs = result.stderr.count("Compilation of XLA executable time")
        print(
            f"| {name} | {float(first):.1f} | {float(second):.1f} "
            f"| {programs} |"
        )


if __name__ == "__main__":
    main()
