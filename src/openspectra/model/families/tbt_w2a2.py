"""TBT W2A2: ternary weights, ternary activations (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW2A2(BinaryTernary):
    """Ternary weights, ternary activations."""

    label = "TBT W2A2"
    legend_order = 5
    look = Look("#7b4fc4", "#b69ae8", marker="P")
    bits_per_weight = 1.58
    weight_bits, activation_bits = 2, 2
    num_learned_scales = 8


FAMILY = TBTW2A2
