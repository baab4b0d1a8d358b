"""The interface of a family, and the straight-through gradient that all discrete families share."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from openspectra.model.shards import Shards

EPS = 1e-5
"""Added to mean|W| before dividing, so that an all-zero shard has a scale too (paper, TriLM equations)."""


Place = Literal["input", "query", "key", "value", "probabilities"]
"""Where a block's values pass: the input of a linear layer, and inside attention."""


class Look(NamedTuple):
    """How a kind of model is drawn in every figure and table. The colour-blind can tell the colours apart (after Okabe and Ito)."""

    colour: str
    """On a light page."""
    dark_colour: str
    """On a dark page."""
    marker: str
    """In matplotlib's letters."""
    marker_size: float = 6.0
    """Points, where models are single points."""


class Family(ABC):
    """How the blocks compute. Head and norms are the same in every family; so is the embedding, but where a study asks
    that it is quantized too."""

    label: str
    """Name in figures and tables."""
    legend_order: int
    """Place among the families in legends and tables, smallest first."""
    look: Look
    bits_per_weight: float
    """What one linear weight costs by the paper's rule for sizes."""
    activation_bits: int = 16
    """Bits of the values that the linear layers read; 16: as they are."""
    is_stock_llama: bool = True
    """Whether unmodified `transformers` computes the same from the exported weights."""
    has_block_norms: bool = True
    """Whether a block has learned norms before attention and MLP; without them the linear layers norm their input."""
    quantizes_embedding: bool = False
    """Whether its rule for weights is one for an embedding too, whose rows then have a scale each."""
    num_learned_scales: int = 0
    """Parameters that a block has beside weights and norms."""

    @staticmethod
    @abstractmethod
    def states_and_scales(latent_weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor] | None:
        """Return the integer states [*shards.view] and the scales that broadcast against them.

        None for a family whose weights are not discrete.
        """

    @classmethod
    def effective_weight(cls, latent_weight: Tensor, shards: Shards) -> Tensor:
        """Return the weight [out_features, in_features] that is multiplied with: its gradient goes to the latent one."""
        return StraightThrough.apply(latent_weight, cls, shards)

    @classmethod
    def activation(cls, place: Place, eps: float) -> nn.Module | None:
        """Return the module that the values of one place of a block pass through, a new one for each; `eps` is the norms'.

        It takes [B, ...] and returns the same shape and precision. It may own parameters of one dimension. None: the
        values pass as they are.
        """
        return None


class StraightThrough(torch.autograd.Function):
    """scales * states with dL/dW = dL/dW_tilde: no clipping mask, no gradient through the scale (paper, backward)."""

    @staticmethod
    def forward(ctx, latent_weight: Tensor, family: type[Family], shards: Shards) -> Tensor:
        states, scales = family.states_and_scales(latent_weight, shards)
        return states.mul_(scales).view(latent_weight.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
