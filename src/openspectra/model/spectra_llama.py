"""Families that a stock Llama cannot express, as a model of `transformers`: generate() and lm-eval run it as any other.

Importing this module registers it with the Auto classes, under the model type `openspectra`.
"""

from functools import partial

from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from openspectra.model.attention import INSIDE_ATTENTION, attend_rounded
from openspectra.model.families import load_family
from openspectra.model.llama import activations_of

ROUNDED = "openspectra_rounded"
"""Name under which `transformers` finds the attention of families that round inside it."""
READERS = {
    "self_attn": {"qkv": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",)},
    "mlp": {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)},
}
"""By part of a block: the names of its rounded inputs, and the layers that read each."""


class SpectraConfig(LlamaConfig):
    """Llama's config and the name of a family."""

    model_type = "openspectra"

    def __init__(self, family: str = "floatlm", **settings):
        self.family = family
        super().__init__(**settings)


class SpectraForCausalLM(LlamaForCausalLM):
    """A Llama on exported weights whose blocks pass their values through what the family gives for each place."""

    config_class = SpectraConfig

    def __init__(self, config: SpectraConfig):
        super().__init__(config)
        family = load_family(config.family)
        activation = partial(family.activation, eps=config.rms_norm_eps)
        for block in self.model.layers:
            if not family.has_block_norms:
                block.input_layernorm = block.post_attention_layernorm = nn.Identity()
            for part, readers in READERS.items():
                module = getattr(block, part)
                inside = INSIDE_ATTENTION if part == "self_attn" else ()
                places = {place: activation(place) for place in inside} | {
                    name: activation("input") for name in readers
                }
                module.activations = activations_of(places)
                for name, layers in readers.items():
                    for layer in layers if name in module.activations else ():
                        getattr(module, layer).register_forward_pre_hook(_pass_through(module.activations[name]))
            if "probabilities" in block.self_attn.activations:
                self.config._attn_implementation = ROUNDED


def _pass_through(activation: nn.Module):
    return lambda layer, inputs: (activation(inputs[0]),)


def rounded_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, **_
) -> tuple[Tensor, Tensor]:
    """Return attention [B, T, H, K] that rounds queries, keys, values and probabilities, and the probabilities."""
    mask = q.new_zeros(1) if attention_mask is None else attention_mask
    mask = mask.expand(*q.shape[:3], k.shape[2]).flatten(0, 1)
    # the very products of training: values near a rounding border fall on the same side
    out, probabilities = attend_rounded(q, k, v, module.activations, mask)
    return out.transpose(1, 2).contiguous(), probabilities


AttentionInterface.register(ROUNDED, rounded_attention)
AttentionMaskInterface.register(ROUNDED, eager_mask)
AutoConfig.register(SpectraConfig.model_type, SpectraConfig, exist_ok=True)
AutoModelForCausalLM.register(SpectraConfig, SpectraForCausalLM, exist_ok=True)
