"""What some tests need and somebody has to prepare: data sets, trained networks, PyTorch."""

import os
from pathlib import Path

import pytest

needs_cifar10 = pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "cifar10").is_dir(),
    reason="TFDS_DATA_DIR has no cifar10",
)

# Networks that others trained; a README there says which.
PEERS = Path(os.environ.get("TFDS_DATA_DIR", "")).parent / "peers"


def torch_python() -> str:
    """A Python that has PyTorch; skips the test without one."""
    python = ".venv-torch/bin/python"
    if "TORCH_PYTHON" not in os.environ and not Path(python).exists():
        pytest.skip(f"no {python}: `make torch` makes it, TORCH_PYTHON names another")
    return os.environ.get("TORCH_PYTHON", python)
