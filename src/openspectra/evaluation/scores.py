"""From lm-eval's results to tables: one row per score, per scored document, per item."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from openspectra.artifacts import write_csv
from openspectra.errors import OpenSpectraError

logger = logging.getLogger(__name__)

SCORE_COLUMNS = ("task", "metric", "filter", "value", "stderr", "num_samples", "chance")
DOCUMENT_COLUMNS = ("task", "document_id", "num_tokens", "num_bytes", "lost_bytes", "log_likelihood")
PER_TEXT = ("bits_per_byte", "byte_perplexity", "word_perplexity")
ITEM_COLUMNS = ("task", "item_id", "document_id", "filter", "doc_hash")
"""Texts; `doc_hash` is lm-eval's SHA-256 of the item. One column of numbers per metric of any task follows, empty where a
task has no such metric, and the log-likelihood of each choice, a list."""

Row = dict[str, Any]


@dataclass
class Scores:
    """Rows of the three tables of one model, in the order the tasks were run. Log-likelihoods are in nats."""

    model_id: str
    scores: list[Row] = field(default_factory=list)
    documents: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)

    def add(self, results: dict[str, Any], tasks: dict[str, Any], lm) -> None:
        """Add the results of one lm-eval run. Raises `OpenSpectraError` where a number is NaN or infinite.

        What is counted per byte or per word of a text is left out where the tokenizer does not give that text back.
        """
        lossy = set()
        for name, samples in results["samples"].items():
            for sample in samples:
                self._require_finite(name, "log-likelihood", _log_likelihoods(sample))
            if tasks[name].OUTPUT_TYPE == "loglikelihood_rolling":
                rows = [_document_row(name, sample, lm) for sample in samples]
                if lost_bytes := sum(row["lost_bytes"] for row in rows):
                    logger.warning(
                        "%s: %d bytes do not come back from their tokens; no bits per byte", name, lost_bytes
                    )
                    lossy.add(name)
                self.documents += rows
            else:
                self.items += [_item_row(name, sample) for sample in samples]
        for name, values in results["results"].items():
            rows = self._score_rows(name, values, results["samples"].get(name, []), tasks.get(name))
            self.scores += [row for row in rows if name not in lossy or row["metric"] not in PER_TEXT]

    def summary(self) -> dict[str, float]:
        """Return every score as `<task>/<metric>`, with the filter where there is one."""
        return {
            "/".join(part for part in (row["task"], row["metric"], row["filter"]) if part != "none"): row["value"]
            for row in self.scores
        }

    def _score_rows(self, name: str, values: dict[str, Any], samples: list[Row], task) -> list[Row]:
        rows = []
        for key, value in values.items():
            metric, _, metric_filter = key.partition(",")
            if not metric_filter or metric.endswith("_stderr") or isinstance(value, str):
                continue
            self._require_finite(name, metric, [value])
            rows.append(
                {
                    "task": name,
                    "metric": metric,
                    "filter": metric_filter,
                    "value": float(value),
                    "stderr": _stderr(
                        task, metric, [sample for sample in samples if sample["filter"] == metric_filter]
                    ),
                    "num_samples": values["sample_len"],
                    "chance": _chance(task, samples) if metric.startswith("acc") else None,
                }
            )
        return rows

    def _require_finite(self, task: str, what: str, values: Iterable[float]) -> None:
        for value in values:
            if not math.isfinite(value):
                raise OpenSpectraError(
                    f"{self.model_id}: {task}: {what} is {value}, so the model computes no numbers; "
                    f"train it anew, or evaluate with dtype float32."
                )


def write_scores(scores: Scores, folder: Path) -> None:
    """Write `scores.csv`, `documents.csv` and `items.parquet`; a table without rows has its columns all the same."""
    write_csv(folder / "scores.csv", SCORE_COLUMNS, scores.scores)
    write_csv(folder / "documents.csv", DOCUMENT_COLUMNS, scores.documents)
    _write_items(scores.items, folder / "items.parquet")


def _write_items(items: list[Row], path: Path) -> None:
    import pyarrow.parquet

    metrics = sorted({key for row in items for key in row} - {*ITEM_COLUMNS, "log_likelihoods"})
    types = dict.fromkeys(ITEM_COLUMNS, pyarrow.string()) | dict.fromkeys(metrics, pyarrow.float64())
    schema = pyarrow.schema(types | {"log_likelihoods": pyarrow.list_(pyarrow.float64())})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items, schema), path, compression="zstd")


def _document_row(name: str, sample: Row, lm) -> Row:
    text = sample["arguments"][0][0]
    ids = lm.tok_encode(text)
    _, num_bytes = sample.get("bits_per_byte") or sample.get("byte_perplexity") or (None, len(text.encode()))
    return {
        "task": name,
        "document_id": sample["doc"].get("document_id", sample["doc_id"]),
        "num_tokens": len(ids),
        "num_bytes": num_bytes,
        "lost_bytes": lm.round_trip.lost_bytes(text, ids),
        "log_likelihood": _log_likelihoods(sample)[0],
    }


def _item_row(name: str, sample: Row) -> Row:
    """Return ids, metrics that are one number per item, and the log-likelihood of each choice.

    The perplexity of a set of items has no value per item: it is exp(-mean of `log_likelihoods`).
    """
    metrics = {key: sample[key] for key in sample["metrics"] if key != "perplexity"}
    return {
        "task": name,
        "item_id": str(sample["doc"].get("item_id", sample["doc_id"])),
        "document_id": str(sample["doc"].get("document_id", sample["doc_id"])),
        "filter": sample["filter"],
        "doc_hash": sample["doc_hash"],
        **{key: float(value) for key, value in metrics.items() if isinstance(value, Real)},
        "log_likelihoods": _log_likelihoods(sample),
    }


def _log_likelihoods(sample: Row) -> list[float]:
    """Return the log-likelihood of every request of an item, in nats; none where text was generated."""
    answers = [answer[0] if isinstance(answer, tuple) else answer for answer in sample["filtered_resps"]]
    return [float(answer) for answer in answers if isinstance(answer, Real)]


def _stderr(task, metric: str, samples: list[Row]) -> float | None:
    """Return the standard error of a mean over items, by lm-eval's formula; None for other aggregations."""
    from lm_eval.api.metrics import mean, mean_stderr

    if not task or len(samples) < 2 or task.aggregation().get(metric) is not mean:
        return None
    return float(mean_stderr([sample[metric] for sample in samples]))


def _chance(task, samples: list[Row]) -> float | None:
    """Return the expected accuracy of guessing: the mean over items of what the item states, or of 1 / choices."""
    if not samples:
        return None
    if all("chance" in sample["doc"] for sample in samples):
        return sum(sample["doc"]["chance"] for sample in samples) / len(samples)
    if task.OUTPUT_TYPE == "multiple_choice":
        return sum(1 / len(task.doc_to_choice(sample["doc"])) for sample in samples) / len(samples)
    return None
