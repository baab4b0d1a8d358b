"""What one rank of a sharded run holds: taken for its part of a state, and put back from those of any world.

FSDP2 cuts every tensor along its first dimension into chunks, one for each rank; the last may be smaller or empty. Parts
are written by `torch.save`: torch's own format of distributed states keeps its index as a pickle, which runs what it holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor


def take_part(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return this rank's chunks of weights and moments, copied to host memory; no rank holds more than its own."""
    held = {name: _chunk(parameter) for name, parameter in model.named_parameters()}
    state = get_optimizer_state_dict(model, optimizer) if optimizer else None
    moments = state and {name: {key: _chunk(v) for key, v in entry.items()} for name, entry in state["state"].items()}
    return {"model": held, "optimizer": state and state | {"state": moments}}


@dataclass
class Parts:
    """Parts of a state, as they are mapped from its files: those of `held`, by number, of `count` there are."""

    count: int
    held: dict[int, dict[str, Any]]

    def rows(self, find: Callable[[dict[str, Any]], Tensor], shape: torch.Size, rank: int, size: int) -> Tensor:
        """Return the rows that one of `size` ranks holds of a tensor of `shape`, copied from the chunks that lie in parts.

        `find` returns the chunk of one part. Nothing else is read, or allocated.
        """
        first, end = (min(shape[0], place * -(-shape[0] // size)) for place in (rank, rank + 1))
        step = -(-shape[0] // self.count)
        starts = {number: number * step for number in sorted(self.held)}
        chunks = [find(self.held[n])[max(0, first - start) : max(0, end - start)] for n, start in starts.items()]
        return torch.cat(chunks)


def parts_of(state: dict[str, Any]) -> Parts:
    """Return what this rank has mapped of a loaded state; a whole one is the part of one rank."""
    return Parts(len(state.get("parts") or [state]), state["held"])


@torch.no_grad()
def put_weights(parts: Parts, model: nn.Module) -> None:
    """Give a model its weights, or a sharded one this rank's rows of them, tensor by tensor."""
    for name, parameter in model.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        own.copy_(parts.rows(lambda part, name=name: part["model"][name], parameter.shape, *_place(parameter)))


@torch.no_grad()
def put_back(parts: Parts, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a model and its optimizer what they had, sharded or not, from parts of any world; nothing stays mapped."""
    put_weights(parts, model)
    first = next(iter(parts.held.values()))["optimizer"]
    if not first:
        return
    parameters = dict(model.named_parameters())

    def restored(name: str, key: str, value: Tensor) -> Tensor:
        if not value.dim():  # `step`
            return value.clone()
        like = parameters[name]
        rows = parts.rows(lambda part: part["optimizer"]["state"][name][key], like.shape, *_place(like))
        rows = rows.to(like.device)
        if not isinstance(like, DTensor):
            return rows
        return DTensor.from_local(rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())

    state = {
        name: {key: restored(name, key, value) for key, value in moments.items()}
        for name, moments in first["state"].items()
    }
    set_optimizer_state_dict(model, optimizer, first | {"state": state})


def _place(parameter: Tensor) -> tuple[int, int]:
    """Return this rank's number among those that share a parameter, and how many they are."""
    mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
    return (mesh.get_local_rank(), mesh.size()) if mesh else (0, 1)


def chunk_shape(shape: torch.Size, rank: int, size: int) -> torch.Size:
    """Return the shape of one rank's chunk of a tensor."""
    rows = -(-shape[0] // size)
    return torch.Size([min(rows, max(0, shape[0] - rank * rows)), *shape[1:]])


def _chunk(tensor: Tensor) -> Tensor:
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.detach().to("cpu", copy=True)  # a copy: `torch.save` writes all the memory that a view lies in
