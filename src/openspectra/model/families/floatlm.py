"""FloatLM: the half-precision baseline, every layer multiplies with its weight as it is."""

from torch import Tensor

from openspectra.model.families.family import Family, Look
from openspectra.model.shards import Shards


class FloatLM(Family):
    """Weights are what the optimizer moves."""

    label = "FloatLM"
    legend_order = 1
    look = Look("#0072b2", "#56b4e9", marker="o", marker_size=4.5)
    bits_per_weight = 16.0

    @staticmethod
    def states_and_scales(latent_weight: Tensor, shards: Shards) -> None:
        """Return None: these weights have no states."""

    @classmethod
    def effective_weight(cls, latent_weight: Tensor, shards: Shards) -> Tensor:
        """Return `latent_weight` itself."""
        return latent_weight


FAMILY = FloatLM
