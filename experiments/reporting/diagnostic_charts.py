"""Charts of diagnostics. A chart without data has only empty panels."""

import math
from collections.abc import Hashable, Iterable, Iterator

import pandas as pd

from experiments.reporting import diagnostic_tables, signal_charts
from experiments.reporting.chart import (
    MOST_LINES,
    Chart,
    Field,
    Panel,
    Series,
    numbers,
    seeds_of,
)
from experiments.reporting.diagnostic_tables import AFTER, BEFORE
from experiments.reporting.styling import Style, Styles, depth_colors
from resnet_flax.storage.findings import Plane
from resnet_flax.storage.sweep_folder import SweepFolder

_SEEDS = "Medians over the measured runs."


def read(sweep: SweepFolder, styles: Styles, runs: pd.DataFrame) -> list[Chart]:
    """Reads the charts of a sweep's folder. Raises UserError if a file in it is not valid.

    `runs`: of `sweep_tables.read_runs`.
    """
    layers = diagnostic_tables.read_layers(sweep)
    initial = diagnostic_tables.read_initial(sweep)
    planes = diagnostic_tables.read_planes(sweep)
    charts = [
        signal_charts.by_value(runs, sweep.varying.in_grid),
        signal_charts.predictors(diagnostic_tables.read_signals(sweep), runs, styles),
        gradients(layers, styles),
        identity_share(layers, styles),
        responses(layers, styles),
        initialisation(initial, styles),
        gradient_ratio(initial, styles),
        line(diagnostic_tables.read_lines(sweep), styles),
        signal_charts.theory(diagnostic_tables.read_initial_signals(sweep), styles),
    ]
    return [*charts, plane(planes)] if planes else charts


def gradients(layers: pd.DataFrame, styles: Styles) -> Chart:
    """A panel for each depth. If it had too many lines: a panel for each kind."""
    moments = ((BEFORE, ":"), (AFTER, "-"))
    panels = []
    if len(moments) * layers["kind"].nunique() <= MOST_LINES:
        for depth, of_depth in layers.groupby("depth"):
            series = [
                _by_layer(rows, f"{kind}, {moment}", style._replace(line=line))
                for kind, style in styles.items()
                for moment, line in moments
                for rows in _where(of_depth, kind=kind, moment=moment)
            ]
            panels.append(Panel(f"depth {depth}", tuple(series)))
    else:
        colors = depth_colors(layers["depth"])
        for kind in styles:
            series = [
                _by_layer(rows, f"depth {depth}, {moment}", Style(colors[depth], "", line))
                for depth, of_depth in layers.groupby("depth")
                for moment, line in moments
                for rows in _where(of_depth, kind=kind, moment=moment)
            ]
            panels.append(Panel(kind, tuple(series)))
    return Chart(
        name="gradients",
        seeds=seeds_of(layers),
        title="Gradient flow",
        caption="L2 norm of the loss's gradient with respect to each layer's weights, from the"
        " first layer to the last. Gradients that vanish on their way back fall to the left by"
        f" orders of magnitude. With BN, a kernel that has grown also has a smaller gradient."
        f" {_SEEDS}",
        x="layer",
        y="weight gradient norm",
        panels=tuple(panels),
        log=True,
    )


def identity_share(layers: pd.DataFrame, styles: Styles) -> Chart:
    blocks = _blocks(layers)
    return Chart(
        name="identity_share",
        seeds=seeds_of(blocks),
        title="Share of the gradient that comes through the shortcut",
        caption="The share of the gradient at a block's input that came through the shortcut:"
        f" |h| / (|h| + |F|), in L2 norms. Plain networks have no shortcut, so it is 0. {_SEEDS}",
        x="block",
        y="identity share",
        panels=tuple(
            Panel(
                moment if blocks["kind"].nunique() == 1 else f"{kind}, {moment}",
                _by_depth(rows, layers["depth"], "identity_share"),
            )
            for kind in styles
            for moment in (BEFORE, AFTER)
            for rows in _where(blocks, kind=kind, moment=moment)
        ),
        percent=True,
    )


def _blocks(layers: pd.DataFrame) -> pd.DataFrame:
    """The first layers of blocks, in kinds with shortcuts. `layer` is the block's number."""
    shares = layers.assign(identity_share=layers["identity_share"].astype(float))
    network = ["kind", "depth"]
    # One finite share marks a block for all runs, so that block numbers do not shift.
    known = shares.dropna(subset=["identity_share"]).sort_values("layer")
    begins = known[[*network, "layer"]].drop_duplicates()
    begins = begins.assign(block=begins.groupby(network).cumcount() + 1)
    blocks = shares.merge(begins, on=[*network, "layer"])
    residual = blocks.groupby("kind")["identity_share"].transform("max") > 0
    return blocks[residual].assign(layer=blocks["block"])


def responses(layers: pd.DataFrame, styles: Styles) -> Chart:
    trained = layers[(layers["moment"] == AFTER) & layers["response_std"].notna()]
    ranked = trained.assign(response_std=trained["response_std"].astype(float))
    ranked = ranked.sort_values("response_std", ascending=False)
    ranked = ranked.assign(layer=ranked.groupby("run").cumcount() + 1, name="")
    deepest = ranked[ranked["depth"] == ranked["depth"].max()]
    panels = [
        Panel(f"depth {depth}, {order}", _by_kind(rows, styles, "response_std"))
        for table, order in ((trained, "in order"), (deepest, "from large to small"))
        for depth, rows in table.groupby("depth")
    ]
    return Chart(
        name="responses",
        seeds=seeds_of(trained),
        title="Layer responses",
        caption="Standard deviation of each convolution's output, after batch normalisation if it"
        " follows directly, and before ReLU and addition, after training. A layer with a small"
        f" response changes its input little. {_SEEDS}",
        x="layer",
        y="standard deviation",
        panels=tuple(panels),
        log=True,
    )


def initialisation(initial: pd.DataFrame, styles: Styles) -> Chart:
    return Chart(
        name="initialisation",
        seeds=seeds_of(initial),
        title="Gradients before training, with and without batch normalisation",
        caption="L2 norm of the loss's gradient with respect to each layer's weights, at the"
        " initial values. Without batch normalisation, a flat and very low curve means that both"
        " vanished: the signal on its way forward, and the gradient on its way back."
        f" {_seeds(initial)}",
        x="layer",
        y="weight gradient norm",
        panels=tuple(
            Panel(f"{_norm(norm)}, depth {depth}", _by_kind(rows, styles, "weight_gradient_norm"))
            for (norm, depth), rows in initial.groupby(["norm", "depth"])
        ),
        log=True,
    )


def gradient_ratio(initial: pd.DataFrame, styles: Styles) -> Chart:
    measured = initial.astype({"input_gradient_norm": float})
    networks = measured.groupby(["kind", "depth", "norm", "seed"])["input_gradient_norm"]
    # By position: pandas' "first" and "last" skip values that are not finite.
    ratios = networks.agg(lambda norms: norms.iloc[0] / norms.iloc[-1])
    ratios = ratios.groupby(["kind", "norm", "depth"]).median()
    series = []
    for (kind, norm), of in ratios.groupby(["kind", "norm"]):
        depths = of.index.get_level_values("depth").tolist()
        style = styles[kind]._replace(line="-" if norm == "batch" else ":")
        series.append(Series(f"{kind}, {_norm(norm)}", depths, numbers(of, positive=True), style))
    return Chart(
        name="gradient_ratio",
        seeds=seeds_of(initial),
        title="Gradient at the first layer over that at the last",
        caption="L2 norm of the loss's gradient with respect to the first layer's input, over that"
        " for the last layer, before training. Far below 1, gradients vanish on their way back."
        f" Far above 1, they explode. {_seeds(initial)}",
        x="depth (weighted layers)",
        y="input gradient norm, first / last",
        panels=(Panel("", tuple(series)),),
        log=True,
        ticks=tuple(int(depth) for depth in sorted(initial["depth"].unique())),
    )


def line(points: pd.DataFrame, styles: Styles) -> Chart:
    colors = depth_colors(points["depth"])
    panels: dict[str, list[Series]] = {kind: [] for kind in styles}
    for (kind, depth), rows in points.groupby(["kind", "depth"]):
        losses = rows.assign(loss=rows["loss"].astype(float)).groupby("position")["loss"].median()
        x, y = losses.index.tolist(), numbers(losses, positive=True)
        panels[kind].append(Series(f"depth {depth}", x, y, Style(colors[depth], ""), rank=depth))
    return Chart(
        name="line",
        seeds=seeds_of(points),
        title="Loss between initial and last weights",
        caption="Training loss on the straight line from the initial weights (0) to the trained"
        f" weights (1). {_SEEDS}",
        x="position",
        y="training loss",
        panels=tuple(Panel(kind, tuple(series)) for kind, series in panels.items()),
        log=True,
    )


def plane(planes: diagnostic_tables.Planes) -> Chart:
    panels = []
    for kind, found in sorted(planes.planes.items()):
        values = [
            [None if loss is None else math.log10(loss) for loss in numbers(row, positive=True)]
            for row in found.losses
        ]
        field = Field("log₁₀ training loss", found.positions, values)
        panels.append(Panel(f"{kind} {planes.depth}{_flatness(found)}", field=field))
    return Chart(
        name="plane",
        seeds=tuple(sorted({found.seed for found in planes.planes.values()})),
        title="Loss around the last weights",
        caption="Training loss along two filter-normalised random directions (Li et al. 2018). All"
        " panels share one logarithmic scale. The trained network is at (0, 0). Where a plane is"
        " flat, no step in it changes the loss: the network has stayed near the loss of guessing.",
        x="first direction",
        y="second direction",
        panels=tuple(panels),
    )


def _flatness(found: Plane) -> str:
    """The range of the losses, if they differ so little that one colour shows them all."""
    known = [loss for row in found.losses for loss in row if loss is not None]
    if not known or max(known) > 1.25 * min(known):
        return ""
    return f": flat, loss {min(known):.2f} to {max(known):.2f}"


def _where(rows: pd.DataFrame, **values: str) -> Iterator[pd.DataFrame]:
    """Yields the rows with these values, or nothing if there are none."""
    for name, value in values.items():
        rows = rows[rows[name] == value]
    if not rows.empty:
        yield rows


def _by_depth(rows: pd.DataFrame, depths: Iterable[int], measure: str) -> tuple[Series, ...]:
    """A series for each depth of `rows`. `depths`: all depths that share the colours."""
    colors = depth_colors(depths)
    return tuple(
        _by_layer(of, f"depth {depth}", Style(colors[depth], "o"), measure, rank=depth)
        for depth, of in rows.groupby("depth")
    )


def _by_kind(rows: pd.DataFrame, styles: Styles, measure: str) -> tuple[Series, ...]:
    """A series for each kind of `rows`."""
    return tuple(
        _by_layer(of, kind, style, measure)
        for kind, style in styles.items()
        for of in _where(rows, kind=kind)
    )


def _by_layer(
    rows: pd.DataFrame,
    label: str,
    style: Style,
    measure: str = "weight_gradient_norm",
    rank: int = 0,
) -> Series:
    medians = rows.assign(value=rows[measure].astype(float)).groupby("layer")["value"].median()
    names = rows.groupby("layer")["name"].first().tolist()
    y = numbers(medians, positive=measure != "identity_share")
    return Series(label, medians.index.tolist(), y, style, names=names, rank=rank)


def _seeds(initial: pd.DataFrame) -> str:
    return "One seed." if initial["seed"].nunique() == 1 else "Medians over seeds."


def _norm(norm: Hashable) -> str:
    return {"batch": "with BN", "none": "without BN"}.get(str(norm), str(norm))
