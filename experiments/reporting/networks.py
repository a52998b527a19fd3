"""The content of a picture of networks, from their layer tables. `network_figure.py` draws it."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from resnet_flax.models.cost import Part

# Fig. 3 of the paper leaves out norms and ReLU. Pictures of single blocks have them.
SHORT = {
    "convolution": "conv",
    "max pool": "max pool",
    "global average pool": "avg pool",
    "fully connected": "fc",
}
LONGEST = 6
"""Of more equal blocks in a row, a picture has only the first and the last."""
LEFT_OUT = "left out"

Size = tuple[int, ...]
"""Height and width of maps; empty for vectors."""


class Network(NamedTuple):
    """A network's name, a line about it, and its layer table."""

    name: str
    note: str
    parts: Sequence[Part]


class Row(NamedTuple):
    """A box of a column. Of kind `LEFT_OUT`: a line about blocks that are left out."""

    text: str
    size: Size
    kind: str


class Shortcut(NamedTuple):
    """A line past the boxes of a block, from its first to its last row."""

    first: int
    last: int
    is_identity: bool


class Column(NamedTuple):
    """A network from its images to its classes."""

    rows: list[Row]
    shortcuts: list[Shortcut]


class BlockPicture(NamedTuple):
    """What one block computes, in order.

    - `f`: the parts of F. The shortcut begins before the part `f[start]`.
    - `h`: the parts of the shortcut's projection.
    - `after`: the parts that read the sum.
    """

    kind: str
    f: list[Part]
    start: int
    h: list[Part]
    after: list[Part]

    @property
    def has_shortcut(self) -> bool:
        return self.kind != "plain block"

    @property
    def is_identity(self) -> bool:
        return self.kind == "identity block"

    @property
    def formula(self) -> str:
        """The block in the notation of Eqn. (1) and (2)."""
        total = "F(x)"
        if self.has_shortcut:
            read = _composed("x", self.f[: self.start])
            total += f" + W {read}" if self.h else f" + {read}"
        return f"y = {_composed(total, self.after)}"


def _composed(argument: str, parts: Iterable[Part]) -> str:
    return functools.reduce(lambda inside, part: f"{label(part)}({inside})", parts, argument)


def label(part: Part) -> str:
    """`3×3 conv, 64, /2`, as in the paper; `BN` and `relu` for parts without a kernel."""
    if part.kind not in SHORT:
        return part.kind.replace("ReLU", "relu")
    kernel = f"{'×'.join(map(str, part.kernel))} " if part.kernel else ""
    channels = "" if "pool" in part.kind else f", {part.shape[-1]}"
    return f"{kernel}{SHORT[part.kind]}{channels}{f', /{part.stride}' * (part.stride > 1)}"


def column(parts: Sequence[Part]) -> Column:
    """The boxes and the shortcuts of a network."""
    rows: list[Row] = []
    shortcuts = []
    for top, inside in _shortened(parts):
        first = len(rows)
        if top.kind == LEFT_OUT:
            rows.append(Row(top.name, top.shape[:-1], LEFT_OUT))
        for part in inside or [top]:
            # A gate inside a block works on vectors. Only pictures of single blocks have it.
            of_maps = part is top or part.kind != "fully connected"
            if part.kind in SHORT and part.branch != "h" and of_maps:
                rows.append(Row(label(part), part.shape[:-1], part.kind))
        if inside and top.kind != "plain block":
            shortcuts.append(Shortcut(first, len(rows) - 1, top.kind == "identity block"))
    return Column(rows, shortcuts)


def _shortened(parts: Sequence[Part]) -> list[tuple[Part, list[Part]]]:
    """The parts, each with those inside it. Many equal blocks in a row are shortened."""
    whole = [(top, _inside(parts, top)) for top in parts if "/" not in top.name]
    found = []
    for _, equal in itertools.groupby(whole, lambda one: _look(*one)):
        run = list(equal)
        if len(run) > LONGEST:
            between = run[0][0]._replace(name=f"{len(run) - 2} more of these", kind=LEFT_OUT)
            run = [run[0], (between, []), run[-1]]
        found += run
    return found


def _inside(parts: Sequence[Part], block: Part) -> list[Part]:
    return [part for part in parts if part.name.startswith(f"{block.name}/")]


def _look(block: Part, inside: list[Part]) -> tuple[object, ...]:
    """Equal for blocks that look the same. A part that is no block is like no other."""
    labels = tuple((label(part), part.branch, part.shape) for part in inside)
    return (block.kind, labels) if inside else (block.name,)


def sizes(columns: Iterable[Column]) -> dict[Size, int]:
    """The sizes of maps, falling, and for how many rows the longest column has each."""
    counts: dict[Size, int] = {}
    for rows, _ in columns:
        for size, same in itertools.groupby(rows, lambda row: row.size):
            counts[size] = max(counts.get(size, 0), len(list(same)))
    return dict(sorted(counts.items(), reverse=True))


def blocks(networks: Iterable[Network]) -> list[BlockPicture]:
    """A picture of the first block of each kind."""
    found: dict[tuple[object, ...], BlockPicture] = {}
    for network in networks:
        for block in network.parts:
            if inside := _inside(network.parts, block):
                look = tuple((part.kind, part.kernel, part.branch) for part in inside)
                found.setdefault((block.kind, look), _picture(block, inside))
    return list(found.values())


def _picture(block: Part, inside: Iterable[Part]) -> BlockPicture:
    """With pre-activation, F has a norm and ReLU that the block's own `residual` does not call."""
    parts = [part for part in inside if part.kind != "identity"]  # It stands where no BN is.
    last = max(i for i, part in enumerate(parts) if part.branch == "F")
    f = [part for part in parts[: last + 1] if part.branch != "h"]
    h = [part for part in parts if part.branch == "h"]
    names = [part.name for part in f]
    start = names.index(h[0].reads) + 1 if h and h[0].reads in names else 0
    after = [part for part in parts[last + 1 :] if not part.branch]
    return BlockPicture(block.kind, f, start, h, after)
