"""Draws figures for paper: PNG and SVG in one style that is readable in print and in grey."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.reporting.chart import Chart, Field, Map, Panel, Series
from experiments.reporting.drawing import Axes, Figure, Line2D, MaxNLocator, PercentFormatter, style
from experiments.reporting.styling import KIND_STYLES
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath

KINDS = ("png", "svg")
COLUMNS = 3
PANEL = (4.6, 3.6)  # Inches.
LETTERS = 10  # In an inch of a legend.
ROW = 0.24  # Inches of a legend's row.


def save(chart: Chart, folder: AnyPath, note: str) -> list[AnyPath]:
    """Writes `chart.name`.png (200 dpi) and .svg into a folder. Returns their paths.

    `note`: a line above the figure that says what was measured.
    """
    paths = [folder / f"{chart.name}.{kind}" for kind in KINDS]
    with style():
        figure = draw(chart)
        figure.suptitle(_plain(note), x=0.99, ha="right", fontsize=8, color="#666666")
        write(figure, paths)
    return paths


def remove(name: str, folder: AnyPath) -> None:
    """Deletes the figure of this name from a folder, if it is there."""
    for path in (folder / f"{name}.{kind}" for kind in KINDS):
        with contextlib.suppress(FileNotFoundError):  # Another report may be written, too.
            if filesystem.exists(path):
                path.unlink()


def draw(chart: Chart) -> Figure:
    """Draws a chart. Every finite value is inside its axes."""
    columns = min(len(chart.panels), COLUMNS)
    rows = -(-len(chart.panels) // columns)
    with style():
        size = (6.4, 4.2) if columns == 1 else (PANEL[0] * columns, PANEL[1] * rows)
        if columns > 1:  # Below the panels, a legend of many rows would take their room.
            entries = chart.legend()
            size = (
                size[0],
                size[1] + ROW * max(0, -(-len(entries) // _columns(entries, size[0])) - 2),
            )
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=bool(chart.y), squeeze=False).flat
        for axes in list(grid)[len(chart.panels) :]:
            axes.remove()
        for axes, panel in zip(figure.axes, chart.panels, strict=True):
            _draw_panel(axes, chart, panel)
        for axes in figure.axes[::columns]:
            axes.set_ylabel(chart.y)
        if isinstance(field := chart.panels[0].field, Field):
            drawn = figure.axes[0].collections[0]
            figure.colorbar(drawn, ax=figure.axes, label=field.label, format="%.1f")
        if chart.percent and not chart.panels[0].field:
            # After all panels are drawn: a limit set earlier would cut off those of the later ones.
            for axes in figure.axes:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
                axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _legend(figure, chart)
    return figure


def _draw_panel(axes: Axes, chart: Chart, panel: Panel) -> None:
    axes.set_title(_plain(panel.title))
    axes.set_xlabel(chart.x)
    if chart.log:
        axes.set_yscale("log")
    if panel.log_x:
        axes.set_xscale("log")
    if chart.ticks:
        axes.set_xticks(chart.ticks)
    elif panel.series and all(isinstance(x, int) for one in panel.series for x in one.x):
        largest = max((abs(x) for one in panel.series for x in one.x), default=0)
        room = 10 if largest < 10_000 else 4  # Longer numbers would overlap.
        axes.xaxis.set_major_locator(MaxNLocator(room, integer=True))
    for series in panel.series:
        _draw(axes, series)
    if isinstance(panel.field, Field):
        _contour(axes, panel.field, np.linspace(*chart.extent(), 16))
    elif panel.field:
        _map(axes, panel.field, chart.extent())


def _draw(axes: Axes, series: Series) -> None:
    look = _look(series)
    y = np.array(series.y, float)
    if not series.style.line:
        axes.scatter(
            series.x,
            y,
            s=14,
            color=series.style.color,
            marker=series.style.marker,
            alpha=series.strength,
        )
    elif len(series.deviations):
        bars = np.array(series.deviations, float)
        axes.errorbar(series.x, y, yerr=bars, capsize=4, elinewidth=1.2, **look)
    else:
        axes.plot(series.x, y, markevery=max(1, len(series.x) // 8), **look)
    if len(series.band):
        x, low, high = zip(*series.edges(), strict=True)
        axes.fill_between(x, low, high, color=series.style.color, alpha=0.2, linewidth=0)


def _look(series: Series) -> dict[str, Any]:
    color, marker, line = series.style
    return {
        "color": color,
        "marker": marker,
        "linestyle": line,
        "alpha": series.strength,
        "linewidth": 2 if marker else 1.5,
        "markersize": 5,
    }


def _contour(axes: Axes, field: Field, levels: np.ndarray) -> None:
    values = np.ma.masked_invalid(np.array(field.values, float))
    drawn = axes.contourf(field.positions, field.positions, values, levels, cmap="viridis")
    axes.contour(drawn, colors="black", linewidths=0.4, linestyles="solid")
    axes.plot(0, 0, "+", color="white", markersize=10)
    axes.set_aspect("equal")
    axes.grid(False)


def _map(axes: Axes, found: Map, extent: tuple[float, float]) -> None:
    values = np.array(found.values, float)
    axes.imshow(values, cmap="viridis", vmin=extent[0], vmax=extent[1], aspect="auto")
    axes.set_xticks(range(len(found.columns)), list(map(_plain, found.columns)))
    axes.set_yticks(range(len(found.rows)), list(map(_plain, found.rows)))
    axes.grid(False)
    middle = sum(extent) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2%}", ha="center", va="center", color=color)


def _legend(figure: Figure, chart: Chart) -> None:
    entries = chart.legend()
    handles = [Line2D([], [], label=_plain(series.label), **_look(series)) for series in entries]
    columns = _columns(entries, figure.get_figwidth())
    if len(chart.panels) == 1:
        figure.axes[0].legend(handles=handles, ncols=min(1 + len(handles) // 6, columns))
    elif handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _columns(entries: Sequence[Series], width: float) -> int:
    """The columns of a legend that is as wide as the figure, in inches."""
    longest = max((len(series.label) for series in entries), default=0) + 7  # With its line.
    return max(1, min(len(entries), int(LETTERS * width / longest)))


def _plain(name: str) -> str:
    """Escapes dollar signs: matplotlib reads text between two of them as a formula."""
    return name.replace("$", r"\$")


def save_costs(costs: pd.DataFrame, paths: list[AnyPath]) -> None:
    """Draws step time, compile time and memory against depth. Compile time has a linear axis."""
    panels = {
        "step_ms": "step, ms",
        "build_s": "trace and compile, s",
        "temporary_mib": "memory beside the state, MiB",
    }
    costs = costs.assign(build_s=costs["trace_s"] + costs["compile_s"])
    with style():
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        for axes, (column, label) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            for (program, rows), (color, marker, _) in zip(
                costs.groupby("program", sort=False), itertools.cycle(KIND_STYLES), strict=False
            ):
                look = {"color": color, "marker": marker, "linewidth": 2}
                axes.loglog(rows["depth"], rows[column], label=program, **look)
            if column == "build_s":
                axes.set_yscale("linear")
                axes.set_ylim(bottom=0)
            depths = sorted(costs["depth"].unique())
            axes.set_xticks(depths, [str(depth) for depth in depths])
            axes.minorticks_off()
            axes.set_xlabel("depth (weighted layers)")
            axes.set_title(label)
        axes.legend(frameon=False)
        write(figure, paths)


def write(figure: Figure, paths: Iterable[AnyPath]) -> None:
    """Writes a figure into files. Their suffixes are the formats. Called in a style, as `draw`."""
    for path in paths:
        kind, drawn = path.suffix.removeprefix("."), io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        with warnings.catch_warnings():  # `unreadable` finds these signs; a report names them once.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            figure.savefig(drawn, format=kind, metadata=metadata)
        filesystem.write_bytes(path, drawn.getvalue())
