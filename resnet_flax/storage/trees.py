"""Trees of host arrays in folders: the only importer of Orbax.

Tree: nested dictionaries of host arrays.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax
from flax import serialization
from orbax.checkpoint import v1 as ocp

from resnet_flax.errors import summary
from resnet_flax.runtime import hosts

COMMITTED = "commit_success.txt"
Write = Callable[[], None]


def host_tree(state: Any) -> dict[str, Any]:
    """A training state as it is saved: nested dictionaries of host arrays."""
    return serialization.to_state_dict(jax.device_get(state))


def save(folder: Path, tree: dict[str, Any]) -> Write:
    """Begins to write a tree to a new folder; what it returns waits, and reads the tree back.

    With several processes all call both, and the first one writes. Both raise OSError, the second
    one also unless every bit is the same again; and whatever Orbax's many parts raise.
    """
    # Orbax compares the paths of all processes. Only the first one uses it.
    parent = os.open(folder.parent, os.O_RDONLY) if hosts.is_first() else 0
    context = ocp.Context()
    # Folders made in the background would leave threads waiting forever where none can be.
    context.asynchronous.create_directories_asynchronously = False
    with context:
        response = ocp.save_async(_numbered(hosts.agree(parent), folder), tree)

    def finish() -> None:
        response.result()
        if hosts.is_first():
            # Not after an error: threads that still write would use the number's next owner.
            os.close(parent)
            _forget_place(folder)
            _compare(tree, folder)

    return finish


def load(folder: Path) -> dict[str, Any]:
    """The tree of a folder. Raises whatever Orbax's many parts raise."""
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        state: Any = _numbered(parent, folder) / "state"
        # Not `ocp.load`, which all processes would have to call, and as often as each other.
        reader = orbax.PyTreeCheckpointHandler()
        as_numpy = orbax.RestoreArgs(restore_type=np.ndarray)
        how = jax.tree.map(lambda _: as_numpy, reader.metadata(state).tree)
        return reader.restore(state, args=orbax.args.PyTreeRestore(restore_args=how))
    finally:
        os.close(parent)


def shapes(tree: Any) -> dict[str, str]:
    """Dotted name -> type and shape of each array."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _leaves(tree)}


def reason(error: Exception) -> str:
    """The operating system's word for what befell Orbax or a file, where there is one."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return summary(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax from speaking of arrays that were left unwritten when another one failed."""
    hook = sys.unraisablehook

    def unraisable(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            hook(event)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _numbered(parent: int, folder: Path) -> Path:
    """The path under which Orbax is to know a folder: its parent is an open file's number.

    Orbax reads `[1]` in a path as a pattern, and TensorStore a backslash as a slash. Then arrays
    are lost, or lie elsewhere, without an error.
    """
    files = Path("/proc/self/fd")  # macOS has none; there `save` finds out what was lost.
    return (files / str(parent) if files.exists() else folder.parent) / folder.name


def _forget_place(folder: Path) -> None:
    """Orbax names the folder in a file, which is nobody else's business."""
    if (folder / COMMITTED).exists():
        (folder / COMMITTED).write_text("Checkpoint commit was successful\n")


def _compare(tree: dict[str, Any], folder: Path) -> None:
    """Raises OSError unless what a folder holds is this tree, bit for bit."""
    try:
        found = load(folder)
    except Exception as error:
        raise OSError(errno.EIO, f"it cannot be read back ({summary(error)})") from error
    if changed := _changed_leaf(tree, found):
        raise OSError(errno.EIO, f"{changed} was read back as something else than was saved")


def _changed_leaf(saved: Any, found: Any) -> str | None:
    """The name of an array that is not bit for bit the same, None if there is none."""
    one, other = dict(_leaves(saved)), dict(_leaves(found))
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other or not _is_same(one[name], other[name]):
            return name
    return None


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and np.array_equal(_bits(one), _bits(other))


def _bits(array: np.ndarray) -> np.ndarray:
    # A NaN is not equal to itself, and -0.0 is equal to 0.0; their bytes say what they are.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
