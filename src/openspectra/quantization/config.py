"""Config of a quantization."""

from typing import Annotated, Literal

from pydantic import Field

from openspectra.config import Config, PositiveInt, Seed

Bits = Literal[2, 3, 4, 5, 6, 7, 8]
BLOCK_BITS = (3, 5, 6, 7)
"""Widths that gptqmodel packs in blocks of 32 weights, along both sides of a matrix; the others take any side."""
BLOCK = 32
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
"""Those that gptqmodel packs."""
MIN_CALIBRATION_LENGTH = 11
"""Tokens; gptqmodel drops shorter sequences without an error."""
Damping = Annotated[float, Field(gt=0, lt=1)]


class QuantizeConfig(Config):
    """GPTQ of one FloatLM (paper, section on QuantLM), in gptqmodel's names."""

    model_id: str
    bits: Bits
    group_size: Annotated[int, Field(ge=-1)]
    """Weights of a row that share a scale; -1: the whole row."""
    sym: Literal[True] = True
    desc_act: bool = False
    damp_percent: Damping = 0.01
    num_calibration_samples: PositiveInt
    calibration_sequence_length: PositiveInt
    calibration_set: Annotated[int, Field(ge=0)] = 0
    """Which of the disjoint sets that the seed gives."""
    seed: Seed
    """Seeds the draw of calibration sequences from the train split."""
