"""Forecast real time series with DilatedRNN, IndRNN, LSTM or GRU.

A network reads the last `--length` values of a series and forecasts the next
`--horizon` values at once. `--model linear` is a single Dense layer. The data
come with two packages, `pip install statsmodels vega_datasets`:

    co2          CO2 in the air at Mauna Loa, weekly, 1958 to 2001
    elnino       sea temperature off Peru, monthly, 1950 to 2010
    temperature  air temperature in Seattle, hourly, one year; these are means
                 over many years, much smoother than real weather

The series is split in the order of time: 70 % training, 15 % validation, 15 %
test. All values to forecast lie inside their part; the values to read may
reach back into the part before. Scaling uses the training part only. The test
uses the network of the best epoch, by the validation loss.

result.json has the mean absolute error (MAE) in the test, beside that of two
naive forecasts. MASE is the MAE divided by the error of the seasonal naive
forecast, one season ahead, in the training part. forecast.png shows three test
windows.

    python examples/forecasting.py --series co2 --model dilated
"""

import collections
import pathlib
import sys

import keras
import numpy as np
from matplotlib import pyplot

import arguments
import training
from ind_rnn import IndRNN
from ind_rnn_optimizer import TimeScaledAdam

# Training, validation and test are between these parts of a series.
CUTS = 0, 0.7, 0.85, 1

Series = collections.namedtuple("Series", "read season length horizon step")
Windows = collections.namedtuple("Windows", "inputs targets")


def read_co2():
    from statsmodels.datasets import co2

    # Interpolating the missing values would look into the future.
    return co2.load_pandas().data.co2.ffill()


def read_elnino():
    from statsmodels.datasets import elnino

    return elnino.load_pandas().data.drop(columns="YEAR").to_numpy().ravel()


def read_temperature():
    from vega_datasets import local_data

    return local_data.seattle_temps().temp


SERIES = {
    "co2": Series(read_co2, 52, 104, 26, "weeks"),
    "elnino": Series(read_elnino, 12, 48, 12, "months"),
    "temperature": Series(read_temperature, 24, 96, 24, "hours"),
}


def read(name):
    """The values of a series (T,), oldest first.

    Raises:
        UserError: If the package that it is in is not installed.
    """
    try:
        return np.asarray(SERIES[name].read(), float)
    except ModuleNotFoundError as error:
        raise arguments.UserError(
            f"--series {name}: {error}; pip install statsmodels vega_datasets"
        ) from error


def windows(values, first, last, length, horizon):
    """All windows whose targets lie in values[first:last].

    Returns:
        Inputs (B, length) and the targets (B, horizon) right after them.
    """
    starts = np.arange(max(0, first - length), last - length - horizon + 1)
    if not starts.size:
        raise arguments.UserError(
            "--length and --horizon must be shorter: no window of "
            f"{length} + {horizon} values fits into a part of the series"
        )
    both = values[starts[:, None] + np.arange(length + horizon)]
    return Windows(both[:, :length], both[:, length:])


def split(values, length, horizon):
    """Windows for training, validation and test, in the order of time."""
    cuts = [int(part * len(values)) for part in CUTS]
    return [
        windows(values, first, last, length, horizon)
        for first, last in zip(cuts[:-1], cuts[1:], strict=True)
    ]


def naive_forecasts(inputs, season, horizon):
    """Forecasts (B, horizon) from inputs (B, T), without training, by name.

    The seasonal naive forecast repeats the last season. With drift, it also
    adds the change since one season ago, once for each season ahead.
    """
    steps = np.arange(horizon)
    naive = inputs[:, steps % season - season]
    change = inputs[:, -1:] - inputs[:, -1 - season, None]
    drift = naive + change * (1 + steps // season)
    return {"seasonal naive": naive, "seasonal naive with drift": drift}


def mase_scale(values, season):
    """The MAE of the seasonal naive forecast in the training part of (T,)."""
    training = values[: int(CUTS[1] * len(values))]
    return np.abs(training[season:] - training[:-season]).mean()


def scores(name, forecast, targets, scale):
    """MAE and MASE over the whole horizon, and MASE at single steps ahead."""
    error = np.abs(forecast - targets).mean(axis=0)
    ahead = len(error)
    steps = sorted({1, -(-ahead // 4), -(-ahead // 2), ahead})
    return {
        f"{name}_mae": float(error.mean()),
        f"{name}_mase": float(error.mean() / scale),
        f"{name}_mase_at": {n: float(error[n - 1] / scale) for n in steps},
    }


def spread(training):
    """The standard deviation of windows less their last input."""
    return (training.inputs - training.inputs[:, -1:]).std()


def scaled(windows, unit):
    """Windows less their last input, in units: (B, length, 1), (B, horizon)."""
    last = windows.inputs[:, -1:]
    x, y = ((part - last) / unit for part in windows)
    return x[:, :, None].astype("float32"), y.astype("float32")


def build_model(args):
    """(B, length, 1) -> (B, horizon), compiled."""
    layers = [keras.Input((args.length, 1))]
    if args.model == "linear":
        layers.append(keras.layers.Flatten())
    elif args.model == "dilated":
        layers.append(arguments.dilated(args, args.length))
    else:
        layer = {"indrnn": IndRNN, **arguments.BASELINES}[args.model]
        for index in range(args.layers):
            last = index == args.layers - 1
            layers.append(layer(args.units, return_sequences=not last))
    layers.append(keras.layers.Dense(args.horizon))
    model = keras.Sequential(layers)
    steps = args.epochs * args.steps_per_epoch
    rate = training.cosine(args.learning_rate, steps, min(100, steps // 2))
    model.compile(
        TimeScaledAdam(rate, global_clipnorm=1.0),
        "mae",
        jit_compile=training.jit_compile(args),
    )
    return model


def draw(args, windows, forecasts):
    """A figure: three windows with their forecasts, and the errors of each.

    `forecasts` maps names to forecasts (B, horizon).
    """
    figure, panels = pyplot.subplots(
        1, 4, figsize=(12, 3.2), layout="constrained"
    )
    ahead = np.arange(1, args.horizon + 1)
    styles = dict(zip(forecasts, ("C0-", "C1:", "C2:"), strict=True))
    rows = np.linspace(0, len(windows.inputs) - 1, 3).astype(int)
    for row, axes in zip(rows, panels, strict=False):
        seen = windows.inputs[row, -2 * args.horizon :]
        axes.plot(np.arange(1 - len(seen), 1), seen, color="0.6", label="seen")
        axes.plot(ahead, windows.targets[row], color="black", label="truth")
        for name, values in forecasts.items():
            axes.plot(ahead, values[row], styles[name], label=name)
        axes.set(title=f"test window {row + 1}")
    for name, values in forecasts.items():
        error = np.abs(values - windows.targets).mean(axis=0)
        panels[-1].plot(ahead, error, styles[name])
    panels[-1].set(title="mean absolute error", ylim=0)
    panels[0].set_ylabel(args.series)
    figure.supxlabel(f"{SERIES[args.series].step} ahead", fontsize="medium")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=5)
    return figure


def parse(argv):
    parser = arguments.parser(
        __doc__, "forecasting", models=("dilated", "indrnn", "linear")
    )
    count, option = arguments.count(1), arguments.option
    option(parser, "--series", "co2", "what to forecast", choices=SERIES)
    for flag, text, defaults in (
        ("length", "values to read", {k: s.length for k, s in SERIES.items()}),
        ("horizon", "values ahead", {k: s.horizon for k, s in SERIES.items()}),
        ("units", "in each recurrent layer", {"indrnn": 96, "others": 32}),
    ):
        defaults = ", ".join(f"{k}: {v}" for k, v in defaults.items())
        text = f"{text} (default: {defaults})"
        parser.add_argument(f"--{flag}", type=count, metavar="N", help=text)
    for flag, default, text, kind in (
        ("--layers", 2, "recurrent layers; not for --model dilated", count),
        ("--epochs", 10, "each of --steps-per-epoch steps", count),
        ("--steps-per-epoch", 50, "between two validations", count),
        ("--batch-size", 32, "windows in a batch", count),
        (
            "--learning-rate",
            5e-3,
            "of Adam, after 100 steps of warm-up, falling to 0 along a cosine",
            arguments.positive,
        ),
    ):
        option(parser, flag, default, text, type=kind)
    text = "of --model dilated"
    option(parser, "--cell", "rnn", text, choices=arguments.CELLS)
    text = f"of the layers {text}, bottom layer first"
    dilations = [1, 2, 4, 8, 16, 32]
    option(parser, "--dilations", dilations, text, type=count, nargs="+")
    args = parser.parse_args(argv)
    series = SERIES[args.series]
    args.length = args.length or series.length
    args.horizon = args.horizon or series.horizon
    args.units = args.units or (96 if args.model == "indrnn" else 32)
    args.hidden = [args.units]
    if args.length <= series.season:
        parser.error(
            f"argument --length: must be above {series.season}, a season of "
            f"{args.series}, got {args.length}"
        )
    return args


def main(argv=None):
    args = parse(argv)
    series, values = SERIES[args.series], read(args.series)
    parts = split(values, args.length, args.horizon)
    unit, scale = spread(parts[0]), mase_scale(values, series.season)
    (x, y), validation, (x_test, _) = (scaled(part, unit) for part in parts)

    def batch(epoch, step):
        rng = np.random.default_rng([args.seed, epoch, step])
        rows = rng.integers(0, len(x), args.batch_size)
        return x[rows], y[rows]

    _, history = training.train(
        args,
        lambda: build_model(args),
        batch,
        args.steps_per_epoch,
        best="val_loss",
        validation_data=validation,
        validation_batch_size=256,
    )
    network, _ = training.load_network(args.out)
    outputs = network.predict(x_test, batch_size=256, verbose=0)
    naive, test = (
        naive_forecasts(part.inputs, series.season, args.horizon)
        for part in parts[1:]
    )
    forecasts = {args.model: outputs * unit + parts[2].inputs[:, -1:], **test}
    metrics = {
        "val_mase": unit / scale * min(row["val_loss"] for row in history),
        "weights": network.count_params(),
    }
    names = "test", "naive", "drift"
    for name, forecast in zip(names, forecasts.values(), strict=True):
        metrics |= scores(name, forecast, parts[2].targets, scale)
    figure = draw(args, parts[2], forecasts)
    training.save_figure(figure, pathlib.Path(args.out) / "forecast.png")
    level = np.abs(naive["seasonal naive"] - parts[1].targets).mean() / unit
    training.finish(
        args,
        history,
        metrics,
        curves=("loss", "val_loss"),
        baseline=(level, "seasonal naive, validation"),
    )


if __name__ == "__main__":
    sys.exit(arguments.run(main, None))
