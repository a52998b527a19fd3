"""Tables in Markdown, for a README."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows as a table. Rows may have different columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_line(columns), "|---" * len(columns) + "|"]
    lines += [_line([row.get(column, "") for column in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[Any]) -> str:
    shown = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    escaped = (" ".join(cell.split()).replace("|", r"\|") for cell in shown)
    return f"| {' | '.join(escaped)} |"
