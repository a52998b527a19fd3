"""matplotlib without the user's settings. Only this file imports it.

A figure needs no backend and no rc file. But a notebook sets MPLBACKEND for every command that it
starts. If that backend is not installed here, the import of matplotlib fails.
"""

import contextlib
import os
import sys
from contextlib import AbstractContextManager

_is_first, _backend = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", "")
try:
    import matplotlib
    import matplotlib.style
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
    from matplotlib.path import Path
    from matplotlib.ticker import MaxNLocator, PercentFormatter
finally:
    if _backend:
        os.environ["MPLBACKEND"] = _backend
if _is_first and _backend:  # The notebook's own plots keep their backend.
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend

__all__ = [
    "Axes",
    "Circle",
    "FancyArrowPatch",
    "FancyBboxPatch",
    "Figure",
    "Line2D",
    "MaxNLocator",
    "Path",
    "PercentFormatter",
    "Rectangle",
    "colormaps",
    "style",
    "to_hex",
]

STYLE = {
    "font.size": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "resnet_flax",  # The same records give the same file.
}


def style() -> AbstractContextManager[None]:
    """The style of all figures: matplotlib's defaults and `STYLE`, without the user's settings."""
    return matplotlib.style.context(STYLE, after_reset=True)
