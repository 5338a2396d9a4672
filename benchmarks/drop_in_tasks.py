"""The tasks of `drop_in.py`: small, different, and made or read in seconds.

Each returns a `Task`: real series from Python packages, noise whose answer is
known, digits (`--mnist`, an npz file) and text (`--ptb`, the directory of Penn
Treebank). B sequences, T time steps, F features.
"""

import collections
import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass
class Task:
    """Data, and what a network for it looks like around the recurrent layers.

    x has shape (B, T, F), or (B, T) for the ids of `vocabulary` symbols. y has
    shape (B, 1) or (B, T, 1) for numbers, (B,) or (B, T) for classes.
    """

    x: np.ndarray
    y: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    outputs: int = 1
    score: str = "loss"  # or "accuracy"
    vocabulary: int = 0
    mask: bool = False  # Steps of zeros do not count.
    every_step: bool = False
    shuffle: bool = True  # else batches come in the order of time

    @property
    def classes(self):
        return self.y.dtype.kind == "i"


def temperatures(args):
    """Hourly temperatures of Seattle: 24 hours ahead, after 120 hours."""
    from vega_datasets import local_data

    values = local_data.seattle_temps().temp.to_numpy(float)
    past = values[: int(0.8 * len(values))]
    x, y = _windows((values - past.mean()) / past.std(), 120, 24, stride=2)
    return _in_time(x, y, gap=60)


def ordered(args):
    """The same in the order of time, a window for each hour.

    So `keras.utils.timeseries_dataset_from_array` feeds a network, if it is not
    told to shuffle: the sequences of a batch are nearly the same.
    """
    from vega_datasets import local_data

    values = local_data.seattle_temps().temp.to_numpy(float)
    past = values[: int(0.8 * len(values))]
    x, y = _windows((values - past.mean()) / past.std(), 120, 24)
    return _in_time(x, y, gap=120, shuffle=False)


def next_hour(args):
    """Hourly temperatures of San Francisco: the next change, at every step."""
    from vega_datasets import local_data

    values = local_data.sf_temps().temp.to_numpy(float)
    past = values[: int(0.8 * len(values))]
    x, _ = _windows((values - past.mean()) / past.std(), 169, 0, stride=4)
    y = np.diff(x, axis=1)
    unit = y[: int(0.8 * len(y))].std()
    return _in_time(x[:, :-1], y / unit, gap=42, every_step=True)


def weather(args):
    """Weather of Seattle: tomorrow, from 60 days, a fifth of them missing.

    Rain, both temperatures and wind of a day; the highest temperature of the
    next one. Units are standard deviations.
    """
    from vega_datasets import local_data

    columns = ["precipitation", "temp_max", "temp_min", "wind"]
    days = local_data.seattle_weather()[columns].to_numpy(float)
    past = days[: int(0.8 * len(days))]
    days = (days - past.mean(axis=0)) / past.std(axis=0)
    starts = np.arange(len(days) - 60)
    x = days[starts[:, None] + np.arange(60)]
    y = days[starts + 60, 1:2]
    missing = np.random.default_rng(7).random(x.shape[:2]) < 0.2
    x = np.where(missing[:, :, None], 0, x)
    return _in_time(x, y, gap=60, mask=True)


def co2(args):
    """Weekly carbon dioxide of Mauna Loa: its change over the next 13 weeks.

    Windows of 104 weeks, less their last value; the unit is the standard
    deviation of that change.
    """
    import statsmodels.datasets.co2

    values = statsmodels.datasets.co2.load_pandas().data.co2.interpolate()
    x, y = _windows(values.to_numpy(float), 104, 13)
    x, y = x - x[:, -1:], y - x[:, -1]
    unit = y[: int(0.8 * len(y))].std()
    return _in_time(x / unit, y / unit, gap=104)


def adding(args, count=5000, time_steps=100):
    """Add two marked numbers of a sequence (arXiv 1803.04831, section 5.1)."""
    rng = np.random.default_rng(1)
    x = np.zeros((count, time_steps, 2))
    x[:, :, 0] = rng.random((count, time_steps))
    rows, half = np.arange(count), time_steps // 2
    first = rng.integers(0, half, count)
    second = rng.integers(half, time_steps, count)
    x[rows, first, 1] = x[rows, second, 1] = 1
    return _last(1000, x, (x[rows, first, 0] + x[rows, second, 0])[:, None])


def copy(args, count=5000, symbols=5, delay=40):
    """Name the three symbols that a sequence began with, 40 steps later."""
    rng = np.random.default_rng(2)
    drawn = rng.integers(0, symbols, (count, 3))
    ids = np.full((count, 3 + delay), symbols)
    ids[:, :3], ids[:, -1] = drawn, symbols + 1
    return _last(
        1000,
        np.eye(symbols + 2)[ids],
        drawn @ [symbols**2, symbols, 1],
        outputs=symbols**3,
    )


def narma(args, count=2500, time_steps=100, order=10):
    """A nonlinear moving average of order 10, its value at every step.

    The tanh keeps it finite. The unit is the standard deviation.
    """
    rng = np.random.default_rng(3)
    u = rng.uniform(0, 0.5, (count, time_steps + 50))
    y = np.zeros_like(u)
    for t in range(order, u.shape[1] - 1):
        recent = y[:, t - order + 1 : t + 1].sum(axis=1)
        y[:, t + 1] = np.tanh(
            0.3 * y[:, t]
            + 0.05 * y[:, t] * recent
            + 1.5 * u[:, t - order + 1] * u[:, t]
            + 0.1
        )
    x, y = (u[:, 49:-1] - 0.25) / u.std(), y[:, 50:]
    y = (y - y.mean()) / y.std()
    return _last(500, x[:, :, None], y[:, :, None], every_step=True)


def rows(args):
    """Digits, a row of 28 pixels at a time."""
    x, y = _digits(args)
    return _last(1000, x, y, outputs=10, score="accuracy")


def pixels(args):
    """Digits of 14 x 14 pixels, a pixel at a time."""
    x, y = _digits(args)
    x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196, 1)
    return _last(1000, x, y, outputs=10, score="accuracy")


def permuted(args):
    """The same pixels in one random order."""
    task = pixels(args)
    order = np.random.default_rng(4).permutation(196)
    task.x, task.x_validation = task.x[:, order], task.x_validation[:, order]
    return task


def characters(args, count=6000, time_steps=50):
    """The next character of Penn Treebank, at every step."""
    text = _ptb(args)[: count * time_steps + 1]
    symbols = sorted(set(text))
    ids = np.searchsorted(symbols, list(text))
    x, y = ids[:-1].reshape(count, -1), ids[1:].reshape(count, -1)
    return _last(
        1000,
        x,
        y,
        outputs=len(symbols),
        vocabulary=len(symbols),
        every_step=True,
    )


def words(args, count=6000, longest=30, vocabulary=2000):
    """Whether the words of a sentence stand in their order or a random one."""
    rng = np.random.default_rng(5)
    lines = [line.split() for line in _ptb(args).splitlines()]
    lines = [line for line in lines if 8 <= len(line) <= longest][:count]
    common = collections.Counter(word for line in lines for word in line)
    ids = {
        word: index  # after that of padding and that of rare words
        for index, (word, _) in enumerate(common.most_common(vocabulary - 2), 2)
    }
    x = np.zeros((count, longest), int)
    y = rng.integers(0, 2, count)
    for row, line, shuffle in zip(x, lines, y, strict=True):
        line = [ids.get(word, 1) for word in line]
        row[: len(line)] = rng.permutation(line) if shuffle else line
    return _last(
        1000,
        x,
        y,
        outputs=2,
        score="accuracy",
        vocabulary=vocabulary,
        mask=True,
    )


TASKS = {
    task.__name__: task
    for task in (
        temperatures,
        ordered,
        next_hour,
        weather,
        co2,
        adding,
        copy,
        narma,
        rows,
        pixels,
        permuted,
        characters,
        words,
    )
}


def _windows(values, length, ahead, stride=1):
    """Windows (B, T, 1), and the values so many steps after their ends."""
    starts = np.arange(0, len(values) - length - ahead + 1, stride)
    x = values[starts[:, None] + np.arange(length)]
    return x[:, :, None], values[starts + length + ahead - 1, None]


def _in_time(x, y, gap, **options):
    """The last fifth for validation, and no window in both parts."""
    cut = int(0.8 * len(x))
    parts = x[:cut], y[:cut], x[cut + gap :], y[cut + gap :]
    return _task(*parts, **options)


def _last(count, x, y, **options):
    """The last `count` sequences for validation."""
    return _task(x[:-count], y[:-count], x[-count:], y[-count:], **options)


def _task(*arrays, **options):
    return Task(
        *(
            array.astype("float32" if array.dtype.kind == "f" else "int32")
            for array in arrays
        ),
        **options,
    )


def _digits(args, count=6000):
    with np.load(args.mnist) as data:
        chosen = np.random.default_rng(6).permutation(60000)[:count]
        return data["x_train"][chosen] / 255, data["y_train"][chosen]


def _ptb(args):
    path = pathlib.Path(args.ptb) / "ptb.train.txt"
    return path.read_text(encoding="utf-8")
