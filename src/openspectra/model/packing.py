"""Discrete weights in few bits each: several states a byte, and the scale of each shard.

The scale is read from the non-zero weights and never computed again as mean|W|, which would shrink it by the share
of zeros: packing what was unpacked gives the same bytes. A zero has no sign in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from openspectra.model.shards import Shards


class Packing(NamedTuple):
    """How states stand in a byte: as the digits of a number, the first state its lowest digit."""

    base: int
    """Values of a digit; ternary states are the digits 0, 1, 2, binary ones 0 and 1."""
    per_byte: int

    @property
    def num_states(self) -> int:
        return min(self.base, 3)

    @property
    def bits(self) -> float:
        """Bits of one weight."""
        return 8 / self.per_byte


TWO_BITS = Packing(4, 4)
FIVE_TRITS = Packing(3, 5)
"""3^5 = 243 of a byte's 256 values: 1.6 bits for a weight of log2(3) = 1.585."""
ONE_BIT = Packing(2, 8)


def pack_states(states: Tensor, packing: Packing = TWO_BITS) -> Tensor:
    """Return `states` in {-1, 0, 1}, or {-1, 1} for a binary packing, of any shape, as uint8 [ceil(numel / per_byte)]."""
    ternary = packing.num_states == 3
    digits = (states.flatten() + 1 if ternary else states.flatten() > 0).to(torch.uint8)
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % packing.per_byte)).view(-1, packing.per_byte)
    return (digits * _place_values(packing, digits.device)).sum(dim=1, dtype=torch.uint8)


def unpack_states(packed: Tensor, shape: tuple[int, ...], packing: Packing = TWO_BITS) -> Tensor:
    """Return the states int8 [*shape] of `pack_states`. Raises `ValueError` for bytes that it cannot have made."""
    digits = packed[:, None] // _place_values(packing, packed.device) % packing.base
    if int(packed.max()) >= packing.base**packing.per_byte or int(digits.max()) >= packing.num_states:
        raise ValueError("a byte holds no states")
    digits = digits.flatten()[: torch.Size(shape).numel()].view(shape).to(torch.int8)
    return digits - 1 if packing.num_states == 3 else 2 * digits - 1


def pack(weight: Tensor, shards: Shards, packing: Packing = TWO_BITS) -> tuple[Tensor, Tensor]:
    """Return the packed states and the scales of an effective weight [out_features, in_features].

    Raises `ValueError` where a shard has more than one magnitude: latent weights, or other shards; or a zero where the
    packing has none.
    """
    parts = shards.of(weight)
    scales = parts.abs().amax(dim=shards.dims, keepdim=True)
    states = parts.sign() if packing.num_states == 3 else torch.where(parts < 0, -1, 1)
    if not torch.equal(states * scales, parts):
        raise ValueError("a shard holds more than one magnitude: give exported weights and the shards they came from.")
    return pack_states(states, packing), scales


def unpack(
    packed: Tensor, scales: Tensor, shards: Shards, shape: tuple[int, int], packing: Packing = TWO_BITS
) -> Tensor:
    """Return the effective weight [out_features, in_features] = `shape`, in the scales' precision."""
    return (unpack_states(packed, shards.view, packing).to(scales.dtype) * scales).view(shape)


def _place_values(packing: Packing, device: torch.device) -> Tensor:
    return torch.tensor([packing.base**place for place in range(packing.per_byte)], dtype=torch.uint8, device=device)
