"""How far a QuantLM is from its FloatLM on held-out text, and how far plain rounding would have been.

Both are compared in float32 with the FloatLM, on the same tokens of the validation split.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.device import device
from openspectra.errors import OpenSpectraError
from openspectra.quantization.config import QuantizeConfig
from openspectra.quantization.rounding import round_to_nearest

MOST_SEQUENCES = 16
"""Validation sequences that are compared: 4,096 tokens in the demo, 32,768 at the paper's length."""
POSITIONS = 512
"""Positions whose distributions are held at once, in float64."""


def compare(config: QuantizeConfig, float_model: Path, quantized: Path, tokens_valid: Tokens) -> dict[str, float]:
    """Return mean KL divergence from the FloatLM and added loss, in nats per token, of the QuantLM and of rounding.

    Rounding is to the nearest value of the same groups at the same width; what is not quantized is float16 in both.
    One after the other is compared, so that two models are in memory at a time, never three: 8 bytes per parameter.
    Raises `OpenSpectraError` where a QuantLM's answers are no numbers.
    """
    length = config.calibration_sequence_length
    available = tokens_valid.num_sequences(length, "quantization.calibration_sequence_length")
    indices = sequence_at(range(min(MOST_SEQUENCES, available)), available, config.seed)
    sequences = tokens_valid.sequences(indices, length)
    reference = load_float32(float_model)
    (ours,) = divergences(reference, [load_float32(quantized)], sequences)
    by_rounding = rounded(load_float32(float_model), config.bits, config.group_size)
    (of_rounding,) = divergences(reference, [by_rounding], sequences)
    names = ("kl", "added_loss", "rounding_kl", "rounding_added_loss")
    found = dict(zip(names, ours + of_rounding, strict=True)) | {"num_compared_tokens": sequences[:, 1:].size}
    if not math.isfinite(found["kl"]):
        raise OpenSpectraError(
            f"{config.model_id}: its answers are no numbers (KL {found['kl']}); the FloatLM's weights do not fit float16."
        )
    return {name: value for name, value in found.items() if math.isfinite(value)}


@torch.inference_mode()
def divergences(
    reference: PreTrainedModel, models: list[PreTrainedModel], sequences_ST: np.ndarray
) -> list[tuple[float, float]]:
    """Return of each model the mean over tokens of KL(reference || model), and of the loss that it adds, in nats.

    `sequences_ST` holds one token more than is read: the last one's target.
    """
    sums = np.zeros((len(models), 2))
    for sequence in torch.from_numpy(sequences_ST.astype(np.int64)).to(device()):
        own, *others = (each(sequence[None, :-1]).logits[0] for each in (reference, *models))
        for first in range(0, len(sequence) - 1, POSITIONS):
            rows = slice(first, first + POSITIONS)
            expected, targets = _log_probabilities(own[rows]), sequence[1:][rows, None]
            for number, logits in enumerate(others):
                found = _log_probabilities(logits[rows])
                kl = (expected.exp() * (expected - found)).sum()
                added = (expected.gather(1, targets) - found.gather(1, targets)).sum()
                sums[number] += kl.item(), added.item()
    return [tuple(each) for each in (sums / sequences_ST[:, 1:].size).tolist()]


def load_float32(folder: Path) -> PreTrainedModel:
    """Return a model to compute with in float32, whatever its folder holds."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device())


@torch.no_grad()
def rounded(model: PreTrainedModel, bits: int, group_size: int) -> PreTrainedModel:
    """Round the matrices of all blocks of a model to their grid, and everything to float16; return it."""
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(round_to_nearest(layer.weight, bits, group_size))
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(dim=-1)
