"""How the weights of the FloatLMs are distributed: a Gaussian beside them, and their entropy (paper, section 2.2)."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from openspectra.artifacts import Artifact
from openspectra.errors import DamagedArtifactError
from openspectra.reporting.load import Model, Results
from openspectra.reporting.tables import DECIMALS

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_WEIGHTS = 2**20
"""Weights that are read of each matrix, its first rows."""
SHANNON_BINS = 256
"""Bins between the smallest and the largest weight; the paper draws 100 to 900."""
HISTOGRAM_EDGES = np.linspace(-5, 5, 81)
"""In standard deviations."""
TABLE = ("model_id", "parameters", "num_weights", "deviation", "kurtosis", "differential_bits", "shannon_bits")


@dataclass(frozen=True)
class Weights:
    """The linear weights of one model, as far as they were read."""

    model: Model
    deviation: float
    kurtosis: float
    """Of a Gaussian 0."""
    shannon_bits: float
    shares: np.ndarray
    """Share of the weights in each bin of `HISTOGRAM_EDGES`."""
    num_weights: int

    @property
    def differential_bits(self) -> float:
        """The differential entropy of a Gaussian of this deviation: 0.5 log2(2 pi e s^2)."""
        return 0.5 * math.log2(2 * math.pi * math.e * self.deviation**2)


def float_weights(results: Results) -> list[Weights]:
    """Return the weights of every FloatLM that is there, smallest first."""
    models = [model for model in results.study_models if model.id.family == "floatlm" and model.artifact]
    return [found for model in models if (found := _weights(model))]


def weight_table(found: list[Weights]) -> pd.DataFrame:
    """Return one row per model."""
    rows = [
        [
            str(each.model.id),
            each.model.metric("num_parameters"),
            each.num_weights,
            *(round(number, DECIMALS) for number in (each.deviation, each.kurtosis)),
            *(round(number, DECIMALS) for number in (each.differential_bits, each.shannon_bits)),
        ]
        for each in found
    ]
    return pd.DataFrame(rows, columns=list(TABLE))


def _weights(model: Model) -> Weights | None:
    weights = _read(model.artifact)
    if not len(weights):
        return None
    deviation = float(weights.std())
    centred = (weights - weights.mean()) / (deviation or 1)
    counts = np.histogram(weights, SHANNON_BINS)[0]
    shares = counts[counts > 0] / len(weights)
    return Weights(
        model,
        deviation,
        float((centred**4).mean() - 3),
        float(-(shares * np.log2(shares)).sum()),
        np.histogram(centred, HISTOGRAM_EDGES)[0] / len(weights),
        len(weights),
    )


def _read(artifact: Artifact) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    found = []
    for name in sorted(record.path for record in artifact.manifest.files if record.path.endswith(".safetensors")):
        path = artifact.file(name)
        try:
            with safe_open(path, framework="numpy") as file:
                for key in sorted(file.keys()):
                    if key.removesuffix(".weight").rpartition(".")[2] in LINEAR:
                        rows = file.get_slice(key)
                        height, width = rows.get_shape()
                        found.append(rows[: min(height, max(1, MOST_WEIGHTS // width))].astype(np.float64).ravel())
        except SafetensorError as error:
            raise DamagedArtifactError(
                f"{path}: not readable weights ({error}); make {artifact.folder} anew."
            ) from None
    return np.concatenate(found) if found else np.empty(0)
