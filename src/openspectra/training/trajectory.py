"""The weights a run kept on its way, and how one of them becomes a model that can be quantized and evaluated.

`checkpoints.csv` in the artifact lists step, file and hash; the files lie undeclared beside it, in the folder of the
run's hash, which follows from the manifest. Imports no torch.
"""

import shutil
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, config_hash, sha256_of
from openspectra.data.tokenizer import TOKENIZER_FILES
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.training.config import CheckpointConfig

TRAIN_ANEW = "train anew with --fresh, or in a workflow with --forcerun pretrain_model"
CHECKPOINTS, TABLE, WEIGHTS = "checkpoints", "checkpoints.csv", "model.safetensors"


def run_identity(config: dict[str, Any], parents: dict[str, str], stage_version: int) -> dict[str, Any]:
    """Return what makes a training run another one: resolved config, hashes of the parents by role, stage version."""
    return {"config": config, "parents": dict(sorted(parents.items())), "stage_version": stage_version}


def run_folder(model_folder: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of the checkpoints of one run: `checkpoints/<run hash>`."""
    return model_folder / CHECKPOINTS / config_hash(identity)


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
    path = _kept_folder(run) / row["file"]
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
    """Check the weights that a run kept; return how many.

    Raises `DamagedArtifactError` with one line per file that is missing or was altered, swapped or repeated.
    """
    rows, folder = run.rows(TABLE), _kept_folder(run)
    if problems := [problem for row in rows if (problem := _problem(folder / row["file"], row, rows))]:
        raise DamagedArtifactError(*problems)
    return len(rows)


def _kept_folder(run: Artifact) -> Path:
    manifest = run.manifest
    parents = {role: parent.sha256 for role, parent in manifest.parents.items()}
    return run_folder(run.folder, run_identity(manifest.config, parents, manifest.stage_version))


def _problem(path: Path, row: dict[str, str], rows: list[dict[str, str]]) -> str | None:
    if not path.is_file():
        return f"{path}: missing, though {TABLE} lists it; restore the file, or {TRAIN_ANEW}."
    sha256 = sha256_of(path)
    if sha256 == row["sha256"]:
        return None
    others = [other["step"] for other in rows if other["sha256"] == sha256]
    content = f"holds the weights of step {others[0]}" if others else f"differs from its sha256 in {TABLE}"
    return f"{path}: {content}; restore the file, or {TRAIN_ANEW}."
