"""The weights a run kept on its way, and how one of them becomes a model that can be quantized and evaluated.

`checkpoints.csv` in the artifact lists step, file and hash; the files lie undeclared beside it. Imports no torch.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, sha256_of
from openspectra.data.tokenizer import TOKENIZER_FILES
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.training.config import CheckpointConfig

TABLE, WEIGHTS = "checkpoints.csv", "model.safetensors"


def checkpoint_config(run: Artifact, step: int) -> CheckpointConfig:
    """Return the resolved config of the checkpoint of a run at `step`. Raises `ConfigError` for a step not kept."""
    config, steps = run.manifest.config, [int(row["step"]) for row in run.rows(TABLE)]
    if step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise ConfigError([f"--step: {config['model_id']} kept no weights of step {step}; kept: {kept}."])
    return CheckpointConfig(model_id=f"{config['model_id']}@{step}", family=config["family"], step=step)


def publish_checkpoint(config: CheckpointConfig, run: Artifact, folder: Path) -> dict[str, Any]:
    """Write the Hugging Face folder of a checkpoint; return its counts.

    Raises `DamagedArtifactError` where the kept weights are missing or not those of the step.
    """
    (row,) = (row for row in run.rows(TABLE) if int(row["step"]) == config.step)
    path = _kept_file(run, row)
    if path is None:
        raise DamagedArtifactError(
            f"{run.folder / 'checkpoints'}: {row['file']} is missing; train the run anew with --fresh."
        )
    if problem := _problem(path, row, run.rows(TABLE)):
        raise DamagedArtifactError(problem)
    shutil.copyfile(path, folder / WEIGHTS)
    for name in ("config.json", *TOKENIZER_FILES):
        shutil.copyfile(run.file(name), folder / name)
    counts = (
        *("num_parameters", "num_counted_parameters", "num_linear_parameters"),
        *("bits_per_weight", "model_size_bits"),
    )
    return {key: run.manifest.metrics[key] for key in counts} | {"tokens_seen": int(row["tokens_seen"])}


def verify_trajectory(run: Artifact) -> int:
    """Check the kept weights of a run that are still there; return how many.

    Raises `DamagedArtifactError` with one line per file that was altered, swapped or repeated.
    """
    rows = run.rows(TABLE)
    found = [(path, row) for row in rows if (path := _kept_file(run, row))]
    if problems := [problem for path, row in found if (problem := _problem(path, row, rows))]:
        raise DamagedArtifactError("\n".join(problems))
    return len(found)


def _kept_file(run: Artifact, row: dict[str, str]) -> Path | None:
    """Return the file of a row, in the folder of the run that made the artifact."""
    for description in run.folder.glob("checkpoints/*/run.json"):
        path = description.with_name(row["file"])
        if json.loads(description.read_text())["config"] == run.manifest.config and path.is_file():
            return path
    return None


def _problem(path: Path, row: dict[str, str], rows: list[dict[str, str]]) -> str | None:
    sha256 = sha256_of(path)
    if sha256 == row["sha256"]:
        return None
    others = [other["step"] for other in rows if other["sha256"] == sha256]
    content = f"holds the weights of step {others[0]}" if others else f"differs from its sha256 in {TABLE}"
    return f"{path}: {content}; train the run anew with --fresh, or restore the file."
