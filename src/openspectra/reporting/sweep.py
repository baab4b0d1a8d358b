"""Sweeps of peak learning rates: the table a sweep study writes, and what it says of each family and size.

Everything here is from the valid split; a sweep never reads the test split.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from openspectra.artifacts import Artifact
from openspectra.errors import OpenSpectraError
from openspectra.model_ids import ModelId, rate_label
from openspectra.reporting.load import read_table

SWEEP_COLUMNS = (
    "family",
    "size",
    "peak_lr",
    "valid_loss",
    "steps",
    "tokens_per_step",
    "tokens_seen",
    "diverged",
)
READ_COLUMNS = ("family", "size", "peak_lr", "valid_loss")
TEXT_COLUMNS = ("family", "size", "diverged", "date", "machine")


@dataclass(frozen=True)
class Choice:
    """The rate with the lowest validation loss of one family at one size."""

    family: str
    size: str
    peak_lr: float
    valid_loss: float
    """Nats per token."""
    num_rates: int
    num_diverged: int
    edge: Literal["lowest", "highest", "only"] | None
    """`lowest` or `highest` where the choice lies at that edge of the grid (`only`: the grid is one rate)."""


def sweep_table(artifacts: list[Artifact]) -> pd.DataFrame:
    """Return one row per trained rate, sorted. Reads pretraining artifacts only.

    A run without a finite validation loss, or none below the uniform guess ln(vocab_size), counts as diverged; a loss
    that is no number is `inf`, so that it is never chosen.
    """
    rows = [_sweep_row(artifact) for artifact in artifacts if artifact.manifest.stage == "pretrain"]
    table = pd.DataFrame(rows, columns=list(SWEEP_COLUMNS))
    return table.sort_values(["family", "size", "peak_lr"], kind="stable", ignore_index=True)


def read_rates(path: Path) -> pd.DataFrame:
    """Return a table of rates, sorted by family, size and rate; a loss that is no number is `inf`.

    Raises `OpenSpectraError` where a rate is no number.
    """
    table = read_table(path, READ_COLUMNS, TEXT_COLUMNS)
    if table["peak_lr"].isna().any():
        raise OpenSpectraError(f"{path}: peak_lr: every row needs a number; write the table anew with the sweep study.")
    table["valid_loss"] = table["valid_loss"].fillna(math.inf)
    return table.sort_values(["family", "size", "peak_lr"], kind="stable", ignore_index=True)


def remarks(path: Path) -> list[str]:
    """Return what a table of rates says of its own making: its comment lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.lstrip("# ") for line in lines if line.startswith("#")]


def choices(table: pd.DataFrame) -> list[Choice]:
    """Return the lowest validation loss of each family and size; the lower rate where two are equal."""
    return [
        _choice(str(family), str(size), rows) for (family, size), rows in table.groupby(["family", "size"], sort=True)
    ]


def diverged_rows(table: pd.DataFrame) -> pd.Series:
    """Return which rows diverged: those marked so, and those whose loss is no number."""
    marked = table["diverged"].astype(str).str.lower() == "true" if "diverged" in table else False
    return (table["valid_loss"] == math.inf) | marked


def budget(table: pd.DataFrame) -> str | None:
    """Return in words whether all runs had the same budget of tokens; None where the table does not say."""
    if "steps" not in table or "tokens_per_step" not in table:
        return None
    tokens = (table["steps"] * table["tokens_per_step"]).dropna()
    if tokens.nunique() == 1:
        return f"Every run had the same budget of {tokens.iloc[0]:,.0f} tokens."
    return (
        f"Budgets differ, from {tokens.min():,.0f} to {tokens.max():,.0f} tokens: compare rates within one budget only."
    )


def departures(table: pd.DataFrame, trained: dict[ModelId, float]) -> Iterator[str]:
    """Yield a sentence for every model that was trained at another peak rate than the sweep chose for it."""
    chosen = {(choice.family, choice.size): choice.peak_lr for choice in choices(table)}
    for model_id, rate in trained.items():
        best = chosen.get((model_id.family, model_id.size))
        if best is None:
            yield f"{model_id} was trained at {rate_label(rate)}; the sweep has no row for it."
        elif not math.isclose(best, rate, rel_tol=1e-6):
            yield f"{model_id} was trained at {rate_label(rate)}, not at {rate_label(best)}, the rate that the sweep chooses."


def _sweep_row(artifact: Artifact) -> dict[str, Any]:
    config, metrics = artifact.manifest.config, artifact.manifest.metrics
    model_id = ModelId.parse(config["model_id"])
    loss = metrics.get("valid_loss")
    loss = float(loss) if loss is not None and math.isfinite(loss) else math.inf
    return {
        "family": model_id.family,
        "size": model_id.size,
        "peak_lr": config["peak_lr"],
        "valid_loss": loss,
        "steps": config["max_steps"],
        "tokens_per_step": config["global_batch_size"] * config["sequence_length"],
        "tokens_seen": metrics.get("tokens_seen"),
        "diverged": loss >= math.log(config["shape"]["vocab_size"]),
    }


def _choice(family: str, size: str, rows: pd.DataFrame) -> Choice:
    rows = rows.sort_values("peak_lr", kind="stable")
    best = rows.loc[rows["valid_loss"].idxmin()]
    edges = {rows["peak_lr"].min(): "lowest", rows["peak_lr"].max(): "highest"}
    return Choice(
        family=family,
        size=size,
        peak_lr=float(best["peak_lr"]),
        valid_loss=float(best["valid_loss"]),
        num_rates=len(rows),
        num_diverged=int(diverged_rows(rows).sum()),
        edge=edges.get(best["peak_lr"]) if len(rows) > 1 else "only",
    )
