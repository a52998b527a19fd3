"""Charts of diagnostics. A chart without data is left out."""

import math
from collections.abc import Hashable, Iterable, Iterator

import pandas as pd

from experiments.reporting import diagnostic_tables
from experiments.reporting.charts import (
    Chart,
    Field,
    Panel,
    Series,
    Style,
    Styles,
    drawable,
    numbers,
    strengths,
)
from experiments.reporting.diagnostic_tables import AFTER, BEFORE
from resnet_flax.storage.sweep_folder import SweepFolder

_SEEDS = "Medians over the measured runs."
_SHADES = "Deeper networks have stronger colours."


def read(sweep: SweepFolder, styles: Styles) -> list[Chart]:
    """Reads the charts of a sweep's folder. Raises UserError if a file in it is not valid."""
    layers = diagnostic_tables.read_layers(sweep)
    initial = diagnostic_tables.read_initial(sweep)
    planes = diagnostic_tables.read_planes(sweep)
    charts = [
        gradients(layers, styles),
        identity_share(layers, styles),
        responses(layers, styles),
        initialisation(initial, styles),
        gradient_ratio(initial, styles),
        line(diagnostic_tables.read_lines(sweep), styles),
    ]
    charts += [plane(planes)] if planes else []
    return drawable(charts)


def gradients(layers: pd.DataFrame, styles: Styles) -> Chart:
    panels = []
    for depth, of_depth in layers.groupby("depth"):
        strength = {BEFORE: 0.5, AFTER: 1.0}
        series = [
            _by_layer(rows, f"{kind}, {moment}", style, strength[moment])
            for kind, style in styles.items()
            for moment in (BEFORE, AFTER)
            for rows in _where(of_depth, kind=kind, moment=moment)
        ]
        panels.append(Panel(f"depth {depth}", tuple(series)))
    return Chart(
        name="gradients",
        title="Gradient flow",
        caption="L2 norm of the loss's gradient with respect to each layer's weights, from the"
        " first layer to the last. Gradients that vanish on their way back fall to the left by"
        f" orders of magnitude. {_SEEDS}",
        x="layer",
        y="weight gradient norm",
        panels=tuple(panels),
        log=True,
    )


def identity_share(layers: pd.DataFrame, styles: Styles) -> Chart:
    blocks = _blocks(layers)
    return Chart(
        name="identity_share",
        title="Share of the gradient that comes through the shortcut",
        caption="The share of the gradient at a block's input that came through the shortcut:"
        " |h| / (|h| + |F|), in L2 norms. Plain networks have no shortcut, so it is 0."
        f" {_SHADES} {_SEEDS}",
        x="block",
        y="identity share",
        panels=tuple(
            Panel(moment, _by_depth(rows, layers["depth"], styles, "identity_share"))
            for moment in (BEFORE, AFTER)
            for rows in _where(blocks, moment=moment)
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
    panels = [
        Panel(title, _by_depth(rows, layers["depth"], styles, "response_std"))
        for title, rows in (("in order of layers", trained), ("from large to small", ranked))
        if not rows.empty
    ]
    return Chart(
        name="responses",
        title="Layer responses",
        caption="Standard deviation of each convolution's output after batch normalisation and"
        " before ReLU and addition, after training. A layer with a small response changes its"
        f" input little. {_SHADES} {_SEEDS}",
        x="layer",
        y="standard deviation",
        panels=tuple(panels),
        log=True,
    )


def initialisation(initial: pd.DataFrame, styles: Styles) -> Chart:
    return Chart(
        name="initialisation",
        title="Gradients before training, with and without batch normalisation",
        caption="L2 norm of the loss's gradient with respect to each layer's weights, at the"
        " initial values. Without batch normalisation, a flat and very low curve means that both"
        " vanished: the signal on its way forward, and the gradient on its way back."
        f" {_SHADES} {_seeds(initial)}",
        x="layer",
        y="weight gradient norm",
        panels=tuple(
            Panel(_norm(norm), _by_depth(rows, initial["depth"], styles, "weight_gradient_norm"))
            for norm, rows in initial.groupby("norm")
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
    shades = strengths(points["depth"])
    series = []
    for (kind, depth), rows in points.groupby(["kind", "depth"]):
        losses = rows.assign(loss=rows["loss"].astype(float)).groupby("position")["loss"].median()
        label = f"{kind} {depth}"
        x = losses.index.tolist()
        series.append(Series(label, x, numbers(losses, positive=True), styles[kind], shades[depth]))
    return Chart(
        name="line",
        title="Loss between initial and last weights",
        caption="Training loss on the straight line from the initial weights (0) to the trained"
        f" weights (1). {_SHADES} {_SEEDS}",
        x="position",
        y="training loss",
        panels=(Panel("", tuple(series)),),
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
        panels.append(Panel(f"{kind} {planes.depth}", field=field))
    return Chart(
        name="plane",
        title="Loss around the last weights",
        caption="Training loss along two filter-normalised random directions (Li et al. 2018). All"
        " panels share one logarithmic scale. The trained network is at (0, 0).",
        x="first direction",
        y="second direction",
        panels=tuple(panels),
    )


def _where(rows: pd.DataFrame, **values: str) -> Iterator[pd.DataFrame]:
    """Yields the rows with these values, or nothing if there are none."""
    for name, value in values.items():
        rows = rows[rows[name] == value]
    if not rows.empty:
        yield rows


def _by_depth(
    rows: pd.DataFrame, depths: Iterable[int], styles: Styles, measure: str
) -> tuple[Series, ...]:
    """A series for each kind and depth of `rows`. `depths`: all depths that share the shades."""
    shades = strengths(depths)
    return tuple(
        _by_layer(of, f"{kind} {depth}", styles[kind], shades[depth], measure)
        for (kind, depth), of in rows.groupby(["kind", "depth"])
    )


def _by_layer(
    rows: pd.DataFrame,
    label: str,
    style: Style,
    strength: float,
    measure: str = "weight_gradient_norm",
) -> Series:
    medians = rows.assign(value=rows[measure].astype(float)).groupby("layer")["value"].median()
    names = rows.groupby("layer")["name"].first().tolist()
    y = numbers(medians, positive=measure != "identity_share")
    return Series(label, medians.index.tolist(), y, style, strength, names=names)


def _seeds(initial: pd.DataFrame) -> str:
    return "One seed." if initial["seed"].nunique() == 1 else "Medians over seeds."


def _norm(norm: Hashable) -> str:
    return {"batch": "with BN", "none": "without BN"}.get(str(norm), str(norm))
