"""A compact Llama decoder whose parameters carry the names of `transformers.LlamaForCausalLM`.

So the saved folder is the Hugging Face folder, without a translation layer. Shapes: B batch, T sequence, D hidden,
F intermediate, H heads, K head_dim, V vocabulary. Architecture: paper, section 3 and table of sizes: pre-norm
RMSNorm, SwiGLU, rotary positions, as many key/value heads as heads, no biases, untied embedding and head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openspectra.config import LlamaShape
from openspectra.model.families import FAMILIES


class FamilyLinear(nn.Module):
    """A bias-free linear layer [out_features, in_features] that multiplies with its family's effective weight.

    `shard_dim` 0 marks a column-parallel matrix (cut along outputs), 1 a row-parallel one (cut along inputs).
    """

    def __init__(self, in_features: int, out_features: int, family: type, scales_per_matrix: int, shard_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.family = family
        self.scales_per_matrix = scales_per_matrix
        self.shard_dim = shard_dim

    def effective_weight(self) -> Tensor:
        """Return the weight [out_features, in_features] used in the product and written to exports."""
        return self.family.effective_weight(self.weight, self.scales_per_matrix, self.shard_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight())


def joint_linear(x: Tensor, *layers: FamilyLinear) -> tuple[Tensor, ...]:
    """Return the outputs of several layers that read the same `x`, computed as one matrix product."""
    weights = [layer.effective_weight() for layer in layers]
    return F.linear(x, torch.cat(weights)).split([weight.shape[0] for weight in weights], dim=-1)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    def __init__(self, shape: LlamaShape, family: type):
        super().__init__()
        width = shape.num_attention_heads * shape.head_dim
        scales = shape.scales_per_matrix
        self.head_dim = shape.head_dim
        self.q_proj = FamilyLinear(shape.hidden_size, width, family, scales, shard_dim=0)
        self.k_proj = FamilyLinear(shape.hidden_size, width, family, scales, shard_dim=0)
        self.v_proj = FamilyLinear(shape.hidden_size, width, family, scales, shard_dim=0)
        self.o_proj = FamilyLinear(width, shape.hidden_size, family, scales, shard_dim=1)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in joint_linear(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        )
        out_BHTK = F.scaled_dot_product_attention(
            rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK), v, is_causal=True
        )
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: LlamaShape, family: type):
        super().__init__()
        scales = shape.scales_per_matrix
        self.gate_proj = FamilyLinear(shape.hidden_size, shape.intermediate_size, family, scales, shard_dim=0)
        self.up_proj = FamilyLinear(shape.hidden_size, shape.intermediate_size, family, scales, shard_dim=0)
        self.down_proj = FamilyLinear(shape.intermediate_size, shape.hidden_size, family, scales, shard_dim=1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = joint_linear(x_BTD, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)


class DecoderLayer(nn.Module):
    """One pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, shape: LlamaShape, family: type):
        super().__init__()
        self.self_attn = Attention(shape, family)
        self.mlp = MLP(shape, family)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TK, sin_TK)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embedding, blocks and final norm: everything of the model but its head."""

    def __init__(self, shape: LlamaShape, family: type):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape, family) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        cos_TK, sin_TK = rotary_tables(shape)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        length = input_ids_BT.shape[1]
        x_BTD = self.embed_tokens(input_ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, self.cos_TK[:length], self.sin_TK[:length])
        return self.norm(x_BTD)


class Llama(nn.Module):
    """A Llama of one family. Parameter names equal those of `transformers.LlamaForCausalLM`."""

    def __init__(self, shape: LlamaShape, family: str):
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape, FAMILIES[family])
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Return logits [B, T, V] of the token that follows each position of `input_ids_BT` (integers [B, T])."""
        return self.lm_head(self.model(input_ids_BT))

    def loss(self, input_ids_BT: Tensor, reduction: str = "mean") -> Tensor:
        """Return the next-token cross entropy in nats over the last T - 1 tokens of `input_ids_BT` [B, T]."""
        logits_BTV = self(input_ids_BT[:, :-1])
        return F.cross_entropy(logits_BTV.flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction=reduction)

    def reset_parameters(self, seed: int) -> None:
        """Draw the initial latent weights: one draw per seed and shape, the same for every family (twins)."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 2:  # ASSUME: normal(0, initializer_range) for every matrix; the paper states none
                nn.init.normal_(parameter, std=self.shape.initializer_range, generator=generator)
            else:
                nn.init.ones_(parameter)

    def linear_layers(self) -> dict[str, FamilyLinear]:
        """Return the layers whose weights belong to the family, by parameter name without `.weight`."""
        return {name: module for name, module in self.named_modules() if isinstance(module, FamilyLinear)}

    @torch.no_grad()
    def export_state_dict(self) -> dict[str, Tensor]:
        """Return Hugging Face's state dict with effective weights: what unmodified `transformers` can run."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return state | {f"{name}.weight": layer.effective_weight() for name, layer in self.linear_layers().items()}


def rotary_tables(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """Return cos and sin [max_position_embeddings, head_dim] of the rotary angles, in Hugging Face's half-split order."""
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Return queries or keys [B, H, T, K] turned by their positions' angles."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK
