"""Sentences of different lengths: padded, packed into rows, or as a stream.

A model of the next character of Penn Treebank that starts each sentence without
a past. `--batches` says how sentences are batched:

    padded    one sentence per row, padded to the longest of all
    bucketed  one sentence per row, in a batch with others of about its length
    packed    several whole sentences per row, one after another
    stream    endless rows, cut into segments of `--time-steps`; states are
              carried from each segment to the next

In the last two, a sentence begins inside a row, where the state must forget the
one before: `reset` is true wherever the input is the end of a sentence. All
four train the same function of each sentence. `--data` has ptb.train.txt,
ptb.valid.txt and ptb.test.txt (see penn_treebank.py).

    python examples/packed_sequences.py --data ptb --batches stream
"""

import functools
import itertools
import math
import sys

import keras
import numpy as np
from keras import ops

import arguments
import penn_treebank
import training
from ind_rnn import IndRNN
from indy import IndyGRU, IndyLSTM

LAYERS = {"indylstm": IndyLSTM, "indygru": IndyGRU, "indrnn": IndRNN}
PADDING, END = 0, 1
BUCKET = 32  # lengths of --batches bucketed are multiples of it


def build_model(args, symbols, batch_size=None, steps=1):
    """Compiled: symbols (B, T) to logits of the next ones (B, T, symbols).

    With `batch_size`, states are carried from one call to the next.
    """
    indices = keras.Input((None,), batch_size=batch_size, dtype="int32")
    x = keras.layers.Embedding(symbols, args.embedding, mask_zero=True)(indices)
    options = {"return_sequences": True, "stateful": batch_size is not None}
    for _ in range(args.layers):
        if args.model in LAYERS:
            layer = LAYERS[args.model](args.units, **options)
            x = layer(x, reset=ops.equal(indices, END))
        else:
            x = arguments.BASELINES[args.model](args.units, **options)(x)
    model = keras.Model(indices, keras.layers.Dense(symbols)(x))
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[BitsPerCharacter()],
        jit_compile=False,  # would compile once for each length
    )
    return model


@keras.saving.register_keras_serializable(package="packed_sequences")
class BitsPerCharacter(keras.metrics.Mean):
    """The mean over all symbols, without padding."""

    def __init__(self, name="bpc", **kwargs):
        super().__init__(name, **kwargs)

    def update_state(self, y, logits, sample_weight=None):
        nats = ops.sparse_categorical_crossentropy(y, logits, from_logits=True)
        # Keras would first take the mean of each row of a larger array.
        bits, symbols = ops.ravel(nats / math.log(2)), ops.ravel(y)
        super().update_state(bits, ops.not_equal(symbols, PADDING))


def load_sentences(directory):
    """All symbols, and {part: its sentences, arrays that begin with END}.

    A sentence without its last symbol is an input; without its first symbol it
    is the target. Both have its `size`.
    """
    found, texts = penn_treebank.load_text(directory, "char")
    others = [symbol for symbol in found if symbol != penn_treebank.END]
    symbols = [None, penn_treebank.END, *others]
    index = np.array([symbols.index(symbol) for symbol in found])
    sentences = {}
    for part, text in texts.items():
        text = np.append(END, index[text]).astype("int32")
        ends = np.flatnonzero(text == END)
        sentences[part] = [text[a : b + 1] for a, b in itertools.pairwise(ends)]
    return symbols, sentences


def size(sentence):
    """The time steps that a sentence takes."""
    return len(sentence) - 1


def arrays_of(rows, length):
    """x and y (B, T), from a list of sentences for each row."""
    x = np.full((len(rows), length), PADDING, "int32")
    y = x.copy()
    for row, sentences in enumerate(rows):
        stop = 0
        for sentence in sentences:
            start, stop = stop, stop + size(sentence)
            x[row, start:stop], y[row, start:stop] = sentence[:-1], sentence[1:]
    return x, y


def cut(arrays, length):
    """Cut x and y (B, T) into segments of `length` steps."""
    starts = range(0, arrays[0].shape[1], length)
    return [tuple(z[:, t : t + length] for z in arrays) for t in starts]


def shuffled(items, rng):
    return [items[i] for i in rng.permutation(len(items))]


def padded(args, sentences, rng):
    length = max(map(size, sentences))
    rows = [[sentence] for sentence in shuffled(sentences, rng)]
    return [arrays_of(part, length) for part in alone(args, rows)]


def bucketed(args, sentences, rng):
    rows = [[sentence] for sentence in shuffled(sentences, rng)]
    rows.sort(key=lambda row: size(row[0]))  # keeps the order of equal ones
    batches = []
    for part in alone(args, rows):
        length = math.ceil(size(part[-1][0]) / BUCKET) * BUCKET
        batches.append(arrays_of(part, length))
    return shuffled(batches, rng)


def packed(args, sentences, rng):
    length = max(map(size, sentences))
    rows = shuffled(pack(shuffled(sentences, rng), length), rng)
    parts = in_parts(rows, rows_for(args, length))
    return [arrays_of(part, length) for part in parts]


def stream(args, sentences, rng):
    sentences = shuffled(sentences, rng)
    stops = np.cumsum([size(sentence) for sentence in sentences])
    count = rows_for(args, args.time_steps)
    # A row exceeds its share by less than a sentence, so that all epochs have
    # the same number of segments.
    share = stops[-1] / count
    longest = share + max(map(size, sentences))
    cuts = [0, *np.searchsorted(stops, share * np.arange(1, count)), None]
    rows = [sentences[a:b] for a, b in itertools.pairwise(cuts)]
    segments = math.ceil(longest / args.time_steps)
    arrays = arrays_of(rows, segments * args.time_steps)
    return cut(arrays, args.time_steps)


BATCHES = {f.__name__: f for f in (padded, bucketed, packed, stream)}


def rows_for(args, length):
    """How many rows of a length make a batch of `args.symbols` symbols."""
    return max(1, round(args.symbols / length))


def alone(args, rows):
    """Batches of rows of one sentence, of about `args.symbols` symbols each."""
    mean = sum(size(row[0]) for row in rows) / len(rows)
    return in_parts(rows, rows_for(args, mean))


def in_parts(rows, count):
    return [rows[i : i + count] for i in range(0, len(rows), count)]


def pack(sentences, length):
    """Rows of whole sentences, of at most `length` steps.

    The longest sentences first, each in the row that it fills best ("best fit
    decreasing").
    """
    rows = []
    with_free = [[] for _ in range(length + 1)]  # rows by their free steps
    for sentence in sorted(sentences, key=size, reverse=True):
        taken = size(sentence)
        fits = (free for free in range(taken, length) if with_free[free])
        free = next(fits, None)
        if free is None:
            free, row = length, []
            rows.append(row)
        else:
            row = with_free[free].pop()
        row.append(sentence)
        with_free[free - taken].append(row)
    return rows


def padding(batches):
    """The share of time steps that hold no symbol."""
    steps = sum(y.size for _, y in batches)
    return 1 - sum(np.count_nonzero(y) for _, y in batches) / steps


def evaluate(model, batches):
    """The bits per character of all symbols of some batches."""
    data = training.batches(
        batches.__getitem__, len(batches), free_axes(model.input.shape[0])
    )
    return model.evaluate(data, verbose=0, return_dict=True)["bpc"]


def free_axes(batch_size):
    """The axes in which the shapes of batches may differ."""
    return [1] if batch_size else [0, 1]


class Validation(keras.callbacks.Callback):
    """Puts `val_bpc` into the logs; `judge` is a model that keeps no state."""

    def __init__(self, judge, batches):
        super().__init__()
        self.judge, self.batches = judge, batches

    def on_epoch_end(self, epoch, logs):
        self.judge.set_weights(self.model.get_weights())
        logs["val_bpc"] = evaluate(self.judge, self.batches)


def parse(argv):
    parser = arguments.parser(__doc__, "packed_sequences", LAYERS)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="of ptb.train.txt, ..."
    )
    text = "how sentences are batched"
    arguments.option(parser, "--batches", "stream", text, choices=BATCHES)
    count = arguments.count(1)
    for flag, default, text, kind in (
        ("--sentences", 10000, "of the text, to train with", count),
        ("--symbols", 4000, "in a batch, about, without padding", count),
        ("--time-steps", 128, "in a segment of --batches stream", count),
        ("--epochs", 4, "passes over the sentences", count),
        ("--layers", 2, "recurrent layers", count),
        ("--units", 128, "in each layer", count),
        ("--embedding", 64, "size of the vectors of symbols", count),
        (
            "--learning-rate",
            4e-3,
            "of Adam, falling to 0 along a cosine",
            arguments.positive,
        ),
    ):
        arguments.option(parser, flag, default, text, type=kind)
    args = parser.parse_args(argv)
    if args.model not in LAYERS and args.batches in ("packed", "stream"):
        parser.error(
            f"--model {args.model} has no resets: take --batches padded or "
            f"bucketed, got {args.batches}"
        )
    return args


def main(argv=None):
    args = parse(argv)
    symbols, texts = load_sentences(args.data)
    texts["train"] = texts["train"][: args.sentences]

    @functools.lru_cache(maxsize=1)
    def batches(epoch):
        rng = np.random.default_rng([args.seed, epoch])
        return BATCHES[args.batches](args, texts["train"], rng)

    steps, share = len(batches(0)), padding(batches(0))
    rows = rows_for(args, args.time_steps) if args.batches == "stream" else None
    rng = np.random.default_rng(0)
    parts = {
        part: bucketed(args, texts[part], rng) for part in ("valid", "test")
    }
    judge = build_model(args, len(symbols))
    model, history = training.train(
        args,
        lambda: build_model(args, len(symbols), rows, args.epochs * steps),
        lambda epoch, step: batches(epoch)[step],
        steps,
        lambda history: [Validation(judge, parts["valid"])],
        best="val_bpc",
        free=free_axes(rows),
    )
    best, _ = training.load_network(args.out)
    metrics = {
        "padding": share,
        "validation_bpc": min(row["val_bpc"] for row in history),
    }
    judge.set_weights(best.get_weights())
    metrics["test_bpc"] = evaluate(judge, parts["test"])
    if args.model in LAYERS:
        # Once more as one endless row, as a server would read it.
        reader = build_model(args, len(symbols), batch_size=1)
        reader.set_weights(best.get_weights())
        row = arrays_of([texts["test"]], sum(map(size, texts["test"])))
        metrics["test_bpc_of_a_stream"] = evaluate(reader, cut(row, 1000))
    training.finish(args, history, metrics, curves=("bpc", "val_bpc"))


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
