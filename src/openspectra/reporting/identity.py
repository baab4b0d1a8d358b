"""Names of artifacts and the order in which models are shown. Imports nothing heavy: tracking uses it too."""

import json
from collections.abc import Iterable
from typing import Any

from openspectra.artifacts import Artifact
from openspectra.model_ids import QUANTLM, ModelId

STAGE_ORDER = (
    "corpus",
    "tokenizer",
    "tokens",
    "pretrain",
    "quantize",
    "tasks",
    "contamination",
    "evaluate",
    "report",
)
"""Stages from cause to effect."""
KIND_ORDER = ("floatlm", "trilm", "bilm", "bitnet")
NOMINAL_BITS = {"floatlm": 16.0, "trilm": 1.58, "bilm": 1.0, "bitnet": 1.58}
"""Bits per linear weight by which the paper names a family; QuantLMs carry theirs in the model id."""
FAMILY_NAMES = {"floatlm": "FloatLM", "trilm": "TriLM", "bilm": "BiLM", "bitnet": "BitNet b1.58", QUANTLM: "QuantLM"}


def artifact_id(artifact: Artifact) -> str:
    """Return the name of an artifact within its study: `trilm/1.1M`, `tokens/train`, `evaluation/trilm/1.1M/held_out`."""
    stage, config = artifact.manifest.stage, artifact.manifest.config
    if "model_id" in config:
        return config["model_id"]
    if stage == "tokens":
        return f"tokens/{config['split']}"
    if stage == "evaluate":
        return f"evaluation/{evaluated_model(artifact)}/{suite_name(artifact)}"
    return stage


def evaluated_model(artifact: Artifact) -> str:
    """Return the id of the model an evaluation scored: the last two folders of its parent's path."""
    path = artifact.folder / artifact.manifest.parents["model"].path
    return "/".join(path.resolve().parts[-2:])


def suite_name(artifact: Artifact) -> str:
    """Return the suite of an evaluation: the name of its folder."""
    return artifact.folder.resolve().name


def run_facts_of(artifact: Artifact) -> dict[str, Any]:
    """Return what `run.json` says of this run alone; empty where it is missing or unreadable, for it is outside every hash."""
    try:
        facts = json.loads((artifact.folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def in_order(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """Return artifacts with parents before children, then by name, whatever order they were given in."""
    return sorted(artifacts, key=lambda artifact: (_rank(artifact.manifest.stage, STAGE_ORDER), artifact_id(artifact)))


def kind_rank(kind: str) -> tuple[int, int]:
    """Return a sort key for kinds: FloatLM, TriLM, others, then QuantLMs from many bits to few."""
    family, _, bits = kind.partition("-")
    return (len(KIND_ORDER) + 1, -int(bits.removesuffix("bit"))) if bits else (_rank(family, KIND_ORDER), 0)


def kind_label(kind: str) -> str:
    """Return a kind as the page writes it: `quantlm-4bit` becomes `QuantLM 4-bit`."""
    family, _, bits = kind.partition("-")
    name = FAMILY_NAMES.get(family, family)
    return f"{name} {bits.removesuffix('bit')}-bit" if bits else name


def nominal_bits(model_id: ModelId) -> float | None:
    """Return the bits per linear weight by which the paper names the model's family."""
    return float(model_id.bits) if model_id.bits else NOMINAL_BITS.get(model_id.family)


def _rank(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)
