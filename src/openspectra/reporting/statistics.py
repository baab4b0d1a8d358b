"""Intervals by resampling test documents or validation sequences (never tokens, which are not independent).

Legend: D documents or sequences, M models, K columns, R resamples. All models share each resample, so that differences
are paired.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

LEVEL = 0.95
"""Share of the resamples that an interval holds, the tails being equal."""
LEVEL_TEXT = f"{100 * LEVEL:g}\u00a0%"
CHUNK_ENTRIES = 10_000_000
"""Counts held in memory at a time; the draws are the same for every chunk size."""
NATS_PER_BIT = float(np.log(2))


@dataclass(frozen=True)
class Interval:
    """An estimate from all documents, and the bounds from resampling them (None with fewer than two documents)."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and (self.low > 0 or self.high < 0)


DOCUMENT = ("num_tokens", "num_bytes", "lost_bytes")
"""What tells, beside its name, that two models scored the same document."""


@dataclass(frozen=True)
class DocumentLosses:
    """Test loss of every model on the same documents, with the resamples they share."""

    model_ids: list[str]
    losses_M: np.ndarray
    """Nats per token over all documents."""
    resampled_RM: np.ndarray | None
    bits_per_byte_M: np.ndarray | None
    """None where the tokenizer does not give every document back: these bytes were never scored."""
    num_documents: int
    num_tokens: int
    excluded: dict[str, str]
    """Models that are not in the comparison, each with the reason."""

    def loss(self, model_id: str) -> Interval | None:
        """Return the test loss in nats per token; None where the model has none."""
        if model_id not in self.model_ids:
            return None
        column = self.model_ids.index(model_id)
        return _interval(self.losses_M[column], None if self.resampled_RM is None else self.resampled_RM[:, column])

    def bits_per_byte(self, model_id: str) -> float | None:
        """Return the bits the model needs per byte of test text; None where the model has none, or nobody can."""
        if self.bits_per_byte_M is None:
            return None
        return float(self.bits_per_byte_M[self.model_ids.index(model_id)]) if model_id in self.model_ids else None

    def gap(self, model_id: str, baseline_id: str) -> Interval | None:
        """Return the loss of a model minus that of its baseline, resampled in pairs; None where one is absent."""
        if model_id not in self.model_ids or baseline_id not in self.model_ids:
            return None
        first, second = self.model_ids.index(model_id), self.model_ids.index(baseline_id)
        pairs = None if self.resampled_RM is None else self.resampled_RM[:, first] - self.resampled_RM[:, second]
        return _interval(self.losses_M[first] - self.losses_M[second], pairs)


def document_losses(documents: pd.DataFrame, num_resamples: int, seed: int) -> DocumentLosses:
    """Return the test losses of all models of `documents` (columns of `documents.csv` and model_id).

    The documents that most models were scored on are the reference; a model scored on others, or cut into other
    tokens, is excluded with the reason, because its loss would not be comparable. So is one with a loss that is no number.
    """
    scored = documents.replace([np.inf, -np.inf], np.nan).dropna(subset=["log_likelihood", *DOCUMENT])
    by_model = {
        str(model_id): rows.set_index(["task", "document_id", *DOCUMENT])["log_likelihood"].sort_index()
        for model_id, rows in scored.groupby("model_id", sort=True)
    }
    if not by_model:
        return DocumentLosses([], np.empty(0), None, np.empty(0), 0, 0, {})
    groups: dict[tuple, list[str]] = {}
    for model_id, log_likelihoods in by_model.items():
        groups.setdefault(tuple(log_likelihoods.index), []).append(model_id)
    reference = max(groups, key=lambda index: len(groups[index]))
    excluded = {
        model_id: "scored on other test documents than most models"
        for index, model_ids in groups.items()
        if index != reference
        for model_id in model_ids
    }
    model_ids = groups[reference]
    tokens_D, bytes_D, lost_D = np.array([key[2:] for key in reference], dtype=np.float64).T
    nats_DM = -np.stack([by_model[model_id].to_numpy(dtype=np.float64) for model_id in model_ids], axis=1)
    resampled_RM = None
    if len(tokens_D) > 1:
        totals = resample_totals(np.column_stack([nats_DM, tokens_D]), num_resamples, seed)
        resampled_RM = totals[:, :-1] / totals[:, -1:]
    return DocumentLosses(
        model_ids=model_ids,
        losses_M=nats_DM.sum(axis=0) / tokens_D.sum(),
        resampled_RM=resampled_RM,
        bits_per_byte_M=None if lost_D.any() else nats_DM.sum(axis=0) / NATS_PER_BIT / bytes_D.sum(),
        num_documents=len(tokens_D),
        num_tokens=int(tokens_D.sum()),
        excluded=excluded,
    )


def resample_totals(values_DK: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Return the column sums [R, K] of `values_DK` over documents drawn with replacement, D per resample."""
    num_documents = len(values_DK)
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ENTRIES // num_documents)
    shares = np.full(num_documents, 1 / num_documents)
    sizes = [min(chunk, num_resamples - start) for start in range(0, num_resamples, chunk)]
    return np.concatenate([generator.multinomial(num_documents, shares, size) @ values_DK for size in sizes])


def mean_intervals(values_DK: np.ndarray, num_resamples: int, seed: int) -> list[Interval]:
    """Return the mean of each column with its interval; every column shares the draws of rows."""
    num_rows = len(values_DK)
    means_RK = resample_totals(values_DK, num_resamples, seed) / num_rows if num_rows > 1 else None
    return [
        _interval(mean, None if means_RK is None else means_RK[:, column])
        for column, mean in enumerate(values_DK.mean(axis=0))
    ]


def mean_accuracy(scores: pd.DataFrame, main_metrics: dict[str, str]) -> pd.DataFrame:
    """Return mean accuracy over the tasks by model: columns model_id, value, stderr; only models that have every task.

    The standard error treats the tasks as independent draws of items.
    """
    main = main_scores(scores, main_metrics)
    groups = main.groupby("model_id", sort=True)
    table = groups.agg(
        value=("value", "mean"),
        stderr=("stderr", lambda errors: np.sqrt((errors.to_numpy() ** 2).sum()) / len(errors)),
        num_tasks=("value", "count"),
    )
    return table[table["num_tasks"] == len(main_metrics)].drop(columns="num_tasks").reset_index()


def main_scores(scores: pd.DataFrame, main_metrics: dict[str, str]) -> pd.DataFrame:
    """Return one row per model and accuracy task: the metric that stands for the task."""
    main = scores[scores["metric"] == scores["task"].map(main_metrics)]
    return main.drop_duplicates(["model_id", "task"])


def _interval(value: float, resampled_R: np.ndarray | None) -> Interval:
    if resampled_R is None:
        return Interval(float(value), None, None)
    low, high = np.quantile(resampled_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
