"""GPTQ as its paper describes it (Frantar et al. 2022, algorithm 1), short and slow: the oracle of our QuantLMs.

Column by column in float64, without blocks. Inputs come from what is quantized already, also within a layer, as
gptqmodel and GPTQ's own `true_sequential` take them.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Matrices of a block that read the same input, in the order in which they are applied."""


@torch.no_grad()
def gptq_model(model: LlamaForCausalLM, samples_ST: np.ndarray, bits: int, group_size: int, damping=0.01):
    """Return a copy of a model with the matrices of its blocks quantized, everything as float16 holds it."""
    model = copy.deepcopy(model).eval()
    samples = torch.from_numpy(samples_ST.astype(np.int64))
    for layer in model.model.layers:
        for stage in STAGES:
            matrices = {name: each for name, each in layer.named_modules() if name.rpartition(".")[2] in stage}
            hessian = hessian_of(model, next(iter(matrices.values())), samples)
            for matrix in matrices.values():
                matrix.weight.copy_(gptq_matrix(matrix.weight, hessian, bits, group_size, damping))
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


def hessian_of(model: LlamaForCausalLM, matrix: nn.Linear, samples: Tensor) -> Tensor:
    """Return the sum of x xᵀ over all inputs x of a matrix [inputs, inputs], in float64; its scale does not matter."""
    width = matrix.weight.shape[1]
    hessian = torch.zeros(width, width, dtype=torch.float64)

    def add(_, inputs):
        rows = inputs[0].reshape(-1, width).double()
        hessian.add_(rows.T @ rows)

    handle = matrix.register_forward_pre_hook(add)
    for some in samples.split(8):
        model.model(some)
    handle.remove()
    return hessian


def gptq_matrix(weight_OI: Tensor, hessian: Tensor, bits: int, group_size: int, damping: float) -> Tensor:
    """Return the quantized weights [outputs, inputs]: each column rounded, its error spread over those to its right."""
    weight, width = weight_OI.double().clone(), weight_OI.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    group_size = group_size if group_size > 0 else width
    for column in range(width):
        if column % group_size == 0:
            group = weight[:, column : column + group_size]
            step = 2 * group.abs().amax(dim=1) / (2**bits - 1)
        levels = (weight[:, column] / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (weight[:, column] - levels * step) / inverse[column, column]
        weight[:, column] = levels * step
        weight[:, column + 1 :] -= error[:, None] * inverse[column, None, column + 1 :]
    return weight.to(weight_OI.dtype)
