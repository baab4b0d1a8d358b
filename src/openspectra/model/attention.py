"""Causal attention in two forms that differ by rounding only. `PretrainConfig.attention_form` chooses one.

Shapes: B batch, H heads, T sequence, K head_dim. Queries, keys, values and result are [B, H, T, K].
"""

from collections.abc import Mapping
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openspectra.model.families.family import Place

INSIDE_ATTENTION = tuple(place for place in get_args(Place) if place != "input")


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by torch's own kernel: never holds the scores of a whole sequence."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention as two matrix products with a softmax between: holds B x H x T x T scores, in the inputs' precision."""
    return torch.bmm(_probabilities(q, k), v.flatten(0, 1)).unflatten(0, q.shape[:2])


def attend_rounded(
    q: Tensor, k: Tensor, v: Tensor, activations: Mapping[str, nn.Module], mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention whose queries, keys, values and probabilities pass through a family's modules, and the probabilities.

    These have to exist, so no fused kernel can do it. `mask` is added to the scores [B * H, T, keys]; none: the causal one.
    """
    q, k, v = activations["query"](q), activations["key"](k), activations["value"](v)
    probabilities = activations["probabilities"](_probabilities(q, k, mask).unflatten(0, q.shape[:2]))
    return torch.bmm(probabilities.flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2]), probabilities


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what every position gives to those it sees [B * H, T, keys]: without a mask those before it and itself."""
    length, width = q.shape[-2:]
    if mask is None:
        mask = q.new_full((length, length), -torch.inf).triu(1)
    return torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=width**-0.5).softmax(dim=-1)


FORMS = {"fused": fused, "products": products}
