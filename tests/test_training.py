"""Training in Keras' ways: mixed precision, accumulation, EMA, callbacks."""

import functools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import each_value
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

T, F, N, BOUND = 10, 3, 6, 0.5
SGD = keras.optimizers.SGD


def body(kind, **options):
    """A network; many of its recurrent weights start on their bound."""
    bound = {"recurrent_max_abs": BOUND}
    return {
        "layer": lambda: IndRNN(N, **bound, **options),
        "cell": lambda: keras.layers.RNN(
            IndRNNCell(N, **bound, **options), **options
        ),
        "dilated": lambda: DilatedRNN(
            [
                IndRNN(N, recurrent_initializer="ones", **bound, **options),
                keras.layers.GRU(4, **options),
            ],
            [1, 2],
            **options,
        ),
        "stacked": lambda: stacked_ind_rnn(
            (T, F), N, 2, recurrent_initializer="ones", **bound
        ),
    }[kind]()


def network(kind="layer", optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((T, F)), body(kind, **options), keras.layers.Dense(1)]
    )
    model.compile(optimizer or SGD(0.02), "mse", jit_compile=False)
    return model


def data(count=16):
    x = np.random.default_rng(1).normal(size=(count, T, F)).astype("float32")
    return x, x[:, -2:, 0].sum(axis=1, keepdims=True) + 2


def fit(model, epochs=3, batch_size=8, **options):
    return model.fit(
        *data(),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **options,
    ).history


@functools.cache
def in_float32(kind):
    """The losses of training, and the predictions afterwards."""
    model = network(kind)
    return fit(model)["loss"], model.predict(data()[0], verbose=0)


def assert_same_weights(model, other, atol=0.0):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_bounded(model):
    largest = [
        np.abs(w.numpy()).max()
        for w in model.weights
        if w.name == "recurrent_kernel" and len(w.shape) == 1
    ]
    assert largest and max(largest) == np.float32(BOUND)


@pytest.fixture
def policy():
    before = keras.mixed_precision.dtype_policy()
    yield keras.mixed_precision.set_dtype_policy
    keras.mixed_precision.set_dtype_policy(before)


@pytest.mark.parametrize(
    "kind, precision",
    each_value(
        ["layer", "cell", "dilated", "stacked"],
        [("mixed_float16", 2e-2), ("mixed_bfloat16", 2e-1)],
    ),
)
def test_global_policy(kind, precision, policy):
    name, tolerance = precision
    expected_losses, expected = in_float32(kind)
    policy(name)
    model = network(kind)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (name == "mixed_float16")
    # No step is skipped, as the first ones are with Keras' own first scale.
    model.optimizer.initial_scale = 2.0**8
    losses = fit(model)["loss"]
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    assert losses[-1] < 0.9 * losses[0]
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    assert_bounded(model)
    y = model.predict(data()[0], verbose=0)
    assert y.dtype == name.removeprefix("mixed_")
    np.testing.assert_allclose(
        y.astype("float32"), expected, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("kind", ["cell", "dilated"])
def test_policy_of_a_layer_and_loss_scaling(kind):
    """The first loss scale overflows: steps are skipped until one fits."""
    optimizer = keras.optimizers.LossScaleOptimizer(
        SGD(0.02), initial_scale=2.0**20
    )
    model = network(kind, optimizer, dtype="mixed_float16")
    before = model.get_weights()
    (x, y), scales = data(8), []
    for _ in range(15):
        model.train_on_batch(x, y)
        scales.append(float(optimizer.dynamic_scale))
        if scales[-1] < 2.0**20 and len(set(scales)) == len(scales):
            for a, b in zip(before, model.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
    assert scales[0] == 2.0**19 and scales[-1] == scales[-2] > 1
    assert int(optimizer.inner_optimizer.iterations) == 15 - len(set(scales))
    after = model.get_weights()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(a).all() for a in after)
    assert_bounded(model)


@pytest.mark.parametrize(
    "dtype, finite",
    [("float32", True), ("mixed_bfloat16", True), ("mixed_float16", False)],
)
def test_states_beyond_float16_are_infinite(dtype, finite):
    """They are no numbers that look right; and weights stay finite."""
    layer = IndRNN(
        2,
        kernel_initializer="ones",
        recurrent_initializer="ones",
        recurrent_max_abs=2 ** (1 / 100),
        return_sequences=True,
        dtype=dtype,
    )
    model = keras.Sequential([keras.Input((100, 1)), layer])
    x = np.full((2, 100, 1), 1000.0)
    h = np.array(tf.cast(layer(x), "float64"))
    oracle = 1000.0 * np.arange(1, 101)[:, None] * np.ones(2)
    assert not np.isnan(h).any()
    if finite:
        np.testing.assert_allclose(h[0], oracle, rtol=0.1)
    else:
        np.testing.assert_array_equal(np.isinf(h[0]), oracle > 65520)
    scaled = keras.optimizers.LossScaleOptimizer(SGD(1e-15))
    model.compile(scaled, "mse", jit_compile=False)
    before = model.get_weights()
    losses = model.fit(x, 0 * x, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all() == finite
    for a, b in zip(before, model.get_weights(), strict=True):
        assert np.isfinite(b).all() and (a == b).all() == (not finite)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole = network()
    parts = network(optimizer=SGD(0.02, gradient_accumulation_steps=2))
    before = whole.get_weights()
    fit(whole, batch_size=8)
    fit(parts, batch_size=4)
    for start, end in zip(before, whole.get_weights(), strict=True):
        assert np.abs(end - start).max() > 1e-3
    assert_same_weights(parts, whole, atol=1e-5)
    assert_bounded(parts)


def test_moving_average_of_weights():
    plain = network()
    model = network(optimizer=SGD(0.02, use_ema=True, ema_momentum=0.6))
    average = None
    for _ in range(4):
        plain.train_on_batch(*data())
        now = plain.layers[0].cell.kernel.numpy()
        average = now if average is None else 0.6 * average + 0.4 * now
    fit(model, epochs=4, batch_size=16)
    found = model.layers[0].cell.kernel.numpy()
    assert np.abs(found - now).max() > 1e-3
    np.testing.assert_allclose(found, average, rtol=0, atol=1e-5)

    # Keras averages before it constrains: the weight in use is bounded.
    straight_through = model.layers[0].cell.bounded_recurrent_kernel
    assert np.abs(straight_through).max() == np.float32(BOUND)


def test_callbacks(tmp_path):
    """They stop, keep the best weights, lower the learning rate, and save."""
    model = network(optimizer=SGD(0.05, momentum=0.9))
    best = tmp_path / "best.keras"
    history = fit(
        model,
        epochs=20,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                best, monitor="loss", save_best_only=True
            ),
            keras.callbacks.ReduceLROnPlateau(
                monitor="loss", patience=1, factor=0.9
            ),
            keras.callbacks.EarlyStopping(
                monitor="loss", patience=2, restore_best_weights=True
            ),
        ],
    )
    losses = history["loss"]
    assert 3 < len(losses) < 20 and min(losses) == losses[-3] < losses[0]
    assert history["learning_rate"][-1] < np.float32(0.05)
    assert_same_weights(keras.models.load_model(best), model)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def test_backup_and_tensorboard(tmp_path):
    whole, broken, model = (
        network("stacked", keras.optimizers.Adam(0.01)) for _ in range(3)
    )
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fit(whole, callbacks=[board])
    with pytest.raises(InterruptedError):
        fit(broken, callbacks=[backup, Interrupt()])
    assert len(fit(model, callbacks=[backup])["loss"]) == 1
    assert_same_weights(model, whole)
    tags = {
        value.tag
        for path in tmp_path.rglob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert "epoch_loss" in tags
    assert [tag for tag in tags if "recurrent_kernel" in tag]


def test_summary_and_plot(capsys, tmp_path):
    network("dilated").summary(expand_nested=True)
    printed = capsys.readouterr().out
    assert "dilated_rnn" in printed and "Total params" in printed
    options = {"show_shapes": True, "expand_nested": True}
    model = network("stacked")
    graph = keras.utils.model_to_dot(model, **options).to_string()
    assert graph.count("IndRNN") == 2 and f"{T}, {F})" in graph
    if shutil.which("dot"):
        path = tmp_path / "model.png"
        keras.utils.plot_model(model, path, **options)
        assert path.stat().st_size > 1000
