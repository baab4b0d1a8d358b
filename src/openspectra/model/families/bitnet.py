"""BitNet b1.58 as the paper replicated it: ternary weights, a parameterless norm and 8-bit activations before each.

A stock Llama cannot express it: its folder loads through `model/spectra_llama.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openspectra.model.families.family import EPS, Family, Look, Place
from openspectra.model.families.trilm import TriLM
from openspectra.model.shards import Shards

MAX_STATE = 127
"""Largest 8-bit activation (BitNet b1.58: absmax quantization of each token to [-128, 127])."""


class BitNet(Family):
    """TriLM's weights; every linear layer reads its input after a norm without parameters, in 256 steps per token."""

    label = "BitNet b1.58"
    legend_order = 4
    look = Look("#9a7400", "#d6b24a", marker="<")
    bits_per_weight = TriLM.bits_per_weight
    activation_bits = 8
    is_stock_llama = False
    # ASSUME: the norm before each linear layer replaces the learned norms of the block, as in BitNet; the final one stays
    has_block_norms = False

    @staticmethod
    def states_and_scales(latent_weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        """Return TriLM's states and scales: BitNet b1.58's absmean rule is the same equation."""
        return TriLM.states_and_scales(latent_weight, shards)

    @classmethod
    def activation(cls, place: Place, eps: float) -> nn.Module | None:
        """Return norm and rounding for the inputs of linear layers."""
        return NormedEightBit(eps) if place == "input" else None


class NormedEightBit(nn.Module):
    """RMS norm over the features, rounded to 8 bits per token, with a straight-through gradient.

    Computed in float32 or better: half precision has no room for 256 steps and their rounding borders.
    """

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return EightBit.apply(F.rms_norm(wide, x.shape[-1:], eps=self.eps)).to(x.dtype)


class EightBit(torch.autograd.Function):
    """round(x * 127 / max|x|) * max|x| / 127 over the last dimension, with dL/dx = dL/dy."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        step = x.abs().amax(dim=-1, keepdim=True).clamp_(min=EPS) / MAX_STATE
        return (x / step).round_().clamp_(-MAX_STATE - 1, MAX_STATE) * step

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


FAMILY = BitNet
