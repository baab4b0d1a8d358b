"""Training state on disk: written whole or not at all, chosen by step, never by time stamp.

Checkpoints lie undeclared in `checkpoints/<run hash>/` of the model's folder. The run hash covers resolved config,
parents and stage version, so a changed recipe starts at step 0 in a folder of its own.
"""

import hashlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, config_hash, sha256_of, write_atomically
from openspectra.config import PretrainConfig
from openspectra.errors import DamagedArtifactError
from openspectra.stage_versions import STAGE_VERSIONS

logger = logging.getLogger(__name__)

KEPT = 2
"""Newest states kept, so that one damaged file never costs the run."""


class CheckpointFolder:
    """The states of one run: `step-00000100.pt`, each with a `.sha256` beside it."""

    def __init__(self, model_folder: Path, config: PretrainConfig, parents: dict[str, Artifact]):
        identity = {
            "config": config.model_dump(mode="json"),
            "parents": {role: parent.sha256 for role, parent in sorted(parents.items())},
            "stage_version": STAGE_VERSIONS["pretrain"],
        }
        self.root = model_folder / "checkpoints"
        self.folder = self.root / config_hash(identity)
        if not self.folder.is_dir():
            self._explain_new_run(identity)
            self.folder.mkdir(parents=True)
            write_atomically(self.folder / "run.json", json.dumps(identity, indent=2, sort_keys=True).encode())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of `step` and remove all but the newest `KEPT`."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = self.folder / f"step-{step:08d}.pt"
        write_atomically(path, buffer.getbuffer())
        write_atomically(path.with_suffix(".sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
        for old in self._states()[:-KEPT]:
            old.with_suffix(".sha256").unlink(missing_ok=True)
            old.unlink()

    def load_newest(self) -> dict[str, Any] | None:
        """Return the valid state with the highest step, or None for a run that has none yet.

        Raises `DamagedArtifactError` where there are states and none is valid: starting over silently would hide it.
        """
        import torch

        states = self._states()
        for path in reversed(states):
            recorded = path.with_suffix(".sha256")
            if recorded.is_file() and recorded.read_text() == sha256_of(path):
                return torch.load(path, weights_only=True)
            logger.warning("%s: damaged or incomplete, skipped", path)
        if states:
            raise DamagedArtifactError(f"{self.folder}: no checkpoint is intact; train anew with --fresh.")
        return None

    def remove(self) -> None:
        """Delete every state of this run."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def remove_other_runs(self) -> None:
        """Delete the states of earlier recipes; called once the new artifact stands."""
        for folder in self.root.iterdir():
            if folder != self.folder:
                shutil.rmtree(folder)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _explain_new_run(self, identity: dict[str, Any]) -> None:
        for path in sorted(self.root.glob("*/run.json")):
            earlier = json.loads(path.read_text())
            keys = [
                f"{part}.{key}"
                for part in ("config", "parents")
                for key in sorted(identity[part].keys() | earlier[part].keys())
                if identity[part].get(key) != earlier[part].get(key)
            ]
            keys += ["stage_version"] * (identity["stage_version"] != earlier["stage_version"])
            logger.info("starts at step 0 in a new checkpoint folder: %s differ from the run before", ", ".join(keys))
