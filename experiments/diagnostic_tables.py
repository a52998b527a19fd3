"""Reads what diagnostics found in a sweep into tables. Nothing found: an empty table."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax import findings
from resnet_flax.findings import Initial, Layers, Line, Plane
from resnet_flax.sweeps import SweepFolder

BEFORE, AFTER = "before training", "after training"
MEASURES = ["weight_gradient_norm", "input_gradient_norm", "response_std", "identity_share"]
_RUN = ["run", "kind", "depth"]


class Planes(NamedTuple):
    """The deepest networks around which there is a plane: one a kind, of the least seed."""

    depth: int
    planes: dict[str, Plane]


def read_layers(workdir: Path) -> pd.DataFrame:
    """One row a layer of a run, at step 0 and at the last step that was looked at.

    Columns: run, kind, depth, moment (`BEFORE` or `AFTER`), layer (from 1), name, `MEASURES`.
    """
    rows = []
    for folder, of_run in _runs(workdir):
        found = findings.load_layers(folder)
        for layers in {id(one): one for one in (*found[:1], *found[-1:])}.values():
            moment = AFTER if layers.step else BEFORE
            rows += [of_run | {"moment": moment} | row for row in _layer_rows(layers)]
    return pd.DataFrame(rows, columns=[*_RUN, "moment", "layer", "name", *MEASURES])


def read_initial(workdir: Path) -> pd.DataFrame:
    """One row a layer of a network before training: kind, depth, norm, seed, layer, `MEASURES`."""
    initial = findings.load(workdir / findings.INITIAL, Initial)
    rows = [
        {"kind": network.kind, "depth": network.depth, "norm": network.norm, "seed": network.seed}
        | row
        for network in (initial.networks if initial else ())
        for row in _layer_rows(network.at)
    ]
    return pd.DataFrame(rows, columns=["kind", "depth", "norm", "seed", "layer", "name", *MEASURES])


def read_lines(workdir: Path) -> pd.DataFrame:
    """One row a point between initial and last weights: run, kind, depth, position, loss."""
    rows = []
    for folder, of_run in _runs(workdir):
        line = findings.load(findings.folder(folder) / findings.LINE, Line)
        points = zip(line.positions, line.losses, strict=True) if line else ()
        rows += [of_run | {"position": position, "loss": loss} for position, loss in points]
    return pd.DataFrame(rows, columns=[*_RUN, "position", "loss"])


def read_planes(workdir: Path) -> Planes | None:
    """None if there is none."""
    found: dict[int, dict[str, Plane]] = {}
    for folder, of_run in _runs(workdir):
        plane = findings.load(findings.folder(folder) / findings.PLANE, Plane)
        if plane:
            found.setdefault(of_run["depth"], {}).setdefault(of_run["kind"], plane)
    return Planes(max(found), found[max(found)]) if found else None


def _runs(workdir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    points = SweepFolder(workdir).points.values()
    for point in sorted(points, key=lambda point: point.seed):
        yield workdir / point.name, {"run": point.name, "kind": point.kind, "depth": point.depth}


def _layer_rows(layers: Layers) -> Iterable[dict[str, Any]]:
    for i, layer in enumerate(layers.layers, 1):
        yield {"layer": i, "name": layer.name} | {name: getattr(layer, name) for name in MEASURES}
