"""Facts about the software and machine of a run, without paths, host names or addresses."""

import contextlib
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from resnet_flax.runtime import bits, cpu

_CODE = Path(__file__).parents[1]
COMMIT_VARIABLE = "RESNET_FLAX_GIT_COMMIT"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "array_record",
    "ml-collections", "numpy",
)  # fmt: skip

KIND = ("platform", "device_kind", "processor", "device_count", "process_count")


def describe() -> dict[str, Any]:
    """Describes versions, devices, processes, git commit and time, in JSON types."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpu_cores": cpu.cores(),
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "settings": bits.settings(),
    }


def program() -> dict[str, Any]:
    """Describes the code, versions and settings, in JSON types. Uses no device.

    It must be equal in all processes of a run. Python's version may differ: it changes no result.
    """
    return {
        "git_commit": git_commit(),
        "code": _code_digest(),
        "packages": _versions(),
        "settings": bits.settings(),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def _code_digest() -> str:
    """Digest of this library's source, which can change without a new commit."""
    sha = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        sha.update(f"{path.relative_to(_CODE)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def machine(entry: dict[str, Any]) -> dict[str, Any]:
    """The entries of `describe` that can change a run's bits. Equal on machines of one kind."""
    packages = entry.get("packages", {})
    found = {name: entry.get(name) for name in KIND}
    found |= {name: packages.get(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return found | {"settings": entry.get("settings", {})}  # Old entries have none.


def _processor() -> str:
    """The processor's model. The bits of a run on a CPU depend on it."""
    with contextlib.suppress(OSError):  # The file may be missing.
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def git_commit() -> str | None:
    """The commit of this file's checkout, with `-dirty` if it has changes. None without a checkout.

    If COMMIT_VARIABLE is set, its value is returned: copies of the code on other machines set it.
    """
    if given := os.environ.get(COMMIT_VARIABLE):
        return given
    # Trust another user's checkout: its code already runs.
    git = ["git", "-c", "safe.directory=*"]
    # An installed library may lie inside an unrelated repository.
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    commit = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, cwd=_CODE, capture_output=True, check=True)
        done = subprocess.run(commit, cwd=_CODE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
