"""Figures of finished models: scores against parameters and size in bits, and paired differences to FloatLM."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from openspectra.identity import kind_label, kind_rank
from openspectra.reporting.drawing import (
    INK,
    NOTE,
    PAIR_INCHES,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    log_x_axis,
    look_of,
    marker_of,
    panel,
    to_drawing,
)
from openspectra.reporting.formats import scaled, size_unit
from openspectra.reporting.scaling_law import ScalingLaw
from openspectra.reporting.tables import Gap

HOLLOW = ("quantlm-8bit", "quantlm-6bit")
"""Widths that hardly differ from FloatLM: larger and hollow, so that all three can be seen."""
LEGEND_COLUMNS = 3
SET_OFFSET = 0.25
"""Rows above that of their mean at which the differences of single calibration sets stand."""
SET_MARKER_SIZE = 3.5
"""Points; of single calibration sets, beside the mark of their mean."""
GAP_ROW_INCHES, GAP_LEFT_INCHES = 0.27, 1.05


@dataclass(frozen=True)
class Score:
    """A score of every model that has one: the y axis of two panels."""

    name: str
    """Part of the file names."""
    title: str
    label: str
    """What the y axis says, with the unit."""
    points: pd.DataFrame
    """Columns kind, parameters, bits (whole model), value, low, high, is_set (of one calibration set, not their mean); one
    row per model."""
    chance: float | None = None


def score_panels(score: Score) -> list[Drawing]:
    """Return the score against the number of parameters, unless all have the same, and against the size in bits."""
    axes = ["parameters", "bits"] if score.points["parameters"].nunique() > 1 else ["bits"]
    return [_score_panel(score, axis) for axis in axes]


def gap_panels(gaps: list[Gap], sizes: list[str]) -> list[Drawing]:
    """Return the paired differences to FloatLM with their intervals, one panel per size, all on one axis."""
    shown = [gap for gap in gaps if gap.interval and not (gap.model.id.variant or gap.model.id.step is not None)]
    bounds = [value for gap in shown for value in (gap.interval.value, gap.interval.low, gap.interval.high)]
    bounds = [0.0, *(value for value in bounds if value is not None)]
    return [
        _gap_panel(size, rows, min(bounds), max(bounds))
        for size in sizes
        if (rows := [gap for gap in shown if gap.model.id.size == size])
    ]


def law_panel(name: str, title: str, points: pd.DataFrame, laws: dict[str, ScalingLaw], span: tuple) -> Drawing:
    """Return losses of families (columns kind, parameters, value) by parameters, and their laws over `span`."""
    kinds = sorted(laws.keys() | set(points["kind"]), key=kind_rank)
    with panel(PAIR_INCHES, legend_rows=-(-len(kinds) // LEGEND_COLUMNS)) as (figure, axes):
        sizes = np.geomspace(*span, 100)
        for kind in kinds:
            rows, colour = points[points["kind"] == kind], colour_of(kind)
            axes.plot(
                rows["parameters"], rows["value"], color=colour, lw=0, marker=marker_of(kind),
                ms=look_of(kind).marker_size, label=kind_label(kind),
            )  # fmt: skip
            if kind in laws:
                axes.plot(sizes, laws[kind].loss(sizes), color=colour, lw=1.2)
        axes.set(title=title, ylabel="Nats per token", xlabel="Parameters (log scale)")
        axes.locator_params(axis="y", nbins=6)
        log_x_axis(axes, scaled)
        legend_below(figure, axes, LEGEND_COLUMNS)
        return to_drawing(figure, name, f"{title}: loss against parameters, one curve per family")


def _score_panel(score: Score, axis: str) -> Drawing:
    kinds = sorted(score.points["kind"].unique(), key=kind_rank)
    with panel(PAIR_INCHES, legend_rows=-(-len(kinds) // LEGEND_COLUMNS)) as (figure, axes):
        for kind in kinds:
            _draw_kind(axes, kind, score.points[score.points["kind"] == kind].sort_values(axis), axis)
        if score.chance is not None:
            axes.axhline(score.chance, color=INK, lw=0.8, ls=(0, (4, 3)))
            axes.annotate(
                "chance", (1, score.chance), (0, 3), axes.get_yaxis_transform(), "offset points", **NOTE, ha="right"
            )
        axes.set(title=score.title, ylabel=score.label)
        axes.locator_params(axis="y", nbins=6)
        if axis == "parameters":
            axes.set_xlabel("Parameters (log scale)")
            log_x_axis(axes, scaled)
        else:
            unit, divisor = size_unit(score.points["bits"].max())
            axes.set_xlabel(f"Model size ({unit}, log scale)")
            log_x_axis(axes, lambda value: f"{value / divisor:g}")
        legend_below(figure, axes, LEGEND_COLUMNS)
        return to_drawing(figure, f"{score.name}_by_{axis}", f"{score.title} against {axis}, one line per family")


def _draw_kind(axes: Axes, kind: str, points: pd.DataFrame, axis: str) -> None:
    colour, size = colour_of(kind), look_of(kind).marker_size
    sets, rows = points[points["is_set"]], points[~points["is_set"]]
    axes.plot(sets[axis], sets["value"], color=colour, lw=0, marker=".", ms=SET_MARKER_SIZE)
    axes.vlines(rows[axis], rows["low"], rows["high"], color=colour, lw=0.8, alpha=0.4)
    axes.plot(
        rows[axis], rows["value"], color=colour, lw=1.3, marker=marker_of(kind), ms=size, mew=1.2,
        mfc="none" if kind in HOLLOW else colour, zorder=4 - size / 10, label=kind_label(kind),
    )  # fmt: skip


def _gap_panel(size: str, all_gaps: list[Gap], low: float, high: float) -> Drawing:
    gaps = [gap for gap in all_gaps if gap.model.id.calibration is None]
    with panel((SMALL_INCHES[0], GAP_ROW_INCHES * len(gaps)), left=GAP_LEFT_INCHES) as (figure, axes):
        for row, gap in enumerate(reversed(gaps)):
            colour, interval = colour_of(gap.model.id.kind), gap.interval
            if interval.low is not None:
                axes.plot([interval.low, interval.high], [row, row], color=colour, lw=1.6, marker="|", ms=7)
            axes.plot(interval.value, row, color=colour, marker=marker_of(gap.model.id.kind), ms=5)
            sets = [each for each in all_gaps if each not in gaps and each.model.id.kind == gap.model.id.kind]
            values = [each.interval.value for each in sets]
            axes.plot(values, [row + SET_OFFSET] * len(sets), color=colour, lw=0, marker=".", ms=SET_MARKER_SIZE)
        axes.axvline(0, color=INK, lw=0.9)
        axes.set_yticks(range(len(gaps)), [kind_label(gap.model.id.kind) for gap in reversed(gaps)])
        axes.set_ylim(-0.6, len(gaps) - 0.4)
        margin = 0.06 * ((high - low) or 1)
        axes.set_xlim(low - margin, high + margin)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="y")
        axes.set(title=size, xlabel="Difference (nats per token)")
        return to_drawing(figure, f"gaps_{size}", f"Paired differences of test loss to FloatLM at size {size}")
