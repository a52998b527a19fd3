"""Notebooks were run as they stand, and run again."""

import json
import re
from pathlib import Path

import pytest

from tests.prepared import needs_cifar10

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
NEEDS_CIFAR10 = {"inside_a_block"}
LARGEST = 500_000  # Bytes, with all pictures.


def cells(path):
    return [
        {**cell, "source": "".join(cell["source"])}
        for cell in json.loads(path.read_text())["cells"]
    ]


def code(path):
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_one_run_of_it_showed(path):
    run = code(path)
    assert [cell["execution_count"] for cell in run] == list(range(1, len(run) + 1))
    outputs = [output for cell in run for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert not any("widget" in kind for kind in kinds)
    assert path.stat().st_size < LARGEST
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work)/", re.sub(r'"image/png": ".*?"', "", text))


def test_the_first_cell_of_each_notebook_sets_it_up():
    for path in NOTEBOOKS:
        first = code(path)[0]["source"]
        assert "google.colab" in first and "--requirement requirements.txt" in first, path


@pytest.mark.parametrize("page", ["README.md", "resnet_flax/analysis/README.md"])
def test_the_examples_of_a_page_are_cells_of_a_notebook(page):
    sources = [cell["source"] for path in NOTEBOOKS for cell in code(path)]
    examples = re.findall(r"```python\n(.*?)```", Path(page).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        assert any(example.strip() in source for source in sources), example


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=needs_cifar10 if path.stem in NEEDS_CIFAR10 else (), id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_scratch(path, tmp_path, monkeypatch):
    """In a folder that has no runs yet."""
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "notebooks").mkdir()
    for name in ("configs", "experiments", "resnet_flax"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in pictures)
