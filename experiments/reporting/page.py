"""The page report.html: a sweep's tables and charts in one file that needs no other file.

The page shows everything in a sweep's files as text. Jinja escapes it, and the page's content
security policy keeps it from running.
"""

import base64
import functools
import json
import secrets
import zlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from plotly.offline import get_plotlyjs

from experiments.reporting import charts, curves, plots, published, run_tables, styling
from experiments.reporting.chart import Chart, drawable, not_drawn
from experiments.sweeping import monitor
from resnet_flax.storage import filesystem, recipe
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.sweep_folder import SweepFolder

_ENDED = (*monitor.ENDED, "incomplete")
_MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "": "\u00a0"}
_FEW_RUNS = 12
"""More runs are shown as means with bands."""
_OF_ATTEMPT = ("attempt", "started", "parameters")


def write(tables: run_tables.Tables, diagnostics: list[Chart]) -> AnyPath:
    """Replaces report.html in one step. Returns its path."""
    path = tables.sweep.path / "report.html"
    text = render(tables, diagnostics)
    # A folder's name may contain half of a surrogate pair. UTF-8 cannot.
    filesystem.write_text(path, text.encode(errors="replace").decode())
    return path


def render(tables: run_tables.Tables, diagnostics: list[Chart]) -> str:
    sweep, runs, summary, measured, groups, configs, notes = tables
    styles, fields = styling.group_styles(groups), sweep.varying.in_grid
    headline, shown_curves = [], []
    many = measured["run"].nunique() > _FEW_RUNS
    if not summary.empty:
        headline = [charts.degradation(runs, summary, styles, fields)]
        headline.append(charts.error_map(runs, summary, fields))
    if not measured.empty:
        shown_curves = [curves.means(measured) if many else curves.of_runs(measured)]
        shown_curves.append(curves.by_depth(measured, groups))
    sizes = {name: point.batch_size for name, point in sweep.points.items()}
    taken = run_tables.costs(measured, sizes)
    costs = [] if taken.empty else [charts.costs(taken, styles)]
    found = [*headline, *shown_curves, *diagnostics, *costs]
    shown = {chart.name: chart for chart in drawable(found)}
    return _template().render(
        name=sweep.path.name,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        going=not runs["state"].isin(_ENDED).all(),
        notes=notes,
        states=Counter(runs["state"]).most_common(),
        readings=run_tables.readings(summary),
        colors={group: style.color for group, style in styles.items()},
        marks={group: _MARKS[style.marker] for group, style in styles.items()},
        fields=fields,
        charts=shown,
        headline=[chart.name for chart in headline if chart.name in shown],
        not_drawn=not_drawn(found),
        diagnostics=[chart.name for chart in diagnostics if chart.name in shown],
        plots=_packed(json.dumps({name: plots.draw(chart) for name, chart in shown.items()})),
        symbols=_MARKS,
        summary=summary.to_dict("records"),
        sources=published.comparable(configs.values(), sweep.varying),
        shortcuts=run_tables.shortcuts(runs, configs),
        runs=runs.to_dict("records"),
        alone=sweep.folder_of_runs != sweep.path,  # The page of a run is in the run's folder.
        switches=_switches(measured, many),
        environments=_environments(sweep),
        **_recipe(configs),
        nonce=secrets.token_urlsafe(16),
        plotly=_packed_plotly(),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": run_tables.percent, "minutes": run_tables.minutes}
    return environment.get_template("report.html.j2")


def _packed(text: str) -> tuple[int, str]:
    """Text that takes less room: its bytes once compressed, and these bytes in base 85."""
    compressed = zlib.compress(text.encode(), level=9)
    packed = base64.b85encode(compressed, pad=True).decode()
    # Base 85 has no "/", so "</script>" cannot occur. This would make a browser overlook the end.
    assert "<!--" not in packed
    return len(compressed), packed


@functools.cache
def _packed_plotly() -> tuple[int, str]:
    return _packed(get_plotlyjs())


def _switches(measured: pd.DataFrame, are_means: bool) -> list[dict[str, Any]]:
    """For each group and depth, the curves that it has: its runs, or their mean."""
    colors = styling.depth_colors(measured["depth"])
    rows = measured.drop_duplicates("run").groupby(["group", "depth"], sort=False)
    return [
        {
            "group": group,
            "depth": depth,
            "color": colors[depth],
            "mean": curves.name_of(group, depth) if are_means else "",
            "runs": of[["run", "seed"]].to_dict("records"),
        }
        for (group, depth), of in rows
    ]


def _environments(sweep: SweepFolder) -> list[dict[str, Any]]:
    """The distinct environments, with the number and the start times of the attempts in each."""
    found: dict[str, dict[str, Any]] = {}
    for name in sweep:
        for attempt in sweep.records(name).environments():
            fields = {key: value for key, value in attempt.items() if key not in _OF_ATTEMPT}
            one = found.setdefault(
                json.dumps(fields, sort_keys=True),
                {"fields": recipe.flat(fields), "attempts": 0, "started": []},
            )
            one["attempts"] += 1
            one["started"].append(str(attempt.get("started", "")))
    return list(found.values())


def _recipe(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The config fields that all runs share, and those that vary, with their values."""
    names = dict.fromkeys(name for config in configs.values() for name in config)
    values = {
        name: list(dict.fromkeys(json.dumps(config.get(name)) for config in configs.values()))
        for name in names
    }
    return {
        "shared": {name: json.loads(of[0]) for name, of in values.items() if len(of) == 1},
        "varied": {name: list(map(json.loads, of)) for name, of in values.items() if len(of) > 1},
    }
