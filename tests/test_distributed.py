"""Training on two devices, and on two machines: processes on loopback."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

import distributed_training
from runs import (
    DISTRIBUTED,
    assert_same_run,
    contents,
    history,
    main,
    refused,
    result,
)

TWO_DEVICES = pathlib.Path(__file__).with_name("two_devices.py")


def environment(**variables):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_NUM_INTRAOP_THREADS": "1",
        **variables,
    }


@pytest.mark.slow
def test_on_two_devices():
    """`tests/two_devices.py` in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", TWO_DEVICES],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    last = result.stdout.splitlines()[-1]
    assert last.startswith("6 passed in"), result.stdout


WORKER = """
import os
import signal
import sys

import arguments
import distributed_training
import training

dies, *argv = sys.argv[1:]
save = training.save


def save_once(model, path, arguments, history):
    if len(history) == 2 and dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    save(model, path, arguments, history)


training.save = save_once
sys.exit(arguments.run(distributed_training.main, argv))
"""


def workers(argv, dying=None):
    """Run two workers: their exit codes, and what they print on stderr."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    processes = []
    for index in range(2):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        dies = "dies" if index == dying else "lives"
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, dies, *argv],
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
    return [each.returncode for each in processes], errors


@pytest.mark.slow
def test_killed_workers_resume_to_the_end_of_one(tmp_path):
    """The first one dies while writing its second checkpoint."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    distributed_training.main([*DISTRIBUTED, str(alone)])
    argv = [*DISTRIBUTED, str(out)]
    codes, errors = workers(argv, dying=0)
    assert codes == [-signal.SIGKILL, 2]
    last = errors[1].splitlines()[-1]
    assert last.endswith(
        "error: another worker has ended: start all again, with --resume"
    )
    # History is one epoch ahead of the checkpoint: the worst moment.
    assert len(history(out)) == 2 and not (out / "result.json").exists()
    # One alone may go on where two began.
    copy = shutil.copytree(out, tmp_path / "copy")
    distributed_training.main([*DISTRIBUTED, str(copy), "--resume"])
    assert_same_run(copy, alone)
    codes, errors = workers([*argv, "--resume"])
    assert codes == [0, 0], errors
    assert_same_run(out, alone)
    assert not list(out.glob("_*"))


GOOD = {
    "cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]},
    "task": {"type": "worker", "index": 0},
}


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "{}",
        json.dumps({**GOOD, "cluster": {"worker": []}}),
        json.dumps({**GOOD, "cluster": {"worker": ["127.0.0.1"]}}),
        json.dumps({**GOOD, "cluster": {"ps": ["127.0.0.1:1"]}}),
        json.dumps({**GOOD, "task": {"type": "worker", "index": 2}}),
        json.dumps({**GOOD, "task": {"type": "ps", "index": 0}}),
        json.dumps({**GOOD, "task": 0}),
    ],
)
def test_bad_cluster(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", config)
    argv = [*DISTRIBUTED, tmp_path / "out"]
    argv += [] if config else ["--strategy", "workers"]
    words = "TF_CONFIG must be like"
    error = refused(distributed_training, argv, capsys, words)
    assert error.endswith(f"got {config}".rstrip())
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_changes_nothing(tmp_path, capsys):
    argv = [*DISTRIBUTED, tmp_path]
    main(distributed_training, argv)
    rows, before = history(tmp_path), contents(tmp_path)
    metrics = result(tmp_path)["metrics"]
    main(distributed_training, argv, "--resume")
    assert history(tmp_path) == rows and len(rows) == 3
    assert result(tmp_path)["metrics"] == metrics
    name = "checkpoint.keras"
    assert contents(tmp_path)[name] == before[name]
    (tmp_path / name).write_bytes(before[name][:-20])
    files = contents(tmp_path)
    argv.append("--resume")
    refused(distributed_training, argv, capsys, "cannot be resumed")
    assert contents(tmp_path) == files
