"""Charts that hold training errors against what was measured before training, and against theory.

Each shows single runs: where a condition decides, spreads of 15 points are normal.
"""

from collections.abc import Sequence

import pandas as pd

from experiments.reporting.chart import Chart, Panel, Series, numbers, seeds_of
from experiments.reporting.styling import Style, Styles, depth_colors

MEASURES = {
    "gradient_ratio": "gradient at the first block over that at the last",
    "neighbour_error": "1-NN error of the last stage's features",
    "gradient_cosine": "cosine between batches' gradients in stage 1",
}
"""Columns of `diagnostic_tables.read_signals`, and the titles of their panels."""


def predictors(signals: pd.DataFrame, runs: pd.DataFrame, styles: Styles) -> Chart:
    """Final training error against each measure of the untrained network.

    - `signals`: of `diagnostic_tables.read_signals`.
    - `runs`: of `sweep_tables.read_runs`.
    """
    known = signals.merge(runs.loc[runs["state"] == "finished", ["run", "train_error"]], on="run")
    panels = []
    for measure, title in MEASURES.items():
        series = []
        for kind, style in styles.items():
            rows = known[known["kind"] == kind].dropna(subset=[measure])
            if rows.empty:
                continue
            x, y = rows[measure].tolist(), numbers(rows["train_error"])
            look = style._replace(line="")
            series.append(Series(kind, x, y, look, strength=0.7, names=rows["run"].tolist()))
        panels.append(Panel(title, tuple(series), log_x=measure == "gradient_ratio"))
    return Chart(
        name="predictors",
        seeds=seeds_of(known),
        title="Training error against what was measured before training",
        caption="Each mark is a run of any depth. Gradients: L2 norm of the loss's gradient at the"
        " input of the first block over that at the output of the last block. 1-NN: images whose"
        " nearest other image, by the mean output of the last stage, has another label. Cosine: of"
        " the gradients of stage 1's kernels in two batches.",
        x="before training",
        y="training error after training",
        panels=tuple(panels),
        percent=True,
    )


def by_value(runs: pd.DataFrame, varied: Sequence[str]) -> Chart:
    """Training error against the value of a varied field, if it is one number: a line a depth."""
    series: list[Series] = []
    finished = runs[runs["state"] == "finished"]
    numeric = len(varied) == 1 and pd.api.types.is_numeric_dtype(runs[varied[0]])
    numeric = numeric and not pd.api.types.is_bool_dtype(runs[varied[0]])
    numeric = numeric and bool(runs[varied[0]].notna().all())
    if numeric and runs["kind"].nunique() == 1 and finished[varied[0]].nunique() > 1:
        colors = depth_colors(finished["depth"])
        for depth, rows in finished.groupby("depth"):
            means = rows.groupby(varied[0])["train_error"].mean()
            style = Style(colors[depth], "o")
            x, y = means.index.tolist(), numbers(means)
            series.append(Series(f"depth {depth}", x, y, style, rank=depth))
            x, y = rows[varied[0]].tolist(), numbers(rows["train_error"])
            names = rows["run"].tolist()
            series.append(Series("", x, y, style._replace(line=""), strength=0.4, names=names))
    xs = [x for one in series for x in one.x]
    wide = bool(xs) and 0 < 10 * min(xs) < max(xs)
    return Chart(
        name="by_value",
        seeds=seeds_of(finished),
        title=f"Training error against {', '.join(varied)}",
        caption="Error on the clean training split after the last step, in eval mode. Lines are"
        " means over seeds. Small marks are single runs.",
        x=", ".join(varied),
        y="training error",
        panels=(Panel("", tuple(series), log_x=wide),),
        percent=True,
    )


def theory(networks: pd.DataFrame, styles: Styles) -> Chart:
    """Measured and predicted gradient ratios of untrained networks against depth.

    - `networks`: of `diagnostic_tables.read_initial_signals`.
    """
    panels = []
    for kind, style in styles.items():
        rows = networks[networks["kind"] == kind].sort_values("depth")
        depths = rows["depth"].tolist()
        measured = numbers(rows["gradient_ratio"], positive=True)
        predicted = numbers(rows["predicted_ratio"], positive=True)
        series = (
            Series("measured", depths, measured, style._replace(line="")),
            Series("mean field", depths, predicted, Style("#777777", "", "--")),
        )
        panels.append(Panel(kind, series))
    return Chart(
        name="mean_field",
        seeds=seeds_of(networks),
        title="Gradient ratio before training: measured, and by mean-field theory",
        caption="L2 norm of the loss's gradient at the input of the first block over that at the"
        " output of the last block. The theory is for infinite width and batches (Yang et al."
        " 2019, extended to shortcuts).",
        x="depth (weighted layers)",
        y="gradient norm, first / last",
        panels=tuple(panels),
        log=True,
    )
