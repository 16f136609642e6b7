"""Formats numbers with enough digits to distinguish two runs, and no more. Pure."""

from __future__ import annotations

from math import floor, log10

MISSING = "-"
# More than a float has.
_DIGITS = 17


def format_number(value: float | None, digits: int = 4) -> str:
    """With that many significant digits, at least all before the point: 0.04213, 12.35, 1,234."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    places = max(0, digits - 1 - floor(log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_ms(value: float | None) -> str:
    """A time in milliseconds, with its unit; long ones in seconds."""
    if value is None:
        return MISSING
    return f"{format_number(value / 1000)} s" if abs(value) >= 10_000 else f"{format_number(value)} ms"


def format_count(value: float | None) -> str:
    """A whole number with separators between thousands."""
    return MISSING if value is None else f"{value:,.0f}"


def format_percent(value: float | None) -> str:
    """A share in percent; a share slightly below one is not rounded to 100."""
    if value is None:
        return MISSING
    digits = 3
    while value < 1 and digits < _DIGITS and format_number(value * 100, digits) == "100":
        digits += 1
    return f"{format_number(value * 100, digits)} %"


def format_signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign."""
    if value is None:
        return MISSING
    return ("+" if value > 0 else "") + format_number(value, digits)
