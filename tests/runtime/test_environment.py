import os
import subprocess
from pathlib import Path

import jax
import pytest

from resnet_flax.runtime import environment

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.exists() or "model name" not in CPUINFO.read_text(),
    reason="this system names its processor elsewhere",
)
def test_the_processor_has_the_name_that_linux_gives_it():
    names = {line.split(": ")[-1] for line in CPUINFO.read_text().splitlines() if "model n" in line}
    assert environment.describe()["processor"] in names


def test_a_commit_is_known_also_of_a_checkout_that_is_another_users(monkeypatch):
    known = environment.git_commit()
    # How git tests itself: nobody is then the owner of any checkout.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert environment.git_commit() == known


def test_the_commit_of_a_repository_that_the_library_is_only_installed_in_is_not_its_own(
    monkeypatch, tmp_path
):
    library = tmp_path / "venv" / "resnet_flax"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    (tmp_path / "theirs").touch()
    own = ["-c", "user.name=somebody", "-c", "user.email=", "commit", "--quiet", "--message=theirs"]
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):  # The user may sign commits.
        monkeypatch.setenv(name, os.devnull)
    for arguments in (["init", "--quiet"], ["add", "theirs"], own):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "_CODE", library)
    monkeypatch.delenv(environment.COMMIT_VARIABLE, raising=False)
    assert environment.git_commit() is None
    subprocess.run(["git", "add", library], cwd=tmp_path, check=True)
    assert environment.git_commit().endswith("-dirty")


def test_settings_that_round_otherwise_are_recorded_but_no_path(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/somebody --xla_cpu_enable_fast_math=true")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with jax.default_matmul_precision("highest"):
        here = environment.describe()
        assert here["settings"] == {
            "jax_default_matmul_precision": "highest",
            "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
            "NVIDIA_TF32_OVERRIDE": "0",
        }
    # A run that resumes without them says so.
    assert environment.machine(here) != environment.machine(here | {"settings": {}})
