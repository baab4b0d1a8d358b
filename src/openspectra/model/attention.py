"""Causal attention in two forms that differ by rounding only. `PretrainConfig.attention_form` chooses one.

Shapes: B batch, H heads, T sequence, K head_dim. Queries, keys, values and result are [B, H, T, K].
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by torch's own kernel: never holds the scores of a whole sequence."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention as two matrix products with a softmax between: holds B x H x T x T scores, in the inputs' precision."""
    length, width = q.shape[-2:]
    mask_TT = q.new_full((length, length), -torch.inf).triu(1)
    scores = torch.baddbmm(mask_TT, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=width**-0.5)
    return torch.bmm(scores.softmax(dim=-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])


FORMS = {"fused": fused, "products": products}
