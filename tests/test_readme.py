"""The READMEs' examples run, and their tables are what the records say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments import readme
from resnet_flax.storage import sweep_folder
from resnet_flax.storage.recipe import Varying

PAGES = [Path("README.md"), Path("resnet_flax/README.md"), Path("resnet_flax/analysis/README.md")]
# Each in a namespace of its own, as in a notebook.
EXAMPLES = [
    pytest.param(code, id=str(page))
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder with a small sweep in runs/digits; the working directory.

    The names, not the depth, of the READMEs' runs: the golden run, and, by its config, the plain
    network of the same parameters.
    """
    folder, entries = tmp_path / "runs" / "digits", {}
    for kind, shortcut in (("plain", "none"), ("residual", "pad")):
        name = f"{kind}-56-s0"
        shutil.copytree("tests/golden/run", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config["model"]["shortcut"] = shortcut
        (folder / name / "config.json").write_text(json.dumps(config))
        entries[name] = {"kind": kind, "config": config}
    sweep_folder.add_runs(folder, entries, Varying())
    (tmp_path / "experiments").symlink_to(Path("experiments").absolute())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    Image.new("RGB", (60, 40)).save("cat.jpg")
    return tmp_path


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs_as_it_stands(code, digits):
    exec(compile(code, "README.md", "exec"), {})
    for made in ("runs/gradients.png", "shared/plain-56-s0", "moved/plain-56-s0"):
        assert (digits / made).exists() == (made in code)


def test_the_tables_are_what_the_records_say():
    texts = {page: page.read_text() for page in readme.pages()}
    stale = [str(page) for page, text in texts.items() if readme.filled(text) != text]
    assert not stale, f"`make readme` changes {stale}"


def test_every_table_stands_in_one_place():
    texts = [page.read_text() for page in readme.pages()]
    found = [name for text in texts for _, name, *_ in readme.BLOCK.findall(text)]
    assert sorted(found) == sorted(readme.TABLES)


def test_markers_come_in_pairs():
    for page in readme.pages():
        text = page.read_text()
        assert len(re.findall("<!-- (?:begin|end): ", text)) == 2 * len(readme.BLOCK.findall(text))


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError, match="nonesuch"):
        readme.filled("<!-- begin: nonesuch -->\n<!-- end: nonesuch -->")
