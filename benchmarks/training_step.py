"""Time of a training step of deep networks: IndRNN beside Dense and LSTM.

    python benchmarks/training_step.py

Six layers with batch normalization after each and a classifier on top, as on
sequential MNIST; one step is forward, backward and the update by Adam. In
place of the recurrences stand nothing (Dense and ReLU alone: the price of a
network that remembers nothing) or LSTM layers. All are timed in one process,
round robin; a figure is the median.
"""

import keras
import numpy as np
import tensorflow as tf

from deep_ind_rnn import stacked_ind_rnn
from timing import add_jit, conditions, medians, parser


def plain(args, layer):
    """`stacked_ind_rnn` with something else in place of its layers."""
    model = keras.Sequential([keras.Input((args.time_steps, 1))])
    for _ in range(args.layers):
        model.add(layer(args.units))
        model.add(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5))
    model.add(keras.layers.Lambda(lambda x: x[:, -1]))
    model.add(keras.layers.Dense(10))
    return model


NETWORKS = {
    "Dense + ReLU": lambda args: plain(
        args, lambda units: keras.layers.Dense(units, "relu")
    ),
    "IndRNN": lambda args: stacked_ind_rnn(
        (args.time_steps, 1), args.units, args.layers, num_outputs=10
    ),
    "LSTM": lambda args: plain(
        args, lambda units: keras.layers.LSTM(units, return_sequences=True)
    ),
}


def make_step(model, jit):
    """A training step of a batch (x, y), compiled."""
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=jit)
    def step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, variables))
        return loss

    return step


def main(argv=None):
    options = parser(
        __doc__, batch=32, time_steps=784, units=128, layers=6, rounds=10
    )
    add_jit(options)
    options.add_argument(
        "--policy", default="float32", help="mixed_bfloat16, mixed_float16"
    )
    args = options.parse_args(argv)
    keras.config.set_dtype_policy(args.policy)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.batch, args.time_steps, 1))
    y = rng.integers(0, 10, args.batch)
    batch = tf.constant(x, tf.float32), tf.constant(y)
    steps = {
        name: make_step(build(args), args.jit)
        for name, build in NETWORKS.items()
    }
    seconds = medians(steps, batch, args.rounds)

    print(
        f"{args.layers} layers, (B, T, N) = "
        f"({args.batch}, {args.time_steps}, {args.units}), {conditions(args)}"
    )
    print("| network | training step, ms | x Dense |")
    print("|---|---|---|")
    for name, value in seconds.items():
        ratio = value / seconds["Dense + ReLU"]
        print(f"| {name} | {1e3 * value:.0f} | {ratio:.2f} |")
    print(f"\nLSTM / IndRNN: {seconds['LSTM'] / seconds['IndRNN']:.1f}")


if __name__ == "__main__":
    main()
