"""Means over the matrices of a model, from rows by step and matrix. Imports nothing heavy: report and tracking use it too."""

from collections.abc import Iterable, Mapping
from typing import Any

MEANS = ("sparsity", "flip_rate", "scale")


def means_by_step(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Return step, tokens_seen and `MEANS` of each step of a `ternary.csv`, every matrix counted by its weights.

    The first measurement has none before it, so its flip rate is None.
    """
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(int(row["step"]), []).append(row)
    first = min(by_step, default=None)
    return [
        {
            "step": step,
            "tokens_seen": int(by_step[step][0]["tokens_seen"]),
            **{key: _mean(by_step[step], key) for key in MEANS},
            **({"flip_rate": None} if step == first else {}),
        }
        for step in sorted(by_step)
    ]


def _mean(rows: list[Mapping[str, Any]], key: str) -> float:
    weights = [int(row["num_weights"]) for row in rows]
    return sum(float(row[key]) * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)
