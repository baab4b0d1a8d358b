"""The architecture of a model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openspectra.config import Config, PositiveInt, Rate

AttentionForm = Literal["fused", "products"]
"""How attention is computed: by torch's own kernel, or as two matrix products. They differ by rounding only."""


class LlamaShape(Config):
    """Architecture, in the names of Hugging Face's Llama."""

    vocab_size: PositiveInt
    """Rows of embedding and head, padding included."""
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt = 2048  # paper, released configs
    rms_norm_eps: Rate = 1e-5  # paper, released configs
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0  # paper, released configs
    initializer_range: Rate = 0.02
    """Standard deviation of the initial normal draw."""
    scales_per_matrix: PositiveInt = 1
    """Scales of a ternary matrix: the MP column of the published model table."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the blocks' linear layers: those a family or a quantizer changes."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """All parameters: linear layers, two norms per block and a final one, untied embedding and head."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_linear_parameters + norms + 2 * self.vocab_size * self.hidden_size

    @model_validator(mode="after")
    def _divisible(self):
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"`num_attention_heads` must split `hidden_size` into heads of even width; "
                f"got {self.num_attention_heads} and {self.hidden_size}."
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % self.scales_per_matrix:
                raise ValueError(
                    f"`scales_per_matrix` must divide `{name}`; got {self.scales_per_matrix} and {getattr(self, name)}."
                )
        return self
