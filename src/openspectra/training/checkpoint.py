"""Training state on disk: written whole or not at all, chosen by step, never by time stamp.

Checkpoints lie undeclared in `checkpoints/<run hash>/` of the model's folder. The run hash covers resolved config,
parents and stage version, so a changed recipe starts at step 0 in a folder of its own. `step-*.pt` is what the run
needs to go on, the newest only; `weights-*.safetensors` are the exported weights of the trajectory, kept all, whose
hashes stand in the artifact (`checkpoints.csv`).
"""

import hashlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from openspectra.artifacts import Artifact, config_hash, sha256_of
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.model.hugging_face import exported_weights
from openspectra.model.llama import Llama
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.training.config import PretrainConfig
from openspectra.writing import write_atomically

logger = logging.getLogger(__name__)

KEPT = 2
"""Newest states kept, so that one damaged file never costs the run."""
STATE_BYTES_PER_PARAMETER = 12
"""Latent weight and AdamW's two moments, in float32."""


class CheckpointFolder:
    """The checkpoints of one run: states `step-00000100.pt`, each with a `.sha256` beside it, and weights."""

    def __init__(self, model_folder: Path, config: PretrainConfig, parents: dict[str, Artifact]):
        self.identity = {
            "config": config.model_dump(mode="json"),
            "parents": {role: parent.sha256 for role, parent in sorted(parents.items())},
            "stage_version": STAGE_VERSIONS["pretrain"],
        }
        self.root = model_folder / "checkpoints"
        self.folder = self.root / config_hash(self.identity)
        self._state_bytes = STATE_BYTES_PER_PARAMETER * config.shape.num_parameters

    def prepare(self) -> None:
        """Make the folder, saying what differs from earlier runs; remove what a killed writer left behind.

        Raises `OpenSpectraError` where the disk has no room for two states.
        """
        if not (self.folder / "run.json").is_file():
            self._explain_new_run()
            self.folder.mkdir(parents=True, exist_ok=True)
            description = json.dumps(self.identity, indent=2, sort_keys=True).encode()
            write_atomically(self.folder / "run.json", description)
        for temporary in self.folder.glob(".*.tmp"):
            temporary.unlink()
        free, needed = shutil.disk_usage(self.folder).free, KEPT * self._state_bytes
        if free < needed:
            raise OpenSpectraError(
                f"{self.folder}: {free:,} bytes are free, {KEPT} training states need {needed:,}; make room."
            )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of `step` and remove all but the newest `KEPT`."""
        buffer = io.BytesIO()
        torch.save(state | {"run": self.folder.name}, buffer)
        path = self.folder / f"step-{step:08d}.pt"
        # the hash first: a kill between the two leaves a hash without a state, never a state that nothing vouches for
        self._write(path.with_suffix(".sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
        self._write(path, buffer.getbuffer())
        for old in self._states()[:-KEPT]:
            old.with_suffix(".sha256").unlink(missing_ok=True)
            old.unlink()

    def save_weights(self, step: int, llama: Llama, dtype: str) -> dict[str, Any]:
        """Write the exported weights of `step`; return file, bytes, sha256 and statistics of the latent weights."""
        content = save(exported_weights(llama, dtype), metadata={"format": "pt"})
        path = self.folder / f"weights-{step:08d}.safetensors"
        self._write(path, content)
        return {
            "file": path.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            **weight_statistics(llama),
        }

    def load_newest(self) -> dict[str, Any] | None:
        """Return the valid state with the highest step, or None for a run that has none yet.

        Raises `DamagedArtifactError` where there are states and none is valid, or one belongs to another run: starting
        over silently would hide it.
        """
        states = self._states()
        for path in reversed(states):
            recorded = path.with_suffix(".sha256")
            if recorded.is_file() and recorded.read_text() == sha256_of(path):
                return self._load(path)
            logger.warning("%s: damaged or incomplete, skipped", path)
        if states:
            raise DamagedArtifactError(f"{self.folder}: no checkpoint is intact; train anew with --fresh.")
        return None

    def begin_anew(self, order: str) -> None:
        """Delete every state of this run, once for each order: the job that carries it out may be stopped and go on."""
        mark = self.folder / "order"
        if mark.is_file() and mark.read_text() == order:
            return
        if self.folder.is_dir():
            logger.info("%s: trains anew, as ordered; its states are removed", self.identity["config"]["model_id"])
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_atomically(mark, order.encode())

    def remove_other_runs(self) -> None:
        """Delete the states of earlier recipes; called once the new artifact stands."""
        for folder in self.root.iterdir():
            if folder != self.folder:
                shutil.rmtree(folder)

    def _load(self, path: Path) -> dict[str, Any]:
        state = torch.load(path, weights_only=True, mmap=True)
        if state["run"] != self.folder.name or path.stem != f"step-{state['step']:08d}":
            raise DamagedArtifactError(
                f"{path}: holds step {state['step']} of run {state['run']}; it was put here by hand, remove it."
            )
        return state

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            raise OpenSpectraError(
                f"{path}: cannot be written ({error.strerror}), {len(content):,} bytes needed, {free:,} free; "
                "the state before is intact: make room, and the same command continues."
            ) from None

    def _explain_new_run(self) -> None:
        for path in sorted(self.root.glob("*/run.json")):
            earlier = json.loads(path.read_text())
            keys = [
                f"{part}.{key}"
                for part in ("config", "parents")
                for key in sorted(self.identity[part].keys() | earlier[part].keys())
                if self.identity[part].get(key) != earlier[part].get(key)
            ]
            keys += ["stage_version"] * (self.identity["stage_version"] != earlier["stage_version"])
            logger.info("starts at step 0 in a new checkpoint folder: %s differ from the run before", ", ".join(keys))


@torch.no_grad()
def weight_statistics(llama: Llama) -> dict[str, float]:
    """Return root mean square of embedding, head and latent linear weights, and the largest absolute weight of all."""
    linear = [layer.weight for _, group in llama.groups() for layer in group.layers.values()]
    squares = sum(weight.double().square().sum() for weight in linear)
    return {
        "rms_embedding": llama.model.embed_tokens.weight.double().square().mean().sqrt().item(),
        "rms_linear": (squares / sum(weight.numel() for weight in linear)).sqrt().item(),
        "rms_head": llama.lm_head.weight.double().square().mean().sqrt().item(),
        "largest": max(parameter.abs().max().item() for parameter in llama.parameters()),
    }
