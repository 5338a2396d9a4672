"""Time of a training step of deep networks: IndRNN beside Dense and LSTM.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --network residual

Six layers with batch normalization after each and a classifier on top, as on
sequential MNIST. One step is forward, backward and the update by Adam. Other
rows have Dense + ReLU (the price of a network that remembers nothing) or LSTM
instead of IndRNN, or Keras' batch normalization, another one, or none. All are
timed in one process, round robin; a figure is the median.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn
from ind_rnn_normalization import BatchNormalization
from timing import add_jit, conditions, medians, parser

OF_KERAS = keras.layers.BatchNormalization


def plain(args, layer, normalization):
    """`stacked_ind_rnn` with something else in place of its layers."""
    inputs = x = keras.Input((args.time_steps, 1))
    for _ in range(args.layers):
        x = layer(args.units)(x)
        x = normalization(momentum=0.9, epsilon=1e-5)(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x[:, -1]))


def dense(units):
    return keras.layers.Dense(units, "relu")


def lstm(units):
    return keras.layers.LSTM(units, return_sequences=True)


def ind_rnn(args, **options):
    shape = args.time_steps, 1
    if args.network == "stacked":
        options |= {"units": args.units, "num_layers": args.layers}
        return stacked_ind_rnn(shape, num_outputs=10, **options)
    if args.network == "residual":
        options |= {"units": args.units}
        return residual_ind_rnn(shape, num_outputs=10, **options)
    return dense_ind_rnn(shape, num_outputs=10, **options)


def with_normalization_of_keras(model):
    def clone(layer):
        ours = type(layer) is BatchNormalization
        kind = OF_KERAS if ours else type(layer)
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


# The rows: layers, and their normalization.
IND_RNN = {
    ("IndRNN", "batch"): lambda args: ind_rnn(args, normalization="batch"),
    ("IndRNN", "batch, of Keras"): lambda args: with_normalization_of_keras(
        ind_rnn(args, normalization="batch")
    ),
    ("IndRNN", "layer"): lambda args: ind_rnn(args, normalization="layer"),
    ("IndRNN", "rms"): lambda args: ind_rnn(args, normalization="rms"),
    ("IndRNN", "none"): lambda args: ind_rnn(args, normalization=None),
}
OTHERS = {
    ("Dense + ReLU", "batch"): lambda args: plain(
        args, dense, BatchNormalization
    ),
    ("Dense + ReLU", "batch, of Keras"): lambda args: plain(
        args, dense, OF_KERAS
    ),
    ("LSTM", "batch, of Keras"): lambda args: plain(args, lstm, OF_KERAS),
}


def make_step(model, jit=False, forward=None):
    """A training step of a batch (x, y), compiled.

    `forward` computes the logits of x with the weights of the model, where the
    model does not do so itself.
    """
    forward = forward or functools.partial(model, training=True)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=jit)
    def step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = loss_of(y, forward(x))
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
    options.add_argument(
        "--network",
        default="stacked",
        choices=["stacked", "residual", "dense"],
        help="the last two without Dense + ReLU and LSTM beside them",
    )
    args = options.parse_args(argv)
    keras.config.set_dtype_policy(args.policy)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.batch, args.time_steps, 1))
    y = rng.integers(0, 10, args.batch)
    batch = tf.constant(x, tf.float32), tf.constant(y)
    networks = IND_RNN | (OTHERS if args.network == "stacked" else {})
    steps = {
        name: make_step(build(args), args.jit)
        for name, build in networks.items()
    }
    seconds = medians(steps, batch, args.rounds)

    size = f"{args.layers} layers" if args.network == "stacked" else "network"
    print(
        f"{args.network}, {size}, (B, T, N) = "
        f"({args.batch}, {args.time_steps}, {args.units}), {conditions(args)}"
    )
    print("| layers | normalization | training step, ms | x IndRNN |")
    print("|---|---|---|---|")
    ours = seconds["IndRNN", "batch"]
    for (layer, normalization), value in seconds.items():
        print(
            f"| {layer} | {normalization} | {1e3 * value:.0f} | "
            f"{value / ours:.2f} |"
        )


if __name__ == "__main__":
    main()
