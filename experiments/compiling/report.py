"""Rows of findings: their names, as lines for a person, and in a file."""

import json
from typing import Any

from experiments.compiling import identity
from experiments.compiling.chips import Chip
from resnet_flax.config import RunConfig
from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.training import architecture

Row = dict[str, Any]
_GIB = 2**30
_LARGEST = 2**26  # Bytes of a file.


def name_of(config: RunConfig) -> str:
    """A name of a single run's program."""
    model, data = config.model, config.data
    kind = "plain" if model.shortcut == "none" else "residual"
    parts = [data.name, kind, model.depth, model.dtype, f"batch{data.batch_size}"]
    words = {
        "scan": architecture.scans(model),
        "remat": model.remat,
        "global": model.bn_scope == "global",
    }
    parts += [word for word, holds in words.items() if holds]
    return "-".join(map(str, parts)).replace("/", "_")


def lines(row: Row, chip: Chip) -> list[str]:
    """The findings of one program, in words."""
    if "error" in row:
        return [f"REFUSED: {row['error']}"]
    peak = chip.flops[row["program"]["model"]["dtype"]]
    may_be_faster = row["bound_by"] == "memory" and chip.may_save_bytes
    least, note = ("about", "a cache may save some") if may_be_faster else ("at least", "a bound")
    kinds = dict(row["memory"])
    total = kinds.pop("total")
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in kinds.items())
    found = [
        f"  memory: {total / _GIB:.2f} GiB of {chip.memory / _GIB:.1f} ({parts})",
        f"  collectives a step: {_collectives(row)}",
        f"  {least} {row['least_ms']:.3f} ms a step, by {row['bound_by']}; {note}, not measured",
        f"    {row['flops'] / 1e9:,.1f} GFLOP at {peak / 1e12:g} TFLOP/s,"
        f" {row['bytes'] / 1e6:,.1f} MB at {chip.bandwidth / 1e9:g} GB/s ({chip.source})",
        f"  lowered in {row['lower_s']:.0f} s, compiled in {row['compile_s']:.0f} s",
    ]
    if "estimate" in row:
        whole, network, others = row["estimate"].values()
        found.append(
            f"  XLA's estimate: {whole:.3f} ms a step, {network:.3f} of it in the network; a model,"
            " not measured"
        )
        found += [f"    {part:.3f} ms {what}" for part, what in others]
    found += [
        f"  padding: {one['array']} takes {one['bytes'] / 2**20:.1f} MiB, {one['times']:.1f} times"
        " its numbers"
        for one in row["padded"]
    ]
    found += [
        f"  WARNING: a loop over {one['times']} images, one after another: {one['source']}"
        for one in row["serial_loops"]
    ]
    found += [
        f"  WARNING: {one['array']}, {one['bytes'] / 2**20:.1f} MiB, is copied to another layout"
        f" {one['times_a_step']:g} times a step: {one['source']}"
        for one in row["relayouts"]
    ]
    if not row["fits"]:
        found.append(f"  DOES NOT FIT: {total / _GIB:.2f} GiB of {chip.memory / _GIB:.1f}")
    return found


def _collectives(row: Row) -> str:
    kinds = row["collectives"].items()
    said = (f"{one['count']:g} {kind}, {one['bytes']:,.0f} bytes" for kind, one in kinds)
    return "; ".join(said) or "none"


def load(path: AnyPath) -> list[Row]:
    """The rows of a file; none if there is no file. Raises UserError if it has something else."""
    rows = filesystem.read_json(path, _LARGEST) if filesystem.exists(path) else []
    try:
        return [row | {"program": identity.completed(row["program"])} for row in rows]
    except (KeyError, TypeError) as error:
        raise UserError(f"Expected a file that `compile --output` wrote, got {path}.") from error


def save(row: Row, path: AnyPath) -> None:
    """Adds a row to a file. It replaces the earlier one of the same program and topology."""
    merged = {_key(each): each for each in [*load(path), row]}
    filesystem.write_json(path, [merged[key] for key in sorted(merged)])


def _key(row: Row) -> tuple[str | int, ...]:
    program = row["program"]
    model, data = program["model"], program["data"]
    order = (row["topology"], data["name"], data["batch_size"], model["depth"])
    return *order, json.dumps(program, sort_keys=True)
