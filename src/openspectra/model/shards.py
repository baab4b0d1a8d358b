"""Which weights share a scale: the shard of a matrix that one model-parallel rank of the authors' code base held.

A matrix [out_features, in_features] is column-parallel (cut along outputs) or row-parallel (cut along inputs) into
`scales_per_matrix` equal shards (paper, column MP of the model table).
"""

from typing import NamedTuple

from torch import Tensor


class Shards(NamedTuple):
    """A view of one or more stacked matrices [out_features, in_features] in which every shard is a block."""

    view: tuple[int, ...]
    """Shape of the view."""
    dims: tuple[int, ...]
    """Dimensions of the view that run within a shard: one scale covers them all."""

    def of(self, latent_weight: Tensor) -> Tensor:
        """Return `latent_weight` seen as shards."""
        return latent_weight.view(self.view)


def column_parallel(out_features: int, in_features: int, scales_per_matrix: int, shared_by: int = 1) -> Shards:
    """Return the shards of `shared_by` matrices stacked along outputs, `out_features` in all.

    A rank held the same slice of each stacked matrix, as one tensor with one scale. Raises `ValueError` where the
    outputs cannot be cut into equal shards.
    """
    rows = _divide("out_features", out_features, shared_by * scales_per_matrix)
    return Shards((shared_by, scales_per_matrix, rows, in_features), (0, 2, 3))


def row_parallel(out_features: int, in_features: int, scales_per_matrix: int) -> Shards:
    """Return the shards of a matrix cut along its inputs. Raises `ValueError` where they cannot be equal."""
    columns = _divide("in_features", in_features, scales_per_matrix)
    return Shards((out_features, scales_per_matrix, columns), (0, 2))


def by_row(rows: int, features: int) -> Shards:
    """Return the shards of a matrix whose rows have a scale each."""
    return Shards((rows, features), (1,))


def _divide(name: str, features: int, parts: int) -> int:
    if features % parts:
        raise ValueError(f"`scales_per_matrix` must cut `{name}` into equal shards; got {features} for {parts} parts.")
    return features // parts
