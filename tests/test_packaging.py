"""What is asked for, pinned and shipped."""

import email
import importlib.metadata
import itertools
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_rooms import imports

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"].values()
SHIPPED = ["pyproject.toml", "requirements.txt", "README.md", "LICENSE", "resnet_flax"]
# Of these it is TFDS that imports them.
NOT_IMPORTED = {"array-record", "importlib-resources"}


def test_a_plug_in_is_installed_though_an_earlier_call_had_none(tmp_path):
    shutil.copy("Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.txt", "requirements.lock", ".venv/made", ".venv/installed"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "installed-accelerator").touch()
    for suites in ("accelerator", "cifar10", "benchmark SUITES=accelerator"):
        command = ["make", "--dry-run", *suites.split(), "PLUGIN=cuda13"]
        (tmp_path / ".venv-torch").mkdir(exist_ok=True)
        (tmp_path / "pyproject.toml").touch()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert 'pip install "jax[cuda13]"' in done.stdout, done.stderr


def test_make_sweep_gives_each_config_a_folder_of_its_own():
    folders = {
        "configs/degradation.py:digits": "runs/digits",
        "configs/degradation.py:cifar10_short": "runs/cifar10_short",
        "configs/causes.py:digits": "runs/causes-digits",
        "configs/causes.py:cifar10": "runs/causes-cifar10",
        "configs/questions.py:rates": "runs/questions-rates",
        "mine.py": "runs/mine",
    }
    for config, folder in folders.items():
        command = ["make", "--dry-run", "sweep", f"CONFIG={config}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f'--config="{config}" --workdir="{folder}"' in done.stdout


def listed(path):
    """The requirements that a file lists, without comments."""
    lines = (line.split(" #")[0].strip() for line in Path(path).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def in_extras(*names):
    """The requirements of extras, but for this project itself."""
    every = (Requirement(text) for name in names for text in EXTRAS[name])
    return [requirement for requirement in every if requirement.name != "resnet_flax"]


NEEDED = listed("requirements.txt")
BUILD = [Requirement(text) for text in PROJECT["build-system"]["requires"]]


@pytest.mark.parametrize(
    "requirement",
    [*NEEDED, *in_extras(*EXTRAS), *BUILD, *map(Requirement, itertools.chain(*GROUPS))],
    ids=str,
)
def test_what_is_asked_for_has_a_lower_and_an_upper_bound(requirement):
    assert {part.operator for part in requirement.specifier} == {">=", "<"}


def test_every_pin_of_the_lock_is_within_what_is_asked_for():
    pins: dict[str, list[str]] = {}
    for pin in listed("requirements.lock"):
        ((operator, version),) = ((part.operator, part.version) for part in pin.specifier)
        assert operator == "=="
        pins.setdefault(canonicalize_name(pin.name), []).append(version)
    for requirement in NEEDED + in_extras(*EXTRAS):
        versions = pins[canonicalize_name(requirement.name)]
        assert versions == list(requirement.specifier.filter(versions)), requirement


def test_the_oldest_jax_that_is_asked_for_is_pinned_for_the_oldest_python():
    (requirement,) = (each for each in NEEDED if each.name == "jax")
    pins = [pin for pin in listed("requirements.lock") if pin.name == "jax"]
    (oldest,) = (pin for pin in pins if pin.marker.evaluate({"python_full_version": "3.11.0"}))
    assert requirement.specifier.contains("0.10") and str(oldest.specifier).startswith("==0.10.")


def test_what_is_needed_is_imported_and_what_is_imported_is_needed():
    distributions = importlib.metadata.packages_distributions()
    # What an environment of its own runs, or an extra brings, is asked for there.
    elsewhere = {"experiments/prepare.py"} | {
        f"experiments/benchmarks/{name}.py"
        for name in ("input_pytorch", "input_tensorflow", "pytorch")
    }
    asked = {canonicalize_name(requirement.name) for requirement in NEEDED}
    optional = {canonicalize_name(each.name) for each in in_extras("bucket", "ray")}
    imported = set()
    for room in ("resnet_flax", "experiments", "configs"):
        for path in Path(room).rglob("*.py"):
            if str(path) not in elsewhere:
                imported |= {module.split(".")[0] for module in imports(path)}
    imported -= {*sys.stdlib_module_names, "resnet_flax", "experiments", "configs"}
    found = {canonicalize_name(distributions[name][0]) for name in imported}
    # pydantic and s3fs pin the versions of theirs.
    assert found - optional - {"pydantic-core", "fsspec"} == asked - NOT_IMPORTED


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of what it is made of; the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = Path(name)
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    assert set(BUILD) <= set(in_extras("dev"))  # What builds it is here: nothing is fetched.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", copy / "dist", copy], check=True)
    (path,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_a_wheel_has_the_library_whole_and_no_other_name(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    here = (path for path in Path("resnet_flax").rglob("*") if path.is_file())
    # The rooms' pages link to files of the checkout.
    assert shipped == {str(path) for path in here if path.suffix not in (".pyc", ".md")}
    assert "resnet_flax/py.typed" in shipped


def test_a_wheel_asks_for_what_requirements_txt_lists_and_for_its_extras(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    asked = list(map(Requirement, metadata.get_all("Requires-Dist")))
    assert {str(each) for each in asked if not each.marker} == set(map(str, NEEDED))
    for extra in EXTRAS:
        found = {str(each).split(";")[0] for each in asked if f'"{extra}"' in str(each.marker)}
        assert found == {str(Requirement(text)) for text in EXTRAS[extra]}


def test_the_library_can_be_imported_from_any_folder(tmp_path):
    command = [sys.executable, "-c", "import resnet_flax; print(resnet_flax.__version__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == importlib.metadata.version("resnet_flax"), done.stderr
