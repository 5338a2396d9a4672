"""A file that is copied alone passes its own tests: all that need no other."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
# In place of the files that are not there. What needs one is left out.
ABSENT = """
import sys
import types

import pytest


class Absent:
    def __init__(self, *args, **kwargs):
        pytest.skip("is not there")


for name in {absent}:
    module = types.ModuleType(name)
    module.IndRNN = type("IndRNN", (Absent,), {{}})
    module.IndRNNCell = type("IndRNNCell", (Absent,), {{}})
    sys.modules[name] = module
"""
MODULES = {path.stem for path in TESTS.parent.glob("*.py")} - {"setup"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, least", [("ind_rnn_cell", 250), ("dilated_rnn", 190)]
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
