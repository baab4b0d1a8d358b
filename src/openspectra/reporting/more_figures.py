"""Twins of figures and tables of the paper that no other section has: sizes, speed, stereotypes, schedules, gradients, weights."""

import math

import numpy as np
import pandas as pd

from openspectra.identity import kind_label
from openspectra.reporting import scaling_figures, weights
from openspectra.reporting.drawing import (
    INK,
    PAIR_INCHES,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    log_x_axis,
    panel,
    round_ticks,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.formats import Cell, counted, missing, number_cell, scaled
from openspectra.reporting.load import Model, Results, read_curve
from openspectra.reporting.scaling_figures import Score
from openspectra.reporting.section import FigureGroup, Row, Section, View
from openspectra.reporting.statistics import DocumentLosses, mean_accuracy
from openspectra.reporting.training_figures import thinned

SCHEDULES = {
    None: ("both interventions", "-"),
    "only-lr-drop": ("only the peak drops", "--"),
    "only-decay-stop": ("only decay ends", "-."),
    "none": ("neither", ":"),
}
"""Variants of the paper's ablation: name, and style of the line."""
STEREOTYPES = "pct_stereotype"
SCHEDULE_TABLE = ("model_id", "schedule", "final_train_loss", "valid_loss", "test_loss", "mean_accuracy")
GRADIENT_TABLE = (
    "model_id",
    "median_gradient_norm",
    "largest_gradient_norm",
    "skipped_steps",
    "skipped_tokens",
    "min_loss_scale",
)


def more_section(results: Results, losses: DocumentLosses) -> Section:
    """Return what the study has of these figures; each is left out where it has nothing to show."""
    float_weights = weights.float_weights(results)
    schedules, gradients = schedule_table(results, losses), gradient_table(results)
    parts = [
        *_group("Sizes in bits, and what they mean for speed", SIZES_CAPTION, _size_panels(results), pairs=True),
        *_group("Stereotypes", STEREOTYPES_CAPTION, _stereotype_panels(results), pairs=True),
        *_group("Schedules", SCHEDULES_CAPTION, _schedule_panels(results)),
        *([_schedule_view(results, schedules)] if len(schedules) else []),
        *_group("Gradients", GRADIENTS_CAPTION, _gradient_panels(results)),
        *([_gradient_view(results, gradients)] if len(gradients) else []),
        *_group("Weights of the FloatLMs", WEIGHTS_CAPTION, _weight_panels(float_weights), pairs=True),
    ]
    tables = {
        "schedules.csv": schedules,
        "gradients.csv": gradients,
        "weights.csv": weights.weight_table(float_weights),
    }
    return Section(
        "more",
        "More of the paper's figures",
        "More figures",
        parts=parts,
        tables={name: table for name, table in tables.items() if len(table)},
    )


SIZES_CAPTION = (
    "Left: size by the paper's rule. Right: how much faster than its FloatLM a model decodes where reading the weights is all "
    "that takes time: the ratio of their sizes in bits. No time was measured."
)
STEREOTYPES_CAPTION = (
    "CrowS-Pairs: share of pairs whose more stereotypical sentence is the likelier. Without preference: 50 %."
)
SCHEDULES_CAPTION = (
    "Training loss with and without the two interventions: the peak of the learning rate drops, weight decay ends. The first "
    "tenth may lie above the frame."
)
GRADIENTS_CAPTION = "Norm of the gradient before clipping, of the steps that were recorded; logarithmic."
WEIGHTS_CAPTION = (
    "Left: share of all linear weights in bins of an eighth of their standard deviation, smallest and largest FloatLM; dashed: a "
    "Gaussian. Right: entropy by size: of a Gaussian of the same deviation, and of a histogram of "
    f"{weights.SHANNON_BINS} bins between the smallest and the largest weight."
)


def schedule_table(results: Results, losses: DocumentLosses) -> pd.DataFrame:
    """Return the runs of sizes that were trained with several schedules, in the paper's order; empty where none was."""
    means = mean_accuracy(results.scores, results.averaged).set_index("model_id")["value"]
    rows = []
    for models in _ablations(results).values():
        for model in models:
            loss = losses.loss(str(model.id))
            row = [
                str(model.id),
                SCHEDULES[model.id.variant][0],
                model.metric("final_train_loss"),
                model.metric("valid_loss"),
            ]
            rows.append([*row, loss.value if loss else None, means.get(str(model.id))])
    return pd.DataFrame(rows, columns=list(SCHEDULE_TABLE)).round(6)


def gradient_table(results: Results) -> pd.DataFrame:
    """Return norms of the gradient, skipped steps and loss scales of every training that recorded them."""
    rows = []
    for model in results.study_models:
        curve = read_curve(model, "train.csv") if model.is_trained_here else None
        if curve is not None and "gradient_norm" in curve:
            norms = curve["gradient_norm"].replace([np.inf], np.nan).dropna()
            counts = [model.metric(key) for key in ("num_skipped_steps", "num_skipped_tokens", "min_loss_scale")]
            rows.append([str(model.id), norms.median(), norms.max(), *counts])
    return pd.DataFrame(rows, columns=list(GRADIENT_TABLE)).round(6)


def _group(title: str, caption: str, drawings: list[Drawing], pairs: bool = False) -> list[FigureGroup]:
    return [FigureGroup(title, caption, drawings, pairs)] if drawings else []


def _size_panels(results: Results) -> list[Drawing]:
    points = _points(results, lambda model: model.metric("model_size_bits"))
    if points.empty:
        return []
    own = {
        model.id.size: model.metric("model_size_bits") for model in results.study_models if model.id.family == "floatlm"
    }

    def speed(model: Model) -> float | None:
        bits = model.metric("model_size_bits")
        return own[model.id.size] / bits if bits and own.get(model.id.size) else None

    unit, divisor = ("Gbit", 1e9) if points["value"].max() >= 1e9 else ("Mbit", 1e6)
    columns = {column: points[column] / divisor for column in ("value", "low", "high")}
    panels = [scaling_figures.score_panels(Score("size", "Size", unit, points.assign(**columns)))[0]]
    speeds = _points(results, speed)
    if len(speeds):
        score = Score("speed", "Bound by memory", "Times the speed of FloatLM", speeds)
        panels.append(scaling_figures.score_panels(score)[0])
    return panels


def _stereotype_panels(results: Results) -> list[Drawing]:
    scores = results.scores[results.scores["metric"] == STEREOTYPES].drop_duplicates("model_id")
    values, errors = (100 * scores.set_index("model_id")[column] for column in ("value", "stderr"))
    points = _points(results, lambda model: values.get(str(model.id)))
    if points.empty:
        return []
    half = points["model_id"].map(errors).fillna(0.0).astype(float)
    points = points.assign(low=points["value"] - half, high=points["value"] + half)
    return scaling_figures.score_panels(Score("stereotypes", "CrowS-Pairs", "Stereotypical (%)", points, 50.0))


def _points(results: Results, value) -> pd.DataFrame:
    """Return the points of a `Score` by a function of the model; models without a value are left out."""
    rows = [
        {
            "model_id": str(model.id),
            "kind": model.id.kind,
            "parameters": model.metric("num_parameters"),
            "bits": model.metric("model_size_bits"),
            "is_set": False,
            "value": value(model),
        }
        for model in results.study_models
    ]
    columns = ["model_id", "kind", "parameters", "bits", "is_set", "value"]
    table = pd.DataFrame(rows, columns=columns).dropna(subset=["value", "parameters", "bits"])
    return table.assign(value=table["value"].astype(float), low=table["value"], high=table["value"])


def _ablations(results: Results) -> dict[tuple[str, str], list[Model]]:
    """Return the trained models of each family and size of which there is more than one schedule, in the paper's order."""
    found: dict[tuple[str, str], list[Model]] = {}
    for model in results.models:
        if model.is_trained_here and model.id.variant in SCHEDULES:
            found.setdefault((model.id.family, model.id.size), []).append(model)
    order = list(SCHEDULES)
    return {
        place: sorted(models, key=lambda model: order.index(model.id.variant))
        for place, models in found.items()
        if len(models) > 1
    }


def _schedule_panels(results: Results) -> list[Drawing]:
    drawings = []
    for (family, size), models in _ablations(results).items():
        with panel(PAIR_INCHES, legend_rows=2) as (figure, axes):
            tops = []
            for model in models:
                curve = read_curve(model, "train.csv")
                if curve is not None:
                    curve = thinned(curve.dropna(subset=["train_loss"]))
                    name, style = SCHEDULES[model.id.variant]
                    axes.plot(
                        curve["tokens_seen"], curve["train_loss"], color=colour_of(family), ls=style, lw=1.1, label=name
                    )
                    later = curve[curve["tokens_seen"] >= 0.1 * curve["tokens_seen"].max()]["train_loss"]
                    tops.append(later.max())
            if tops:
                axes.set_ylim(top=1.02 * max(tops))
            axes.set(title=f"{kind_label(family)} {size}", ylabel="Training loss (nats per token)")
            tokens_axis(axes)
            legend_below(figure, axes, columns=2)
            drawings.append(
                to_drawing(figure, f"schedules_{family}_{size}", f"Training loss of {family} {size} by schedule")
            )
    return drawings


def _schedule_view(results: Results, table: pd.DataFrame) -> View:
    columns = [
        ("Schedule", ""), ("Last training loss", "nats/token"), ("Validation loss", "nats/token"),
        ("Test loss", "nats/token"), ("Mean accuracy", "%"),
    ]  # fmt: skip
    rows = []
    for record in table.to_dict("records"):
        model = results.by_id[record["model_id"]]
        numbers = [record[key] for key in ("final_train_loss", "valid_loss", "test_loss")]
        cells = [Cell(record["schedule"]), *(_number(value, ".4f") for value in numbers)]
        accuracy = record["mean_accuracy"]
        cells.append(_number(None if accuracy is None else 100 * accuracy, ".1f"))
        rows.append(Row(record["model_id"], model.id.kind, model.id.size, cells))
    return View(columns, rows, title="Schedules")


def _gradient_panels(results: Results) -> list[Drawing]:
    drawings = []
    for size in results.sizes:
        curves = [
            (model, curve)
            for model in results.study_models
            if model.id.size == size
            and model.is_trained_here
            and (curve := read_curve(model, "train.csv")) is not None
            and "gradient_norm" in curve
        ]
        curves = [(model, thinned(curve[np.isfinite(curve["gradient_norm"])])) for model, curve in curves]
        curves = [(model, curve) for model, curve in curves if (curve["gradient_norm"] > 0).any()]
        if not curves:
            continue
        with panel(SMALL_INCHES, legend_rows=-(-len(curves) // 3)) as (figure, axes):
            for model, curve in curves:
                kind = model.id.kind
                axes.plot(
                    curve["tokens_seen"], curve["gradient_norm"], color=colour_of(kind), lw=0.9, label=kind_label(kind)
                )
            axes.set(title=size, ylabel="Gradient norm")
            tokens_axis(axes)
            axes.set_yscale("log")
            ticks = round_ticks(*axes.get_ylim())
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            legend_below(figure, axes, columns=3)
            drawings.append(to_drawing(figure, f"gradients_{size}", f"Gradient norm of size {size} over tokens seen"))
    return drawings


def _gradient_view(results: Results, table: pd.DataFrame) -> View:
    columns = [("Gradient norm", "median"), ("Gradient norm", "largest"), ("Skipped steps", "not finite")]
    counts = ["skipped_steps"]
    if table["min_loss_scale"].notna().any():
        columns += [("Skipped tokens", ""), ("Loss scale", "smallest")]
        counts += ["skipped_tokens", "min_loss_scale"]
    rows = []
    for record in table.to_dict("records"):
        model = results.by_id[record["model_id"]]
        cells = [_number(record[key], ".3g") for key in ("median_gradient_norm", "largest_gradient_norm")]
        for key in counts:
            value = None if pd.isna(record[key]) else record[key]
            text = "" if value is None else counted(value)
            cells.append(number_cell(value, text, "not recorded: trained without a loss scale"))
        rows.append(Row(record["model_id"], model.id.kind, model.id.size, cells))
    return View(columns, rows, title="Gradients and loss scale", is_folded=len(rows) > 6)


def _weight_panels(found: list[weights.Weights]) -> list[Drawing]:
    if not found:
        return []
    ends = [found[0], found[-1]] if len(found) > 1 else found
    edges = weights.HISTOGRAM_EDGES
    centres = (edges[1:] + edges[:-1]) / 2
    with panel(PAIR_INCHES, legend_rows=1) as (figure, axes):
        for each, style in zip(ends, ("-", "-."), strict=False):
            axes.plot(
                centres, 100 * each.shares, color=colour_of("floatlm"), lw=1.2, ls=style, label=str(each.model.id)
            )
        gaussian = 100 * (edges[1] - edges[0]) * np.exp(-(centres**2) / 2) / math.sqrt(2 * math.pi)
        axes.plot(centres, gaussian, color=INK, lw=0.9, ls=(0, (4, 3)), label="Gaussian")
        axes.set(title="Linear weights", xlabel="Standard deviations", ylabel="Share (%)")
        legend_below(figure, axes, columns=3)
        drawings = [to_drawing(figure, "weights", "Histogram of linear weights beside a Gaussian")]
    if len(found) > 1:
        with panel(PAIR_INCHES, legend_rows=1) as (figure, axes):
            sizes = [each.model.metric("num_parameters") for each in found]
            axes.plot(
                sizes,
                [each.shannon_bits for each in found],
                color=colour_of("floatlm"),
                marker="o",
                ms=5,
                label="Shannon, 256 bins",
            )
            axes.plot(
                sizes, [each.differential_bits for each in found], color=colour_of("floatlm"), marker="s", ms=5, ls="--",
                label="differential, Gaussian",
            )  # fmt: skip
            axes.set(title="Entropy", xlabel="Parameters (log scale)", ylabel="Bits per weight")
            log_x_axis(axes, scaled)
            legend_below(figure, axes, columns=2)
            drawings.append(to_drawing(figure, "entropy", "Entropy of linear weights against parameters"))
    return drawings


def _number(value: float | None, form: str) -> Cell:
    absent = value is None or not math.isfinite(value)
    return missing("not recorded") if absent else Cell(f"{value:{form}}", float(value))
