"""Discrete weights in two bits each: four states a byte, and the scale of each shard.

The scale is read from the non-zero weights and never computed again as mean|W|, which would shrink it by the share
of zeros: packing what was unpacked gives the same bytes.
"""

import torch
from torch import Tensor

from openspectra.model.shards import Shards

PER_BYTE = 4
"""States in one byte."""


def pack_states(states: Tensor) -> Tensor:
    """Return `states` in {-1, 0, 1}, of any shape, as uint8 [ceil(numel / 4)]; the first state is in the low bits."""
    codes = (states.flatten() + 1).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % PER_BYTE)).view(-1, PER_BYTE)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6


def unpack_states(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the states int8 [*shape] of `pack_states`."""
    codes = torch.stack([packed >> 2 * place & 3 for place in range(PER_BYTE)], dim=-1).flatten()
    return codes[: torch.Size(shape).numel()].view(shape).to(torch.int8) - 1


def pack(weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
    """Return the packed states and the scales of an effective weight [out_features, in_features].

    Raises `ValueError` where a shard has more than one magnitude: latent weights, or other shards.
    """
    parts = shards.of(weight)
    scales = parts.abs().amax(dim=shards.dims, keepdim=True)
    states = parts.sign()
    if not torch.equal(states * scales, parts):
        raise ValueError("a shard holds more than one magnitude: give exported weights and the shards they came from.")
    return pack_states(states), scales


def unpack(packed: Tensor, scales: Tensor, shards: Shards, shape: tuple[int, int]) -> Tensor:
    """Return the effective weight [out_features, in_features] = `shape`, in the scales' precision."""
    return (unpack_states(packed, shards.view).to(scales.dtype) * scales).view(shape)
