"""Training state on disk: written whole or not at all, chosen by step, never by time stamp.

Checkpoints lie undeclared in `checkpoints/<run hash>/` of the model's folder. The run hash covers resolved config,
parents and stage version, so a changed recipe starts at step 0 in a folder of its own. `step-*.pt` is what the run
needs to go on, the newest only; of a sharded run it lists the hashes of `part-<step>-<rank>.pt`, which hold the tensors.
`weights-*.safetensors` are the exported weights of the trajectory, kept all, whose hashes stand in the artifact
(`checkpoints.csv`).
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save

from openspectra.artifacts import Artifact, config_hash, sha256_of
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.model.hugging_face import exported_weights
from openspectra.model.llama import Llama
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.training.config import PretrainConfig
from openspectra.training.sharding import Parts, chunk_shape, parts_of
from openspectra.training.trajectory import TRAIN_ANEW, run_folder, run_identity
from openspectra.training.world import World
from openspectra.writing import write_atomically

logger = logging.getLogger(__name__)

DESCRIPTION = "run.json"
"""Says in words whose folder this is; nothing that is read from it decides anything."""
KEPT = 2
"""Newest states kept, so that one damaged file never costs the run."""
STATE_BYTES_PER_PARAMETER = 12
"""Latent weight and AdamW's two moments, in float32."""


ALONE = World()


class CheckpointFolder:
    """The checkpoints of one run: states `step-00000100.pt`, each with a `.sha256` beside it, and weights."""

    def __init__(self, model_folder: Path, config: PretrainConfig, parents: dict[str, Artifact]):
        hashes = {role: parent.sha256 for role, parent in parents.items()}
        self.identity = run_identity(config.model_dump(mode="json"), hashes, STAGE_VERSIONS["pretrain"])
        self.folder = run_folder(model_folder, self.identity)
        self.root = self.folder.parent
        self.config = config

    def prepare(self) -> None:
        """Make the folder, saying what differs from earlier runs; remove what a killed writer left behind.

        Raises `OpenSpectraError` where the disk has no room for two states.
        """
        if not self.folder.is_dir():
            self._explain_new_run()
            self.folder.mkdir(parents=True)
        description = json.dumps(self.identity, indent=2, sort_keys=True).encode()
        if not _holds(self.folder / DESCRIPTION, description):
            write_atomically(self.folder / DESCRIPTION, description)
        for temporary in self.folder.glob(".*.tmp"):
            temporary.unlink()
        self._prune()
        free = shutil.disk_usage(self.folder).free
        needed = KEPT * STATE_BYTES_PER_PARAMETER * self.config.shape.num_parameters
        if free < needed:
            raise OpenSpectraError(
                f"{self.folder}: {free:,} bytes are free, {KEPT} training states need {needed:,}; make room."
            )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of `step` and remove all but the newest `KEPT`."""
        path = self.folder / f"step-{step:08d}.pt"

        def vouch(sha256: str) -> None:
            # the hash first: a kill between the two leaves a hash without a state, never a state that nothing vouches for
            self._write(path.with_suffix(".sha256"), sha256.encode())

        self._save(path, state | {"run": self.folder.name}, vouch)
        self._prune()

    def save_part(self, step: int, rank: int, part: dict[str, Any]) -> str:
        """Write what `rank` holds of the state of `step`; return its hash. Only `save` makes it count."""
        return self._save(self._part(step, rank), part, lambda sha256: None)

    def _save(self, path: Path, content: dict[str, Any], vouch: Callable[[str], None]) -> str:
        """Write `content`, telling its hash before the file has its name; return the hash."""
        hashes = []

        def write(file: BinaryIO) -> None:
            hashing = _Hashing(file)  # while it is written: the state is never twice in memory
            torch.save(content, hashing)
            hashes.append(hashing.sha256.hexdigest())
            vouch(hashes[0])

        self._write(path, write)
        return hashes[0]

    def _part(self, step: int, rank: int) -> Path:
        return self.folder / f"part-{step:08d}-{rank:05d}.pt"

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

    def load_newest(self, world: World = ALONE) -> dict[str, Any] | None:
        """Return the valid state with the highest step, or None for a run that has none yet. Every rank gets the same.

        `held` maps what this rank needs of weights and moments from the files, which may be pruned once it has trained on.
        Raises `DamagedArtifactError` where there are, or must have been, states and none is valid, or one belongs to
        another run: starting over silently would hide it.
        """
        states = world.gather(self._states())[0]
        for path in reversed(states):
            state = self._load(path, world)
            (damaged,) = world.any(state is None)  # to any rank: all go on from one state
            if not damaged:
                return state
            if state:
                logger.warning("%s: the part of another rank is damaged or missing, skipped", path)
        if states:
            raise DamagedArtifactError(f"{self.folder}: no checkpoint is intact; {TRAIN_ANEW}.")
        steps = [int(path.stem.removeprefix("weights-")) for path in sorted(self.folder.glob("weights-*.safetensors"))]
        if steps and steps[-1] > self.config.checkpoint_every_steps:  # a state was saved before these weights were
            raise DamagedArtifactError(
                f"{self.folder}: weights of step {steps[-1]} are here and no training state is; restore `step-*.pt` and "
                f"`step-*.sha256`, or {TRAIN_ANEW}."
            )
        if steps:
            logger.warning("%s: kept weights up to step %d and no training state; from step 0", self.folder, steps[-1])
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

    def _load(self, path: Path, world: World) -> dict[str, Any] | None:
        """Return an intact state; None, with a warning, for what was damaged and for content that no run has written."""
        if not path.is_file() or not _holds(path.with_suffix(".sha256"), sha256_of(path).encode()):
            logger.warning("%s: damaged or incomplete, skipped", path)
            return None
        state = _read(path)
        if state is None:
            return None
        problem = _wrong_kind(state)
        if not problem:
            held = self._load_parts(state, world)
            if held is None:
                return None
            state |= {"held": held}
            problem = self._wrong_tensors(parts_of(state))
        if problem:
            logger.warning("%s: not a state of this run (%s), skipped", path, problem)
            return None
        if state["run"] != self.folder.name or path.stem != f"step-{state['step']:08d}":
            raise DamagedArtifactError(
                f"{path}: holds step {state['step']} of run {state['run']}; it was put here by hand, remove it."
            )
        return state

    def _load_parts(self, state: dict[str, Any], world: World) -> dict[int, Any] | None:
        """Return by number the parts, mapped into memory, that this rank needs of a state; a whole state is its own one part.

        Of a finished run only rank 0 needs any, for the weights; in the world that wrote them a rank needs its own.
        """
        hashes, step = state.get("parts"), state["step"]
        count = len(hashes) if hashes else 1
        needed = range(count)
        if step >= self.config.max_steps:
            needed = range(count if world.rank == 0 else 0)
        elif world.is_sharded and world.size == count:
            needed = range(world.rank, world.rank + 1)
        if not hashes:
            return {number: {"model": state["model"], "optimizer": state["optimizer"]} for number in needed}
        held = {}
        for number in needed:
            path = self._part(step, number)
            if not path.is_file() or sha256_of(path) != hashes[number]:
                logger.warning("%s: damaged or missing, step %d is skipped", path, step)
                return None
            held[number] = _read(path)
        return held

    def _wrong_tensors(self, parts: Parts) -> str | None:
        """Return what keeps the tensors of a state from being this model's; None for right ones."""
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in Llama(self.config.shape, self.config.family).named_parameters()}
        for number, part in parts.held.items():
            if not isinstance(part, dict) or not {"model", "optimizer"} <= part.keys():
                return f"its part {number} holds no weights"
            expected = {name: chunk_shape(shape, number, parts.count) for name, shape in shapes.items()}
            if problem := _wrong_part(part, expected):
                return problem
        return None

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _prune(self) -> None:
        """Remove all but the newest `KEPT` states, and hashes and parts without a state."""
        for old in self._states()[:-KEPT]:
            old.with_suffix(".sha256").unlink(missing_ok=True)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for recorded in self.folder.glob("step-*.sha256"):
            if not recorded.with_suffix(".pt").exists():
                recorded.unlink()
        for part in self.folder.glob("part-*.pt"):
            if not (self.folder / f"step-{part.name.split('-')[1]}.pt").exists():
                part.unlink()

    def _write(self, path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            state = STATE_BYTES_PER_PARAMETER * self.config.shape.num_parameters
            needed = state if callable(content) else len(content)
            raise OpenSpectraError(
                f"{path}: cannot be written ({error.strerror}), {needed:,} bytes needed, {free:,} free; "
                "the state before is intact: make room, and the same command continues."
            ) from None

    def _explain_new_run(self) -> None:
        for path in sorted(self.root.glob(f"*/{DESCRIPTION}")):
            earlier = _description(path)
            if earlier is None:
                logger.warning("%s: damaged, so what differs from that run cannot be said", path)
                continue
            keys = [
                f"{part}.{key}"
                for part in ("config", "parents")
                for key in sorted(self.identity[part].keys() | earlier[part].keys())
                if self.identity[part].get(key) != earlier[part].get(key)
            ]
            keys += ["stage_version"] * (self.identity["stage_version"] != earlier["stage_version"])
            logger.info("starts at step 0 in a new checkpoint folder: %s differ from the run before", ", ".join(keys))


class _Hashing:
    """Passes on to a file what is written to it, and knows the hash of it."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _read(path: Path) -> Any:
    """Return what a file of tensors holds; None, with a warning, where torch cannot read it."""
    try:
        return torch.load(path, weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the bytes lead it to
        logger.warning("%s: not a training state (%s), skipped", path, type(error).__name__)
        return None


def _wrong_kind(state: Any) -> str | None:
    """Return what keeps a loaded object from being a state; None for a whole one, or one whose tensors are in parts."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    kinds = {"run": str, "step": int, "attention": str, "model": dict, "optimizer": dict | None}
    kinds |= {"records": dict, "precision": dict} | ({"parts": list} if "parts" in state else {})
    for key, kind in kinds.items():
        if key not in state or not isinstance(state[key], kind):
            return f"`{key}` is missing or of another type"
    return None


def _wrong_part(part: dict[str, Any], expected: dict[str, torch.Size]) -> str | None:
    """Return what keeps the tensors of a part from having the expected names and shapes; None for right ones."""
    if _shapes(part["model"]) != expected:
        return "its weights have other names or shapes"
    if part["optimizer"] is None:
        return None
    moments = part["optimizer"].get("state")
    if not isinstance(moments, dict) or not all(isinstance(entry, dict) for entry in moments.values()):
        return "its optimizer holds no moments"
    for moment in ("exp_avg", "exp_avg_sq"):
        if _shapes({name: entry.get(moment) for name, entry in moments.items()}) != expected:
            return f"its optimizer's `{moment}` has other names or shapes"
    return None


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file is there and has exactly this content."""
    return path.is_file() and path.read_bytes() == content


def _description(path: Path) -> dict[str, Any] | None:
    """Return the identity of the run in whose folder `path` lies; None where it is not the one that the folder is named after."""
    try:
        identity = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) and config_hash(identity) == path.parent.name else None


def _shapes(tensors: dict[str, Any]) -> dict[str, torch.Size | None]:
    return {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}


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
