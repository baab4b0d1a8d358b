"""QuantLMs of several calibration sets: the id without `-c<k>` stands for the mean over the sets (paper, QuantLM).

The artifact of that id is the first set; where there are others, its own scores stand under `-c0`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from openspectra.evaluation.scores import DOCUMENT_COLUMNS
from openspectra.model_ids import ModelId

if TYPE_CHECKING:
    from openspectra.reporting.load import Model

SCORE_KEYS = ("model_id", "task", "metric", "filter")
DOCUMENT_KEYS = ("model_id", *(column for column in DOCUMENT_COLUMNS if column != "log_likelihood"))


def with_set_means(
    models: list["Model"], scores: pd.DataFrame, documents: pd.DataFrame
) -> tuple[list["Model"], pd.DataFrame, pd.DataFrame]:
    """Return models, scores and scored documents with the mean of each family of sets under the id without `-c`.

    Scores gain `num_sets` and `spread`, the standard deviation between sets; the standard error of a mean holds that of
    the items, which are common to all sets, and that of the sets. A score that any set lacks has no mean.
    """
    scores = scores.assign(num_sets=1, spread=np.nan)
    names = names_of_sets(models)
    if not names:
        return models, scores, documents
    first = {name: sets[0] for name, sets in names.items()}
    scores, documents = (table.assign(model_id=table["model_id"].replace(first)) for table in (scores, documents))
    return (
        [each for model in models for each in _split(model, models, names)],
        pd.concat([scores, _mean_scores(scores, names)], ignore_index=True),
        pd.concat([documents, _mean_documents(documents, names)], ignore_index=True),
    )


def names_of_sets(models: list["Model"]) -> dict[str, list[str]]:
    """Return the ids of the sets, the first as `-c0`, by the id that stands for their mean; of several sets only."""
    sets: dict[ModelId, set[int]] = {}
    for model in models:
        if model.id.bits:
            sets.setdefault(replace(model.id, calibration=None), set()).add(model.id.calibration or 0)
    return {
        str(mean): [str(replace(mean, calibration=number)) for number in sorted({0, *numbers})]
        for mean, numbers in sets.items()
        if numbers != {0}
    }


def _split(model: "Model", models: list["Model"], names: dict[str, list[str]]) -> list["Model"]:
    """Return a model as it is, or in its place the mean of the sets and the first of them."""
    sets = names.get(str(model.id))
    if not sets:
        return [model]
    evaluated = {str(each.id) for each in models if each.evaluations}
    absent = [name for name in sets[1:] if name not in evaluated]
    reasons = tuple(f"no mean over calibration sets: {name} is not evaluated" for name in absent)
    mean = replace(model, evaluations=() if absent else model.evaluations, missing=(*model.missing, *reasons))
    return [mean, replace(model, id=replace(model.id, calibration=0))]


def _mean_scores(scores: pd.DataFrame, names: dict[str, list[str]]) -> pd.DataFrame:
    groups = _of_sets(scores, names).groupby(list(SCORE_KEYS), sort=False)
    rest = [column for column in scores if column not in (*SCORE_KEYS, "value", "stderr", "num_sets", "spread")]
    table = groups[rest].first()
    table["num_sets"], table["spread"] = groups.size(), groups["value"].std()
    table["value"] = groups["value"].agg(lambda values: values.mean(skipna=False))
    of_items = groups["stderr"].agg(lambda errors: errors.mean(skipna=False))
    table["stderr"] = np.sqrt(of_items**2 + table["spread"] ** 2 / table["num_sets"])
    return _complete(table.reset_index(), names)[list(scores)]


def _mean_documents(documents: pd.DataFrame, names: dict[str, list[str]]) -> pd.DataFrame:
    groups = _of_sets(documents, names).groupby(list(DOCUMENT_KEYS), sort=False)["log_likelihood"]
    table = groups.agg(lambda values: values.mean(skipna=False)).to_frame().assign(num_sets=groups.size())
    return _complete(table.reset_index(), names)[list(documents)]


def _of_sets(table: pd.DataFrame, names: dict[str, list[str]]) -> pd.DataFrame:
    """Return the rows of single sets, named as their mean."""
    mean_of = {name: mean for mean, sets in names.items() for name in sets}
    own = table[table["model_id"].isin(mean_of)]
    return own.assign(model_id=own["model_id"].map(mean_of))


def _complete(table: pd.DataFrame, names: dict[str, list[str]]) -> pd.DataFrame:
    """Return the rows that every set has a part in."""
    wanted = table["model_id"].map({mean: len(sets) for mean, sets in names.items()})
    return table[table["num_sets"] == wanted]
