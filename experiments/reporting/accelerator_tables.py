"""Tables of what XLA's compilers said of training steps. Nothing in them was measured.

`experiments.compile --output` wrote the rows.
"""

import json
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

from experiments.reporting.readme_tables import NONE, RESULTS, Rows

# Kind of chip, as it begins the name of a topology -> heading.
CHIPS = {"v5e": "TPU v5e", "v5p": "TPU v5p", "h100": "H100"}
_GIB = 2**30
Row = dict[str, Any]


def networks() -> Rows:
    """CIFAR-10 on one chip: memory, and the least time of a step of 128 images."""
    return _by_chip(
        (row for row in _rows() if row["data"] == "cifar10" and row["chips"] == 1),
        lambda row: {
            "depth": row["depth"],
            "type": row["dtype"],
            "blocks": _blocks(row),
        },
    )


def large_images() -> Rows:
    """ImageNet on one chip: memory, and the least time of a step."""
    return _by_chip(
        (row for row in _rows() if row["data"] == "imagenet2012" and row["chips"] == 1),
        lambda row: {
            "depth": row["depth"],
            "images a step": f"{row['batch_size']:,}",
            "blocks": _blocks(row),
        },
    )


def pods() -> Rows:
    """What chips send each other in a step of 128 images."""
    return [
        {
            "depth": row["depth"],
            "chips": f"{row['chips']} x {CHIPS[_chip(row)]}",
            "BN over": {"device": "a chip", "global": "all chips"}[row["bn_scope"]],
            "all-reduces a step": f"{row['collectives']['all-reduce']['count']:g}",
            "MB a step": f"{row['collectives']['all-reduce']['bytes'] / 1e6:.2f}",
            "at least, ms": f"{row['least_ms']:.3f}",
        }
        for row in sorted(_rows(), key=itemgetter("depth", "bn_scope", "topology"))
        if row["chips"] > 1
    ]


def estimates() -> Rows:
    """XLA's estimates of a step on one chip, of the programs for which it generated code."""
    return [
        {
            "depth": row["depth"],
            "blocks": _blocks(row),
            "step, ms": f"{row['estimate']['step_ms']:.3f}",
            "network": f"{row['estimate']['network_ms']:.3f}",
            "the rest": f"{1 - row['estimate']['network_ms'] / row['estimate']['step_ms']:.0%}",
        }
        for row in _rows()
        if "estimate" in row
    ]


def _rows() -> list[Row]:
    """With the fields of the network beside the findings."""
    rows: list[Row] = json.loads((RESULTS / "accelerators.json").read_text())
    return [_flat(row, **row["program"]) for row in rows if "chips" in row]


def _flat(row: Row, model: Row, data: Row, **_: Any) -> Row:
    return row | model | {"data": data["name"], "batch_size": data["batch_size"]}


def _chip(row: Row) -> str:
    return str(row["topology"]).partition(":")[0]


def _blocks(row: Row) -> str:
    """How the blocks of a network are compiled."""
    words = ["stacked" if row["scan"] else "", "recomputed" if row["remat"] else ""]
    return ", ".join(filter(None, words)) or "unrolled"


def _by_chip(rows: Iterable[Row], name: Callable[[Row], Row]) -> Rows:
    """A line for each program, with a column for each kind of chip."""
    lines: dict[str, Row] = {}
    order = itemgetter("depth", "batch_size", "scan", "remat", "dtype")
    for row in sorted(rows, key=order):
        named = name(row)
        line = lines.setdefault(repr(named), named | dict.fromkeys(CHIPS.values(), NONE))
        line[CHIPS[_chip(row)]] = _cell(row)
    return list(lines.values())


def _cell(row: Row) -> str:
    memory = f"{row['memory']['total'] / _GIB:.2f} GiB"
    if not row["fits"]:
        return f"**no**: {memory}"
    by = {"compute": "by FLOPs", "memory": "by bytes"}[row["bound_by"]]
    return f"{memory}, {row['least_ms']:.2f} ms {by}"
