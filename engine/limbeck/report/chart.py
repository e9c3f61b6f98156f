"""Line charts as inline SVG, without a script: they take their colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from limbeck.report.numbers import short

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 40
COLUMNS = 400  # about the pixels of the plot: more points cannot be told apart
DOTS = 40  # up to so many points each is a dot with its value as tooltip
LOG_RATIO = 50.0  # a largest value this far over the median would flatten all the rest on a linear axis

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line: points (step, value) with rising steps; `css` is its class in the style sheet."""

    label: str
    css: str
    points: Sequence[Point]


def downsample(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """First, lowest, highest and last point of each column, so that no spike is lost (M4: Jugel et al., 2014)."""
    if len(points) <= 4 * columns:
        return list(points)
    start, width = points[0][0], (points[-1][0] - points[0][0]) / columns
    groups: dict[int, list[Point]] = {}
    for point in points:
        groups.setdefault(min(int((point[0] - start) / width), columns - 1), []).append(point)
    kept: list[Point] = []
    for group in groups.values():
        lowest, highest = min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])
        kept += sorted({group[0], lowest, highest, group[-1]})
    return kept


def line_chart(ident: str, title: str, unit: str, curves: Sequence[Curve], *, stepped: bool = False) -> Markup:
    """Draw curves over the optimizer step. `ident` makes the ids unique in the page; `stepped` holds each value until
    the next. Values that are not finite break the line and are marked at the upper edge.
    """
    finite = [value for curve in curves for _, value in curve.points if math.isfinite(value)]
    steps = [step for curve in curves for step, _ in curve.points]
    axes = _Axes.over(steps or [0.0], finite or [0.0])
    body = Markup("").join([axes.draw(unit), *(_draw(curve, axes, stepped) for curve in curves)])
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{i}-t {i}-d">'
        '<title id="{i}-t">{title}</title><desc id="{i}-d">{desc}</desc>{body}</svg>'
    ).format(w=WIDTH, h=HEIGHT, i=ident, title=title, desc=_describe(unit, curves), body=body)


def _describe(unit: str, curves: Sequence[Curve]) -> str:
    parts = []
    for curve in curves:
        good = [value for _, value in curve.points if math.isfinite(value)]
        if good:
            lost = len(curve.points) - len(good)
            text = f"{curve.label}: from {short(good[0])} to {short(good[-1])}, lowest {short(min(good))}, highest "
            parts.append(text + short(max(good)) + (f", {lost} values not finite" if lost else ""))
        else:
            parts.append(f"{curve.label}: no finite value")
    return f"{unit} by optimizer step. " + "; ".join(parts) + "."


@dataclass(frozen=True)
class _Axes:
    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    @classmethod
    def over(cls, steps: Sequence[float], values: Sequence[float]) -> _Axes:
        low, high = min(values), max(values)
        middle = sorted(values)[len(values) // 2]
        log = low > 0 and high / middle > LOG_RATIO
        if log:
            low, high = math.log10(low), math.log10(high)
        pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        floor = 0.0 if not log and 0 <= low <= 0.3 * high else low - pad  # show the zero where it is near
        return cls(min(steps), max(steps), floor, high + pad, log)

    def x(self, step: float) -> float:
        return LEFT + (step - self.x0) / ((self.x1 - self.x0) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def draw(self, unit: str) -> Markup:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for value in self._y_ticks():
            parts.append(
                Markup('<path class="grid" d="M{} {y}H{}"/><text class="tick end" x="{}" y="{}">{}</text>').format(
                    LEFT, right, LEFT - 6, _px(self.y(value) + 4), short(value), y=_px(self.y(value))
                )
            )
        for step in _ticks(self.x0, self.x1, 5):
            if step == int(step):
                tick = Markup('<text class="tick middle" x="{}" y="{}">{}</text>')
                parts.append(tick.format(_px(self.x(step)), bottom + 16, f"{step:,.0f}"))
        label = unit + (", log scale" if self.log else "")
        parts.append(
            Markup(
                '<path class="axis" d="M{l} {b}H{r}"/>'
                '<text class="label middle" x="{mx}" y="{ly}">optimizer step</text>'
                '<text class="label middle" transform="translate(13 {my}) rotate(-90)">{label}</text>'
            ).format(
                l=LEFT, r=right, b=bottom, mx=(LEFT + right) // 2, ly=HEIGHT - 6, my=(TOP + bottom) // 2, label=label
            )
        )
        return Markup("").join(parts)

    def _y_ticks(self) -> list[float]:
        if not self.log:
            return _ticks(self.y0, self.y1, 5)
        decades = [10.0**power for power in range(math.ceil(self.y0), math.floor(self.y1) + 1)]
        return decades if len(decades) >= 2 else [10**self.y0, 10**self.y1]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    raw = (high - low) / about
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _draw(curve: Curve, axes: _Axes, stepped: bool) -> Markup:
    finite = [point for point in curve.points if math.isfinite(point[1])]
    parts = [Markup('<path class="line {}" d="{}"/>').format(curve.css, _path(curve, axes, stepped))]
    if len(finite) <= DOTS:
        for step, value in finite:
            dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>')
            text = f"{curve.label}, step {step:g}: {short(value, 5)}"
            parts.append(dot.format(curve.css, _px(axes.x(step)), _px(axes.y(value)), text))
    for step, value in [point for point in curve.points if not math.isfinite(point[1])][:COLUMNS]:
        mark = Markup('<path class="lost {}" d="M{} {}l8 8m0 -8l-8 8"><title>{}</title></path>')
        text = f"{curve.label}, step {step:g}: {short(value)}"
        parts.append(mark.format(curve.css, _px(axes.x(step) - 4), TOP, text))
    return Markup("").join(parts)


def _path(curve: Curve, axes: _Axes, stepped: bool) -> str:
    """The path of a curve: one piece for each run of finite values."""
    pieces: list[list[Point]] = [[]]
    for point in curve.points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    text = ""
    for piece in pieces:
        for i, (step, value) in enumerate(downsample(piece)):
            x, y = _px(axes.x(step)), _px(axes.y(value))
            text += f"M{x} {y}" if i == 0 else f"H{x}V{y}" if stepped else f"L{x} {y}"
    return text


def _px(value: float) -> str:
    return f"{value:.1f}"
