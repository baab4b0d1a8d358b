"""A compact Llama decoder whose parameters carry the names of `transformers.LlamaForCausalLM`.

So the saved folder is the Hugging Face folder, without a translation layer. Shapes: B batch, T sequence, D hidden,
F intermediate, H heads, K head_dim, V vocabulary. Architecture: paper, section 3 and table of sizes: pre-norm
RMSNorm, SwiGLU, rotary positions, as many key/value heads as heads, no biases, untied embedding and head.

Precision: without autocast everything is computed in that of the parameters. Under autocast the residual stream is in
half precision, and with it what norms and rotary positions give out, as in GPT-NeoX, the authors' code base; a norm's
mean square, the loss, 8-bit rounding and what becomes of a latent weight stay in float32.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openspectra.model.attention import FORMS, INSIDE_ATTENTION, attend_rounded
from openspectra.model.config import AttentionForm, LlamaShape
from openspectra.model.families import load_family
from openspectra.model.families.family import Family
from openspectra.model.head_and_loss import mean_loss, token_losses
from openspectra.model.shards import Shards, by_row, column_parallel, row_parallel

if TYPE_CHECKING:
    from openspectra.model.distillation import Lesson

OUTPUT_LAYERS = ("o_proj.weight", "down_proj.weight")
"""Matrices that write to the residual stream, which an initialization may scale by depth."""


class LinearGroup:
    """Bias-free layers that read the same input and are computed as one product: q, k and v; gate and up; or one alone.

    The layers themselves are submodules of the block, under Hugging Face's names; this object says how the family
    treats them. `layers`: by local name, each weight [out_features, in_features].
    """

    def __init__(self, family: type[Family], layers: dict[str, nn.Linear], shards: Shards, eps: float):
        self.family, self.layers, self.shards = family, layers, shards
        self.activation = family.activation("input", eps)
        self.widths = [layer.out_features for layer in layers.values()]

    def latent_weight(self) -> Tensor:
        """Return the weights that the optimizer moves, stacked along outputs."""
        weights = [layer.weight for layer in self.layers.values()]
        return torch.cat(weights) if len(weights) > 1 else weights[0]

    def effective_weight(self) -> Tensor:
        """Return the weights used in the product and written to exports, stacked along outputs."""
        return self.family.effective_weight(self.latent_weight(), self.shards)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's output [..., out_features] for `x` [..., in_features]."""
        x = self.activation(x) if self.activation else x
        return F.linear(x, self.effective_weight()).split(self.widths, dim=-1)


class QuantizedEmbedding(nn.Embedding):
    """An embedding that is rounded by the family's rule for weights, each row with a scale of its own.

    What a row becomes depends on no other, so a pass rounds only the rows that it looks up.
    """

    def __init__(self, shape: LlamaShape, family: type[Family]):
        super().__init__(shape.vocab_size, shape.hidden_size)
        self.family = family

    def effective_weight(self) -> Tensor:
        """Return the rows that are looked up and written to exports."""
        return self._rounded(self.weight)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        rows_BTD = super().forward(input_ids_BT)
        return self._rounded(rows_BTD.flatten(0, 1)).view_as(rows_BTD)

    def _rounded(self, rows_ND: Tensor) -> Tensor:
        return self.family.effective_weight(rows_ND, by_row(*rows_ND.shape))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, in the precision of its input; the mean square in float32 or better."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # on a GPU it would give out float32, on a CPU not
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, shape: LlamaShape, family: type[Family], attention: AttentionForm):
        super().__init__()
        hidden, width = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        scales, eps = shape.scales_per_matrix, shape.rms_norm_eps
        self.head_dim, self.attend = shape.head_dim, FORMS[attention]
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.o_proj = nn.Linear(width, hidden, bias=False)
        # ASSUME: q, k and v of a shard share one scale: GPT-NeoX, the authors' code base, held them as one tensor
        qkv = {"q_proj": self.q_proj, "k_proj": self.k_proj, "v_proj": self.v_proj}
        self.qkv = LinearGroup(family, qkv, column_parallel(3 * width, hidden, scales, shared_by=3), eps)
        self.out = LinearGroup(family, {"o_proj": self.o_proj}, row_parallel(hidden, width, scales), eps)
        inside = {place: family.activation(place, eps) for place in INSIDE_ATTENTION}
        self.activations = activations_of(inside | {"qkv": self.qkv.activation, "out": self.out.activation})
        self.rounds = inside["probabilities"] is not None

    @property
    def linear_groups(self) -> tuple[LinearGroup, ...]:
        return self.qkv, self.out

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x_BTD))
        q, k = rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK)
        out_BHTK = attend_rounded(q, k, v, self.activations)[0] if self.rounds else self.attend(q, k, v)
        (out_BTD,) = self.out(out_BHTK.transpose(1, 2).flatten(2))
        return out_BTD


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: LlamaShape, family: type[Family]):
        super().__init__()
        hidden, width = shape.hidden_size, shape.intermediate_size
        scales, eps = shape.scales_per_matrix, shape.rms_norm_eps
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)
        # ASSUME: gate and up have scales of their own: separate tensors in the authors' code base, here stacked
        gate_up = {"gate_proj": self.gate_proj, "up_proj": self.up_proj}
        self.gate_up = LinearGroup(family, gate_up, column_parallel(2 * width, hidden, 2 * scales), eps)
        self.down = LinearGroup(family, {"down_proj": self.down_proj}, row_parallel(hidden, width, scales), eps)
        self.activations = activations_of({"gate_up": self.gate_up.activation, "down": self.down.activation})

    @property
    def linear_groups(self) -> tuple[LinearGroup, ...]:
        return self.gate_up, self.down

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD)
        (out_BTD,) = self.down(F.silu(gate_BTF) * up_BTF)
        return out_BTD


class DecoderLayer(nn.Module):
    """One pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, shape: LlamaShape, family: type[Family], attention: AttentionForm):
        super().__init__()
        self.self_attn = Attention(shape, family, attention)
        self.mlp = MLP(shape, family)
        self.input_layernorm = block_norm(shape, family)
        self.post_attention_layernorm = block_norm(shape, family)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TK, sin_TK)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


def activations_of(modules: dict[str, nn.Module | None]) -> nn.ModuleDict:
    """Return the modules that values pass through, by place, under whose names their parameters stand."""
    return nn.ModuleDict({place: module for place, module in modules.items() if module})


def block_norm(shape: LlamaShape, family: type[Family]) -> nn.Module:
    """Return a block's learned norm, or nothing where the family's linear layers norm their own input."""
    return RMSNorm(shape.hidden_size, shape.rms_norm_eps) if family.has_block_norms else nn.Identity()


def embedding(shape: LlamaShape, family: type[Family]) -> nn.Embedding:
    """Return the embedding: its rows as they are, or rounded."""
    if shape.quantized_embedding:
        return QuantizedEmbedding(shape, family)
    return nn.Embedding(shape.vocab_size, shape.hidden_size)


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything of the model but its head."""

    def __init__(self, shape: LlamaShape, family: type[Family], attention: AttentionForm):
        super().__init__()
        self.embed_tokens = embedding(shape, family)
        self.layers = nn.ModuleList(DecoderLayer(shape, family, attention) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        cos_TK, sin_TK = rotary_tables(shape)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(self, input_ids_BT: Tensor, streams: list[Tensor] | None = None) -> Tensor:
        """Return what the head reads [B, T, D]; append to `streams` the residual stream after each block."""
        length = input_ids_BT.shape[1]
        x_BTD = self.embed_tokens(input_ids_BT)
        dtype = stream_dtype(x_BTD)
        x_BTD, cos_TK, sin_TK = (part.to(dtype) for part in (x_BTD, self.cos_TK[:length], self.sin_TK[:length]))
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TK, sin_TK)
            if streams is not None:
                streams.append(x_BTD)
        return self.norm(x_BTD)


def stream_dtype(x_BTD: Tensor) -> torch.dtype:
    """Return the precision of the residual stream that begins with the embeddings `x_BTD`: autocast's where it is on."""
    device = x_BTD.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BTD.dtype


class Llama(nn.Module):
    """A Llama of one family. Parameter names equal those of `transformers.LlamaForCausalLM`."""

    def __init__(self, shape: LlamaShape, family: str, attention: AttentionForm = "fused"):
        super().__init__()
        self.shape = shape
        self.family = load_family(family)
        self.model = Decoder(shape, self.family, attention)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(
        self,
        input_ids_BT: Tensor,
        targets_BT: Tensor | None = None,
        reduction: str = "mean",
        lesson: "Lesson | None" = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return logits [B, T, V] of the token that follows each position of `input_ids_BT` (integers [B, T]).

        With `targets_BT`, the tokens that do follow, return their cross entropy in nats instead: the mean, or [B, T]
        without gradients for `reduction` "none". With a `lesson` on the batch return `Lesson.losses`.
        """
        streams = [] if lesson and lesson.streams else None
        x_BTD = self.model(input_ids_BT, streams)
        if targets_BT is None:
            return self.lm_head(x_BTD)
        arguments = x_BTD.flatten(0, 1), self.lm_head.weight, targets_BT.flatten()
        if lesson:
            return lesson.losses(*arguments, streams)
        return mean_loss(*arguments) if reduction == "mean" else token_losses(*arguments).view_as(targets_BT)

    def set_attention(self, attention: AttentionForm) -> None:
        """Compute attention in this form from now on."""
        for layer in self.model.layers:
            layer.self_attn.attend = FORMS[attention]

    def reset_parameters(self, seed: int) -> None:
        """Draw the initial latent weights: one draw per seed and shape, the same for every family (twins).

        A family's learned scales are 0, which is not set: `first_scales` measures them.
        """
        generator = torch.Generator().manual_seed(seed)
        deviation, output_deviation = self.shape.initial_deviations
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = output_deviation if name.endswith(OUTPUT_LAYERS) else deviation
                nn.init.normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith(".alpha") else 1.0)

    def groups(self) -> Iterator[tuple[list[str], LinearGroup]]:
        """Yield the layers' names (of their weights, without `.weight`) and group, for all weights of the family."""
        for name, module in self.named_modules():
            for group in getattr(module, "linear_groups", ()):
                yield [f"{name}.{layer}" for layer in group.layers], group

    @torch.no_grad()
    def export_state_dict(self) -> dict[str, Tensor]:
        """Return Hugging Face's state dict with effective weights: what unmodified `transformers` can run."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        for names, group in self.groups():
            weights = group.effective_weight().split(group.widths)
            state |= {f"{name}.weight": weight for name, weight in zip(names, weights, strict=True)}
        if self.shape.quantized_embedding:
            state["model.embed_tokens.weight"] = self.model.embed_tokens.effective_weight()
        return state

    def load_latent_weights(self, state: dict[str, Tensor]) -> None:
        """Take over latent weights by parameter name.

        Raises `ValueError` for exported weights of a discrete family: their scale, computed again as mean|W|, would
        shrink by the share of zeros.
        """
        self.load_state_dict(state)
        for names, group in self.groups():
            weight = group.latent_weight().detach()
            if self.family.states_and_scales(weight, group.shards) and is_discrete(weight, group.shards):
                raise ValueError(
                    f"{names[0]}: these are exported weights, with their scales applied; give latent ones."
                )


def is_discrete(weight: Tensor, shards: Shards) -> bool:
    """Return whether the non-zero weights of every shard have one magnitude."""
    magnitudes = shards.of(weight).abs()
    largest = magnitudes.amax(dim=shards.dims, keepdim=True)
    return bool(((magnitudes == 0) | (magnitudes == largest)).all())


def rotary_tables(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """Return cos and sin [max_position_embeddings, head_dim] of the rotary angles, in Hugging Face's half-split order."""
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Return queries or keys [B, H, T, K] turned by their positions' angles."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK
