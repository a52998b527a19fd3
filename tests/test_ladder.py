"""The layout's rules, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

# A file imports only from lower rungs.
RUNGS = [
    {"errors", "regular"},
    {"cpu", "bucket", "bits"},
    {
        "recipe", "models.blocks", "models.conv", "models.stacking", "data.digits", "data.augment",
        "data.crops", "data.order", "optim", "metrics", "disk", "lock_places", "joining",
        "parallel", "progress", "interrupt", "environment", "transfer",
    },
    {
        "models.resnet", "models.vgg", "data.sources", "steps", "lock", "step_folders",
        "tensorboard", "hosts",
    },
    {"records", "trees", "schema", "data.stream", "torch_names", "findings"},
    {
        "sweeps", "feed", "diagnostics", "landscape", "convert", "data.fingerprint", "checkpoints",
    },
    {"experiment", "evaluation", "views"},
    {"start", "runs", "recorder"},
    {"loop"},
]  # fmt: skip
FILES = sorted(path for path in Path("resnet_flax").rglob("*.py") if path.stem != "__init__")
# Libraries with one importer.
ONLY_IN = {
    "fsspec": "bucket",
    "orbax": "trees",
    "tensorboardX": "tensorboard",
    "rich": "progress",
    "grain": "data.stream",
}


def name_of(path):
    return ".".join(path.with_suffix("").parts[1:])


def imports(path):
    """All modules a file imports, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rung_of(module):
    """The rung of `resnet_flax.X[.name]`, None if it is not a file of the library."""
    for rung, names in enumerate(RUNGS):
        for name in names:
            if f"{module}.".startswith(f"resnet_flax.{name}."):
                return rung
    return None


def test_every_file_stands_on_one_rung():
    assert sorted(name for names in RUNGS for name in names) == sorted(map(name_of, FILES))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_lower_rungs(path):
    own = rung_of(f"resnet_flax.{name_of(path)}")
    for module in imports(path):
        assert not module.startswith(("experiments", "configs", "ml_collections")), module
        if module.startswith("resnet_flax"):
            assert rung_of(module) < own, f"{path} imports {module}"
        for library, importer in ONLY_IN.items():
            if module.startswith(library):
                assert name_of(path) == importer, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_pmap_and_shard_map_are_called_in_one_file_only(path):
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    } | {module.rpartition(".")[2] for module in imports(path)}
    assert name_of(path) == "parallel" or not names & {"pmap", "shard_map"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_keys_are_made_in_one_file_and_drawn_from_in_one_other(path):
    used = any(
        isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.random"
        for node in ast.walk(ast.parse(path.read_text()))
    ) or any(module.startswith("jax.random") for module in imports(path))
    assert not used or name_of(path) in ("bits", "data.augment")


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.py")), ids=str)
def test_a_config_is_data_and_never_imports_the_library(path):
    assert all(
        module in ("re", "ml_collections") or module.startswith("configs.")
        for module in imports(path)
    )


WITHOUT_JAX = (
    "bucket", "disk", "errors", "findings", "lock", "lock_places", "records", "regular",
    "sweeps",
)  # fmt: skip


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_records_are_read_without_jax(module):
    own = {"resnet_flax", *(f"resnet_flax.{name}" for name in WITHOUT_JAX)}
    for name in imports(Path("resnet_flax", f"{module}.py")):
        allowed = {
            *sys.stdlib_module_names,
            "fsspec",
            "pandas",
            "psutil",
            "pydantic",
            "pydantic_core",
        }
        assert name.split(".")[0] in allowed or name.rpartition(".")[0] in own, name
