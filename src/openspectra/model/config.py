"""The architecture of a model."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from openspectra.config import Config, PositiveInt, Rate, Text
from openspectra.model.families import FAMILY_NAMES

AttentionForm = Literal["fused", "products"]
"""How attention is computed: by torch's own kernel, or as two matrix products. They differ by rounding only."""
Initialization = Literal["normal", "scaled_normal", "small_init"]
"""How the initial weights are drawn (see `LlamaShape.initial_deviations`); the names of GPT-NeoX, the authors' code base."""


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
    initialization: Initialization = "normal"
    initializer_range: Rate = 0.02
    """Standard deviation of the initial normal draw, where `initialization` is `normal` or `scaled_normal`."""
    scales_per_matrix: PositiveInt = 1
    """Scales of a ternary matrix: the MP column of the published model table."""
    quantized_embedding: Annotated[bool, Field(exclude_if=lambda is_quantized: not is_quantized)] = False
    """Whether the embedding is rounded by the family's rule for weights, each row with a scale of its own. It stands in a
    resolved config only where it is: the others, and what is named after their hash, are as they were without the switch."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def initial_deviations(self) -> tuple[float, float]:
        """Standard deviation of the initial normal draw: of every matrix, and of those that write to the residual stream.

        `small_init` is sqrt(2 / 5D) with `wang_init`, 2 / (L sqrt(D)), for the output layers of L blocks of width D;
        `scaled_normal` divides by sqrt(2L) there, `normal` draws all alike.
        """
        depth, width = self.num_hidden_layers, self.hidden_size
        if self.initialization == "small_init":
            return math.sqrt(2 / (5 * width)), 2 / depth / math.sqrt(width)
        scaled = math.sqrt(2 * depth) if self.initialization == "scaled_normal" else 1.0
        return self.initializer_range, self.initializer_range / scaled

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the blocks' linear layers: those a family or a quantizer changes."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """All parameters: linear layers, two norms per block and a final one, untied embedding and head."""
        norms = self.num_block_norm_parameters + self.hidden_size
        return self.num_linear_parameters + norms + 2 * self.vocab_size * self.hidden_size

    @property
    def num_block_norm_parameters(self) -> int:
        """Parameters of the two norms of every block, which families without block norms lack."""
        return 2 * self.num_hidden_layers * self.hidden_size

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


class ReleaseConfig(Config):
    """One model whose weights are taken as they were released."""

    model_id: str
    family: Literal[FAMILY_NAMES]
    source: Text
    """A folder below the data folder or, where there is none, the name of a repository on the hub."""
    revision: Text | None = None
    """Commit on the hub; none: its newest."""
    shape: LlamaShape
    vocab_size: PositiveInt
    """Entries of the tokenizer: the rows that sizes in bits count."""
    tokens_seen: PositiveInt
    """As the authors say."""
