"""The tables of the report: models, scores and paired gaps, as data frames for CSV and for the page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from openspectra.evaluation.scores import SCORE_COLUMNS
from openspectra.identity import nominal_bits
from openspectra.model_ids import QUANTLM, ModelId
from openspectra.reporting.load import Model, Results, read_curve
from openspectra.reporting.statistics import DocumentLosses, Interval, mean_accuracy

DECIMALS = 6
"""Digits kept of resampled numbers, so that they do not depend on the order of a matrix product's sums."""
MODEL_METRICS = (
    "num_parameters",
    "num_linear_parameters",
    "bits_per_weight",
    "model_size_bits",
    "tokens_seen",
    "valid_loss",
    "num_loss_spikes",
    "num_skipped_steps",
)
SCORE_TABLE = ("model_id", "family", "size", "bits", *SCORE_COLUMNS, "is_main", "num_sets", "spread")
SOURCE_TABLE = ("model_id", "tokens_seen", "source", "valid_loss", "num_tokens")
TRAINING_KEYS = ("tokens_per_step", "steps", "warmup_steps")
BASELINE_KEYS = tuple(f"baseline_{key}" for key in TRAINING_KEYS)
DIFFERENCE = "test_loss_difference"
GAP_TABLE = (
    *("model_id", "baseline_id", "size", DIFFERENCE, f"{DIFFERENCE}_low", f"{DIFFERENCE}_high", "num_documents"),
    *(*TRAINING_KEYS, *BASELINE_KEYS, "missing"),
)
COUNTS = (
    *(
        "num_parameters",
        "num_linear_parameters",
        "tokens_seen",
        "num_tokens",
        "num_samples",
        "num_sets",
        "num_documents",
    ),
    *("num_loss_spikes", "num_skipped_steps"),
    *(*TRAINING_KEYS, *BASELINE_KEYS),
)


@dataclass(frozen=True)
class Gap:
    """The test loss of a model minus that of its baseline, in nats per token; or the reason why there is none."""

    model: Model
    baseline_id: ModelId
    interval: Interval | None
    training: dict[str, int | None]
    """Tokens per step, steps and warm-up steps of the model (for a QuantLM those of the FloatLM it was made from)."""
    baseline_training: dict[str, int | None]
    missing: str | None = None


def model_table(results: Results, losses: DocumentLosses) -> pd.DataFrame:
    """Return one row per model: names, sizes, test loss with its interval, and why anything is missing."""
    table = pd.DataFrame([_model_row(model, losses) for model in results.models])
    means = mean_accuracy(results.scores, results.averaged).set_index("model_id")
    for name in ("value", "stderr"):
        column = "mean_accuracy" if name == "value" else "mean_accuracy_stderr"
        table.insert(len(table.columns) - 1, column, table["model_id"].map(means[name]).round(DECIMALS))
    return table


def score_table(results: Results) -> pd.DataFrame:
    """Return every score in long format, values as lm-eval gave them; `is_main`: whether it stands for its task."""
    ids = results.scores["model_id"].map(ModelId.parse)
    names = {
        "family": [model_id.family for model_id in ids],
        "size": [model_id.size for model_id in ids],
        "bits": [nominal_bits(model_id) for model_id in ids],
        "is_main": results.scores["metric"] == results.scores["task"].map(results.main_metrics),
    }
    return results.scores.assign(**names)[list(SCORE_TABLE)]


def paired_gaps(results: Results, losses: DocumentLosses) -> list[Gap]:
    """Return the gap of every model to the FloatLM of its size and variant, in the order of the models."""
    others = [model for model in results.models if model.id.family != "floatlm"]
    return [gap_between(model, model.id.float_parent, results, losses) for model in others]


def gap_table(gaps: list[Gap], losses: DocumentLosses) -> pd.DataFrame:
    """Return the gaps as one row each, with batch, steps and warm-up of both members."""
    return pd.DataFrame([_gap_row(gap, losses) for gap in gaps], columns=list(GAP_TABLE))


def valid_by_source(results: Results) -> pd.DataFrame:
    """Return the last validation loss of every trained model by source of the tokens, where the split has several."""
    frames = []
    for model in results.models:
        rows = read_curve(model, "valid_sources.csv")
        if rows is not None:
            last = rows[rows["step"] == rows["step"].max()]
            frames.append(last.assign(model_id=str(model.id))[list(SOURCE_TABLE)])
    return pd.concat(frames) if frames else pd.DataFrame(columns=list(SOURCE_TABLE))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with equal bytes for equal content; counts without decimals, missing values empty."""
    counts = {column: table[column].astype("Int64") for column in COUNTS if column in table}
    table.assign(**counts).to_csv(path, index=False, lineterminator="\n")


def missing_loss(model: Model, losses: DocumentLosses) -> str | None:
    """Return why a model has no test loss; None where it has one."""
    name = str(model.id)
    if name in losses.model_ids:
        return None
    if model.missing:
        return "; ".join(model.missing)
    return losses.excluded.get(name, "its evaluation scored no test documents")


def training_of(model: Model, results: Results) -> dict[str, int | None]:
    """Return tokens per step, steps and warm-up steps of a model; of its FloatLM where it was made by quantizing."""
    source = results.by_id.get(str(model.id.float_parent)) if model.id.family == QUANTLM else model
    config = source.config if source else {}
    if "max_steps" not in config:
        return dict.fromkeys(TRAINING_KEYS)
    tokens_per_step = config["global_batch_size"] * config["sequence_length"]
    return {"tokens_per_step": tokens_per_step, "steps": config["max_steps"], "warmup_steps": config["warmup_steps"]}


def _model_row(model: Model, losses: DocumentLosses) -> dict[str, Any]:
    name = str(model.id)
    loss, reason = losses.loss(name), missing_loss(model, losses)
    bits_per_byte = losses.bits_per_byte(name)
    return {
        "model_id": name,
        "family": model.id.family,
        "size": model.id.size,
        "bits": nominal_bits(model.id),
        **{key: model.metric(key) for key in MODEL_METRICS},
        **rounded("test_loss", loss),
        "bits_per_byte": None if bits_per_byte is None else round(bits_per_byte, DECIMALS),
        "missing": reason or "",
    }


def gap_between(model: Model, baseline_id: ModelId, results: Results, losses: DocumentLosses) -> Gap:
    """Return the test loss of a model minus that of another, or why there is none."""
    baseline = results.by_id.get(str(baseline_id))
    missing = _missing_gap(model, baseline, baseline_id, losses)
    return Gap(
        model=model,
        baseline_id=baseline_id,
        interval=None if missing else losses.gap(str(model.id), str(baseline_id)),
        training=training_of(model, results),
        baseline_training=training_of(baseline, results) if baseline else dict.fromkeys(TRAINING_KEYS),
        missing=missing,
    )


def _missing_gap(model: Model, baseline: Model | None, baseline_id: ModelId, losses: DocumentLosses) -> str | None:
    if baseline is None:
        return f"there is no {baseline_id} to compare with"
    own, reason = missing_loss(model, losses), missing_loss(baseline, losses)
    if own or reason:
        return own or f"{baseline_id}: {reason}"
    parent = model.artifact.manifest.parents.get("model") if model.artifact else None
    if model.id.family == QUANTLM and parent and baseline.artifact and parent.sha256 != baseline.artifact.sha256:
        return f"{model.id} was made from another version of {baseline_id}; quantize it again"
    return None


def _gap_row(gap: Gap, losses: DocumentLosses) -> dict[str, Any]:
    return {
        "model_id": str(gap.model.id),
        "baseline_id": str(gap.baseline_id),
        "size": gap.model.id.size,
        **rounded(DIFFERENCE, gap.interval),
        "num_documents": losses.num_documents if gap.interval else None,
        **gap.training,
        **dict(zip(BASELINE_KEYS, gap.baseline_training.values(), strict=True)),
        "missing": gap.missing or "",
    }


def rounded(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return the columns `name`, `name_low` and `name_high` of an interval; without one they are empty."""
    bounds = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    values = [None if bound is None else round(bound, DECIMALS) for bound in bounds]
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
