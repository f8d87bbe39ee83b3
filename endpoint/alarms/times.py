"""Times and numbers as CloudWatch prints them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal


def iso(at: float) -> str:
    """Print seconds since the epoch as 2026-09-14T05:47:38.775+0000."""
    return datetime.fromtimestamp(round(at, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "+0000")


def short(at: float) -> str:
    """Print seconds since the epoch as 14/09/26 05:46:50."""
    return datetime.fromtimestamp(round(at, 3), UTC).strftime("%d/%m/%y %H:%M:%S")


def java_double(value: float) -> str:
    """Print a number as Java prints a double: 100.0, 1.0E7, 5.0E-4."""
    text = repr(float(value))
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return text
    number = Decimal(text)
    exponent = number.adjusted()
    mantissa = f"{number.scaleb(-exponent).normalize():f}"
    return f"{mantissa}{'' if '.' in mantissa else '.0'}E{exponent}"
