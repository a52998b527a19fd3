"""Saves and loads trees of host arrays. Only this file imports Orbax.

A tree is a nested dictionary of host arrays.

This file relies on details of Orbax that may change: the `v1` module, the folder `state`, the file
COMMITTED, and the words of two error messages (in `reason` and `quiet`). They hold for Orbax
0.12.8, the version in requirements.lock. requirements.txt allows 0.12.8 and later versions below
0.13. Run tests/storage with each new version.
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
    """Copies a training state to the host, as nested dictionaries of arrays."""
    return serialization.to_state_dict(jax.device_get(state))


def save(folder: Path, tree: dict[str, Any]) -> Write:
    """Begins to write a tree to a new folder. Returns a function that waits, then reads it back.

    With several processes, all of them call both functions, and the first one writes. Both raise
    OSError and Orbax's own errors. The returned function also raises OSError if any bit of the
    tree read back differs.
    """
    # Orbax compares this number, as part of the path, in all processes. Only the first opens it.
    parent = os.open(folder.parent, os.O_RDONLY) if hosts.is_first() else 0
    context = ocp.Context()
    # If a folder cannot be made in the background, threads would wait for it forever.
    context.asynchronous.create_directories_asynchronously = False
    with context:
        response = ocp.save_async(_numbered(hosts.agree(parent), folder), tree)

    def finish() -> None:
        response.result()
        if hosts.is_first():
            # Not after an error: threads may still write, and the number may be used again.
            os.close(parent)
            _forget_place(folder)
            _compare(tree, folder)

    return finish


def load(folder: Path) -> dict[str, Any]:
    """Reads the tree of a folder. Raises Orbax's own errors."""
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        state: Any = _numbered(parent, folder) / "state"
        # Not `ocp.load`: all processes would have to call it equally often.
        reader = orbax.PyTreeCheckpointHandler()
        as_numpy = orbax.RestoreArgs(restore_type=np.ndarray)
        how = jax.tree.map(lambda _: as_numpy, reader.metadata(state).tree)
        return reader.restore(state, args=orbax.args.PyTreeRestore(restore_args=how))
    finally:
        os.close(parent)


def shapes(tree: Any) -> dict[str, str]:
    """The type and shape of each array, by its dotted name."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _leaves(tree)}


def reason(error: Exception) -> str:
    """The operating system's reason for an error, or else a summary of the error."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return summary(error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides Orbax's messages about the other arrays when one array could not be written."""
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
    """A safe path of a folder for Orbax: the parent folder is named by its open descriptor.

    Orbax reads `[1]` in a path as a pattern. TensorStore reads a backslash as a slash. Both would
    lose or misplace arrays without an error.
    """
    files = Path("/proc/self/fd")  # Not on macOS; there `save` finds the loss.
    return (files / str(parent) if files.exists() else folder.parent) / folder.name


def _forget_place(folder: Path) -> None:
    """Removes the folder's path, which is private, from the file in which Orbax writes it."""
    if (folder / COMMITTED).exists():
        (folder / COMMITTED).write_text("Checkpoint commit was successful\n")


def _compare(tree: dict[str, Any], folder: Path) -> None:
    """Raises OSError unless a folder holds this tree, bit for bit."""
    try:
        found = load(folder)
    except Exception as error:
        raise OSError(errno.EIO, f"it cannot be read back ({summary(error)})") from error
    if changed := _changed_leaf(tree, found):
        raise OSError(errno.EIO, f"{changed} was read back with other bits than were saved")


def _changed_leaf(saved: Any, found: Any) -> str | None:
    """The name of the first array that differs in a bit, or None."""
    one, other = dict(_leaves(saved)), dict(_leaves(found))
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other or not _is_same(one[name], other[name]):
            return name
    return None


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and np.array_equal(_bits(one), _bits(other))


def _bits(array: np.ndarray) -> np.ndarray:
    # Compare bytes: NaN is not equal to itself, and -0.0 equals 0.0.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
