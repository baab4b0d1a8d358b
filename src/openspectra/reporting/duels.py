"""Pairs of models on the same documents and items: at equal parameters, and at equal bits.

At equal bits a discrete model meets, of every other kind, the smallest model with at least as many bits; what that one has
more is its advantage and stands beside the result. Errors are those of means over documents, whose items belong together
(ratio estimator, t distribution); p-values are corrected for the number of comparisons by Holm's method.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet

from openspectra.identity import suite_name
from openspectra.model_ids import QUANTLM
from openspectra.reporting.calibration_sets import names_of_sets
from openspectra.reporting.load import Model, Results
from openspectra.reporting.statistics import LEVEL
from openspectra.reporting.tables import DECIMALS

EQUAL_PARAMETERS, TOTAL_BITS, LINEAR_BITS = "equal parameters", "bits in all", "bits without embedding and head"
TEST_LOSS = "test loss"
DUEL_TABLE = (
    *("basis", "model_id", "opponent_id", "excess_bits", "measure", "difference", "low", "high"),
    *("p_value", "p_corrected", "num_items", "num_documents"),
)
CLEAR = 0.05
"""Corrected p-value below which a difference is called clear."""


@dataclass(frozen=True)
class Duel:
    """Two models that are compared, and how many bits the second has more, as a share of the first's."""

    basis: str
    model: Model
    opponent: Model
    excess: float | None = None


@dataclass(frozen=True)
class Measure:
    """What models scored on I items, NaN where one has no score. The mean is weighted."""

    documents_I: np.ndarray
    """Number of the document that an item comes from: items of one belong together."""
    weights_I: np.ndarray
    values: dict[str, np.ndarray]
    """By model id; of losses the sum over the item, so its weight is the number of tokens."""


def duels(results: Results) -> list[Duel]:
    """Return every pair of a study: each trained discrete model with its FloatLM, and with the others of equal bits."""
    models = [model for model in results.study_models if model.artifact and model.evaluations]
    discrete = [model for model in models if model.id.family not in ("floatlm", QUANTLM)]
    found = []
    for model in discrete:
        twin = next((each for each in models if each.id == model.id.float_parent), None)
        found += [Duel(EQUAL_PARAMETERS, model, twin)] if twin else []
    for basis in (TOTAL_BITS, LINEAR_BITS):
        for model in discrete:
            for kind in results.kinds:
                others = [each for each in models if each.id.kind == kind and kind != model.id.kind]
                enough = [each for each in others if (bits_of(each, basis) or 0) >= (bits_of(model, basis) or np.inf)]
                if enough:
                    smallest = min(enough, key=lambda each: bits_of(each, basis))
                    excess = bits_of(smallest, basis) / bits_of(model, basis) - 1
                    found.append(Duel(basis, model, smallest, excess))
    return found


def bits_of(model: Model, basis: str) -> float | None:
    """Return the size of a model in bits by the paper's rule: in all, or of its linear layers alone."""
    if basis == TOTAL_BITS:
        return model.metric("model_size_bits")
    width, number = model.metric("bits_per_weight"), model.metric("num_linear_parameters")
    return None if width is None or number is None else width * number


def duel_table(results: Results, pairs: list[Duel]) -> pd.DataFrame:
    """Return one row per pair and measure: difference (first minus second), its interval, p-value and corrected p-value."""
    names = {str(model.id) for pair in pairs for model in (pair.model, pair.opponent)}
    measures = _losses(results, names) | _accuracies(results, names)
    rows = [
        {
            "basis": pair.basis,
            "model_id": str(pair.model.id),
            "opponent_id": str(pair.opponent.id),
            "excess_bits": None if pair.excess is None else round(pair.excess, DECIMALS),
            "measure": measure,
            **found,
        }
        for pair in pairs
        for measure, scores in measures.items()
        if (found := _compare(scores, str(pair.model.id), str(pair.opponent.id)))
    ]
    table = pd.DataFrame(rows, columns=[name for name in DUEL_TABLE if name != "p_corrected"])
    return table.assign(p_corrected=corrected(table["p_value"]))[list(DUEL_TABLE)]


def corrected(p_values: pd.Series) -> pd.Series:
    """Return p-values corrected by Holm's method: each holds for all comparisons together."""
    known = p_values.dropna().sort_values()
    factors = np.arange(len(known), 0, -1)
    holm = np.minimum(1, (known * factors).cummax())
    return holm.map(lambda value: float(f"{value:.4g}")).reindex(p_values.index)


def paired_difference(sums_D: np.ndarray, weights_D: np.ndarray) -> tuple[float, float, float, float]:
    """Return sum of `sums_D` / sum of `weights_D` over documents, the bounds of its interval, and its p-value against zero.

    With fewer than two documents bounds and p-value are NaN.
    """
    from scipy.stats import t

    total, count = weights_D.sum(), len(weights_D)
    value = sums_D.sum() / total
    if count < 2:
        return value, np.nan, np.nan, np.nan
    residuals_D = sums_D - value * weights_D
    error = np.sqrt(count / (count - 1) * (residuals_D**2).sum()) / total
    if error == 0:  # every document says the same
        return value, value, value, float(value == 0)
    room = t.ppf((1 + LEVEL) / 2, count - 1) * error
    return value, value - room, value + room, float(2 * t.sf(abs(value) / error, count - 1))


def _compare(measure: Measure, model_id: str, opponent_id: str) -> dict[str, float] | None:
    """Return the difference of two models over what both were scored on; None where that is nothing."""
    if model_id not in measure.values or opponent_id not in measure.values:
        return None
    difference_I = measure.values[model_id] - measure.values[opponent_id]
    both_I = np.isfinite(difference_I)
    if not both_I.any():
        return None
    documents, weights = measure.documents_I[both_I], measure.weights_I[both_I]
    sums_D = np.bincount(documents, difference_I[both_I])
    weights_D = np.bincount(documents, weights)
    found = paired_difference(sums_D[weights_D > 0], weights_D[weights_D > 0])
    names = ("difference", "low", "high")
    return {
        **{name: round(value, DECIMALS) for name, value in zip(names, found, strict=False)},
        "p_value": float(f"{found[3]:.4g}"),
        "num_items": int(both_I.sum()),
        "num_documents": int((weights_D > 0).sum()),
    }


def _measure(table: pd.DataFrame, keys: list[str], value: str, document: pd.Series, weight: pd.Series) -> Measure:
    """Return a measure from one row per model and item; several rows of both, which are calibration sets, are averaged."""
    keyed = table.assign(document=document, weight=weight)
    wide = keyed.pivot_table(value, [*keys, "document", "weight"], "model_id", sort=True)
    codes, _ = pd.factorize(wide.index.get_level_values("document"))
    weights_I = wide.index.get_level_values("weight").to_numpy(float)
    return Measure(codes, weights_I, {str(name): wide[name].to_numpy(float) for name in wide})


def _losses(results: Results, names: set[str]) -> dict[str, Measure]:
    """Return nats of each test document by model, with its tokens as weight."""
    documents = results.documents[results.documents["model_id"].isin(names)]
    if documents.empty:
        return {}
    nats = documents.assign(nats=-documents["log_likelihood"])
    document = documents["task"] + "/" + documents["document_id"]
    return {TEST_LOSS: _measure(nats, ["task", "document_id"], "nats", document, documents["num_tokens"])}


def _accuracies(results: Results, names: set[str]) -> dict[str, Measure]:
    """Return, by accuracy task, the score of each item by model, with weight 1."""
    means = {each: mean for mean, sets in names_of_sets(results.models).items() for each in sets}
    frames = []
    for model in results.models:
        stands_for = means.get(str(model.id), str(model.id))
        if stands_for in names and str(model.id) not in means.values():
            frames += [
                _items(artifact, results, stands_for) for artifact in model.evaluations if artifact.has("items.parquet")
            ]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return {}
    items = pd.concat(frames, ignore_index=True)
    return {
        str(task): _measure(
            rows, ["leaf", "item"], "score", rows["leaf"] + "/" + rows["document"], pd.Series(1, rows.index)
        )
        for task, rows in items.groupby("measure", sort=True)
    }


def _items(artifact, results: Results, model_id: str) -> pd.DataFrame:
    """Return leaf, item, document and score of the items of one evaluation that stand for an accuracy task."""
    suite, named = suite_name(artifact), artifact.manifest.config["tasks"]
    path = artifact.file("items.parquet")
    metrics = sorted(set(pyarrow.parquet.read_schema(path).names) & set(results.main_metrics.values()))
    table = pd.read_parquet(path, columns=["task", "item_id", "document_id", "filter", *metrics])
    leaves = set(table["task"])
    groups = [name for name in named if name not in leaves and name in results.main_metrics]
    frames = []
    for leaf, rows in table.groupby("task", sort=False):
        name = leaf if leaf in named else groups[0] if len(groups) == 1 else None
        measure = name if name in results.main_metrics else f"{name} ({suite})"
        metric = results.main_metrics.get(measure)
        if metric in metrics:
            rows = rows[rows["filter"] == rows["filter"].iloc[0]]
            frames.append(
                pd.DataFrame(
                    {
                        "measure": measure,
                        "leaf": leaf,
                        "item": rows["item_id"],
                        "document": rows["document_id"],
                        "score": rows[metric],
                    }
                )
            )
    return pd.concat(frames).assign(model_id=model_id) if frames else pd.DataFrame()
