"""Numbers as people read them; a missing one is a dash, one that is not finite says so."""

from __future__ import annotations

import math

MISSING = "–"


def short(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands apart, no exponent between 1e-4 and 1e15."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < 15:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - size)
    text = f"{value:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text and decimals > digits else text).replace("-", "−")


def percent(value: float | None) -> str:
    """A fraction in percent, one decimal, held together by a no-break space."""
    return MISSING if value is None else f"{value * 100:.1f}\u00a0%" if math.isfinite(value) else short(value)


def count(value: float | None) -> str:
    """A large count with a unit prefix: 268.1 M."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T"))


def size(value: float | None) -> str:
    """Bytes with a binary prefix: 1.0 GiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float) -> str:
    """`0.4 s`, `57 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _scaled(value: float | None, base: int, units: tuple[str, ...]) -> str:
    if value is None or not math.isfinite(value):
        return short(value)
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value /= base
        power += 1
    return f"{value:.1f}{units[power]}" if power else f"{value:.0f}{units[0]}"
