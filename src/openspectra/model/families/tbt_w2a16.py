"""TBT W2A16: ternary weights, activations as they are (arXiv 2306.01841)."""

from openspectra.model.binary_ternary import BinaryTernary
from openspectra.model.families.family import Look


class TBTW2A16(BinaryTernary):
    """Ternary weights, activations as they are."""

    label = "TBT W2A16"
    legend_order = 9
    look = Look("#3f5f7f", "#8fb3d6", marker="8")
    bits_per_weight = 1.58
    is_stock_llama = True
    weight_bits, activation_bits = 2, 16


FAMILY = TBTW2A16
