"""Language models of Penn Treebank: the next character, or the next word.

Back-propagation is truncated, in segments of random length, and the state of a
network is carried from each segment to the next. `--data` has ptb.train.txt,
ptb.valid.txt and ptb.test.txt (see penn_treebank.py). Sources: arXiv
1803.04831, section 5.3; arXiv 1910.06251, section on language models.

    python examples/language_model.py --level char --data ptb
    python examples/language_model.py --level word --data ptb --minutes 30
    python examples/language_model.py --level char --data ptb --sample 500
"""

import json
import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import arguments
import penn_treebank
import training
from deep_ind_rnn import dense_ind_rnn, residual_ind_rnn, stacked_ind_rnn

VALIDATION_ROWS, CHUNK = 10, 100
# Arguments that only matter after training.
AFTERWARDS = (
    "sample", "temperature", "dynamic", "dynamic_rate", "dynamic_decay"
)  # fmt: skip
# Defaults that depend on --level.
DEFAULTS = {
    "char": {
        "layers": 8,
        "units": 640,
        "embedding": 128,
        "batch_size": 32,
        "learning_rate": 4e-3,
        "dropout": 0.0,
        "embedding_dropout": 0.0,
        "last_dropout": 0.0,
    },
    "word": {
        "layers": 2,
        "units": 500,
        "embedding": 200,
        "batch_size": 32,
        "learning_rate": 4e-3,
        "dropout": 0.1,
        "embedding_dropout": 0.1,
        "last_dropout": 0.3,
    },
}


def network(args, symbols, batch_size):
    """Stateful: (batch_size, T) of indices to logits of the next symbols.

    One matrix embeds the symbols and scores the next ones ("tied weights").
    """
    tied = TiedEmbedding(symbols, args.embedding)
    indices = keras.Input((None,), batch_size=batch_size, dtype="int32")
    x = tied(indices)
    if args.embedding_dropout:
        x = SymbolDropout(args.embedding_dropout, symbols)([x, indices])
    for layer in recurrent_layers(args, batch_size):
        x = layer(x)
    x = keras.layers.Dense(args.embedding)(x)
    x = keras.layers.SpatialDropout1D(args.last_dropout)(x)
    return keras.Model(indices, tied(x, reverse=True))


def recurrent_layers(args, batch_size):
    """The layers, or the one network, between embedding and scores."""
    if args.model in arguments.BASELINES:
        layer = arguments.BASELINES[args.model]
        layers = []
        for _ in range(args.layers):
            layers.append(keras.layers.SpatialDropout1D(args.dropout))
            layers.append(
                layer(args.units, return_sequences=True, stateful=True)
            )
        return layers
    shape = (None, args.embedding)
    options = {
        "return_sequences": True,
        "stateful": True,
        "batch_size": batch_size,
        "dropout": args.dropout,
        **arguments.normalization(args),
        "recurrent_max_abs": args.recurrent_max_abs,
        # Of either sign: with u < 0 a neuron can detect a change.
        "recurrent_initializer": keras.initializers.RandomUniform(
            -args.recurrent_max_abs, args.recurrent_max_abs
        ),
    }
    if args.model == "stacked":
        return [stacked_ind_rnn(shape, args.units, args.layers, **options)]
    if args.model == "residual":
        return [residual_ind_rnn(shape, args.units, args.blocks, **options)]
    # The proportions of arXiv 1910.06251: 0.5, 0.1 and 0.4.
    return [
        dense_ind_rnn(
            shape,
            args.growth,
            args.block_sizes,
            bottleneck_dropout=args.dropout / 5,
            transition_dropout=args.dropout * 0.8,
            **options,
        )
    ]


# Keras has one of its own, ReversibleEmbedding, from 3.14 on.
@keras.saving.register_keras_serializable(package="language_model")
class TiedEmbedding(keras.layers.Embedding):
    """An embedding whose matrix scores the next symbols too.

    From indices (B, T) to (B, T, E), and with `reverse=True` from (B, T, E) to
    logits (B, T, symbols).
    """

    def call(self, inputs, reverse=False):
        if not reverse:
            return super().call(inputs)
        matrix = ops.cast(self.embeddings, self.compute_dtype)
        return ops.matmul(inputs, ops.transpose(matrix))

    def compute_output_spec(self, inputs, reverse=False):
        shape = (*inputs.shape, self.output_dim)
        if reverse:
            shape = (*inputs.shape[:-1], self.input_dim)
        return keras.KerasTensor(shape, self.compute_dtype)


@keras.saving.register_keras_serializable(package="language_model")
class SymbolDropout(keras.layers.Dropout):
    """Drops some symbols, wherever they occur in a batch.

    From [embedded (B, T, E), indices (B, T)] to (B, T, E).
    """

    def __init__(self, rate, symbols, **kwargs):
        super().__init__(rate, **kwargs)
        self.symbols = symbols

    def call(self, inputs, training=False):
        embedded, indices = inputs
        kept = super().call(ops.ones((self.symbols,)), training=training)
        kept = ops.cast(ops.take(kept, indices), embedded.dtype)
        return embedded * kept[:, :, None]

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {**super().get_config(), "symbols": self.symbols}


def build_model(args, symbols):
    """The network, compiled for training."""
    model = network(args, symbols, args.batch_size)
    model.compile(
        keras.optimizers.Adam(args.learning_rate, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # would compile once for each length
    )
    return model


class Nats(keras.metrics.Sum):
    """The sum of the cross entropies of all symbols."""

    def __init__(self):
        super().__init__("nats")

    def update_state(self, y, logits, sample_weight=None):
        super().update_state(
            ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
        )


def twin(args, symbols, batch_size, source=None):
    """The network with another batch size, to evaluate weights of `source`."""
    model = network(args, symbols, batch_size)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # A sum: in Keras' means, short chunks would count as much as others.
        metrics=[Nats()],
        jit_compile=False,
    )
    if source:
        copy_weights(source, model)
    return model


def stateful_layers(model):
    """The recurrent layers of a model and of the models inside it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from stateful_layers(layer)
        elif getattr(layer, "stateful", False):
            yield layer


def reset_states(model):
    for layer in stateful_layers(model):
        layer.reset_state()


def copy_weights(source, target):
    """Copy all weights, but no states."""
    target.set_weights(source.get_weights())


def evaluate(model, text, chunk=CHUNK):
    """The mean cross entropy of the next symbol in nats.

    The text is cut into as many rows as a batch of `model` has. They are read
    from the start, `chunk` steps at a time.
    """
    rows = penn_treebank.in_rows(text, model.input.shape[0])
    length = rows.shape[1] - 1
    steps = math.ceil(length / chunk)

    def batch(step):
        start = step * chunk
        stop = min(start + chunk, length)
        return rows[:, start:stop], rows[:, start + 1 : stop + 1]

    reset_states(model)
    results = model.evaluate(
        training.batches(batch, steps, free=[1]), verbose=0, return_dict=True
    )
    return results["nats"] / (len(rows) * length)


class Schedule(keras.callbacks.Callback):
    """Learning rate, states and time of one epoch; validation at its end.

    Arguments:
        args: The parsed arguments.
        history: That of the epochs before.
        segments: The `Segments` of the training text.
        validate: model -> the cross entropy of the validation text.
    """

    def __init__(self, args, history, segments, validate):
        super().__init__()
        self.args, self.history = args, history
        self.segments, self.validate = segments, validate
        self.first = len(history) * args.epoch_steps
        self.seconds = history[-1]["seconds"] if history else 0.0
        self.start = time.perf_counter()

    def spent(self):
        """The share of the time, or of the steps, that has been used."""
        if self.args.minutes:
            seconds = self.seconds + time.perf_counter() - self.start
            return seconds / (60 * self.args.minutes)
        return self.step / (self.args.epochs * self.args.epoch_steps)

    def on_train_batch_begin(self, batch, logs=None):
        self.step = self.first + batch
        # States are not saved: a checkpoint begins without a past.
        if batch == 0 or self.segments(self.step)[2]:
            reset_states(self.model)
        rate = self.args.learning_rate * min(1, (self.step + 1) / 200)
        if self.args.schedule == "cosine":
            rate *= 0.5 + 0.5 * math.cos(math.pi * min(1, self.spent()))
        else:
            losses = [row["val_loss"] for row in self.history]
            rate *= self.args.factor ** plateaus(losses, self.args.patience)
        self.model.optimizer.learning_rate = rate

    def on_train_batch_end(self, batch, logs=None):
        if self.args.minutes and self.spent() >= 1:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs):
        nats = self.validate(self.model)
        logs["val_loss"] = nats
        for unit, score in scores(self.args.level, nats).items():
            logs[f"val_{unit}"] = score
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def plateaus(losses, patience):
    """How often `patience` losses in a row brought no new best one."""
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            waited, count = 0, count + 1
    return count


def scores(level, nats):
    """The metric of a level: bits per character, or perplexity."""
    if level == "char":
        return {"bpc": nats / math.log(2)}
    return {"perplexity": math.exp(nats)}


def dynamic_evaluation(args, model, text, training_text):
    """As `evaluate`, while the model keeps learning from what it has read.

    After each segment of 20 steps, with the root r of the mean squared
    gradients of `training_text` and the trained weights w_0:

        w += -rate * gradient / (r + 1e-5)
             + decay * min(r / mean(r), 1 / decay) * (w_0 - w)

    where mean(r) is the mean of the means of all weights. The weights of
    `model` are changed for good. Source: arXiv 1709.07432, with rate and decay
    of `args`, and the segments of arXiv 1910.06251.

    Arguments:
        model: A `twin` with one row.
        text, training_text: Indices (n,).
    """
    weights = model.trainable_variables
    trained = [tf.constant(weight.numpy()) for weight in weights]
    roots = [tf.Variable(tf.zeros_like(start)) for start in trained]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    spec = tf.TensorSpec((1, None), "int32")

    def gradients_of(x, y):
        with tf.GradientTape() as tape:
            nats = loss(y, model(x, training=False))
        gradients = tape.gradient(nats, [weight.value for weight in weights])
        return nats, [tf.convert_to_tensor(g) for g in gradients]

    @tf.function(input_signature=[spec, spec])
    def watch(x, y):
        nats, gradients = gradients_of(x, y)
        for root, gradient in zip(roots, gradients, strict=True):
            root.assign_add(tf.square(gradient))
        return nats

    @tf.function(input_signature=[spec, spec])
    def learn(x, y):
        nats, gradients = gradients_of(x, y)
        for weight, gradient, root, start in zip(
            weights, gradients, roots, trained, strict=True
        ):
            decay = tf.minimum(args.dynamic_decay * root / mean, 1.0)
            value = weight.value + decay * (start - weight.value)
            value -= args.dynamic_rate * gradient / (root + 1e-5)
            if weight.constraint is not None:
                value = weight.constraint(value)
            weight.assign(value)
        return nats

    def read(text, step, size=20):
        """The sum of the cross entropies, and the number of segments."""
        reset_states(model)
        total, count = 0.0, 0
        for start in range(0, len(text) - 1, size):
            part = text[None, start : start + size + 1]
            total += float(step(part[:, :-1], part[:, 1:])) * part[:, 1:].size
            count += 1
        return total, count

    _, count = read(training_text, watch)
    for root in roots:
        root.assign(tf.sqrt(root / count))
    mean = sum(tf.reduce_mean(root) for root in roots) / len(roots)
    total, _ = read(text, learn)
    return total / (len(text) - 1)


def sample(args, model, symbols, count):
    """Sample `count` symbols from the model, after the end of a sentence.

    Arguments:
        model: A `twin` with one row.
        symbols: All symbols, in the order of their indices.
    """
    rng = np.random.default_rng(args.seed)
    reset_states(model)
    index, text = symbols.index(penn_treebank.END), []
    for _ in range(count):
        logits = model.predict_on_batch(np.array([[index]], "int32"))[0, -1]
        chances = np.exp((logits - logits.max()) / args.temperature)
        index = int(rng.choice(len(symbols), p=chances / chances.sum()))
        text.append(symbols[index])
    return penn_treebank.text_of(text, args.level)


def parse(argv):
    models = ("stacked", "residual", "dense")
    parser = arguments.parser(__doc__, "language_model", models)
    count, positive = arguments.count, arguments.positive
    rate = arguments.rate
    parser.add_argument("--level", choices=DEFAULTS, required=True)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="of ptb.train.txt, ..."
    )
    for flag, default, text, kind in (
        ("--recurrent-max-abs", 0.99, "of IndRNN, whose states are never "
         "reset; as in the authors' code", positive),
        ("--time-steps", 50, "the usual length of a segment", count(1)),
        ("--epochs", 1000, "at most", count(1)),
        ("--epoch-steps", 500, "training steps from one validation to the "
         "next", count(1)),
        ("--patience", 4, "validations without a new best, after which the "
         "learning rate drops, of --schedule plateau", count(1)),
        ("--factor", 0.2, "by which it drops then", positive),
        ("--dynamic-rate", 1e-4, "learning rate of --dynamic", positive),
        ("--dynamic-decay", 0.02, "towards the trained weights", positive),
        ("--sample", 0, "symbols to sample and print at the end", count(0)),
        ("--temperature", 1.0, "of --sample", positive),
    ):  # fmt: skip
        arguments.option(parser, flag, default, text, type=kind)
    arguments.add_deep(parser, growth=32, block_sizes=[3, 3, 3])
    arguments.option(
        parser,
        "--schedule",
        "plateau",
        "learning rate: drops on plateaus of the validation, or falls to 0 "
        "along a cosine over --epochs or --minutes",
        choices=("plateau", "cosine"),
    )
    parser.add_argument(
        "--minutes",
        type=positive,
        metavar="N",
        help="stop training after so many",
    )
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="also evaluate while learning from the test text",
    )
    for name, text, kind in (
        ("layers", "of --model stacked, lstm, gru and rnn", count(1)),
        ("units", "in each layer, but those of --model dense", count(1)),
        ("embedding", "size of the vectors of symbols", count(1)),
        ("batch_size", "rows that the text is read in", count(1)),
        ("learning_rate", "of Adam, after 200 steps of warm-up", positive),
        ("dropout", "rate between layers, one mask for all steps", rate),
        ("embedding_dropout", "rate of whole symbols", rate),
        ("last_dropout", "rate before the scores", rate),
    ):
        defaults = (f"{level}: {DEFAULTS[level][name]}" for level in DEFAULTS)
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            metavar="N",
            help=f"{text} (default: {', '.join(defaults)})",
        )
    arguments.add_evaluate(parser)
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.level].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def report(args, model, symbols, texts):
    """The metrics of a trained network; prints what it samples."""
    reader = twin(args, len(symbols), 1, source=model)
    judge = twin(args, len(symbols), VALIDATION_ROWS, source=model)
    nats = {
        "validation": evaluate(judge, texts["valid"]),
        "test": evaluate(reader, texts["test"], 1000),
    }
    if args.sample:
        print(sample(args, reader, symbols, args.sample))
    if args.dynamic:
        nats["dynamic"] = dynamic_evaluation(
            args, reader, texts["test"], texts["train"][:100_000]
        )
    metrics = {
        "parameters": sum(math.prod(w.shape) for w in model.trainable_weights)
    }
    for part, value in nats.items():
        for unit, score in scores(args.level, value).items():
            metrics[f"{part}_{unit}"] = score
    return metrics


def main(argv=None):
    args = parse(argv)
    if args.evaluate:
        model, args = training.trained(args, AFTERWARDS)
    symbols, texts = penn_treebank.load_text(args.data, args.level)
    if args.evaluate:
        print(json.dumps(report(args, model, symbols, texts)))
        return
    rows = penn_treebank.in_rows(texts["train"], args.batch_size)
    if rows.shape[1] < 2 or len(texts["valid"]) < 2 * VALIDATION_ROWS:
        raise arguments.UserError(
            "--data: expected two symbols for each row of a batch, got "
            f"{rows.shape[1]} for --batch-size {args.batch_size}, and "
            f"{len(texts['valid'])} to validate with"
        )
    segments = penn_treebank.Segments(rows.shape[1], args.time_steps, args.seed)
    judge = twin(args, len(symbols), VALIDATION_ROWS)

    def batch(epoch, step):
        start, stop, _ = segments(epoch * args.epoch_steps + step)
        return rows[:, start:stop], rows[:, start + 1 : stop + 1]

    def validate(model):
        copy_weights(model, judge)
        return evaluate(judge, texts["valid"])

    def enough(history):
        spent = history[-1]["seconds"] if history else 0
        return bool(args.minutes) and spent >= 60 * args.minutes

    model, history = training.train(
        args,
        lambda: build_model(args, len(symbols)),
        batch,
        args.epoch_steps,
        lambda history: [Schedule(args, history, segments, validate)],
        enough,
        best="val_loss",
        free=[1],  # time
        afterwards=AFTERWARDS,
    )
    model, _ = training.load_network(args.out)
    metrics = report(args, model, symbols, texts)
    training.finish(args, history, metrics, curves=("loss", "val_loss"))


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
