"""The text of Penn Treebank: words or characters, in rows, in segments.

Its files hold the words of T. Mikolov's "simple-examples", one sentence a line:
10,000 different ones; 929,589 for training, 73,760 for validation, 82,430 for
testing, the ends of sentences included. The characters are made from them as in
the literature: spaces become `_`, and each sentence ends with a line break: 50
symbols; 5,017,482, 393,042 and 442,423 of them.
"""

import pathlib
import threading

import numpy as np

import arguments

END = "\n"  # of a sentence: a symbol of its own at both levels


def load_text(directory, level):
    """The symbols, and {"train", "valid", "test": their indices, int32 (n,)}.

    Raises:
        arguments.UserError: If a file cannot be read, is empty, or has
            symbols that the training text has not.
    """
    texts = {}
    for part in ("train", "valid", "test"):
        path = pathlib.Path(directory) / f"ptb.{part}.txt"
        errors = OSError, UnicodeDecodeError
        with arguments.explained(f"--data: {path}", errors):
            lines = path.read_text(encoding="utf-8").split("\n")
        texts[part] = [
            symbol for line in lines for symbol in symbols_of(line, level)
        ]
        if len(texts[part]) < 2:
            raise arguments.UserError(
                f"--data: {path}: expected words, got none"
            )
    symbols = sorted(set(texts["train"]))
    index = {symbol: number for number, symbol in enumerate(symbols)}
    for part, text in texts.items():
        unknown = sorted(set(text) - set(symbols))
        if unknown:
            raise arguments.UserError(
                f"--data: ptb.{part}.txt: expected symbols of ptb.train.txt, "
                f"got {', '.join(map(repr, unknown[:5]))}"
            )
        texts[part] = np.array([index[symbol] for symbol in text], "int32")
    return symbols, texts


def symbols_of(line, level):
    """The symbols of a sentence with its end; an empty line has none."""
    words = line.split()
    if not words:
        return []
    return [*("_".join(words) if level == "char" else words), END]


def text_of(symbols, level):
    """The text that consists of these symbols."""
    if level == "char":
        return "".join(symbols).replace("_", " ")
    return " ".join(symbols).replace(f" {END}", END).replace(f"{END} ", END)


def in_rows(text, count):
    """(n,) to (count, n // count): consecutive parts, one in each row."""
    length = len(text) // count
    return text[: length * count].reshape(count, length)


class Segments:
    """Where each training step begins and ends in rows of a given length.

    A pass starts at a random place and consists of segments of random lengths:
    most of about `time_steps`, one in twenty of about half as many (arXiv
    1910.06251). They are rounded to tenths of `time_steps`.

    Arguments:
        length: Of the rows.
        time_steps: The usual length of a segment.
        *entropy: Integers, for the randomness.
    """

    def __init__(self, length, time_steps, *entropy):
        self.length, self.time_steps = length, time_steps
        self.entropy = entropy
        self.known, self.passes = [], 0
        # A dataset reads ahead, in a thread of its own.
        self.lock = threading.Lock()

    def __call__(self, step):
        """(start, stop, whether a pass begins here) of a training step."""
        with self.lock:
            while len(self.known) <= step:
                self.known += self.one_pass(self.passes)
                self.passes += 1
            return self.known[step]

    def one_pass(self, number):
        """The segments of pass `number`, as `__call__` returns them."""
        rng = np.random.default_rng([*self.entropy, number])
        unit = max(1, self.time_steps // 10)
        most = self.time_steps + 2 * unit
        # The last symbol is only ever a target.
        end = self.length - 1
        start = int(rng.integers(min(self.time_steps, max(1, end - most))))
        found = []
        while True:
            usual = self.time_steps // (1 if rng.random() < 0.95 else 2)
            size = round(rng.normal(usual, unit) / unit) * unit
            stop = start + min(max(size, unit), most)
            if stop > end:
                return found or [(0, end, True)]
            found.append((start, stop, not found))
            start = stop
