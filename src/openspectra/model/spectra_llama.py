"""Families that a stock Llama cannot express, as a model of `transformers`: generate() and lm-eval run it as any other.

Importing this module registers it with the Auto classes, under the model type `openspectra`.
"""

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from openspectra.model.families import load_family


class SpectraConfig(LlamaConfig):
    """Llama's config and the name of a family."""

    model_type = "openspectra"

    def __init__(self, family: str = "floatlm", **settings):
        self.family = family
        super().__init__(**settings)


class SpectraForCausalLM(LlamaForCausalLM):
    """A Llama on exported weights whose linear layers read their input as the family makes it."""

    config_class = SpectraConfig

    def __init__(self, config: SpectraConfig):
        super().__init__(config)
        family, eps = load_family(config.family), config.rms_norm_eps

        def layer_input(layer: nn.Linear, inputs: tuple) -> tuple:
            return (family.layer_input(inputs[0], eps),)

        for block in self.model.layers:
            if not family.has_block_norms:
                block.input_layernorm = block.post_attention_layernorm = nn.Identity()
            for layer in (module for module in block.modules() if isinstance(module, nn.Linear)):
                layer.register_forward_pre_hook(layer_input)


AutoConfig.register(SpectraConfig.model_type, SpectraConfig, exist_ok=True)
AutoModelForCausalLM.register(SpectraConfig, SpectraForCausalLM, exist_ok=True)
