"""Calibration sets for GPTQ: sequences of the train split drawn by seed, several disjoint sets per setting."""

from pathlib import Path

import numpy as np

from openspectra.artifacts import write_csv
from openspectra.data.order import sequence_at
from openspectra.data.tokens import Span, Tokens
from openspectra.errors import OpenSpectraError
from openspectra.quantization.config import QuantizeConfig


def draw_calibration(config: QuantizeConfig, tokens: Tokens, listing: Path) -> np.ndarray:
    """Return the set's samples [num_calibration_samples, calibration_sequence_length]; list their documents as CSV.

    Set k takes the k-th stretch of the permutation that the seed gives, so sets share no sequence. Raises
    `OpenSpectraError` where the split is too small for that.
    """
    count, length = config.num_calibration_samples, config.calibration_sequence_length
    available = tokens.num_sequences(length, "quantization.calibration_sequence_length")
    first = config.calibration_set * count
    if first + count > available:
        raise OpenSpectraError(
            f"{config.model_id}: calibration set {config.calibration_set} needs sequences {first} to "
            f"{first + count - 1}, but the train split has {available} of {length} tokens; lower "
            "quantization.num_calibration_samples, num_calibration_sets or calibration_sequence_length."
        )
    indices = sequence_at(range(first, first + count), available, config.seed)
    rows = [
        {"sample": sample, "sequence": int(index), **span._asdict()}
        for sample, (index, spans) in enumerate(zip(indices, tokens.trace(indices, length), strict=True))
        for span in spans
    ]
    write_csv(listing, ("sample", "sequence", *Span._fields), rows)
    return tokens.sequences(indices, length)[:, :-1]
