"""TBT W1A16: binary weights, activations as they are (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW1A16(BinaryTernary):
    """Binary weights, activations as they are."""

    label = "TBT W1A16"
    legend_order = 10
    look = Look("#7a5230", "#c79c72", marker="*")
    bits_per_weight = 1.0
    is_stock_llama = True
    weight_bits, activation_bits = 1, 16


FAMILY = TBTW1A16
