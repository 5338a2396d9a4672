"""A stream of batches with 200 different lengths: IndRNN beside Keras' layers.

    python benchmarks/lengths.py

Each layer is trained for two epochs on the same batches, each of another
length, with `keras.Model.fit`; a figure is the seconds of an epoch, compilation
included. Programs are counted as XLA compiles them.
"""

import os
import re
import subprocess
import sys
import time

from timing import parser

LAYERS = ("IndRNN", "SimpleRNN", "GRU", "LSTM")


def epochs(name, args):
    """Seconds of two epochs, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from ind_rnn import IndRNN

    layer = IndRNN if name == "IndRNN" else getattr(keras.layers, name)
    model = keras.Sequential(
        [
            keras.Input((None, args.features)),
            layer(args.units, return_sequences=True),
            layer(args.units),
            keras.layers.Dense(1),
        ]
    )
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
    args = options.parse_args(argv)
    if args.layer:
        return epochs(args.layer, args)
    print("| layer | first epoch, s | second epoch, s | XLA programs |")
    print("|---|---|---|---|")
    for name in LAYERS:
        # A process for each, for what one compiles the next would find.
        words = (sys.argv[1:] if argv is None else argv) + ["--layer", name]
        result = subprocess.run(
            [sys.executable, __file__, *words],
            # Let TensorFlow tell of each program that it makes.
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
