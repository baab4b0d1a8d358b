"""The certificate of an export: what was read back from the written files, beside the model that they were made from."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from openspectra.artifacts import Artifact
from openspectra.data.tokens import Tokens
from openspectra.errors import OpenSpectraError
from openspectra.export.config import HELD_OUT_TOKENS
from openspectra.export.stored import Stored
from openspectra.training.validation import ValidationSample

CERTIFICATE = "certificate.json"
LONGEST = 2048
"""Tokens of a sequence at most, whatever a model can read."""
WEIGHT_FILES = (".safetensors", ".gguf")


class Comparison(NamedTuple):
    """Two models on the same tokens."""

    num_tokens: int
    largest_logit_difference: float
    argmax_agreement: float
    """Share of positions where both give the same token the highest logit."""
    losses: tuple[float, float]
    """Mean cross entropy in nats per token: of the model, and of its export."""


def held_out(tokens: Artifact, max_position_embeddings: int) -> np.ndarray:
    """Return the sequences [N, T + 1] of the valid split that a certificate speaks of."""
    length = min(max_position_embeddings, LONGEST)
    sample = ValidationSample(Tokens(tokens), math.ceil(HELD_OUT_TOKENS / length), length)
    return sample.batch(range(len(sample)))


@torch.no_grad()
def compare(model: PreTrainedModel, export: PreTrainedModel, sequences: np.ndarray) -> Comparison:
    """Return how far the logits of an export are from those of its model, sequence by sequence."""
    difference, agreeing, losses = 0.0, 0, [0.0, 0.0]
    for row in torch.from_numpy(sequences):
        logits = [each(row[None, :-1]).logits[0].float() for each in (model, export)]
        require_finite(logits[0], "the model")
        require_finite(logits[1], "its export")
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
        agreeing += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
        for place, found in enumerate(logits):
            losses[place] += float(torch.nn.functional.cross_entropy(found, row[1:], reduction="sum"))
    count = sequences.shape[0] * (sequences.shape[1] - 1)
    return Comparison(count, difference, agreeing / count, (losses[0] / count, losses[1] / count))


def require_finite(logits: torch.Tensor, who: str) -> None:
    """Raise `OpenSpectraError` where an answer is no number: the largest of differences would pass over it."""
    if not logits.isfinite().all():
        raise OpenSpectraError(f"{who} gives logits that are no finite numbers on held-out text; nothing is exported.")


def certificate(
    model: Artifact, form: str, source: Stored, export: Stored, compared: Comparison, folder: Path, notes: list[str]
) -> dict[str, Any]:
    """Return the certificate of what was written to `folder`, ready for JSON.

    `notes` are sentences on what is stored otherwise than the format's name says.
    """
    differing = [
        float((weight.float() - export.weights[name].float()).abs().max())
        for name, weight in source.weights.items()
        if not torch.equal(weight.float(), export.weights[name].float())
    ]
    before, after = map(math.exp, compared.losses)
    metrics = model.manifest.metrics
    files = [path for path in folder.rglob("*") if path.suffix in WEIGHT_FILES]
    return {
        "model": model.manifest.config["model_id"],
        "model_sha256": model.sha256,
        "format": form,
        "bytes": sum(path.stat().st_size for path in files),
        "bits_per_weight_stored": 8 * export.linear_bytes / metrics["num_linear_parameters"],
        "bits_per_weight_rule": metrics["bits_per_weight"],
        "model_size_bits_rule": metrics["model_size_bits"],
        "round_trip_exact": not differing,
        "num_tensors_rounded": len(differing),
        "largest_weight_difference": max(differing, default=0.0),
        "largest_logit_difference": compared.largest_logit_difference,
        "argmax_agreement": compared.argmax_agreement,
        "perplexity": after,
        "perplexity_of_model": before,
        "perplexity_difference_percent": 100 * (after / before - 1),
        "num_tokens": compared.num_tokens,
        "loader": export.loader,
        "notes": notes,
    }
