"""Sizes in bits by the paper's rule (size_rule: it reproduces every printed size to within 0.01 gigabit).

The paper counts the rows of embedding and head that its tokenizer needs, 50,304 at every size; the files of models with
several scales per matrix hold more. What a file holds is its `num_parameters`; what is compared with the paper, and every
size in bits, counts the paper's rows.
"""

import math

from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family

HALF_PRECISION_BITS = 16
"""Head and norms stay in half precision in every family; so do the embedding, or one scale a row where it is quantized."""
VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of this times scales_per_matrix (paper, vocabulary rule)."""
GROUP_METADATA_BITS = 32
"""Bits beside each group of quantized weights: the paper counts 4.25 and 3.25 bits at group size 128."""


def bits_per_weight(kind: str, group_size: int | None = None) -> float:
    """Return the bits that one linear weight costs: `kind` is a family or `quantlm-<bits>bit`.

    A QuantLM with one scale per output channel (`group_size` None or -1) is counted at its nominal width, as in the
    paper's table of sizes.
    """
    if kind in FAMILY_NAMES:
        return load_family(kind).bits_per_weight
    bits = float(kind.removeprefix("quantlm-").removesuffix("bit"))
    return bits + (GROUP_METADATA_BITS / group_size if group_size and group_size > 0 else 0.0)


def parameters_of(shape: LlamaShape, family: str) -> int:
    """Return the parameters of a model of a family: a shape's, without block norms where it has none, and learned scales."""
    look = load_family(family)
    absent = 0 if look.has_block_norms else shape.num_block_norm_parameters
    return shape.num_parameters - absent + look.num_learned_scales * shape.num_hidden_layers


def padded_rows(vocab_size: int, scales_per_matrix: int = 1) -> int:
    """Return the rows of embedding and head for a tokenizer of `vocab_size` entries: in the file, or by default as counted."""
    multiple = VOCAB_MULTIPLE * scales_per_matrix
    return math.ceil(vocab_size / multiple) * multiple


def counted_parameters(num_parameters: int, shape: LlamaShape, vocab_size: int) -> int:
    """Return the parameters that the paper counts, of a file with `num_parameters` and a tokenizer of `vocab_size` entries."""
    return num_parameters - 2 * (shape.vocab_size - padded_rows(vocab_size)) * shape.hidden_size


def quantized_embedding(shape: LlamaShape, vocab_size: int) -> tuple[int, int]:
    """Return weights and rows, as they are counted, of an embedding that is quantized; 0 and 0 where it is not."""
    rows = padded_rows(vocab_size) if shape.quantized_embedding else 0
    return rows * shape.hidden_size, rows


def model_size_bits(
    num_linear_parameters: int, num_parameters: int, bits_per_weight: float, num_embedding: int = 0, num_rows: int = 0
) -> float:
    """Return b * (linear weights) + 16 * (all other parameters), in bits; the paper's size for parameters as it counts.

    A quantized embedding of `num_embedding` weights is counted as linear weights are, with one scale for each of its rows.
    """
    discrete = num_linear_parameters + num_embedding
    return bits_per_weight * discrete + HALF_PRECISION_BITS * (num_parameters - discrete + num_rows)
