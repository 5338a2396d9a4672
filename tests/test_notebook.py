"""notebooks/getting_started.ipynb has its results, and still runs."""

import json
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "notebooks/getting_started.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
OUTPUTS = [output for cell in CODE for output in cell["outputs"]]


def test_what_is_stored():
    """A run from top to bottom, with pictures, and nothing of the machine."""
    counts = [cell["execution_count"] for cell in CODE]
    assert counts == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for output in OUTPUTS}
    assert kinds <= {"display_data", "stream"}  # no errors
    pictures = [x for x in OUTPUTS if "image/png" in x.get("data", {})]
    assert len(pictures) >= 6
    assert PATH.stat().st_size < 400_000
    streams = [x for x in OUTPUTS if x["output_type"] == "stream"]
    assert {output["name"] for output in streams} == {"stdout"}
    text = json.dumps([x.get("text") for x in OUTPUTS])
    assert not re.search(r"oneDNN|CUDA|WARNING|/home|/tmp|/usr|/work", text)
    assert {*NOTEBOOK["metadata"]} == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(x["metadata"] for x in NOTEBOOK["cells"])


def test_it_imports_what_the_installation_has():
    library = {path.stem for path in ROOT.glob("*.py")}
    others = {"keras", "matplotlib", "numpy", "tensorflow"}
    code = "\n".join("".join(cell["source"]) for cell in CODE)
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", code, re.M))
    assert imported & library and others <= imported
    assert imported <= library | others | sys.stdlib_module_names


def test_links_lead_somewhere():
    text = "".join(
        "".join(cell["source"])
        for cell in NOTEBOOK["cells"]
        if cell["cell_type"] == "markdown"
    )
    links = re.findall(r"\]\((\.\..*?)\)", text)
    assert len(links) >= 3
    assert all((PATH.parent / link).exists() for link in links)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:  # Shorter training
        cell.source = re.sub(r"(train\(\w+), \d+\)", r"\1, 2)", cell.source)
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    ).execute()
    stored = [len(cell["outputs"]) for cell in CODE]
    found = [
        sum(x.get("name") != "stderr" for x in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert found == stored
    assert not list(tmp_path.glob("*.keras"))
