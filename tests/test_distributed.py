"""Training on two devices, and on two machines: processes on loopback.

The tests that need two devices run in a process of their own, which the first
test starts: `LOGICAL_CPUS=2 pytest -n 0 tests/test_distributed.py`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import distributed_training
import experiment
from deep_ind_rnn import stacked_ind_rnn
from dilated_rnn import DilatedRNN
from ind_rnn import IndRNN
from runs import history, run

T, F, N, BOUND = 12, 3, 8, 0.3
CPUS = os.environ.get("LOGICAL_CPUS")
on_two_devices = pytest.mark.skipif(not CPUS, reason="in a process of its own")
on_one_device = pytest.mark.skipif(bool(CPUS), reason="in the main process")
if CPUS:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        int(CPUS) * [tf.config.LogicalDeviceConfiguration()],
    )


def environment(**variables):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_NUM_INTRAOP_THREADS": "1",
        **variables,
    }


@on_one_device
def test_on_two_devices():
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__],
        env=environment(LOGICAL_CPUS="2"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    last = result.stdout.splitlines()[-1]
    assert re.match("5 passed, [0-9]+ skipped", last), result.stdout


@pytest.fixture(scope="module")
def mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def network(kind, **options):
    """A network of which many recurrent weights start on their bound."""
    keras.utils.set_random_seed(1)
    bound = {"recurrent_max_abs": BOUND}
    uniform = keras.initializers.RandomUniform(0.5, 1.0)
    body = {
        "layer": lambda: IndRNN(N, **bound),
        "dilated": lambda: DilatedRNN(
            [IndRNN(N, **bound), keras.layers.SimpleRNN(6)], [1, 3]
        ),
        "stacked": lambda: stacked_ind_rnn(
            (T, F), N, 2, recurrent_initializer=uniform, **bound, **options
        ),
    }[kind]()
    return keras.Sequential([keras.Input((T, F)), body, keras.layers.Dense(1)])


def batch(step):
    x = np.random.default_rng(step).normal(size=(8, T, F)).astype("float32")
    return x, x.sum(axis=(1, 2))[:, None] + 5


def trained(kind, scope, **options):
    with scope:
        model = network(kind, **options)
        model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(experiment.batches(batch, 4), epochs=2, shuffle=False, verbose=0)
    return model


def replicas(weight):
    return [value.numpy() for value in weight.value.values]


@on_two_devices
@pytest.mark.parametrize("kind", ["layer", "dilated", "stacked"])
def test_mirrored_fit_equals_one_device(kind, mirrored):
    options = {"batch_normalization": None} if kind == "stacked" else {}
    one = trained(kind, contextlib.nullcontext(), **options)
    two = trained(kind, mirrored.scope(), **options)
    assert len(one.weights) == len(two.weights) > 3
    start = network(kind, **options).get_weights()
    for before, a, b in zip(start, one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(*replicas(b))
        np.testing.assert_allclose(replicas(b)[0], a, rtol=0, atol=1e-5)
        assert np.abs(a - before).max() > 1e-3
        if b.name == "recurrent_kernel" and len(b.shape) == 1:
            assert np.abs(replicas(b)).max() == np.float32(BOUND)


@on_two_devices
def test_statistics_are_those_of_each_replica(mirrored):
    """Each replica normalizes by, and keeps, those of its part of a batch."""
    with mirrored.scope():
        model = network("stacked", batch_normalization="before")
        model.compile(keras.optimizers.SGD(0.01), "mse")
    stack = model.layers[0]
    dense = stack.layers[1].get_weights()
    model.fit(experiment.batches(batch, 1), shuffle=False, verbose=0)
    for moving_mean, part in zip(
        replicas(stack.layers[2].moving_mean),
        np.split(batch(0)[0], 2),
        strict=True,
    ):
        mean = (part @ dense[0] + dense[1]).mean(axis=(0, 1))
        np.testing.assert_allclose(moving_mean, 0.1 * mean, atol=1e-6)
    # What is saved is that of the first one; trained weights are equal.
    first = replicas(stack.layers[2].moving_mean)[0]
    np.testing.assert_array_equal(stack.layers[2].get_weights()[2], first)
    for weight in model.trainable_weights:
        np.testing.assert_array_equal(*replicas(weight))


ARGUMENTS = "--time-steps 20 --units 8 --batch-size 8 --epochs 3"
ARGUMENTS = [*ARGUMENTS.split(), "--steps-per-epoch", "10", "--out"]


def variables(out):
    """All variables of the last checkpoint: model and optimizer."""
    latest = tf.train.load_checkpoint(out / "checkpoints")
    return {
        name: latest.get_tensor(name)
        for name in latest.get_variable_to_shape_map()
        if "VARIABLE_VALUE" in name and "save_counter" not in name
    }


def assert_same(out, alone):
    found, expected = variables(out), variables(alone)
    assert len(found) > 20 and found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(
            value, expected[name], rtol=0, atol=1e-5, err_msg=name
        )
    for row, other in zip(history(out), history(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@on_two_devices
def test_mirrored_example_equals_one_device(tmp_path, capsys):
    for strategy in ("alone", "mirrored"):
        argv = [*ARGUMENTS, str(tmp_path / strategy), "--strategy", strategy]
        assert distributed_training.main(argv) is None
    assert_same(tmp_path / "mirrored", tmp_path / "alone")
    code, error = run(
        distributed_training, [*argv, "--batch-size", "9"], capsys
    )
    assert code == 2 and "--batch-size must be a multiple of the 2" in error


WORKER = """
import os
import shutil
import signal
import sys

import numpy as np
import tensorflow as tf

import addition_rnn
import distributed_training
import experiment

path, dies, *argv = sys.argv[1:]
models, saved = [], []
build, save = addition_rnn.build_model, tf.train.CheckpointManager.save


def build_and_keep(args):
    models.append(build(args))
    return models[0]


def save_once(manager):
    if saved and dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    saved.append(save(manager))


addition_rnn.build_model = build_and_keep
tf.train.CheckpointManager.save = save_once
code = experiment.run(distributed_training.main, argv)
if code is None:
    np.savez(path, *models[0].get_weights())
sys.exit(code)
"""


def workers(tmp_path, argv, dying=None):
    """Run two workers; [(exit code, stderr)], the paths of their weights."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    processes, paths = [], []
    for index in range(2):
        paths.append(tmp_path / f"{index}.npz")
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        dies = "dies" if index == dying else "lives"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(paths[-1]), dies, *argv],
                env=environment(
                    TF_CONFIG=json.dumps(config), TF_NUM_INTEROP_THREADS="1"
                ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [each.communicate(timeout=300)[1] for each in processes]
    finally:
        for each in processes:
            each.kill()
    codes = [each.returncode for each in processes]
    return codes, errors, paths


@on_one_device
def test_killed_workers_resume_to_the_end_of_one(tmp_path):
    """The first one dies while writing its second checkpoint."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    distributed_training.main([*ARGUMENTS, str(alone)])
    argv = [*ARGUMENTS, str(out)]
    codes, errors, _ = workers(tmp_path, argv, dying=0)
    assert codes == [-signal.SIGKILL, 2]
    assert (
        errors[1]
        .splitlines()[-1]
        .endswith(
            "error: another worker has ended: start all again, with --resume"
        )
    )
    # History is one epoch ahead of the checkpoint: the worst moment.
    assert len(history(out)) == 2 and not (out / "result.json").exists()
    # One alone may go on where two began.
    copy = shutil.copytree(out, tmp_path / "copy")
    distributed_training.main([*ARGUMENTS, str(copy), "--resume"])
    assert_same(copy, alone)
    codes, errors, paths = workers(tmp_path, [*argv, "--resume"])
    assert codes == [0, 0], errors
    assert_same(out, alone)
    with np.load(paths[0]) as first, np.load(paths[1]) as second:
        assert len(first) == 8 and first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
    assert not list(out.glob("_*"))


GOOD = {
    "cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]},
    "task": {"type": "worker", "index": 0},
}


@on_one_device
@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "3",
        "{}",
        json.dumps({**GOOD, "cluster": {}}),
        json.dumps({**GOOD, "cluster": {"worker": []}}),
        json.dumps({**GOOD, "cluster": {"worker": ["127.0.0.1"]}}),
        json.dumps({**GOOD, "cluster": {"worker": [1]}}),
        json.dumps({**GOOD, "cluster": {"ps": ["127.0.0.1:1"]}}),
        json.dumps({**GOOD, "task": {"type": "worker", "index": 2}}),
        json.dumps({**GOOD, "task": {"type": "worker", "index": "0"}}),
        json.dumps({**GOOD, "task": {"type": "worker", "index": -1}}),
        json.dumps({**GOOD, "task": {"type": "ps", "index": 0}}),
        json.dumps({**GOOD, "task": 0}),
    ],
)
def test_bad_cluster(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", config)
    argv = [*ARGUMENTS, str(tmp_path / "out")]
    code, error = run(distributed_training, argv, capsys)
    assert code == 2 and len(error.splitlines()) == 1
    assert "TF_CONFIG must be like" in error and error.endswith(f"{config}\n")
    assert not (tmp_path / "out").exists()


@on_one_device
def test_good_cluster():
    distributed_training.check_cluster(json.dumps(GOOD))


@on_one_device
def test_workers_without_a_cluster(monkeypatch, capsys):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    code, error = run(distributed_training, ["--strategy", "workers"], capsys)
    assert code == 2 and "TF_CONFIG must be like" in error


@on_one_device
def test_resuming_a_finished_run_changes_nothing(tmp_path):
    argv = [*ARGUMENTS, str(tmp_path)]
    distributed_training.main(argv)
    before, rows = variables(tmp_path), history(tmp_path)
    distributed_training.main([*argv, "--resume"])
    assert history(tmp_path) == rows and len(rows) == 3
    for name, value in variables(tmp_path).items():
        np.testing.assert_array_equal(value, before[name])


@on_one_device
@pytest.mark.parametrize(
    "broken", ["checkpoint", "ckpt-1.index", "ckpt-1.data"]
)
def test_resume_refuses_a_broken_checkpoint(broken, tmp_path, capsys):
    argv = [*ARGUMENTS, str(tmp_path)]
    argv[argv.index("--epochs") + 1] = "1"
    assert distributed_training.main(argv) is None
    (path,) = (tmp_path / "checkpoints").glob(f"{broken}*")
    path.write_bytes(path.read_bytes()[:20])
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, error = run(distributed_training, [*argv, "--resume"], capsys)
    assert code == 2 and "cannot be resumed" in error
    assert len(error.splitlines()) == 1
    assert files == {
        p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
