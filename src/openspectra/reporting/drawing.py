"""The look of the figures: one colour and marker per kind of model, and SVG with equal bytes for equal data."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from openspectra.identity import kind_rank
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.families.family import Look
from openspectra.reporting.formats import scaled

INK, FAINT, PAPER = "#22272e", "#c9ced6", "#fefefe"
QUANTLM_LOOKS = {  # one hue, lighter with fewer bits; the look of a family stands in its own file
    "quantlm-8bit": Look("#00543d", "#9cefd2", marker="s", marker_size=10),
    "quantlm-6bit": Look("#00805b", "#5ccda5", marker="D", marker_size=7.5),
    "quantlm-4bit": Look("#2ba67e", "#319f7b", marker="p"),
    "quantlm-3bit": Look("#5db898", "#237f62", marker="X"),
    "quantlm-2bit": Look("#8fd3ba", "#1a624b", marker="P"),
}
OTHER_LOOK = Look("#6b7280", "#9aa5b1", marker=".")
PAIR_INCHES, SMALL_INCHES = (4.3, 2.4), (3.7, 2.2)
"""Width of a panel and height of its plot: where panels stand two by two, and where as many as fit."""
LEFT_INCHES, RIGHT_INCHES, TOP_INCHES, BOTTOM_INCHES = 0.66, 0.12, 0.32, 0.5
LEGEND_ROW_INCHES = 0.19
TICK_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(step / 10 for step in range(10, 100, 5)))
"""Ticks of a logarithmic axis within a decade, from coarse to fine."""
NOTE = {"color": INK, "fontsize": 8.5, "bbox": {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1}}
"""The look of words beside the data."""
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",  # text stays text: sharp, small and searchable
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: file name without suffix, SVG text, and what one sees in it."""

    name: str
    svg: str
    alt: str


@contextmanager
def panel(size: tuple[float, float], legend_rows: int = 0, left: float = LEFT_INCHES) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure with one panel in the style of the report and room below it for `legend_rows`.

    `size` is the width of the figure and the height of the plot, `left` the room left of the plot, in inches. Fixed
    margins in place of a layout engine: panels line up, and drawing takes half the time.
    """
    width, body = size
    bottom = BOTTOM_INCHES + LEGEND_ROW_INCHES * legend_rows
    height = TOP_INCHES + body + bottom
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left / width, bottom / height, 1 - RIGHT_INCHES / width, 1 - TOP_INCHES / height)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes


@cache
def looks() -> dict[str, Look]:
    """Return the look of every kind of model, in the order of the legend."""
    found = {name: load_family(name).look for name in FAMILY_NAMES} | QUANTLM_LOOKS
    return {kind: found[kind] for kind in sorted(found, key=kind_rank)}


def look_of(kind: str) -> Look:
    return looks().get(kind, OTHER_LOOK)


def colour_of(kind: str) -> str:
    return look_of(kind).colour


def marker_of(kind: str) -> str:
    return look_of(kind).marker


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Write the legend under the panel, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=columns, frameon=False,
            handlelength=1.8, markerscale=0.8, borderaxespad=0.0, borderpad=0.1, labelspacing=0.3,
        )  # fmt: skip


def tokens_axis(axes: Axes) -> None:
    """Make the x axis one of tokens seen, and keep the ticks of both axes few."""
    axes.set_xlabel("Tokens seen")
    axes.locator_params(nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: scaled(value) if value else "0")


def log_x_axis(axes: Axes, write: Callable[[float], str]) -> None:
    """Make the x axis logarithmic with a few round ticks, written by `write(value)`."""
    axes.set_xscale("log")
    ticks = round_ticks(*axes.get_xlim())
    axes.set_xticks(ticks, [write(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def round_ticks(low: float, high: float) -> list[float]:
    """Return three or more round values between `low` and `high` for a logarithmic axis, as few as will do."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICK_STEPS:
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def to_drawing(figure: Figure, name: str, alt: str) -> Drawing:
    """Return a figure as SVG: no date, ids that depend on its name only, colours that a dark page may replace."""
    buffer = BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue().decode("utf-8")
    svg = _with_own_ids(text[text.index("<svg") :], name)
    return Drawing(name, _with_variables(svg), alt)


def _with_own_ids(svg: str, name: str) -> str:
    """Return the SVG with `name` before every id and reference, so that several fit in one page."""
    return re.sub(r'(\bid="|url\(#|href="#)', lambda match: f"{match[1]}{name}-", svg)


def _with_variables(svg: str) -> str:
    """Return the SVG with each palette colour as a CSS variable that falls back to the colour itself."""
    variables = {INK: "ink", FAINT: "faint", PAPER: "page"} | {look.colour: kind for kind, look in looks().items()}
    return re.sub("|".join(variables), lambda match: f"var(--{variables[match[0]]}, {match[0]})", svg)
