"""Model families: what the forward pass makes of a latent weight matrix.

A family is one small class. Architecture, initial draw and order of text are shared by all families of a size, so
that they are twins and the difference between them is the family.
"""

from torch import Tensor

from openspectra.model.ternary import StraightThroughTernary


class FloatLM:
    """The half-precision baseline: every layer multiplies with its weight as it is."""

    name = "floatlm"

    @staticmethod
    def effective_weight(latent_weight: Tensor, scales_per_matrix: int, shard_dim: int) -> Tensor:
        """Return `latent_weight` [out_features, in_features] unchanged."""
        return latent_weight


class TriLM:
    """Linear layers of the blocks in {-1, 0, 1} times a scale per shard; embedding, head and norms stay as they are."""

    name = "trilm"

    @staticmethod
    def effective_weight(latent_weight: Tensor, scales_per_matrix: int, shard_dim: int) -> Tensor:
        """Return the ternary weight [out_features, in_features] with a straight-through gradient to the latent one."""
        return StraightThroughTernary.apply(latent_weight, scales_per_matrix, shard_dim)


FAMILIES = {family.name: family for family in (FloatLM, TriLM)}
