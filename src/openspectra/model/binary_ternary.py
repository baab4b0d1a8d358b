"""Binary and ternary weights and activations of *Binary and Ternary Natural Language Generation* (arXiv 2306.01841).

Written from the paper. A family of `families/` names its widths; this module has what they share. Inside an activation's
range the gradient passes as it is; a learned scale gets that of LSQ (paper, section 3.2), with one count of elements per
sequence, so that neither the micro batch nor the ranks change it.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openspectra.model.families.bitnet import EightBit
from openspectra.model.families.family import Family, Place
from openspectra.model.shards import Shards

FLOOR = 1e-5
"""Least scale of weights and activations: all zeros have one too."""
CLIP = 2.5
"""Bound of signed activations that are rounded to 8 bits (paper, appendix)."""


class BinaryTernary(Family):
    """Weights of two or three levels around the mean of their shard; activations of two, three or 256 levels, or all."""

    is_stock_llama = False  # but where activations stay as they are
    quantizes_embedding = True
    weight_bits: ClassVar[int]
    """1 or 2: binary or ternary."""
    activation_bits: ClassVar[int]
    """1, 2, 8, or 16 for activations as they are."""

    @classmethod
    def states_and_scales(cls, latent_weight: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        """Return the states of (W - mu) / alpha and the scales alpha (paper, equations 3 to 6).

        Ternary: alpha = 4/3 mean|W - mu|, states in {-1, 0, 1}, equally likely for a uniform W. Binary: alpha =
        mean|W - mu|, states in {-1, 1}.
        """
        normed, scales = _normed(latent_weight, shards, cls.weight_bits)
        return levels_of(normed, 1, True, cls.weight_bits == 1), scales

    @classmethod
    def effective_weight(cls, latent_weight: Tensor, shards: Shards) -> Tensor:
        """Return alpha times the states; the gradient passes where |W - mu| < alpha."""
        return MaskedStraightThrough.apply(latent_weight, shards, cls.weight_bits)

    @classmethod
    def activation(cls, place: Place, eps: float) -> nn.Module | None:
        """Return what rounds the values of one place, None at 16 bits."""
        # ASSUME: SwiGLU's product is rounded as a signed input (BART's second layer reads no negative values), and
        # queries and keys after the rotary turn; the paper's models have neither
        is_signed = place != "probabilities"
        if cls.activation_bits == 16:
            return None
        return RoundedToBytes(is_signed) if cls.activation_bits == 8 else LearnedLevels(cls.activation_bits, is_signed)


def _normed(latent_weight: Tensor, shards: Shards, bits: int) -> tuple[Tensor, Tensor]:
    """Return (W - mu) / alpha seen as shards, and alpha."""
    # ASSUME: mu and alpha run over the shard, as TriLM's scale does, so that twins differ by the levels alone
    centred = shards.of(latent_weight)
    centred = centred - centred.mean(dim=shards.dims, keepdim=True)
    scales = centred.abs().mean(dim=shards.dims, keepdim=True).mul_(4 / 3 if bits == 2 else 1).clamp_(min=FLOOR)
    return centred / scales, scales


def levels_of(ratio: Tensor, largest: int, is_signed: bool, is_binary: bool) -> Tensor:
    """Return the integers that stand for weights or activations over their scale."""
    if is_signed and is_binary:
        return torch.where(ratio >= 0, 1.0, -1.0).to(ratio.dtype)  # ASSUME: sign(0) is 1, as in BiLM
    return ratio.clamp(-largest if is_signed else 0, largest).round_()


class MaskedStraightThrough(torch.autograd.Function):
    """alpha * states with dL/dW = dL/dW_hat where |(W - mu) / alpha| < 1, and 0 elsewhere."""

    @staticmethod
    def forward(ctx, latent_weight: Tensor, shards: Shards, bits: int) -> Tensor:
        normed, scales = _normed(latent_weight, shards, bits)
        ctx.save_for_backward((normed.abs() < 1).view(latent_weight.shape))
        return levels_of(normed, 1, True, bits == 1).mul_(scales).view(latent_weight.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class LearnedLevels(nn.Module):
    """alpha times two or three levels, with one learned alpha per place; its first value comes from the first text.

    Signed: alpha clip(round(x / alpha), -1, 1), binary alpha sign(x). Unsigned: alpha clip(round(x / alpha), 0, Q) with
    Q = 2, binary 1 (paper, equations 7 to 12). What a value becomes does not depend on any other.
    """

    def __init__(self, bits: int, is_signed: bool):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        """Not set yet where it is 0."""
        self.is_binary, self.is_signed = bits == 1, is_signed
        self.largest = 1 if is_signed or bits == 1 else 2
        factor = 2.0 if is_signed else 4.0
        self.factor = factor if is_signed or bits == 1 else factor / math.sqrt(3)
        """First alpha over mean|x|."""
        self.levels = (-1, 1) if is_signed and bits == 1 else tuple(range(-1 if is_signed else 0, self.largest + 1))
        self.first: Tensor | None = None
        """Stands for alpha while first values are measured."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the level of every value of `x` [B, ...], in the precision of `x`."""
        alpha = self.alpha if self.first is None else self.first
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return Levels.apply(wide, alpha, self.largest, self.is_signed, self.is_binary).to(x.dtype)

    def shares_of(self, x: Tensor) -> list[float]:
        """Return the share of each level; of attention probabilities among those that the causal mask lets be."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        states = levels_of(wide / self.alpha.clamp(min=FLOOR), self.largest, self.is_signed, self.is_binary)
        states = states if self.is_signed else states[wide > 0]
        return [(states == level).double().mean().item() for level in self.levels]

    def first_alpha(self, x: Tensor) -> Tensor:
        """Return the first value [1] from `x`; of attention probabilities those that the causal mask lets be count."""
        total = x.abs().sum(dtype=torch.float64)
        count = x.numel() if self.is_signed else (x > 0).sum()
        return (self.factor * total / count).to(self.alpha.dtype).reshape(1)


class Levels(torch.autograd.Function):
    """The levels of x, with the gradients of x [B, ...] and alpha [1] that the paper gives."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor, largest: int, is_signed: bool, is_binary: bool) -> Tensor:
        alpha = alpha.clamp(min=FLOOR)
        ctx.save_for_backward(x, alpha)
        ctx.settings = largest, is_signed, is_binary
        return levels_of(x / alpha, largest, is_signed, is_binary).mul_(alpha)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, alpha = ctx.saved_tensors
        largest, is_signed, is_binary = ctx.settings
        ratio = x / alpha
        inside = (ratio >= (-largest if is_signed else 0)) & (ratio <= largest)
        states = levels_of(ratio, *ctx.settings)
        slope = states if is_signed and is_binary else torch.where(inside, states - ratio, states)
        per_sequence = x.numel() // len(x)
        scale = 1 / math.sqrt(per_sequence * largest)
        return grad * inside, (grad * slope).sum().mul(scale).reshape(1).to(alpha.dtype), None, None, None


class RoundedToBytes(nn.Module):
    """8-bit activations without a learned scale: 256 steps up to the largest value of each token."""

    # ASSUME: per token, where the paper says per tensor: a statistic over other tokens would let a token see what
    # follows it, and make its score depend on what else is in the batch

    def __init__(self, is_signed: bool):
        super().__init__()
        self.is_signed = is_signed

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rounded = EightBit.apply(wide.clamp(-CLIP, CLIP)) if self.is_signed else UnsignedBytes.apply(wide)
        return rounded.to(x.dtype)


class UnsignedBytes(torch.autograd.Function):
    """round(x * 255 / max x) * max x / 255 over the last dimension, for x from 0 on, with dL/dx = dL/dy."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        step = x.amax(dim=-1, keepdim=True).clamp_(min=FLOOR) / 255  # the least is 0: the causal mask
        return (x / step).round_() * step

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def first_scales(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """Return the first value [1] of every learned scale of a model, by place, from one pass over `input_ids` [B, T].

    Each place reads what those before it give with their first values. Empty for families without learned scales.
    """

    def measure(place: LearnedLevels, inputs: tuple[Tensor]) -> None:
        place.first = place.first_alpha(inputs[0])

    places = _watch(model, input_ids, measure)
    values = {name: place.first for name, place in places.items()}
    for place in places.values():
        place.first = None
    return values


def measure_levels(model: nn.Module, input_ids: Tensor) -> list[dict[str, Any]]:
    """Return of every place with a learned scale the scale, each level's share on `input_ids` [B, T] and their entropy in bits."""
    found: dict[LearnedLevels, list[float]] = {}

    def count(place: LearnedLevels, inputs: tuple[Tensor]) -> None:
        found[place] = place.shares_of(inputs[0])

    rows = []
    for name, place in _watch(model, input_ids, count).items():
        alpha = place.alpha.full_tensor() if hasattr(place.alpha, "full_tensor") else place.alpha
        shares = dict(zip(place.levels, found[place], strict=True))
        rows.append(
            {"place": name.replace(".activations", ""), "scale": alpha.item()}
            | {f"share_of_{level}": shares.get(level, 0.0) for level in (-1, 0, 1, 2)}
            | {"entropy_bits": -sum(share * math.log2(share) for share in shares.values() if share)}
        )
    return rows


@torch.no_grad()
def set_scales(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Give learned scales their values, by place; where ranks hold parts of a model, on the rank that holds it."""
    for name, held in held_scales(model).items():
        held.copy_(values[name][: len(held)])


def held_scales(model: nn.Module) -> dict[str, Tensor]:
    """Return the learned scales by place, [1] each; where ranks hold parts of a model, [0] on the others."""
    alphas = {name: place.alpha.detach() for name, place in _learned(model).items()}
    return {name: alpha.to_local() if hasattr(alpha, "to_local") else alpha for name, alpha in alphas.items()}


@torch.no_grad()
def step_relatively(scales: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Let what an optimizer has done to learned scales count as a share of what they were: alpha + |alpha| (step).

    Adam's steps are as long as the learning rate, whatever the gradient: at 8e-3 a scale of attention probabilities of 0.03
    would pass zero within a few, and attention read nothing from then on.
    """
    # ASSUME: the paper goes on from a trained model, at rates of which this is no question
    for name, scale in scales.items():
        scale.copy_(torch.lerp(before[name], scale, before[name].abs()))


def _watch(
    model: nn.Module, input_ids: Tensor, watch: Callable[[LearnedLevels, tuple[Tensor]], None]
) -> dict[str, LearnedLevels]:
    """Let one pass, outside compiled blocks, call `watch` before each place with what it reads; return the places."""
    places = _learned(model)
    hooks = [place.register_forward_pre_hook(watch) for place in places.values()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            if places:
                model(input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return places


def _learned(model: nn.Module) -> dict[str, LearnedLevels]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LearnedLevels)}
