"""Sizes in bits by the paper's rule (size_rule: it reproduces every printed size to within 0.01 gigabit)."""

from openspectra.model.families import FAMILY_NAMES, load_family

HALF_PRECISION_BITS = 16
"""Embedding, head and norms stay in half precision in every family."""
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


def model_size_bits(num_linear_parameters: int, num_parameters: int, bits_per_weight: float) -> float:
    """Return b * (linear weights) + 16 * (all other parameters), in bits."""
    others = num_parameters - num_linear_parameters
    return bits_per_weight * num_linear_parameters + HALF_PRECISION_BITS * others
