"""How the parts' tables look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

WIDTH = 120


def new_table(title: str, columns: Sequence[str], notes: str) -> Table:
    """A table whose first column has a name for each row; `notes` say below it what is measured how."""
    table = Table("", title=title, caption=notes, title_justify="left", caption_justify="left", min_width=WIDTH)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def times(ratio: float) -> str:
    """A ratio with three digits that count."""
    digits = 2 - math.floor(math.log10(ratio)) if ratio > 0 else 2
    return f"{ratio:,.{max(0, digits)}f}"
