"""Files that are copied out of the project work without the rest of it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
# Stands for the files that are missing. A test that needs one is skipped.
ABSENT = """
import sys
import types

import pytest


class Absent:
    def __init__(self, *args, **kwargs):
        pytest.skip("needs a file that is missing")


for name in {absent}:
    module = types.ModuleType(name)
    module.IndRNN = type("IndRNN", (Absent,), {{}})
    module.IndRNNCell = type("IndRNNCell", (Absent,), {{}})
    sys.modules[name] = module
sys.modules["ind_rnn_recurrence"] = None
"""
MODULES = {path.stem for path in TESTS.parent.glob("*.py")} - {"setup"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, least", [("ind_rnn_cell", 40), ("dilated_rnn", 100)]
)
def test_copied_file(module, least, tmp_path):
    for path in (
        TESTS.parent / f"{module}.py",
        TESTS.parent / "pyproject.toml",  # warnings are errors
        TESTS / f"test_{module}.py",
        TESTS / "pairs.py",
        TESTS / "cases.py",
    ):
        shutil.copy(path, tmp_path)
    absent = sorted(MODULES - {module})
    (tmp_path / "conftest.py").write_text(ABSENT.format(absent=absent))
    options = "-q -n 0 -p no:cacheprovider --doctest-modules".split()
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    (passed,) = re.findall(r"(\d+) passed", result.stdout)
    assert int(passed) >= least, result.stdout.splitlines()[-1]


IN_PARALLEL = """
import sys
import numpy as np
from ind_rnn import IndRNN
y = IndRNN(2, implementation="parallel")(np.ones((1, 50, 3)))
ours = {found} & {{*sys.modules}}
assert y.shape == (1, 2) and "parallel_scan" in ours
for name in ours:
    assert sys.modules[name].__file__ == {folder!r} + f"/{{name}}.py"
"""


@pytest.mark.slow
def test_files_of_ind_rnn(tmp_path):
    """IndRNN needs no other files of ours than the README says."""
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `IndRNN`, the fast layer.*", readme, re.M)
    for file in re.findall(r"`(\w+\.py)`", row):
        shutil.copy(TESTS.parent / file, tmp_path)
    program = IN_PARALLEL.format(found=MODULES, folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
