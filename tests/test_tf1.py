"""The 2018 way: `tests/tf1.py` in a process of its own."""

import os
import pathlib
import subprocess
import sys


def test_tf1():
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).with_name("tf1.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
