"""Reads a sweep's diagnostics into tables. Without diagnostics, a table is empty.

In the columns `kind`, a run has the name of its group: its kind and varied values.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax.storage import findings
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.findings import Layers, Line, Plane, Signal
from resnet_flax.storage.sweep_folder import GridPoint, SweepFolder

BEFORE, AFTER = "before training", "after training"
MEASURES = [
    "weight_gradient_norm", "weight_norm", "input_gradient_norm", "response_std", "identity_share"
]  # fmt: skip
_RUN = ["run", "kind", "depth", "seed"]
_SIGNAL = [
    "gradient_ratio", "predicted_ratio", "neighbour_error", "front_error", "gradient_cosine"
]  # fmt: skip


class Planes(NamedTuple):
    """Planes of the loss around the deepest networks that have one: by kind, for the least seed."""

    depth: int
    planes: dict[str, Plane]


def read_layers(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each layer of a run, at step 0 and after the last step of its config.

    Columns: run, kind, depth, seed, moment (`BEFORE` or `AFTER`), layer (from 1), name, `MEASURES`.
    """
    rows = []
    for folder, point in _runs(sweep):
        moments = {0: BEFORE, point.steps: AFTER}
        for layers in findings.load_layers(folder):
            if layers.step in moments:
                at = _of_run(point) | {"moment": moments[layers.step]}
                rows += [at | row for row in _layer_rows(layers)]
    return pd.DataFrame(rows, columns=[*_RUN, "moment", "layer", "name", *MEASURES])


def read_initial(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each layer of an untrained network.

    Columns: kind, depth, norm, seed, layer, name, `MEASURES`.
    """
    rows = [
        {"kind": network.kind, "depth": network.depth, "norm": network.norm, "seed": network.seed}
        | row
        for network in findings.load_initial(sweep.path)
        for row in _layer_rows(network.at)
    ]
    return pd.DataFrame(rows, columns=["kind", "depth", "norm", "seed", "layer", "name", *MEASURES])


def read_signals(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each run whose signal before training was measured.

    Columns: run, kind, depth, seed, gradient_ratio, predicted_ratio, neighbour_error (last stage),
    front_error (the same of the stage before the last), gradient_cosine (first stage).
    """
    rows = []
    for folder, point in _runs(sweep):
        found = findings.load(findings.folder(folder) / findings.SIGNAL, Signal)
        rows += [_of_run(point) | _signal_row(found)] if found else []
    return pd.DataFrame(rows, columns=[*_RUN, *_SIGNAL])


def read_initial_signals(sweep: SweepFolder) -> pd.DataFrame:
    """As `read_signals`, for the untrained networks with BN of SWEEP/initial.json; no `run`."""
    rows = [
        {"kind": network.kind, "depth": network.depth, "seed": network.seed}
        | _signal_row(network.signal)
        for network in findings.load_initial(sweep.path)
        if network.signal and network.norm == "batch"
    ]
    return pd.DataFrame(rows, columns=[*_RUN[1:], *_SIGNAL])


def _signal_row(found: Signal) -> dict[str, Any]:
    stages = [stage for stage in found.stages if stage.name != "stem"]
    ratios = found.gradient_ratio, found.predicted_ratio
    errors = [stage.neighbour_error for stage in stages[:-3:-1]]  # The last stage first.
    values = *ratios, *errors, stages[0].gradient_cosine
    return dict(zip(_SIGNAL, values, strict=True))


def read_lines(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each point between initial and last weights.

    Columns: run, kind, depth, seed, position, loss.
    """
    rows = []
    for folder, point in _runs(sweep):
        line = findings.load(findings.folder(folder) / findings.LINE, Line)
        if line and line.step == point.steps:
            places = zip(line.positions, line.losses, strict=True)
            rows += [_of_run(point) | {"position": at, "loss": loss} for at, loss in places]
    return pd.DataFrame(rows, columns=[*_RUN, "position", "loss"])


def read_planes(sweep: SweepFolder) -> Planes | None:
    """Reads the planes of the loss; None if there are none."""
    found: dict[int, dict[str, Plane]] = {}
    for folder, point in _runs(sweep):
        plane = findings.load(findings.folder(folder) / findings.PLANE, Plane)
        if plane and plane.step == point.steps:
            found.setdefault(point.depth, {}).setdefault(point.group, plane)
    return Planes(max(found), found[max(found)]) if found else None


def _runs(sweep: SweepFolder) -> Iterator[tuple[AnyPath, GridPoint]]:
    for point in sorted(sweep.points.values(), key=lambda point: point.seed):
        yield sweep.folder_of_runs / point.name, point


def _of_run(point: GridPoint) -> dict[str, Any]:
    return {"run": point.name, "kind": point.group, "depth": point.depth, "seed": point.seed}


def _layer_rows(layers: Layers) -> Iterable[dict[str, Any]]:
    for i, layer in enumerate(layers.layers, 1):
        yield {"layer": i, "name": layer.name} | {name: getattr(layer, name) for name in MEASURES}
