"""Bar charts as inline SVG: a few models, one figure each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, ROW, LABELS, VALUES = 480, 30, 160, 72

Bar = tuple[str, str, float, str]  # label, class in the style sheet, value from 0 up, its text


def bar_chart(ident: str, title: str, bars: Sequence[Bar]) -> Markup:
    """Draw horizontal bars from zero. A value that is not finite has no bar but its text."""
    largest = max((value for _, _, value, _ in bars if math.isfinite(value)), default=0.0) or 1.0
    body = Markup("").join(_row(index, bar, largest) for index, bar in enumerate(bars))
    described = "; ".join(f"{label}: {text}" for label, _, _, text in bars)
    return Markup(
        '<svg class="chart bars" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{i}-t {i}-d">'
        '<title id="{i}-t">{title}</title><desc id="{i}-d">{desc}</desc>{body}</svg>'
    ).format(w=WIDTH, h=ROW * len(bars) + 4, i=ident, title=title, desc=described, body=body)


def _row(index: int, bar: Bar, largest: float) -> Markup:
    label, css, value, text = bar
    top = ROW * index + 4
    width = max(value, 0.0) / largest * (WIDTH - LABELS - VALUES) if math.isfinite(value) else 0.0
    return Markup(
        '<text class="name end" x="{lx}" y="{ty}">{label}</text>'
        '<rect class="bar {css}" x="{x}" y="{y}" width="{w:.1f}" height="{h}" rx="2"/>'
        '<text class="value" x="{vx:.1f}" y="{ty}">{text}</text>'
    ).format(
        lx=LABELS - 10, ty=top + 18, label=label, css=css, x=LABELS, y=top + 3, w=width, h=ROW - 8,
        vx=LABELS + width + 8, text=text,
    )  # fmt: skip
