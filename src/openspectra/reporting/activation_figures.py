"""Figures of low-bit activations: loss by their bits, and their learned scales over training."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes

from openspectra.identity import kind_label
from openspectra.model_ids import ModelId
from openspectra.reporting.drawing import (
    INK,
    PAIR_INCHES,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    marker_of,
    panel,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.statistics import DocumentLosses, Interval

if TYPE_CHECKING:
    from openspectra.reporting.activations import Parts

STEP = 0.09
"""Distance of marks that stand side by side, in units of a width's place."""
LEGEND_COLUMNS = 3
ATTENTION_STYLES = {"query": "-", "key": "--", "value": "-.", "probabilities": ":"}
INPUT_STYLES = {"qkv": "-", "out": "--", "gate_up": "-.", "down": ":"}


def loss_panels(found: "Sequence[Parts]", losses: DocumentLosses, sizes: list[str]) -> list[Drawing]:
    """Return for each size the test loss against the bits of the activations, and the same minus FloatLM."""
    drawings = []
    for size in sizes:
        rows = [each for each in found if each.model.id.size == size and losses.loss(str(each.model.id))]
        if rows:
            drawings.append(_loss_panel(size, rows, lambda each: losses.loss(str(each.model.id)), "Test loss"))
            drawings.append(_loss_panel(size, rows, _minus_floatlm, "Minus FloatLM"))
    return drawings


def scale_panel(model_id: ModelId, table: pd.DataFrame) -> Drawing:
    """Return the scales of one model over training, one line per place."""
    colour = colour_of(model_id.kind)
    looks = {place: {"color": INK, "ls": style} for place, style in INPUT_STYLES.items()}
    looks |= {place: {"color": colour, "ls": style} for place, style in ATTENTION_STYLES.items()}
    looks = {place: look for place, look in looks.items() if place in set(table["place"])}
    with panel(SMALL_INCHES, legend_rows=-(-len(looks) // LEGEND_COLUMNS)) as (figure, axes):
        for place, look in looks.items():
            rows = table[table["place"] == place].sort_values("tokens_seen")
            axes.plot(rows["tokens_seen"], rows["scale"] / rows["scale"].iloc[0], lw=1.4, label=place, **look)
        title = f"{kind_label(model_id.kind)} {model_id.size}" + (f", {model_id.variant}" if model_id.variant else "")
        axes.set(title=title, ylabel="Scale / first scale")
        tokens_axis(axes)
        legend_below(figure, axes, LEGEND_COLUMNS)
        name = f"activation_scales_{model_id.kind}" + (f"_{model_id.variant}" if model_id.variant else "")
        return to_drawing(figure, name, f"Learned scales of the activations of {title} over training")


def _minus_floatlm(each: "Parts") -> Interval | None:
    return Interval(0.0, None, None) if each.to_floatlm is None else each.to_floatlm.interval


def _loss_panel(
    size: str, rows: "Sequence[Parts]", value_of: Callable[["Parts"], Interval | None], title: str
) -> Drawing:
    series = _series(rows)
    places = {bits: place for place, bits in enumerate(sorted({each.activation_bits for each in rows}))}
    with panel(PAIR_INCHES, legend_rows=-(-len(series) // LEGEND_COLUMNS)) as (figure, axes):
        for number, (label, members) in enumerate(series.items()):
            shift = STEP * (number - (len(series) - 1) / 2)
            points = [(places[each.activation_bits] + shift, each, value_of(each)) for each in members]
            _draw(axes, label, [point for point in points if point[2]])
        axes.set_xticks(range(len(places)), [str(bits) for bits in places])
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.set(title=f"{title}, {size}", xlabel="Bits of the activations", ylabel="Nats per token")
        axes.locator_params(axis="y", nbins=6)
        axes.grid(visible=False, axis="x")
        legend_below(figure, axes, LEGEND_COLUMNS)
        name = "loss" if title == "Test loss" else "difference"
        return to_drawing(
            figure, f"activations_{name}_{size}", f"{title} of size {size} against bits of the activations"
        )


def _series(rows: "Sequence[Parts]") -> dict[str, "list[Parts]"]:
    """Return what is joined by a line: the families of one width of weights; every other family is a mark alone."""
    found: dict[str, list[Parts]] = {}
    for each in rows:
        label = f"TBT W{each.tbt_width}" if each.tbt_width else kind_label(each.model.id.kind)
        found.setdefault(label + f", {each.model.id.variant}" * bool(each.model.id.variant), []).append(each)
    return {label: sorted(members, key=lambda each: each.activation_bits) for label, members in found.items()}


def _draw(axes: Axes, label: str, points: list[tuple[float, "Parts", Interval]]) -> None:
    if not points:
        return
    first = points[0][1].model.id
    colour, look = colour_of(first.kind), {"ls": "--", "mfc": "none"} if first.variant else {"ls": "-"}
    places, values = [place for place, _, _ in points], [interval.value for _, _, interval in points]
    bounds = [(place, each) for place, _, each in points if each.low is not None]
    axes.vlines(
        [place for place, _ in bounds], [each.low for _, each in bounds], [each.high for _, each in bounds],
        color=colour, lw=1.0, alpha=0.5,
    )  # fmt: skip
    axes.plot(places, values, color=colour, lw=1.3, marker=marker_of(first.kind), ms=6, mew=1.2, label=label, **look)
