"""What discrete weights do while they are trained: zeros, flips, scales, and where the latents lie between states."""

from collections.abc import Iterator

import torch
from torch import Tensor

from openspectra.model.llama import LinearGroup, Llama
from openspectra.model.packing import pack_states, unpack_states

BIN_EDGES = [edge / 4 for edge in range(-12, 13)]
"""Borders of the histogram bins in units of the shard's scale; a bin below and one above take the rest."""
BIN_COLUMNS = ["latents_below", *(f"latents_from_{edge:g}" for edge in BIN_EDGES)]


class Instruments:
    """Measures every matrix of a discrete family; remembers the states, two bits each, to count those that changed."""

    def __init__(self, states: dict[str, Tensor] | None = None):
        self.states = states or {}

    @torch.no_grad()
    def measure(self, model: Llama) -> list[dict[str, float]]:
        """Return one row per matrix, none for a family whose weights have no states.

        Sparsity: share of zeros. Flip rate: share of states that differ from the measurement before (0 at the first).
        Scale: mean over the shards. Then the share of latents in each bin of W / scale.
        """
        return [row for names, group in model.groups() for row in self._rows(names, group, model)]

    def _rows(self, names: list[str], group: LinearGroup, model: Llama) -> Iterator[dict[str, float]]:
        latent = torch.cat([_whole(layer.weight) for layer in group.layers.values()])
        found = model.family.states_and_scales(latent, group.shards)
        if found is None:
            return
        states, scales = found
        ratios = (group.shards.of(latent) / scales).view(latent.shape)
        scales = scales.expand_as(states).reshape(latent.shape)
        edges = torch.tensor(BIN_EDGES, device=latent.device)
        parts = (part.split(group.widths) for part in (states.view(latent.shape), scales, ratios))
        for name, state, scale, ratio in zip(names, *parts, strict=True):
            bins = torch.bincount(torch.bucketize(ratio.flatten(), edges, right=True), minlength=len(BIN_COLUMNS))
            yield {
                "layer": name,
                "num_weights": state.numel(),
                "sparsity": (state == 0).double().mean().item(),
                "flip_rate": self._flip_rate(name, state),
                "scale": scale.double().mean().item(),
                **dict(zip(BIN_COLUMNS, (bins / state.numel()).tolist(), strict=True)),
            }

    def _flip_rate(self, name: str, state: Tensor) -> float:
        before, self.states[name] = self.states.get(name), pack_states(state).cpu()
        if before is None:
            return 0.0
        return (unpack_states(before, state.shape) != state.cpu()).double().mean().item()


def _whole(parameter: Tensor) -> Tensor:
    """Return all rows of a parameter, also where each rank holds only some."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
