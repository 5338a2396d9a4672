"""README and docstrings: commands are the ones in use, examples run."""

import doctest
import inspect
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import deep_ind_rnn
import dilated_rnn
import ind_rnn
import ind_rnn_cell
import ind_rnn_optimizer
import indy
import indy_cell
import reset_rnn

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_ci_calls_the_test_command():
    _, test = blocks("bash")
    assert test in (ROOT / ".ci/run").read_text()


def test_snippets_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert len(blocks("python")) == 17
    for snippet in blocks("python"):
        exec(snippet, names)
    assert names["model"].count_params() == 18314
    assert len(names["state"]) == 4
    weights = [
        sum(np.prod(w.shape) for w in names[name].trainable_weights)
        for name in ("network", "deeper", "densest")
    ]
    assert weights == [86410, 170890, 256514]

    check_weights_of_pytorch(**names)


def check_weights_of_pytorch(
    linear_weight, linear_bias, weight_hh, moved, recurrent, **_
):
    """relu(linear(x_t) + weight_hh * h), over time-major sequences."""
    x = np.sin(1 + np.arange(5 * 3 * 4)).reshape(5, 3, 4)  # (T, B, F)
    inputs = x @ linear_weight.T + linear_bias
    h, outputs = np.zeros((3, 32)), []
    for input_t in inputs:
        h = np.maximum(input_t + weight_hh * h, 0)
        outputs.append(h)
    found = np.swapaxes(moved(np.swapaxes(x, 0, 1)), 0, 1)
    np.testing.assert_allclose(found, outputs, atol=1e-5)
    found = recurrent(np.swapaxes(inputs, 0, 1))
    np.testing.assert_allclose(found, h, atol=1e-5)


def test_tf1_snippet_runs():
    (snippet,) = blocks("python tf1")
    check = "\nassert output.shape == (2, 784, 128) and len(state) == 2\n"
    subprocess.run(
        [sys.executable, "-c", snippet + check],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        cwd=ROOT,
        check=True,
    )


@pytest.mark.parametrize(
    "module",
    [
        ind_rnn_cell,
        ind_rnn,
        ind_rnn_optimizer,
        deep_ind_rnn,
        dilated_rnn,
        reset_rnn,
        indy_cell,
        indy,
    ],
)
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted >= 2 and result.failed == 0


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"@@|TODO|TBD", README)


def test_pictures_exist():
    pictures = re.findall(r"\]\((img/.*?)\)", README)
    assert pictures and all((ROOT / path).exists() for path in pictures)


@pytest.mark.parametrize("name", ["_check_per_step", "_shapes_match"])
def test_what_two_files_share_is_the_same(name):
    """A file that is copied alone has its own."""
    here, there = (
        inspect.getsource(getattr(module, name)).replace(other, "the other")
        for module, other in (
            (reset_rnn, "dilated_rnn.py"),
            (dilated_rnn, "reset_rnn.py"),
        )
    )
    assert here == there
