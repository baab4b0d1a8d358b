"""TriLM: weights in {-1, 0, 1} times one scale per shard (paper, TriLM forward and backward equations)."""

from torch import Tensor

from openspectra.model.families.family import EPS, Family, Look
from openspectra.model.shards import Shards


class TriLM(Family):
    """gamma = 1e-5 + mean|W| over a shard; states = round(clip(W / gamma, -1, 1))."""

    label = "TriLM"
    legend_order = 2
    look = Look("#d55e00", "#f0843c", marker="^", marker_size=6.5)
    bits_per_weight = 1.58  # log2(3), rounded as in the paper's table of sizes

    @staticmethod
    def states_and_scales(latent_weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        """Return states in {-1, 0, 1} and the scales gamma."""
        # ASSUME: scale and rounding come from the latents as stored (fp32 masters), not from their half-precision copy
        weight = shards.of(latent_weight)
        scales = EPS + weight.abs().mean(dim=shards.dims, keepdim=True)
        return (weight / scales).clamp_(-1, 1).round_(), scales


FAMILY = TriLM
