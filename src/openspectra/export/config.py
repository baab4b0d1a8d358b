"""What may be exported: the formats, which families each suits, and the config of an export. Imports nothing heavy."""

from typing import Literal

from openspectra.config import Config
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES
from openspectra.model_ids import QUANTLM, ModelId

Format = Literal[
    "transformers",
    "gptq",
    "packed-2bit",
    "packed-1.6bit",
    "packed-1bit",
    "gguf-f16",
    "gguf-q8_0",
    "gguf-tq1_0",
    "gguf-tq2_0",
]
STOCK = ("floatlm", "trilm", "bilm", "tbt_w1a16", "tbt_w2a16", QUANTLM)
"""Families that an unmodified Llama expresses."""
BINARY = ("bilm", "tbt_w1a1", "tbt_w1a8", "tbt_w1a16")
TERNARY = ("trilm", "bitnet", "tbt_w2a2", "tbt_w2a8", "tbt_w2a16")
FAMILIES: dict[str, tuple[str, ...]] = {
    "transformers": (*FAMILY_NAMES, QUANTLM),
    "gptq": (QUANTLM,),
    "packed-2bit": TERNARY,
    "packed-1.6bit": TERNARY,
    "packed-1bit": BINARY,
    "gguf-f16": STOCK,
    "gguf-q8_0": ("floatlm", QUANTLM),
    "gguf-tq1_0": ("trilm", "tbt_w2a16"),
    "gguf-tq2_0": ("trilm", "tbt_w2a16"),
}
"""The families that each format can hold."""
TERNARY_GGUF = ("gguf-tq1_0", "gguf-tq2_0")
TERNARY_BLOCK = 256
"""Weights of a row that share a scale in llama.cpp's ternary formats."""
BLOCK_8 = 32
"""Weights of a row that share a scale in llama.cpp's Q8_0."""


GPTQ_FOLDER_BITS = (3, 4, 6, 8)
"""Widths whose GPTQ folders other programs read; gptqmodel lays out no others."""
HELD_OUT_TOKENS = 8192
"""Tokens of the valid split that a model and its export both score, in whole sequences and one at least."""


class ExportConfig(Config):
    """One model in one format."""

    model: str
    """Id of the model."""
    format: Format


def format_problem(model_id: str, form: Format, shape: LlamaShape | None = None) -> str | None:
    """Return why a model cannot be exported in a format, and the formats that it can have; None where it can.

    `shape`, where known, is looked at too: in how wide rows a block format finds whole blocks.
    """
    model = ModelId.parse(model_id)
    family = model.family
    if family not in FAMILIES[form]:
        fitting = ", ".join(name for name, families in FAMILIES.items() if family in families)
        return f"{form} holds no {family}; choose among {fitting}."
    if form == "gptq" and model.bits not in GPTQ_FOLDER_BITS:
        return (
            f"{form} folders hold {', '.join(map(str, GPTQ_FOLDER_BITS))} bits, and {model_id} has {model.bits}. "
            "Choose transformers or a GGUF."
        )
    if shape is None:
        return None
    widths = shape.hidden_size, shape.intermediate_size
    one_scale = shape.hidden_size, shape.intermediate_size // shape.scales_per_matrix
    if form in TERNARY_GGUF and all(width % TERNARY_BLOCK for width in one_scale):
        return (
            f"{form} needs rows of a multiple of {TERNARY_BLOCK} weights of one scale in some matrix; hidden_size, "
            f"intermediate_size and scales_per_matrix are {widths[0]}, {widths[1]} and {shape.scales_per_matrix}. "
            "Choose gguf-f16 or packed-2bit."
        )
    if form == "gguf-q8_0" and any(width % BLOCK_8 for width in widths):
        return (
            f"{form} needs rows of a multiple of {BLOCK_8} weights; hidden_size and intermediate_size are "
            f"{widths[0]} and {widths[1]}. Choose gguf-f16."
        )
    return None
