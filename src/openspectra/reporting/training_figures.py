"""Figures of training: losses and gaps between twins over tokens, and validation loss against peak learning rate."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from openspectra.identity import kind_label
from openspectra.model_ids import rate_label
from openspectra.reporting.drawing import (
    INK,
    NOTE,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    log_x_axis,
    marker_of,
    panel,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.load import Model, Results, read_curve
from openspectra.reporting.sweep import Choice, diverged_rows
from openspectra.reporting.twins import Trajectory

MAX_POINTS = 400
"""Points of a curve that are drawn; more would not be seen."""
SKIPPED_START = 0.1
"""Share of the training that may lie outside the frame of a figure."""
LEGEND_COLUMNS = 3
INTERVENTIONS = {"lr_drop_step": "peak drops", "weight_decay_stop_step": "decay ends"}
"""The two interventions of the TriLM schedule, by the key of a training's config."""


def loss_curves(results: Results) -> list[Drawing]:
    """Return training and validation loss over tokens seen, one panel per size with all its families."""
    trained = [model for model in results.study_models if model.is_trained_here]
    return [
        _loss_panel(size, models)
        for size in results.sizes
        if (models := [model for model in trained if model.id.size == size])
    ]


def twin_panels(trajectories: list[Trajectory]) -> list[Drawing]:
    """Return the gap to FloatLM over tokens seen with its interval, one panel per size with all its families."""
    shown = [each for each in trajectories if each.points["gap"].notna().any()]
    sizes = dict.fromkeys(each.model.id.size for each in shown)
    return [_twin_panel(size, [each for each in shown if each.model.id.size == size]) for size in sizes]


def sweep_panels(table: pd.DataFrame, chosen: list[Choice], sizes: list[str]) -> list[Drawing]:
    """Return validation loss against peak learning rate, one panel per size, the chosen rate of each family ringed."""
    found = list(dict.fromkeys(table["size"]))
    ordered = [size for size in sizes if size in found] + [size for size in found if size not in sizes]
    return [
        _sweep_panel(size, table[table["size"] == size], [choice for choice in chosen if choice.size == size])
        for size in ordered
    ]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """Return at most `MAX_POINTS` rows of a curve, evenly spaced, the last always among them."""
    every = math.ceil(len(curve) / MAX_POINTS) or 1
    return curve.iloc[::-1].iloc[::every].iloc[::-1]


def _loss_panel(size: str, models: list[Model]) -> Drawing:
    with panel(SMALL_INCHES, legend_rows=len(models)) as (figure, axes):
        tops = [_draw_loss(axes, model, split) for split in ("train", "valid") for model in models]
        _mark_interventions(axes, models)
        tops = [top for top in tops if math.isfinite(top)]
        if tops:
            axes.set_ylim(top=max(tops) + 0.05 * (max(tops) - axes.get_ylim()[0]))
        axes.set(title=size, ylabel="Loss (nats per token)")
        tokens_axis(axes)
        legend_below(figure, axes, columns=2)
        return to_drawing(
            figure, f"loss_curves_{size}", f"Training and validation loss of size {size} over tokens seen"
        )


def _draw_loss(axes: Axes, model: Model, split: str) -> float:
    """Draw one curve and return its highest loss after the start; NaN where the model has no such curve."""
    curve = read_curve(model, f"{split}.csv")
    column = f"{split}_loss"
    if curve is None or column not in curve or curve[column].isna().all():
        return math.nan
    curve = thinned(curve.dropna(subset=[column]))
    kind = model.id.kind
    look = {"lw": 0.9, "alpha": 0.55} if split == "train" else {"lw": 1.5, "marker": marker_of(kind), "ms": 4}
    axes.plot(curve["tokens_seen"], curve[column], color=colour_of(kind), label=f"{kind_label(kind)}, {split}", **look)
    if split == "train":
        _mark_spikes(axes, model, curve)
    return float(_after_start(curve)[column].max())


def _mark_interventions(axes: Axes, models: list[Model]) -> None:
    """Draw a line where the peak of the learning rate drops, and where weight decay ends, in any of the models."""
    marks = {}
    for model in models:
        tokens_per_step = model.config["global_batch_size"] * model.config["sequence_length"]
        for key, text in INTERVENTIONS.items():
            if model.config.get(key) is not None:
                marks[model.config[key] * tokens_per_step, text] = colour_of(model.id.kind)
    for (tokens, text), colour in sorted(marks.items()):
        axes.axvline(tokens, color=colour, lw=0.8, ls=(0, (2, 2)), zorder=1)
        axes.annotate(
            text, (tokens, 1), (-3, -3), axes.get_xaxis_transform(), "offset points", ha="right", va="top", rotation=90,
            **NOTE | {"fontsize": 7.5, "zorder": 1},
        )  # fmt: skip


def _mark_spikes(axes: Axes, model: Model, curve: pd.DataFrame) -> None:
    """Put a cross on the drawn curve of the training loss at every loss spike."""
    spikes = read_curve(model, "spikes.csv")
    if spikes is not None:
        losses = np.interp(spikes["tokens_seen"], curve["tokens_seen"], curve["train_loss"])
        axes.plot(
            spikes["tokens_seen"],
            losses,
            color=colour_of(model.id.kind),
            marker="x",
            ms=7,
            mew=1.8,
            ls="none",
            zorder=4,
        )


def _twin_panel(size: str, trajectories: list[Trajectory]) -> Drawing:
    with panel(SMALL_INCHES, legend_rows=-(-len(trajectories) // LEGEND_COLUMNS)) as (figure, axes):
        for each in trajectories:
            points, colour = each.points, colour_of(each.model.id.kind)
            axes.fill_between(
                points["tokens_seen"], points["low"].astype(float), points["high"].astype(float), color=colour,
                alpha=0.25, lw=0,
            )  # fmt: skip
            axes.plot(
                points["tokens_seen"], points["gap"], color=colour, lw=1.5, marker=marker_of(each.model.id.kind), ms=4,
                label=kind_label(each.model.id.kind),
            )  # fmt: skip
        later = pd.concat([_after_start(each.points) for each in trajectories])[["gap", "low", "high"]].astype(float)
        low, high = min(0.0, later.min(axis=None)), max(0.0, later.max(axis=None))
        margin = 0.06 * ((high - low) or 1)
        axes.set_ylim(low - margin, high + margin)
        axes.axhline(0, color=INK, lw=0.9)
        axes.set(title=size, ylabel="Difference (nats per token)")
        tokens_axis(axes)
        legend_below(figure, axes, LEGEND_COLUMNS)
        return to_drawing(figure, f"gap_over_training_{size}", f"Gap of size {size} to its FloatLM over tokens seen")


def _after_start(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that the frame of a figure must hold."""
    return curve[curve["tokens_seen"] >= SKIPPED_START * curve["tokens_seen"].max()]


def _sweep_panel(size: str, table: pd.DataFrame, chosen: list[Choice]) -> Drawing:
    diverged = diverged_rows(table)
    num_entries = table[~diverged]["family"].nunique() + table[diverged]["family"].nunique()
    with panel(SMALL_INCHES, legend_rows=-(-num_entries // 2)) as (figure, axes):
        for family, rows in table[~diverged].groupby("family", sort=True):
            axes.plot(
                rows["peak_lr"], rows["valid_loss"], color=colour_of(family), lw=1.3, marker=marker_of(family), ms=5,
                label=kind_label(family),
            )  # fmt: skip
        log_x_axis(axes, rate_label)
        axes.margins(x=0.08, y=0.18)
        axes.set_ylim(axes.get_ylim())
        for choice in chosen:
            if math.isfinite(choice.valid_loss):
                _ring(axes, choice)
        for family, rows in table[diverged].groupby("family", sort=True):
            axes.plot(
                rows["peak_lr"], [0.97] * len(rows), transform=axes.get_xaxis_transform(), color=colour_of(family),
                marker="x", mew=1.6, ls="none", label=f"{kind_label(family)}, diverged",
            )  # fmt: skip
        axes.set(title=size, xlabel="Peak learning rate (log scale)", ylabel="Validation loss (nats per token)")
        legend_below(figure, axes, columns=2)
        return to_drawing(figure, f"sweep_{size}", f"Validation loss against peak learning rate at size {size}")


def _ring(axes: Axes, choice: Choice) -> None:
    """Mark the chosen rate and write it below, with a word where it lies at an edge of the grid."""
    axes.plot(choice.peak_lr, choice.valid_loss, marker="o", ms=12, mfc="none", mec=colour_of(choice.family), mew=1.6)
    text = rate_label(choice.peak_lr) + (", edge of the grid" if choice.edge in ("lowest", "highest") else "")
    position = axes.transLimits.transform((math.log10(choice.peak_lr), 0))[0]
    axes.annotate(
        text, (choice.peak_lr, choice.valid_loss), (0, -17), textcoords="offset points",
        ha="left" if position < 0.25 else "right" if position > 0.75 else "center", **NOTE,
    )  # fmt: skip
