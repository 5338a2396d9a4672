"""README and docstrings: commands are the ones in use, examples run."""

import ast
import doctest
import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import dilated_rnn
import ind_rnn_cell
import reset_rnn

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted({path.stem for path in ROOT.glob("*.py")} - {"setup"})
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"))
    if path.parent.name not in ("out", ".pytest_cache")
)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language, page="README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.M | re.S)


def test_ci_calls_the_test_command():
    _, test = blocks("bash")
    assert test in read(".ci/run")


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 240


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks("python", page)]
)
def test_snippets_run_in_order(page, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1050, 28, 28)), np.arange(1050) % 10
    digits = (images.astype("uint8"), labels), (images[:9], labels[:9])
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: digits)
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in blocks("python", page):
        # One trial of the random search is enough.
        exec(snippet.replace("range(8)", "range(1)"), names)
    if page in CHECKS:
        CHECKS[page](**names)


def check_readme(model, network, deeper, densest, **_):
    assert model.count_params() == 18314
    assert [
        sum(np.prod(w.shape) for w in x.trainable_weights)
        for x in (network, deeper, densest)
    ] == [86410, 170890, 256514]


def check_migrating(
    linear_weight,
    linear_bias,
    weight_hh,
    moved,
    recurrent,
    arrays,
    dilated,
    from_torch_lstm,
    **_,
):
    # relu(linear(x_t) + weight_hh * h), over time-major sequences
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

    # The equations in the documentation of torch.nn.GRU and LSTM
    h = x = np.sin(1 + np.arange(2 * 7 * 3)).reshape(2, 7, 3)
    for dilation, weights in zip((1, 2), arrays, strict=True):
        h = torch_gru(h, dilation, *weights)
    np.testing.assert_allclose(dilated(x), h[:, -1], atol=1e-5)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=s) for s in ((20, 3), (20, 5), (20,), (20,))]
    lstm = keras.layers.LSTM(5, return_sequences=True)
    lstm.build((None, None, 3))
    lstm.set_weights(from_torch_lstm(*weights))
    np.testing.assert_allclose(lstm(x), torch_lstm(x, *weights), atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_gru(x, dilation, weight_ih, weight_hh, bias_ih, bias_hh):
    all_h = [np.zeros((len(x), weight_hh.shape[1]))] * dilation
    for x_t in np.swapaxes(x, 0, 1):
        h = all_h[-dilation]
        of_x = np.split(x_t @ weight_ih.T + bias_ih, 3, axis=1)
        of_h = np.split(h @ weight_hh.T + bias_hh, 3, axis=1)
        r, z = (sigmoid(a + b) for a, b in zip(of_x[:2], of_h[:2]))
        n = np.tanh(of_x[2] + r * of_h[2])
        all_h.append((1 - z) * n + z * h)
    return np.stack(all_h[dilation:], axis=1)


def torch_lstm(x, weight_ih, weight_hh, bias_ih, bias_hh):
    h = c = np.zeros((len(x), weight_hh.shape[1]))
    outputs = []
    for x_t in np.swapaxes(x, 0, 1):
        gates = x_t @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


CHECKS = {"README.md": check_readme, "docs/migrating.md": check_migrating}


@pytest.mark.slow
def test_tf1_snippet_runs():
    (snippet,) = blocks("python tf1", "docs/migrating.md")
    check = "\nassert output.shape == (2, 784, 128) and len(state) == 2\n"
    subprocess.run(
        [sys.executable, "-c", snippet + check],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        cwd=ROOT,
        check=True,
    )


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    internal = name in ("ind_rnn_recurrence", "parallel_scan")
    assert internal or result.attempted >= 2


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", read(page), re.M)
    return [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    ]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole(page):
    """Nothing is left to fill in, and links lead somewhere."""
    assert not re.findall(r"@@|TODO|TBD", read(page))
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / page if not path else (ROOT / page).parent / path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT)), link


@pytest.mark.parametrize("page", ["ind_rnn_cell.py", "dilated_rnn.py"])
def test_files_to_copy_say_what_they_are(page):
    name, spdx, *_ = read(page).splitlines()
    assert name.startswith(f"# {page}, of indrnn {ind_rnn_cell.__version__}:")
    assert spdx == "# SPDX-License-Identifier: Apache-2.0"


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


def imports(name):
    """The names of our files that one of them imports where it begins.

    A function may import more, and say so where that is missing.
    """
    tree = ast.parse(read(f"{name}.py"))
    modules = {x.module for x in tree.body if isinstance(x, ast.ImportFrom)}
    return modules & {*MODULES}


def needed(name):
    """The names of our files that one of them needs, itself among them."""
    return {name}.union(*map(needed, imports(name)))


def files_of(row):
    return re.findall(r"`(\w+)\.py`", row)


def test_the_files_to_copy_are_those_that_are_needed():
    """Each row names files, and perhaps those of rows above it."""
    table = read("README.md").split("| to use | copy |")[1].split("\n\n")[0]
    rows = {}
    for row in table.splitlines()[2:]:
        use, files = row.strip("| ").split(" | ")
        named = {*files_of(files)}
        if "the six above" in files:
            assert len(above := set().union(*rows.values())) == 6
            named |= above
        if "the five of `IndRNN`" in files:
            assert len(rows["`IndRNN`"]) == 5
            named |= rows["`IndRNN`"]
        rows[use.split(",")[0]] = named
    assert rows == {
        "`IndRNNCell`": {"ind_rnn_cell"},
        "`DilatedRNN`": {"dilated_rnn"},
        "`IndRNN`": needed("ind_rnn"),
        "`mixed_rnn`": {"dilated_rnn"} | needed("ind_rnn"),
        "the deep networks": needed("deep_ind_rnn"),
        "`IndyLSTM`": needed("indy"),
    }
    assert "parallel_scan" in rows["`IndRNN`"]


def test_files_import_only_files_above_them():
    """In the order of the table in CONTRIBUTING.md."""
    table = read("CONTRIBUTING.md").split("| file | what is in it |")[1]
    files = files_of(table.split("\n\n")[0])
    assert sorted(files) == MODULES
    for index, name in enumerate(files):
        assert imports(name) <= {*files[: index if index > 2 else 0]}, name
