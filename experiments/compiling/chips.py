"""Chips that XLA can compile for without having one: their published peaks, and their topologies.

No number here was measured with this code.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from resnet_flax.errors import UserError

GIB, GB, TERA = 2**30, 10**9, 10**12
_TPU = "https://cloud.google.com/tpu/docs"
_H100 = "NVIDIA H100 SXM data sheet, dense, TF32 for float32"


class Chip(NamedTuple):
    """Published peaks of a chip. A default convolution in float32 may round its factors."""

    name: str
    platform: str  # As jax names it: tpu or cuda.
    flops: dict[str, float]  # By type of the computation, a second.
    memory: float  # Bytes. XLA keeps a part of it, such as 0.25 of 16 GiB.
    bandwidth: float  # Bytes a second, of the chip's memory.
    source: str
    example: str  # A topology.
    clock: float = 0.0  # Cycles a second. 0: not known.
    options: dict[str, Any] = {}  # Of XLA's description of it.

    @property
    def may_save_bytes(self) -> bool:
        """Whether a cache may keep what a program writes to memory, so that a step is faster."""
        return self.platform == "cuda"


def _tpu(
    name: str, tera: float, gib: float, gb_s: float, example: str, mxus: int, **options: Any
) -> Chip:
    """`mxus`: matrix units, each of 128 x 128 multiply-adds a cycle. They give the clock."""
    # A convolution in float32 multiplies in bfloat16, jax's default precision on a TPU.
    flops = dict.fromkeys(("bfloat16", "float32"), tera * TERA)
    source = f"{_TPU}/{name}"
    peaks = flops, gib * GIB, gb_s * GB
    clock = tera * TERA / (mxus * 128 * 128 * 2)
    return Chip(f"TPU {name}", "tpu", *peaks, source, example, clock, options)


_MEGACORE = {"chip_config_name": "megacore"}  # Both cores of a chip are one device.
CHIPS = {
    "v4": _tpu("v4", 275, 32, 1200, "v4:2x2x1", 8, **_MEGACORE),
    "v5e": _tpu("v5e", 197, 16, 819, "v5e:4x4", 4),
    "v5p": _tpu("v5p", 459, 95, 2765, "v5p:2x2x1", 8, **_MEGACORE),
    "v6e": _tpu("v6e", 918, 32, 1640, "v6e:4x4", 16),
    "h100": Chip(
        "H100",
        "cuda",
        {"bfloat16": 989.4 * TERA, "float32": 494.7 * TERA},
        84_929_347_584,  # As h100.pbtxt says, which is a real one's description.
        3350 * GB,
        _H100,
        "h100:8",
    ),
}


class Topology(NamedTuple):
    """Chips of one kind that train together."""

    name: str  # As given: v5e:4x4 or h100:8.
    chip: Chip

    def description(self) -> dict[str, Any]:
        """The arguments of jax's `get_topology_desc`."""
        kind, _, shape = self.name.partition(":")
        if self.chip.platform == "tpu":
            one = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= {"1", "x"} else {}
            return {"platform": "tpu", "topology_name": self.name, **self.chip.options, **one}
        target = Path(__file__).with_name(f"{kind}.pbtxt").read_text()
        return {"platform": "cuda", "target_config": target, "topology": f"1x1x{shape}"}


def topology(name: str) -> Topology:
    """Reads `v5e:4x4` or `h100:8`. Raises UserError for an unknown chip or another form."""
    kind, _, shape = name.partition(":")
    is_gpu = kind in CHIPS and CHIPS[kind].platform == "cuda"
    pattern = r"[1-9]\d*" if is_gpu else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if kind not in CHIPS or not re.fullmatch(pattern, shape):
        examples = ", ".join(chip.example for chip in CHIPS.values())
        raise UserError(f"Expected --topology=CHIP:SHAPE, such as {examples}, got {name!r}.")
    return Topology(name, CHIPS[kind])
