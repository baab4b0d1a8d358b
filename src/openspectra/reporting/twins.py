"""The gap between twins over training: the loss of a discrete model minus that of its FloatLM at equal tokens seen."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from openspectra.errors import DamagedArtifactError
from openspectra.model_ids import ModelId
from openspectra.reporting.load import Model, Results, read_curve
from openspectra.reporting.statistics import mean_intervals
from openspectra.reporting.tables import DECIMALS

POINTS = ("tokens_seen", "gap", "low", "high", "num_sequences")
TWIN_TABLE = ("size", "family", *POINTS)


@dataclass(frozen=True)
class Trajectory:
    """The gap of a model to its FloatLM at every validation that both have at equal tokens seen; or why there is none."""

    model: Model
    twin_id: ModelId
    points: pd.DataFrame
    """Columns tokens_seen, gap (nats per token), low, high, num_sequences; a gap that is no finite number is missing."""
    missing: str | None = None


def twin_trajectories(results: Results, num_resamples: int, seed: int) -> list[Trajectory]:
    """Return the trajectory of every trained model that has a FloatLM twin, in the order of the models."""
    return [
        _trajectory(model, results.by_id.get(str(model.id.float_parent)), num_resamples, seed)
        for model in results.study_models
        if model.is_trained_here and model.id.family != "floatlm"
    ]


def twin_table(trajectories: list[Trajectory]) -> pd.DataFrame:
    """Return the points of all trajectories below each other."""
    frames = [
        each.points.assign(size=each.model.id.size, family=each.model.id.family)
        for each in trajectories
        if len(each.points)
    ]
    return pd.concat(frames)[list(TWIN_TABLE)] if frames else pd.DataFrame(columns=list(TWIN_TABLE))


def _trajectory(model: Model, twin: Model | None, num_resamples: int, seed: int) -> Trajectory:
    twin_id = model.id.float_parent
    missing = _missing(model, twin, twin_id)
    if missing:
        return Trajectory(model, twin_id, pd.DataFrame(columns=list(POINTS)), missing)
    own, other = _losses_by_tokens(model), _losses_by_tokens(twin)
    common = sorted(own.keys() & other.keys())
    if not common:
        missing = f"its validations and those of {twin_id} are at no equal number of tokens seen"
        return Trajectory(model, twin_id, pd.DataFrame(columns=list(POINTS)), missing)
    first_SV, second_SV = (np.stack([losses[tokens] for tokens in common], axis=1) for losses in (own, other))
    intervals = mean_intervals(_finite(first_SV) - _finite(second_SV), num_resamples, seed)
    points = pd.DataFrame(
        {
            "tokens_seen": common,
            "gap": [interval.value for interval in intervals],
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
            "num_sequences": len(first_SV),
        }
    )
    return Trajectory(model, twin_id, points.round(DECIMALS))


def _missing(model: Model, twin: Model | None, twin_id: ModelId) -> str | None:
    if twin is None or twin.artifact is None:
        return f"there is no {twin_id} to compare with"
    without = [str(each.id) for each in (model, twin) if not each.artifact.has("valid_losses.npy")]
    if without:
        return f"{' and '.join(without)} recorded no loss by sequence; train again"
    if _validation_of(model) != _validation_of(twin):
        return f"{twin_id} was validated on other sequences"
    return None


def _validation_of(model: Model) -> tuple[str, int, int]:
    """Return what fixes the sequences that a model was validated on."""
    tokens = model.artifact.manifest.parents["tokens_valid"].sha256
    return tokens, model.config["sequence_length"], model.config["valid_sequences"]


def _losses_by_tokens(model: Model) -> dict[int, np.ndarray]:
    """Return the losses of the validation sequences, in nats per token, by tokens seen."""
    path = model.artifact.file("valid_losses.npy")
    try:
        losses_VS = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamagedArtifactError(f"{path}: not an array of losses ({error}); train {model.id} anew.") from None
    tokens_seen = read_curve(model, "valid.csv")["tokens_seen"].astype(int)
    return dict(zip(tokens_seen, losses_VS, strict=True))


def _finite(losses: np.ndarray) -> np.ndarray:
    """Return the losses with NaN in place of infinities, which have no difference."""
    return np.where(np.isfinite(losses), losses, np.nan)
