"""Where the numbers come from: recipes, assumptions, lineage of artifacts, commits."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from openspectra.artifacts import Artifact
from openspectra.assumptions import Assumption
from openspectra.identity import artifact_id, kind_label, kind_rank, run_facts_of
from openspectra.model_ids import QUANTLM, rate_label
from openspectra.reporting.formats import counted
from openspectra.reporting.load import Model, Results

SHORT_HASH = 12
"""Digits of a manifest's sha256 that the page shows."""
TRAINING_SETTINGS = {
    "schedule": "Schedule",
    "peak_lr": "Peak learning rate",
    "min_lr": "Last learning rate (cosine)",
    "lr_drop_step": "Step of the peak drop",
    "peak_lr_after_drop": "Peak after the drop",
    "weight_decay": "Weight decay",
    "weight_decay_stop_step": "Step that ends weight decay",
    "tokens_per_step": "Batch (tokens per step)",
    "max_steps": "Steps",
    "warmup_steps": "Warm-up steps",
    "tokens": "Tokens seen",
    "sequence_length": "Sequence length (tokens)",
    "adam_betas": "Adam betas",
    "gradient_clip_norm": "Gradient clipping (norm)",
    "precision": "Precision",
    "quantized_embedding": "Quantized embedding",
    "seed": "Seed",
}
"""Rows of the table of recipes, with their units."""
TEACHER = "Teacher of the distilled variant"
RATES = ("peak_lr", "min_lr", "peak_lr_after_drop")
QUANTIZATION_SETTINGS = {
    "bits": "Bits",
    "group_size": "Group size (weights)",
    "damp_percent": "Damping",
    "num_calibration_samples": "Calibration samples",
    "calibration_sequence_length": "Calibration length (tokens)",
    "seed": "Seed of the calibration draw",
}
"""Rows of the table of quantizations, with their units."""


@dataclass(frozen=True)
class AssumptionList:
    """The choices of ours where the paper is silent."""

    macro: ClassVar = "assumptions"
    rows: list[Assumption]


@dataclass(frozen=True)
class LineageRow:
    """One artifact and the artifacts it was made from."""

    id: str
    stage: str
    short_hash: str
    parents: list[tuple[str, str, str | None]]
    """Role, name and short hash of each parent; the hash is None where the parent was not given to the report."""


@dataclass(frozen=True)
class LineageTable:
    """All artifacts, parents before children."""

    macro: ClassVar = "lineage"
    rows: list[LineageRow]


@dataclass(frozen=True)
class SettingsTable:
    """Settings by kind of model: one column per kind, one row (name, values) per setting; an empty value has none."""

    macro: ClassVar = "settings"
    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def lineage(artifacts: list[Artifact]) -> list[LineageRow]:
    """Return one row per artifact, parents before children."""
    names = {artifact.sha256: artifact_id(artifact) for artifact in artifacts}
    return [
        LineageRow(
            id=names[artifact.sha256],
            stage=artifact.manifest.stage,
            short_hash=artifact.sha256[:SHORT_HASH],
            parents=[
                (role, names.get(parent.sha256, parent.sha256[:SHORT_HASH]), _short(parent.sha256, names))
                for role, parent in artifact.manifest.parents.items()
            ],
        )
        for artifact in artifacts
    ]


def commits(artifacts: list[Artifact]) -> list[str]:
    """Return the distinct commits that the artifacts were built by, `unknown` where a run kept none."""
    return sorted({str(run_facts_of(artifact).get("commit") or "unknown") for artifact in artifacts})


def settings(results: Results) -> list[SettingsTable]:
    """Return the recipes of the trained families and the settings of the quantizations, each where there are any."""
    made = [model for model in (results.models if results.is_sweep else results.study_models) if model.artifact]
    trained = [model for model in made if model.id.family != QUANTLM]
    quantized = [model for model in made if model.id.family == QUANTLM]
    tables = [
        _with_teachers(_settings("Training", trained, TRAINING_SETTINGS), results.models),
        _settings("Quantization (GPTQ)", quantized, QUANTIZATION_SETTINGS),
    ]
    return [table for table in tables if table.columns and table.rows]


def _settings(title: str, models: list[Model], names: dict[str, str]) -> SettingsTable:
    by_kind: dict[str, list[Model]] = {}
    for model in models:
        by_kind.setdefault(model.id.kind, []).append(model)
    kinds = sorted(by_kind, key=kind_rank)
    rows = [(name, [_by_model(by_kind[kind], key) for kind in kinds]) for key, name in names.items()]
    return SettingsTable(title, [kind_label(kind) for kind in kinds], [row for row in rows if any(row[1])])


def _with_teachers(table: SettingsTable, models: list[Model]) -> SettingsTable:
    """Return the table of recipes with a row more where models of it were distilled."""
    taught = [model for model in models if model.config.get("distillation") and model.id == model.id.first_seed]
    if not taught:
        return table
    texts = {
        kind_label(kind): _by_model([model for model in taught if model.id.kind == kind], "distillation")
        for kind in dict.fromkeys(model.id.kind for model in taught)
    }
    return replace(table, rows=[*table.rows, (TEACHER, [texts.get(column, "") for column in table.columns])])


def _by_model(models: list[Model], key: str) -> str:
    """Return the value of `key`: one where all models agree, else one by size, or all of a size that has several."""
    values: dict[str, list[str]] = {}
    for model in models:
        values.setdefault(model.id.size, []).append(_text(key, _setting(model.config, key)))
    texts = {size: ", ".join(dict.fromkeys(found)) for size, found in values.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{size}: {text}" for size, text in texts.items())


def _setting(config: dict[str, Any], key: str) -> Any:
    if key == "tokens_per_step" and "global_batch_size" in config:
        return config["global_batch_size"] * config["sequence_length"]
    if key == "tokens" and "max_steps" in config:
        return config["max_steps"] * config["global_batch_size"] * config["sequence_length"]
    if key == "distillation":
        section = config["distillation"]
        return section["teacher"] + (", hidden states too" if section["hidden_states"] else "")
    if key == "quantized_embedding" and "shape" in config:
        return "yes" if config["shape"].get(key) else None
    if key == "group_size" and config.get(key) == -1:
        return "whole row"
    return config.get(key)


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in RATES and value:
        return rate_label(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return counted(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(sha256: str, names: dict[str, str]) -> str | None:
    return sha256[:SHORT_HASH] if sha256 in names else None
