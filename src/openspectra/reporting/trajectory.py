"""Scores against tokens seen: the weights that trainings keep on their way, evaluated as the models are."""

from dataclasses import replace

import pandas as pd

from openspectra.identity import kind_label
from openspectra.model_ids import QUANTLM
from openspectra.reporting.config import ReportConfig
from openspectra.reporting.drawing import (
    INK,
    NOTE,
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    marker_of,
    panel,
    to_drawing,
    tokens_axis,
)
from openspectra.reporting.formats import score_label
from openspectra.reporting.load import Model, Results
from openspectra.reporting.section import FigureGroup, Section
from openspectra.reporting.statistics import document_losses, main_scores
from openspectra.reporting.tables import DECIMALS

TEST_LOSS = "test loss"
TRAJECTORY_TABLE = ("model_id", "checkpoint_id", "tokens_seen", "measure", "value", "stderr", "low", "high")
MANY_SIZES = 4
"""With more sizes than this the figures show the smallest, the middle and the largest; the table has all."""


def trajectory_section(results: Results, config: ReportConfig) -> Section:
    """Return scores over training; empty where no checkpoint was evaluated."""
    table = trajectory_table(results, config)
    if table.empty:
        return Section("trajectory", "Scores over training", "Over training")
    group = FigureGroup(
        "Scores against tokens seen",
        "Weights that the trainings kept, evaluated as the finished models are; the last point is the model itself. Test loss "
        "with its interval over documents, accuracies with one standard error. Dashed: chance."
        + (" Drawn are the smallest, the middle and the largest size." if len(results.sizes) > MANY_SIZES else ""),
        trajectory_panels(results, table),
    )
    return Section(
        "trajectory",
        "Scores over training",
        "Over training",
        "Every checkpoint was scored on the same documents and items as the model. All points stand in "
        "scores_over_training.csv.",
        parts=[group],
        tables={"scores_over_training.csv": table},
    )


def trajectory_table(results: Results, config: ReportConfig) -> pd.DataFrame:
    """Return one row per point and measure, of models that have an evaluated checkpoint, each with its end."""
    if not results.checkpoints:
        return pd.DataFrame(columns=list(TRAJECTORY_TABLE))
    followed = {str(replace(each.id, step=None)) for each in results.checkpoints}
    ends = [model for model in results.models if str(model.id) in followed and model.evaluations]
    documents = pd.concat([results.documents, results.checkpoint_documents])
    losses = document_losses(documents, config.num_resamples, config.seed)
    scores = pd.concat([results.scores, results.checkpoint_scores])
    main = main_scores(scores, results.main_metrics)
    by_model = {str(name): rows for name, rows in main.groupby("model_id")}
    rows = []
    for model in [*results.checkpoints, *ends]:
        name = str(model.id)
        point = {
            "model_id": str(replace(model.id, step=None)),
            "checkpoint_id": name,
            "tokens_seen": _tokens_seen(model, results),
        }
        if loss := losses.loss(name):
            rows.append(point | {"measure": TEST_LOSS, "value": loss.value, "low": loss.low, "high": loss.high})
        for score in by_model.get(name, main.iloc[:0]).to_dict("records"):
            value, error = score["value"], score["stderr"]
            rows.append(
                point
                | {
                    "measure": score["task"],
                    "value": value,
                    "stderr": error,
                    "low": value - error,
                    "high": value + error,
                }
            )
    table = pd.DataFrame(rows, columns=list(TRAJECTORY_TABLE)).round(DECIMALS)
    table["tokens_seen"] = table["tokens_seen"].astype("Int64")
    return table.sort_values(["model_id", "measure", "tokens_seen"], kind="stable")


def trajectory_panels(results: Results, table: pd.DataFrame) -> list[Drawing]:
    """Return one panel per measure and size, with all kinds of models."""
    sizes = results.sizes
    shown = sizes if len(sizes) <= MANY_SIZES else [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    drawings = []
    for measure in dict.fromkeys([TEST_LOSS, *results.main_metrics]):
        for size in shown:
            models = [
                model for model in results.models if model.id.size == size and str(model.id) in set(table["model_id"])
            ]
            own = table[(table["measure"] == measure) & table["model_id"].isin([str(model.id) for model in models])]
            if len(own):
                drawings.append(_panel(results, measure, size, models, own))
    return drawings


def _panel(results: Results, measure: str, size: str, models: list[Model], table: pd.DataFrame) -> Drawing:
    factor = 1 if measure == TEST_LOSS else 100
    with panel(SMALL_INCHES, legend_rows=-(-len(models) // 2)) as (figure, axes):
        for model in models:
            rows = table[table["model_id"] == str(model.id)]
            colour, tokens = colour_of(model.id.kind), rows["tokens_seen"].astype(float)
            axes.vlines(tokens, factor * rows["low"], factor * rows["high"], color=colour, lw=0.8, alpha=0.4)
            label = kind_label(model.id.kind) + (f" {model.id.variant}" if model.id.variant else "")
            axes.plot(
                tokens, factor * rows["value"], color=colour, lw=1.3, marker=marker_of(model.id.kind), ms=4, label=label
            )
        main = main_scores(results.scores, results.main_metrics)
        chances = main.loc[main["task"] == measure, "chance"].dropna()
        if len(chances):
            axes.axhline(100 * chances.iloc[0], color=INK, lw=0.8, ls=(0, (4, 3)))
            axes.annotate(
                "chance",
                (1, 100 * chances.iloc[0]),
                (0, 3),
                axes.get_yaxis_transform(),
                "offset points",
                **NOTE,
                ha="right",
            )
        label = "Nats per token" if measure == TEST_LOSS else score_label(results.main_metrics[measure])
        axes.set(title=f"{measure[0].upper()}{measure[1:]}, {size}", ylabel=label)
        tokens_axis(axes)
        legend_below(figure, axes, columns=2)
        name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in f"{measure}_{size}")
        return to_drawing(figure, f"over_training_{name}", f"{measure} of size {size} against tokens seen")


def _tokens_seen(model: Model, results: Results) -> float | None:
    """Return the tokens that the weights saw: for a QuantLM those of what it was made from."""
    trained = model.id.float_parent if model.id.family == QUANTLM else model.id
    run = results.by_id.get(str(replace(trained, step=None)))
    if run is None or model.id.step is None:
        return run.metric("tokens_seen") if run else None
    config = run.config
    known = "global_batch_size" in config
    return model.id.step * config["global_batch_size"] * config["sequence_length"] if known else None
