"""What one rank of a sharded run holds: taken for its part of a state, put back, and joined with the others' to a whole.

FSDP2 cuts every tensor along its first dimension into chunks, one for each rank; the last may be smaller or empty. Parts
are written by `torch.save`: torch's own format of distributed states keeps its index as a pickle, which runs what it holds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

OptimizerState = dict[str, Any]
"""`state`: by parameter name its moments and `step`; `param_groups`: their settings."""


def take_part(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return this rank's chunks of weights and moments, copied to host memory; no rank holds more than its own."""
    held = {name: _chunk(parameter) for name, parameter in model.named_parameters()}
    state = get_optimizer_state_dict(model, optimizer) if optimizer else None
    return {"model": held, "optimizer": state and _map_moments(state, lambda _, moment: _chunk(moment))}


@torch.no_grad()
def put_back(part: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a sharded model and its optimizer the chunks that this rank wrote."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.to_local().copy_(part["model"][name])

    def sharded(name: str, moment: Tensor) -> Tensor:
        like = parameters[name]
        chunk, mesh, placements = moment.to(like.device), like.device_mesh, like.placements
        return DTensor.from_local(chunk, mesh, placements, shape=like.shape, stride=like.stride())

    if part["optimizer"]:
        set_optimizer_state_dict(model, optimizer, _map_moments(part["optimizer"], sharded))


def join(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return weights and optimizer of the whole model from the parts of all ranks, in their order."""
    first = parts[0]
    whole = {name: torch.cat([part["model"][name] for part in parts]) for name in first["model"]}
    if not first["optimizer"]:
        return {"model": whole, "optimizer": None}
    state = {
        name: {
            key: torch.cat([part["optimizer"]["state"][name][key] for part in parts]) if value.dim() else value
            for key, value in moments.items()
        }
        for name, moments in first["optimizer"]["state"].items()
    }
    return {"model": whole, "optimizer": first["optimizer"] | {"state": state}}


def chunk_shape(shape: torch.Size, rank: int, size: int) -> torch.Size:
    """Return the shape of one rank's chunk of a tensor."""
    rows = -(-shape[0] // size)
    return torch.Size([min(rows, max(0, shape[0] - rank * rows)), *shape[1:]])


def _chunk(tensor: Tensor) -> Tensor:
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.detach().to("cpu", copy=True)  # a copy: `torch.save` writes all the memory that a view lies in


def _map_moments(optimizer: OptimizerState, change: Callable[[str, Tensor], Tensor]) -> OptimizerState:
    """Return an optimizer's state with each tensor that has a dimension changed (`step` has none)."""
    state = {
        name: {key: change(name, value) if value.dim() else value for key, value in moments.items()}
        for name, moments in optimizer["state"].items()
    }
    return optimizer | {"state": state}
