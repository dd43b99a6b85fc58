"""Numbers as a reader expects them."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"


def decimals(bar: float) -> int:
    """Decimals that show two digits of an error bar, none to four."""
    if not (math.isfinite(bar) and bar > 0):
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(bar))))


def fixed(value: float, places: int) -> str:
    """A number with so many decimals and a proper minus; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.{places}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def general(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and a proper minus; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if 1e-3 <= abs(value) < 10**digits:
        places = digits - 1 - math.floor(math.log10(abs(value)))
        return fixed(value, max(0, places))
    return f"{value:.{digits}g}".replace("-", MINUS)
