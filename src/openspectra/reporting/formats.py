"""How numbers are written on the page: units, signs, and missing values with their reasons."""

import math
from dataclasses import dataclass

from openspectra.reporting.load import ROUGE
from openspectra.reporting.statistics import Interval

MINUS = "\u2212"
PLUS_MINUS = "\u00b1"


@dataclass(frozen=True)
class Cell:
    """One cell of a table on the page: its text, the number to sort by, or the reason why it is missing."""

    text: str
    sort: float | None = None
    detail: str | None = None
    """A second, smaller line: an interval or a standard error."""
    missing: str | None = None


def missing(reason: str) -> Cell:
    """Return the cell of an absent value."""
    return Cell("missing", missing=reason)


def number_cell(value: float | None, text: str, reason: str) -> Cell:
    """Return the cell of a number written as `text`, or of its absence because of `reason`."""
    return missing(reason) if value is None else Cell(text, float(value))


def counted(value: float | None) -> str:
    """Return a count with thousands separators."""
    return "" if value is None else f"{value:,.0f}"


def scaled(value: float, digits: int = 3) -> str:
    """Return a count in K, M or B: 1234567 becomes `1.23M`."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def size_unit(largest_bits: float) -> tuple[str, float]:
    """Return unit and divisor in which sizes up to `largest_bits` read well."""
    return ("Gbit", 1e9) if largest_bits >= 1e9 else ("Mbit", 1e6)


def score_label(metric: str) -> str:
    """Return what stands at the axis of a score in percent."""
    return "ROUGE-1 F1 (%)" if metric == ROUGE else f"Accuracy ({metric}, %)"


def signed(value: float, decimals: int = 4) -> str:
    """Return a difference with its sign, zero without: `+0.0123`."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def interval_text(interval: Interval, decimals: int = 3, with_sign: bool = False) -> str:
    """Return the bounds of an interval, `3.012 to 3.204`."""
    if interval.low is None or interval.high is None:
        return "no interval: fewer than two documents"
    write = signed if with_sign else _plain
    return f"{write(interval.low, decimals)} to {write(interval.high, decimals)}"


def percent(value: float, decimals: int = 1) -> str:
    """Return a share in percent, without the sign."""
    return f"{100 * value:.{decimals}f}"


def given(value: float | None) -> bool:
    """Return whether a value is there and a finite number."""
    return value is not None and math.isfinite(value)


def _plain(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"
