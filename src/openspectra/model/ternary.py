"""Ternary weights: states in {-1, 0, 1} times one scale per shard (paper, TriLM forward and backward equations).

A matrix [out_features, in_features] is cut into `scales_per_matrix` equal shards along `shard_dim` (0: outputs,
1: inputs); a shard is what one model-parallel rank of the authors' code base held.
"""

import torch
from torch import Tensor

EPS = 1e-5
"""Added to mean|W| before dividing, so that an all-zero shard has a scale too (paper, TriLM equations)."""


def ternarize(latent_weight: Tensor, scales_per_matrix: int = 1, shard_dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return states in {-1, 0, 1} and scales of a latent weight, both as shards that broadcast against each other.

    gamma = 1e-5 + mean|W| over each shard; states = round(clip(W / gamma, -1, 1)). For `shard_dim` 0 the states are
    [scales_per_matrix, out_features / scales_per_matrix, in_features] and the scales [scales_per_matrix, 1, 1]; for
    `shard_dim` 1 they are [out_features, scales_per_matrix, in_features / scales_per_matrix] and
    [1, scales_per_matrix, 1]. Raises `ValueError` where the matrix cannot be cut into equal shards.
    """
    if latent_weight.shape[shard_dim] % scales_per_matrix:
        raise ValueError(
            f"`scales_per_matrix` must divide the sharded dimension; "
            f"got {scales_per_matrix} and {latent_weight.shape[shard_dim]}."
        )
    # ASSUME: scale and rounding come from the latents as stored (fp32 masters), not from their half-precision copy.
    shards = latent_weight.unflatten(shard_dim, (scales_per_matrix, -1))
    within_shard = tuple(dim for dim in range(3) if dim != shard_dim)
    scales = EPS + shards.abs().mean(dim=within_shard, keepdim=True)
    return (shards / scales).clamp_(-1, 1).round_(), scales


def ternary_weight(latent_weight: Tensor, scales_per_matrix: int = 1, shard_dim: int = 0) -> Tensor:
    """Return gamma * states as one matrix [out_features, in_features]: what a ternary layer multiplies with."""
    states, scales = ternarize(latent_weight, scales_per_matrix, shard_dim)
    return (states * scales).flatten(shard_dim, shard_dim + 1)


class StraightThroughTernary(torch.autograd.Function):
    """`ternary_weight` with dL/dW = dL/dW_tilde: no clipping mask, no gradient through gamma (paper, backward)."""

    @staticmethod
    def forward(ctx, latent_weight: Tensor, scales_per_matrix: int, shard_dim: int) -> Tensor:
        return ternary_weight(latent_weight, scales_per_matrix, shard_dim)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
