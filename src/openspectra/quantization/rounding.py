"""Round-to-nearest: the grid that GPTQ starts from, and the baseline that it must beat."""

import torch
from torch import Tensor


def round_to_nearest(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """Return weights [outputs, inputs] rounded to the nearest of the `2**bits` values of their group.

    Each `group_size` weights of a row (-1: the whole row) share a scale, with which the largest magnitude lies half a
    step outside the grid, as in GPTQ's symmetric quantizer.
    """
    groups = weight_OI.reshape(len(weight_OI), -1, group_size if group_size > 0 else weight_OI.shape[1])
    largest = groups.abs().amax(dim=2, keepdim=True)
    step = torch.where(largest > 0, 2 * largest, 2.0) / (2**bits - 1)
    levels = (groups / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (levels * step).reshape(weight_OI.shape)
