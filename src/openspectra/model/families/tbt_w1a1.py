"""TBT W1A1: binary weights, binary activations (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW1A1(BinaryTernary):
    """Binary weights, binary activations."""

    label = "TBT W1A1"
    legend_order = 6
    look = Look("#0f7d5c", "#5cc7a4", marker="X")
    bits_per_weight = 1.0
    weight_bits, activation_bits = 1, 1
    num_learned_scales = 8


FAMILY = TBTW1A1
