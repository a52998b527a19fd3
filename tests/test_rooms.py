"""The layout's rules, read from the source."""

import ast
import sys
from pathlib import Path

# A room imports only from rooms that stand after it.
LIBRARY = (
    "runs", "analysis", "training", "config", "storage", "data", "models", "runtime", "errors"
)  # fmt: skip
ROOMS = ("sweeping", "reporting", "schedulers", "benchmarks")
# Libraries with one importer.
ONLY_IN = {
    "fsspec": "resnet_flax/storage/bucket.py",
    "orbax": "resnet_flax/storage/trees.py",
    "tensorboardX": "resnet_flax/storage/tensorboard.py",
    "rich": "resnet_flax/runtime/progress.py",
    "grain": "resnet_flax/data/stream.py",
}
WITHOUT_JAX = [
    path
    for path in sorted(Path("resnet_flax/storage").glob("*.py"))
    if path.stem not in ("checkpoints", "tensorboard", "trees")
]
FILES = sorted(path for path in Path("resnet_flax").rglob("*.py") if path.stem != "__init__")


def imports(path):
    """All modules a file imports, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    """The place of `resnet_flax.ROOM...` in the list."""
    return LIBRARY.index(module.split(".")[1])


def test_every_room_of_the_library_is_in_the_list():
    assert {path.parts[1].removesuffix(".py") for path in FILES} == set(LIBRARY)


def test_a_room_imports_only_from_rooms_below_it():
    for path in FILES:
        own = room_of(".".join(path.with_suffix("").parts))
        for module in imports(path):
            assert not module.startswith(("experiments", "configs", "ml_collections")), path
            if module.startswith("resnet_flax."):
                assert room_of(module) >= own, f"{path} imports {module}"


def test_files_of_a_room_do_not_import_each_other_in_a_circle():
    wanted = {
        path: {
            target
            for module in imports(path)
            for target in FILES
            if f"{module}.".startswith(".".join(target.with_suffix("").parts) + ".")
        }
        for path in FILES
    }
    while wanted:
        done = [path for path, needs in wanted.items() if not needs & wanted.keys()]
        assert done, f"a circle among {sorted(map(str, wanted))}"
        for path in done:
            del wanted[path]


def test_a_heavy_library_has_one_importer():
    for path in FILES:
        for module in imports(path):
            for library, importer in ONLY_IN.items():
                if module.split(".")[0] == library:
                    assert str(path) == importer, f"{path} imports {module}"


def test_pmap_and_shard_map_are_called_in_one_file_only():
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {module.rpartition(".")[2] for module in imports(path)}
        assert path.name == "parallel.py" or not names & {"pmap", "shard_map"}, path


def test_keys_are_made_in_one_file_and_drawn_from_in_one_other():
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text()))
        used = any(
            isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.random" for node in nodes
        )
        used |= any(module.startswith("jax.random") for module in imports(path))
        assert not used or path.name in ("bits.py", "augment.py"), path


def test_records_are_read_without_jax():
    allowed = {*sys.stdlib_module_names, "fsspec", "pandas", "psutil", "pydantic", "pydantic_core"}
    own = {".".join(path.with_suffix("").parts) for path in WITHOUT_JAX} | {"resnet_flax.errors"}
    for path in WITHOUT_JAX:
        for name in imports(path):
            ours = any(f"{name}.".startswith(f"{module}.") for module in own)
            package = name in ("resnet_flax.storage", "resnet_flax") or ours
            assert name.split(".")[0] in allowed or package, f"{path} imports {name}"


def test_a_config_is_data_and_never_imports_the_library():
    for path in Path("configs").glob("*.py"):
        for module in imports(path):
            assert module in ("re", "ml_collections") or module.startswith("configs."), path


def test_commands_are_alone_in_the_first_room():
    for path in Path("experiments").glob("*.py"):
        if path.stem not in ("__init__", "cli"):
            assert 'if __name__ == "__main__":' in path.read_text(), path
