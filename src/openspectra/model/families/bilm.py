"""BiLM: weights in {-1, 1} times one scale per shard (paper, BiLM equations)."""

import torch
from torch import Tensor

from openspectra.model.families.family import Family, Look
from openspectra.model.shards import Shards


class BiLM(Family):
    """alpha = mean|W| over a shard; states = sign(W - mean(W))."""

    label = "BiLM"
    legend_order = 3
    look = Look("#a3467c", "#d58bb6", marker="v")
    bits_per_weight = 1.0

    @staticmethod
    def states_and_scales(latent_weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        """Return states in {-1, 1} and the scales alpha."""
        weight = shards.of(latent_weight)
        # ASSUME: both means run over the shard, as TriLM's do, and sign(0) is 1, so that there is no third state
        centre = weight.mean(dim=shards.dims, keepdim=True)
        scales = weight.abs().mean(dim=shards.dims, keepdim=True)
        return torch.where(weight >= centre, 1.0, -1.0).to(weight.dtype), scales


FAMILY = BiLM
