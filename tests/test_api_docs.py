"""docs/api.md: made from the docstrings as they are, and complete."""

import importlib
import inspect
import pathlib
import re
import runpy

import pytest

ROOT = pathlib.Path(__file__).parents[1]
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
GENERATOR = runpy.run_path(str(ROOT / "docs/make_api.py"))
MODULES = sorted({path.stem for path in ROOT.glob("*.py")} - {"setup"})


def test_it_is_up_to_date():
    if API != GENERATOR["generate"]():
        pytest.fail("docs/api.md is old: run `python docs/make_api.py`")


def public_names(module):
    """The classes and functions that a module defines, by their names."""
    return {
        name: value
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_it(module):
    """With the signature that Python sees."""
    section = re.search(rf"^## {module}\.py$(.*?)(?=^## |\Z)", API, re.M | re.S)
    found = re.findall(r"^### `(\w+)`$", section[1], re.M)
    names = public_names(module)
    assert found and found == [*names]

    def without_layout(text):
        return re.sub(r"\s|,(?=\s*\))", "", text).replace("'", '"')

    for name, value in names.items():
        if inspect.isclass(value):
            value = vars(value).get("__init__")
        if value is None:  # the signature is that of another class
            continue
        shown = re.search(rf"^```py\n{name}(\(.*?)\n?```$", API, re.M | re.S)
        found = str(inspect.signature(value)).replace("(self, ", "(")
        assert without_layout(shown[1]) == without_layout(found)


def test_special_signatures():
    for text in (
        "    states,\n    *,\n    step,\n",
        "MaskAndReset(mask, reset)",
        "ResetRNN(...)  # the arguments of keras.layers.RNN",
        "#### `IndRNNCell.project(inputs)`\n",
        "#### `IndRNNCell.bounded_recurrent_kernel`\n",
    ):
        assert text in API
    for method_of_keras in ("build", "call", "get_config", "inner_loop"):
        assert f".{method_of_keras}(" not in re.sub(r"(?s)```.*?```", "", API)


def test_a_docstring_becomes_markdown():
    docstring = inspect.cleandoc(
        """Sum up `Other` things.

            y = x
            for all:
                y = y + x_t

        A *star* and _one_, h_t and <tag> and
        `a * b`.

        - one
          line
        - another

        Arguments:
            units: N, a number
                >= 1.
            dropout,
            seed, **kwargs: As in `Other`.
            All others: None.

        Returns:
            (B, N), in
            one line.

        Example:
            >>> f(
            ...     1)
            2
        """
    )
    blocks = GENERATOR["markdown"](docstring, {"Other"}, level=4)
    assert blocks == [
        "Sum up [`Other`](#other) things.",
        "```\ny = x\nfor all:\n    y = y + x_t\n```",
        r"A \*star\* and \_one_, h_t and \<tag> and `a * b`.",
        "- one line\n- another",
        "#### Arguments",
        "- `units`: N, a number >= 1.\n"
        "- `dropout`, `seed`, `**kwargs`: As in [`Other`](#other).\n"
        "- All others: None.",
        "#### Returns",
        "(B, N), in one line.",
        "#### Example",
        "```pycon\n>>> f(\n...     1)\n2\n```",
    ]


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?s)```.*?```", "", API), re.M)
    anchors = [GENERATOR["anchor"](heading) for heading in headings]
    links = set(re.findall(r"\]\(#(.*?)\)", API))
    assert "indrnn" in links
    # One that is there twice leads to the first place.
    assert all(anchors.count(link) == 1 for link in links)


def test_blocks_of_python_are_not_run_as_snippets():
    """Other tests run all blocks "python" of the documents."""
    languages = set(re.findall(r"^```(.*)\n(?:.*\n)*?```$", API, re.M))
    assert languages == {"", "py", "pycon"}
