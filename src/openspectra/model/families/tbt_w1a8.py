"""TBT W1A8: binary weights, 8-bit activations (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW1A8(BinaryTernary):
    """Binary weights, 8-bit activations."""

    label = "TBT W1A8"
    legend_order = 8
    look = Look("#5b6b1f", "#a9bd5a", marker="h")
    bits_per_weight = 1.0
    weight_bits, activation_bits = 1, 8


FAMILY = TBTW1A8
