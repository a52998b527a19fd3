"""Draws networks side by side as in Fig. 3 of the paper, and their blocks as in Fig. 2 and 5.

All lengths are inches; y grows downwards.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.reporting import figures, networks
from experiments.reporting.drawing import (
    Axes,
    Circle,
    FancyArrowPatch,
    FancyBboxPatch,
    Figure,
    Path,
    Rectangle,
    style,
)
from experiments.reporting.networks import BlockPicture, Column, Network, Size
from resnet_flax.models.cost import Part
from resnet_flax.storage.filesystem import AnyPath

Point = tuple[float, float]
Bands = dict[Size, tuple[float, str]]
"""Size of maps -> the top of its band, and the colour of its boxes."""

ROW = 0.24
WIDTH, HEIGHT = 1.3, 0.17  # A box.
COLUMN = 2.05  # The width of a network.
LEFT, TOP, BOTTOM = 0.8, 0.85, 0.4
ASIDE = 0.25  # From a box to the shortcut past it.
APART = 0.02  # A shortcut ends so much above the point at which the next begins, on both sides.
TURN = 0.08  # A line's corners begin here.
SUM = 0.07  # The radius of a sum.
TEXT, SMALL, LARGE = 7.5, 6.5, 9.0  # Points.
GREY = "#555555"
DOTTED = (0, (1, 1.5))
# Light enough for black text, also in grey.
FILLS = ("#F6E3D2", "#DDEAF6", "#DDF0E6", "#F6E1EE", "#FBF0CF", "#E3F2FB")
OTHER_FILLS = {"max pool": "#DDDDDD", "global average pool": "#DDDDDD", "fully connected": "white"}


def save(shown: Sequence[Network], path: AnyPath) -> None:
    """Writes the figure into a file. The suffix is its format."""
    with style():
        figures.write(draw(shown), [path])


def draw(shown: Sequence[Network]) -> Figure:
    """A column for each network, aligned by the size of maps; beside them a block of each kind."""
    columns = [networks.column(network.parts) for network in shown]
    bands = networks.sizes(columns)
    pictures = networks.blocks(shown)
    room = max([TOP + ROW * sum(bands.values()), *map(_height, pictures)])
    stacks = _stacks(pictures, room)
    middle = LEFT + COLUMN * len(columns)
    of_block = 3.6 if any(picture.h for picture in pictures) else 3.1
    width, height = middle + of_block * len(stacks), room + BOTTOM
    with style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        places = _draw_bands(axes, bands, middle - 0.2)
        for i, (network, column) in enumerate(zip(shown, columns, strict=True)):
            x = LEFT + COLUMN * i + WIDTH / 2
            _text(axes, x, 0.17, network.name, LARGE, weight="bold")
            _text(axes, x, 0.28, network.note, SMALL, color=GREY, va="top")
            _draw_column(axes, x, column, places)
        _draw_legend(axes, height - BOTTOM / 2, pictures)
        for i, stack in enumerate(stacks):
            y = 0.17
            for picture in stack:
                _draw_block(axes, middle + of_block * i + 0.6 + WIDTH / 2, y, picture)
                y += _height(picture)
    return figure


def _stacks(pictures: Iterable[BlockPicture], room: float) -> list[list[BlockPicture]]:
    """The pictures of blocks in columns that are at most `room` high."""
    stacks: list[list[BlockPicture]] = []
    for picture in pictures:
        if not stacks or sum(map(_height, [*stacks[-1], picture])) > room:
            stacks.append([])
        stacks[-1].append(picture)
    return stacks


def _height(picture: BlockPicture) -> float:
    """The boxes of a block, its heading, x, the sum, y and some space."""
    return ROW * (len(picture.f) + picture.has_shortcut + len(picture.after) + 5)


def _draw_bands(axes: Axes, bands: dict[Size, int], right: float) -> Bands:
    """A background for each size of maps."""
    places, y = {}, TOP
    _text(axes, 0.15, y - ROW / 2, "maps", SMALL, ha="left", color=GREY)
    for i, (size, count) in enumerate(bands.items()):
        places[size] = y, FILLS[i % len(FILLS)]
        if i % 2 == 0:
            shade = Rectangle((0.1, y), right - 0.1, ROW * count, color="#F5F5F5", linewidth=0)
            axes.add_patch(shade)
        _text(axes, 0.15, y + ROW / 2, "×".join(map(str, size)) or "1", TEXT, ha="left")
        y += ROW * count
    return places


def _draw_column(axes: Axes, x: float, column: Column, places: Bands) -> None:
    """The boxes of a network, joined by arrows, and its shortcuts."""
    ys: list[float] = []
    for size, same in itertools.groupby(column.rows, lambda row: row.size):
        ys += [places[size][0] + ROW * (i + 0.5) for i, _ in enumerate(same)]
    _text(axes, x, ys[0] - ROW, "image", TEXT)
    for row, above, y in zip(column.rows, [ys[0] - ROW, *ys], ys, strict=False):
        _line(axes, (x, above + HEIGHT / 2), (x, y - HEIGHT / 2), has_head=True)
        if row.kind == networks.LEFT_OUT:
            _text(axes, x, y, row.text, SMALL, style="italic")
        else:
            _box(axes, x, y, row.text, OTHER_FILLS.get(row.kind, places[row.size][1]))
    for first, last, is_identity in column.shortcuts:
        begin, end = ys[first] - ROW / 2 + APART, ys[last] + ROW / 2 - APART
        out = x + WIDTH / 2 + ASIDE
        path = (x, begin), (out, begin), (out, end), (x, end)
        _line(axes, *path, is_dotted=not is_identity, has_head=True)


def _draw_legend(axes: Axes, y: float, pictures: Iterable[BlockPicture]) -> None:
    """The kinds of lines, with the kinds of blocks that have them."""
    kinds = {False: [one.kind for one in pictures if one.has_shortcut and one.is_identity]}
    kinds[True] = [one.kind for one in pictures if one.has_shortcut and not one.is_identity]
    x = LEFT
    for is_dotted, names in kinds.items():
        if names:
            _line(axes, (x, y), (x + 0.35, y), is_dotted=is_dotted)
            _text(axes, x + 0.42, y, " or ".join(dict.fromkeys(names)), SMALL, ha="left")
            x += 1.8


def _draw_block(axes: Axes, x: float, y: float, picture: BlockPicture) -> None:
    """One block, from x to y. The shortcut passes F on the right."""
    _text(axes, x, y, picture.kind, LARGE, weight="bold")
    _text(axes, x, y + 0.19, picture.formula, TEXT, color=GREY)
    y += 2.1 * ROW
    _text(axes, x, y, "x", LARGE, style="italic")
    tops = [y + ROW * (i + 0.5) for i in range(len(picture.f) + 1)]
    y = _draw_chain(axes, x, y, picture.f)
    left = x - WIDTH / 2 - 0.12
    corners = (left + 0.06, tops[0] + 0.06), (left, tops[0] + 0.06), (left, tops[-1] - 0.06)
    _line(axes, *corners, (left + 0.06, tops[-1] - 0.06))
    _text(axes, left - 0.06, (tops[0] + tops[-1]) / 2, "F(x)", LARGE, ha="right", style="italic")
    if picture.has_shortcut:
        begin, end, out = tops[picture.start], y + ROW, x + WIDTH / 2 + ASIDE
        out += WIDTH / 2 - 0.05 if picture.h else 0.0
        _line(axes, (x, y + HEIGHT / 2), (x, end - SUM), has_head=True)
        path = (x, begin), (out, begin), (out, end), (x + SUM, end)
        _line(axes, *path, is_dotted=not picture.is_identity, has_head=True)
        axes.add_patch(Circle((x, end), SUM, facecolor="white", edgecolor="black", zorder=3))
        _text(axes, x, end, "+", TEXT, zorder=4)
        middle = (begin + end - ROW * (len(picture.h) - 1)) / 2
        for i, part in enumerate(picture.h):
            _box(axes, out, middle + ROW * i, networks.label(part), _fill(part))
        if not picture.h:
            name = "x" if picture.is_identity else "x, padded\nwith zeros"
            _text(axes, out + 0.08, middle, name, LARGE, ha="left", style="italic")
        y = end
    y = _draw_chain(axes, x, y, picture.after)
    _line(axes, (x, y + HEIGHT / 2), (x, y + ROW - 0.06), has_head=True)
    _text(axes, x, y + ROW, "y", LARGE, style="italic")


def _draw_chain(axes: Axes, x: float, y: float, parts: Iterable[Part]) -> float:
    """Boxes below a point. Returns the y of the last."""
    for part in parts:
        _line(axes, (x, y + HEIGHT / 2), (x, y + ROW - HEIGHT / 2), has_head=True)
        y += ROW
        _box(axes, x, y, networks.label(part), _fill(part))
    return y


def _fill(part: Part) -> str:
    return FILLS[1] if part.kernel else "white"


def _box(axes: Axes, x: float, y: float, text: str, fill: str) -> None:
    corner = x - WIDTH / 2, y - HEIGHT / 2
    shape = "round,pad=0,rounding_size=0.04"
    look: dict[str, Any] = {"facecolor": fill, "edgecolor": "#777777", "linewidth": 0.6}
    axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle=shape, zorder=3, **look))
    _text(axes, x, y, text, TEXT, zorder=4)


def _text(axes: Axes, x: float, y: float, text: str, size: float, **look: Any) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": size, **look})


def _line(axes: Axes, *points: Point, is_dotted: bool = False, has_head: bool = False) -> None:
    """A line through points, with round corners."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
    look: dict[str, Any] = {
        "color": "black",
        "linewidth": 0.8,
        "linestyle": DOTTED if is_dotted else "-",
    }
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-", zorder=2, **look))
    if has_head:
        end = [_towards(points[-1], points[-2]), points[-1]]
        head: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 5,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.add_patch(FancyArrowPatch(*end, color="black", linewidth=0.5, zorder=2, **head))


def _towards(start: Point, end: Point) -> Point:
    """The point `TURN` away from `start`, or half the way to `end` if that is less."""
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])  # Lines are level or upright.
    share = min(TURN / length, 0.5)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
