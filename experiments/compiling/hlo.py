"""Reads the text of a compiled XLA program (HLO): its instructions, and how often each runs."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_BITS = re.compile(r"\d+")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"\b(calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """An array of a program, with its place and layout in memory."""

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...]  # Axes, the fastest first.
    tile: tuple[int, ...]  # The memory is in tiles of this shape. Empty: it is not.
    space: int  # 0: the chip's main memory.

    @property
    def logical_bytes(self) -> int:
        """The bytes of the numbers alone."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def bytes(self) -> int:
        """The bytes in memory, with the padding of its tiles."""
        lengths = [self.dims[axis] for axis in reversed(self.order)]
        lengths = [1] * (len(self.tile) - len(lengths)) + lengths
        for back, tile in enumerate(reversed(self.tile), 1):
            lengths[-back] = -(-lengths[-back] // tile) * tile
        return math.prod(lengths) * _bits(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token"):
        return 8
    found = _BITS.search(dtype)
    return int(found[0]) if found else 8


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # Its results.
    operands: tuple[str, ...]
    attributes: str

    @property
    def source(self) -> str:
        """Where it comes from in the traced program; empty if XLA made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> str:
        """The computation that it runs; empty if none."""
        found = _CALLED.search(self.attributes)
        return found[2] if found else ""


class Run(NamedTuple):
    """An instruction and how often one call of the program runs it."""

    instruction: Instruction
    computation: str
    times: int


class Program:
    """A module: computations by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and (head := _HEAD.match(line)):
                inside = self.computations[head[1]] = {}
                self.entry = head[1] if line.startswith("ENTRY") else self.entry
            elif instruction := _parsed(line):
                inside[instruction.name] = instruction

    def runs(self) -> Iterator[Run]:
        """Every instruction that runs by itself: those inside a fusion are part of it."""
        yield from self._runs(self.entry, 1)

    def _runs(self, computation: str, times: int) -> Iterator[Run]:
        for one in self.computations[computation].values():
            yield Run(one, computation, times)
            if one.opcode == "while":
                yield from self._runs(one.called, times * self.trips(one))
            elif one.opcode == "call":
                yield from self._runs(one.called, times)
            elif one.opcode == "conditional" and (found := _BRANCHES.search(one.attributes)):
                yield from self._runs(found[1].split(",")[0].strip(" %"), times)

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: as XLA says, else the limit that its condition compares with."""
        if found := _COUNT.search(loop.attributes):
            return int(found[1])
        found = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        assert found  # A loop has a condition.
        limits = self.computations[found[1]].values()
        whole = (
            one for one in limits if one.opcode == "constant" and one.arrays[0].dtype[0] in "su"
        )
        return max((int(one.operands[0]) for one in whole), default=1)

    def moved(self, run: Run) -> int:
        """Bytes that an instruction reads from and writes to the main memory, each array once.

        Of an array from which it only takes slices, these count.
        """
        one, around = run.instruction, self.computations[run.computation]
        if one.opcode in _MOVES_NOTHING or one.opcode.endswith("-done"):
            return 0
        if 'custom_call_target="AllocateBuffer"' in one.attributes:
            return 0
        whole = 0
        for place, name in enumerate(one.operands):
            if name in around:
                whole += self._read(one, place, around[name])
        return whole + self._written(one, around)

    def _read(self, one: Instruction, place: int, operand: Instruction) -> int:
        size = _in_memory(operand.arrays)
        if one.opcode.removesuffix("-start") in _SLICES and place == 0:
            return min(size, _target(one).bytes)
        if one.opcode in _UPDATES and place == 0:
            return 0
        if one.opcode in ("fusion", "async-start") and size:
            return min(size, self._used(one.called, place, size))
        return size

    def _used(self, computation: str, place: int, size: int) -> int:
        """Bytes that a fused computation takes from its parameter at `place`, of `size` in all."""
        inside = self.computations[computation]
        own = next(
            i for i in inside.values() if i.opcode == "parameter" and i.operands == (str(place),)
        )
        found, names = 0, [own.name]
        while names:
            name = names.pop()
            for user in inside.values():
                for at, operand in enumerate(user.operands):
                    if operand != name:
                        continue
                    if user.opcode in _SLICES and at == 0:
                        found += user.arrays[0].bytes
                    elif user.opcode in _UPDATES and at == 0:
                        continue
                    elif user.opcode == "bitcast":
                        names.append(user.name)
                    elif user.opcode == "fusion":
                        found += self._used(user.called, at, size)
                    else:
                        return size
        return found

    def _written(self, one: Instruction, around: dict[str, Instruction]) -> int:
        # The start of an all-reduce has the type of its results. Others also list their source.
        if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":
            return _in_memory((_target(one),))
        if one.opcode in _UPDATES:
            return min(_in_memory(one.arrays), around[one.operands[1]].arrays[0].bytes)
        if one.opcode != "fusion":
            return _in_memory(one.arrays)
        inside = self.computations[one.called]
        root = list(inside.values())[-1]
        names = root.operands if root.opcode == "tuple" else (root.name,)
        if len(names) != len(one.arrays):  # One instruction makes several results.
            return _in_memory(one.arrays)
        return sum(
            min(array.bytes, self._made(inside, name))
            for array, name in zip(one.arrays, names, strict=True)
            if array.space == 0
        )

    def _made(self, inside: dict[str, Instruction], name: str) -> int:
        """Bytes that a fused computation writes of one of its results."""
        one = inside[name]
        if one.opcode == "bitcast":
            return self._made(inside, one.operands[0])
        if one.opcode in _UPDATES:
            return inside[one.operands[1]].arrays[0].bytes
        if one.opcode == "fusion" and len(one.arrays) == 1:
            fused = self.computations[one.called]
            return self._made(fused, list(fused)[-1])
        return sum(array.bytes for array in one.arrays)


_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice", "scatter"}
_MOVES_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
}  # fmt: skip


def _target(one: Instruction) -> Array:
    """The array that an instruction makes. One that runs beside others also lists its source."""
    beside = one.opcode.endswith("-start") and one.opcode != "copy-start"
    return one.arrays[1 if beside and len(one.arrays) > 1 else 0]


def _in_memory(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, such as `f32[8,16]{1,0:T(8,128)S(1)}` or a tuple of such."""
    return tuple(_array(*match.groups()) for match in _ARRAY.finditer(text))


def _array(dtype: str, dims: str, order: str | None, memory: str | None) -> Array:
    lengths = tuple(int(length) for length in dims.split(",") if length)
    axes = tuple(int(axis) for axis in (order or "").split(",") if axis)
    tile, space = _TILE.search(memory or ""), _SPACE.search(memory or "")
    return Array(
        dtype,
        lengths,
        axes or tuple(reversed(range(len(lengths)))),
        tuple(map(int, tile[1].split(","))) if tile else (),
        int(space[1]) if space else 0,
    )


def _parsed(line: str) -> Instruction | None:
    name = _NAME.match(line)
    if not name:
        return None
    rest = line[name.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing])
    named = tuple(re.findall(r"%([\w.\-]+)", inside))
    operands = named or ((inside.strip(),) if inside.strip() else ())
    return Instruction(name[1], rest[:opening], arrays(kind), operands, rest[closing:])


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text) - 1
