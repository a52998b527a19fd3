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
    from matplotlib import colormaps, font_manager
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

# Fonts with Chinese, Japanese and Korean signs, of Linux, macOS and Windows.
_MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "IPAexGothic", "Droid Sans Fallback", "Hiragino Sans", "PingFang SC",
    "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
)  # fmt: skip
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}

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
    "unreadable",
]

FONTS = ["DejaVu Sans", *(name for name in _MORE_FONTS if name in _INSTALLED)]
STYLE = {
    "font.family": FONTS,
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


def unreadable(text: str) -> str:
    """The signs of a text that no font of a figure has. Figures show boxes in their place."""
    files = [font_manager.findfont(name) for name in FONTS]
    fonts = [font_manager.get_font(file) for file in files]
    signs = dict.fromkeys(char for char in text if char.isprintable())
    return "".join(
        char for char in signs if not any(font.get_char_index(ord(char)) for font in fonts)
    )
