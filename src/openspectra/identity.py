"""Names of artifacts and the order in which models are shown. Imports nothing heavy: tracking uses it too."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model_ids import ModelId

STAGE_ORDER = (
    "corpus",
    "tokenizer",
    "tokens",
    "pretrain",
    "checkpoint",
    "release",
    "quantize",
    "tasks",
    "contamination",
    "evaluate",
    "export",
    "report",
)
"""Stages from cause to effect."""


def artifact_id(artifact: Artifact) -> str:
    """Return the name of an artifact within its study: `trilm/1.1M`, `tokens/train`, `evaluation/trilm/1.1M/held_out`."""
    stage, config = artifact.manifest.stage, artifact.manifest.config
    if "model_id" in config:
        return config["model_id"]
    if stage == "tokens":
        return f"tokens/{config['split']}"
    if stage == "export":
        return f"exports/{config['model']}/{config['format']}"
    if stage == "evaluate":
        return f"evaluation/{evaluated_model(artifact)}/{suite_name(artifact)}"
    return stage


def evaluated_model(artifact: Artifact) -> str:
    """Return the id of the model an evaluation scored: the last two folders of its parent's path."""
    path = os.path.abspath(artifact.folder / artifact.manifest.parents["model"].path)
    return "/".join(Path(path).parts[-2:])


def suite_name(artifact: Artifact) -> str:
    """Return the suite of an evaluation: the name of its folder."""
    return artifact.folder.absolute().name


def run_facts_of(artifact: Artifact) -> dict[str, Any]:
    """Return what `run.json` says of this run alone; empty where it is missing or unreadable, for it is outside every hash."""
    return read_run_facts(artifact.folder)


def read_run_facts(folder: Path) -> dict[str, Any]:
    """Return what `run.json` of an artifact's folder says, as `run_facts_of` does."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def in_order(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Return artifacts with parents before children, then by name, whatever order they were given in."""

    def key(artifact: Artifact) -> tuple[int, bool, str]:
        manifest = artifact.manifest
        return _rank(manifest.stage, STAGE_ORDER), "teacher" in manifest.parents, artifact_id(artifact)

    return sorted(artifacts, key=key)


def kind_rank(kind: str) -> tuple[int, int]:
    """Return a sort key for kinds: families in their order, unknown ones, QuantLMs from many bits to few."""
    family, _, bits = kind.partition("-")
    if bits:
        return 2, -int(bits.removesuffix("bit"))
    return (0, load_family(family).legend_order) if family in FAMILY_NAMES else (1, 0)


def kind_label(kind: str) -> str:
    """Return a kind as the page writes it: `quantlm-4bit` becomes `QuantLM 4-bit`."""
    family, _, bits = kind.partition("-")
    if bits:
        return f"QuantLM {bits.removesuffix('bit')}-bit"
    return load_family(family).label if family in FAMILY_NAMES else family


def nominal_bits(model_id: ModelId) -> float | None:
    """Return the bits per linear weight by which the paper names the model's family."""
    if model_id.bits:
        return float(model_id.bits)
    return load_family(model_id.family).bits_per_weight if model_id.family in FAMILY_NAMES else None


def _rank(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)
