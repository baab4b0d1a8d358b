"""What the discrete weights of the models did in training: means by step, and every matrix at the start and the end."""

from dataclasses import dataclass

import pandas as pd

from openspectra.reporting.load import Model, Results, read_curve
from openspectra.training.matrices import MEANS, means_by_step

PLACE = ("step", "tokens_seen")
TERNARY_TABLE = ("model_id", *PLACE, *MEANS)
EDGE_PREFIX = "latents_from_"
"""Columns of the histogram are named by the lower edge of their bin, in units of the scale; one more lies below all."""


@dataclass(frozen=True)
class Matrices:
    """The matrices of one model: the rows of `ternary.csv` at one step, with columns `depth` and `kind`."""

    model: Model
    start: pd.DataFrame
    end: pd.DataFrame

    @property
    def kinds(self) -> list[str]:
        """The kinds of linear layers in the order of a block: q_proj, k_proj, ..."""
        return list(dict.fromkeys(self.end["kind"]))

    @property
    def has_zero_state(self) -> bool:
        """Whether the family can round a weight to zero."""
        return bool(self.end["sparsity"].max() > 0)


def ternary_table(results: Results) -> pd.DataFrame:
    """Return the means over the matrices of every model that measures them, one row per model and step."""
    rows = [
        {"model_id": str(model.id), **means}
        for model in results.models
        if (table := read_curve(model, "ternary.csv")) is not None
        for means in means_by_step(table[[*PLACE, "num_weights", *MEANS]].to_dict("records"))
    ]
    return pd.DataFrame(rows, columns=list(TERNARY_TABLE))


def largest_matrices(results: Results) -> list[Matrices]:
    """Return the matrices of each family at the largest size that measures them; empty where none does."""
    for size in reversed(results.sizes):
        models = [model for model in results.study_models if model.id.size == size]
        found = [_matrices(model, table) for model in models if (table := read_curve(model, "ternary.csv")) is not None]
        if found:
            return found
    return []


def latent_shares(matrices: pd.DataFrame) -> tuple[list[float], dict[str, list[float]]]:
    """Return the edges of the bins of W / scale, and by kind the share of all its latents in each bin.

    The first and the last bin, which hold the tails, are given the width of the others.
    """
    columns = [column for column in matrices if column.startswith("latents_")]
    edges = [float(column.removeprefix(EDGE_PREFIX)) for column in columns if column.startswith(EDGE_PREFIX)]
    width = edges[1] - edges[0]
    shares = {}
    for kind, rows in matrices.groupby("kind", sort=False):
        weights = rows["num_weights"]
        shares[kind] = (rows[columns].mul(weights, axis=0).sum() / weights.sum()).tolist()
    return [edges[0] - width, *edges, edges[-1] + width], shares


def _matrices(model: Model, table: pd.DataFrame) -> Matrices:
    parts = table["layer"].str.split(".")
    table = table.assign(depth=parts.str[2].astype(int), kind=parts.str[-1])
    first, last = table["step"].min(), table["step"].max()
    return Matrices(model, table[table["step"] == first], table[table["step"] == last])
