"""TBT W2A8: ternary weights, 8-bit activations (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW2A8(BinaryTernary):
    """Ternary weights, 8-bit activations."""

    label = "TBT W2A8"
    legend_order = 7
    look = Look("#b8336a", "#ef8fb4", marker="p")
    bits_per_weight = 1.58
    weight_bits, activation_bits = 2, 8


FAMILY = TBTW2A8
