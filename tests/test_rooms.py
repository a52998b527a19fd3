"""The layout's rules, read from the source."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

# A room imports only from rooms that stand after it.
LIBRARY = (
    "runs", "analysis", "training", "config", "data", "models", "storage", "runtime", "errors"
)  # fmt: skip
ROOMS = ("sweeping", "reporting", "schedulers", "benchmarks", "compiling")
# Libraries with one importer.
ONLY_IN = {
    "fsspec": "resnet_flax/storage/bucket.py",
    "orbax": "resnet_flax/storage/trees.py",
    "tensorboardX": "resnet_flax/storage/tensorboard.py",
    "rich": "resnet_flax/runtime/progress.py",
    "grain": "resnet_flax/data/workers.py",
    "cv2": "resnet_flax/data/decoding.py",
    "simplejpeg": "resnet_flax/data/decoding.py",
}
WITHOUT_JAX = [
    path
    for path in sorted(Path("resnet_flax/storage").glob("*.py"))
    if path.stem not in ("checkpoints", "checkpoint_writer", "tensorboard", "trees")
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
            allowed = module in ("re", "ml_collections") or module.startswith("configs.")
            assert allowed, f"{path} imports {module}, not only re, ml_collections and configs"


def test_commands_are_alone_in_the_first_room():
    for path in Path("experiments").glob("*.py"):
        if path.stem not in ("__init__", "cli", "flag_errors", "experiments"):
            assert 'if __name__ == "__main__":' in path.read_text(), path


def test_a_command_also_runs_as_a_file(tmp_path):
    file = Path("experiments/report.py").absolute()
    asked = [sys.executable, file, "--help"]
    shown = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "--workdir" in shown.stdout, shown.stderr


def rooms():
    """Every folder that has a README of its own, but for the repository's."""
    library = [Path("resnet_flax", room) for room in LIBRARY]
    own = [Path("experiments", room) for room in (*ROOMS, "results")]
    whole = [Path("resnet_flax"), Path("experiments"), Path("configs"), Path("notebooks")]
    return [*whole, *(room for room in library if room.is_dir()), *own]


READMES = [Path("README.md"), Path("CONTRIBUTING.md"), *(room / "README.md" for room in rooms())]
PAGES = sorted({*READMES, *Path("experiments/results").rglob("*.md")})
COMMANDS = [path.stem for path in Path("experiments").glob("*.py") if path.stem != "__init__"]
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def code_of(page):
    """The lines of code on a page, in blocks and within sentences; continued lines as one."""
    for block, span in CODE.findall(page.read_text()):
        yield from re.sub(r"\\\n\s*", "", block or span).splitlines()


def anchors_of(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_folder_of_code_is_a_room():
    folders = {path.parent for top in ("resnet_flax", "experiments") for path in files_of(top)}
    assert folders <= set(rooms())


def files_of(top):
    return [path for path in Path(top).rglob("*.py") if path.stem != "__init__"]


def test_every_room_names_its_files():
    for room in rooms():
        spans = " ".join(code_of(room / "README.md"))
        for path in room.glob("*.py"):
            is_command = room == Path("experiments") and path.stem in COMMANDS
            named = rf"\b{path.stem}\b" if is_command else rf"(?<![\w/]){path.stem}\.py\b"
            found = path.stem == "__init__" or re.search(named, spans)
            assert found, f"{path} is not in {room}/README.md"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors_of(file), f"{page}: {target}"


def test_files_that_pages_name_exist():
    for page in PAGES:
        for code in code_of(page):
            for name in re.findall(r"(?<![\w/.*])[\w.\-]+(?:/[\w.\-]+)*\.(?:py|txt|lock)\b", code):
                places = [Path(), page.parent, Path("tests"), Path("resnet_flax")]
                assert any((place / name).exists() for place in places), f"{page}: {name}"


def test_targets_of_make_that_pages_name_exist():
    targets = re.findall(r"^([\w\-]+):", Path("Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for code in code_of(page):
            for target in re.findall(r"\bmake (?:[A-Z]\S+ )*([a-z][\w\-]*)", code):
                assert target in targets, f"{page}: make {target}"


def test_commands_that_pages_give_exist_and_take_these_flags():
    command = re.compile(r"(?:.*-m experiments\.)?([a-z_]+)\s(.*--.*)")
    for page in PAGES:
        for code in code_of(page):
            match = command.fullmatch(code)
            if not match or ("-m experiments." not in code and match[1] not in COMMANDS):
                continue
            assert match[1] in COMMANDS, f"{page}: {code}"
            sources = [Path("experiments", f"{name}.py").read_text() for name in (match[1], "cli")]
            for flag in re.findall(r"(?<!\S)--([a-z_]+)", match[2]):
                known = any(f'"{flag}"' in source for source in sources)
                assert known, f"{page}: {match[1]} has no --{flag}"


def test_configs_that_pages_name_exist():
    for page in PAGES:
        for name, argument in re.findall(r"configs/(\w+)\.py:(\w+)", page.read_text()):
            importlib.import_module(f"configs.{name}").get_config(argument)


def test_examples_name_a_python_that_is_there():
    for page in READMES:
        for code in code_of(page):
            assert not re.search(r"(?<!bin/)python -m experiments", code), f"{page}: {code}"


def attributes_set(function):
    """The attributes of `self` that a method sets."""
    for node in ast.walk(function):
        is_stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node, ast.Attribute) and is_stored and ast.unparse(node.value) == "self":
            yield node.attr


def test_no_attribute_is_first_set_outside_its_constructor():
    for path in [*FILES, *Path("experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            known = {
                ast.unparse(part.target) for part in node.body if isinstance(part, ast.AnnAssign)
            }
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            for method in sorted(methods, key=lambda method: method.name != "__init__"):
                found = set(attributes_set(method))
                assert method.name == "__init__" or found <= known, f"{path}: {node.name}, {found}"
                known |= found
