"""Colours, markers and lines of kinds, of groups and of depths."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.reporting.drawing import colormaps, to_hex


class Style(NamedTuple):
    """The look of a group, in matplotlib's names. Marker and line tell groups apart in grey."""

    color: str
    marker: str
    line: str = "-"


Styles = Mapping[str, Style]
"""Group -> style, for all groups of a sweep: a group looks the same in every chart.

Charts that have a panel for each combination of varied values use the style of the kind.
"""

# Okabe and Ito's colours, safe for the colour-blind.
LOOKS = (("o", "--"), ("s", "-"), ("^", "-."), ("D", ":"))
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KIND_STYLES = tuple(
    Style(color, *look) for color, look in zip(COLORS, itertools.cycle(LOOKS), strict=False)
)
KNOWN = {"plain": 0, "residual": 1}
"""Kind -> the index of its style. The others have the next ones."""


def group_styles(groups: Mapping[str, str]) -> Styles:
    """Group -> style. `groups`: group -> kind, in the order of the grid.

    Up to six kinds have different colours; `plain` and `residual` have the same ones in every
    figure. Groups of a single kind go from dark to light. Of several kinds, up to 16 groups of a
    kind differ in marker or line.
    """
    kinds = list(dict.fromkeys(groups.values()))
    if len(kinds) == 1 and len(groups) > 1:
        shades = _shades(len(groups))
        looks = itertools.cycle(KIND_STYLES)
        return {
            group: look._replace(color=shade, line="-")
            for group, shade, look in zip(groups, shades, looks, strict=False)
        }
    taken = {KNOWN[kind] for kind in kinds if kind in KNOWN}
    free = (i for i in itertools.count() if i not in taken)
    places = {kind: KNOWN[kind] if kind in KNOWN else next(free) for kind in kinds}
    seen = Counter[str]()
    styles = {}
    for group, kind in groups.items():
        own = _style(places[kind])
        i, again = LOOKS.index(own[1:]) + seen[kind], seen[kind] // len(LOOKS)
        marker, line = LOOKS[i % len(LOOKS)][0], LOOKS[(i + again) % len(LOOKS)][1]
        styles[group] = Style(own.color, marker, line)
        seen[kind] += 1
    return styles


def _style(i: int) -> Style:
    # A colour that is used again gets another marker and line.
    return Style(COLORS[i % len(COLORS)], *LOOKS[(i + i // len(COLORS)) % len(LOOKS)])


def _shades(count: int) -> list[str]:
    """Colours from dark to light. All are visible on a dark and on a light page."""
    return list(map(to_hex, colormaps["viridis"](np.linspace(0.25, 0.85, count))))


def depth_colors(depths: Iterable[int]) -> dict[int, str]:
    """Depth -> colour, from dark to light."""
    ordered = sorted(set(depths))
    return dict(zip(ordered, _shades(len(ordered)), strict=True))
