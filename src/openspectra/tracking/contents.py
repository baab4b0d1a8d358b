"""What an MLflow run shows of an artifact: name, tags, parameters, metrics, files, data set."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openspectra.artifacts import MANIFEST, Artifact, config_hash
from openspectra.identity import artifact_id, evaluated_model, nominal_bits, run_facts_of, suite_name
from openspectra.model_ids import ModelId
from openspectra.training.matrices import means_by_step
from openspectra.training.trajectory import run_identity

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

HASH_TAG, RUN_HASH_TAG = "manifest_sha256", "run_hash"
NOTE_TAG = "mlflow.note.content"
USER = "openspectra"
"""Stands as the creator of every run: who pressed the key is no fact of an artifact."""
CURVES = ("train.csv", "valid.csv")
MAX_FILE_BYTES = 5_000_000
"""Larger files stay where they are; their names and hashes stand in the manifest, which is logged."""
KINDS = {stage: "model" for stage in ("pretrain", "checkpoint", "release", "quantize")}
KINDS |= {"evaluate": "scores", "report": "report", "export": "export"}
"""What a run is about, by the stage of its artifact: all other stages make data. Searches know no `or`."""
MAX_NOTE = 6000
"""Characters of links that a description takes; MLflow cuts a tag at 8000."""
DIGEST_LENGTH = 36
"""The longest digest of a data set that MLflow takes."""
DATA_SET_PROFILE = ("counts", "documents", "bytes", "num_tokens", "num_documents", "dtype", "tokenizer_sha256")
Numbers = dict[tuple[str, int], float]
"""Metric values by name and step."""
Made = dict[str, tuple[str, str]]
"""Name and run id by the hash of a manifest, or by the role of a parent."""


def run_name(artifact: Artifact) -> str:
    """Return the name of an artifact's run: its id, for evaluations model first, because lists cut long names."""
    return artifact_id(artifact).removeprefix("evaluation/")


def metric_name(*parts: str) -> str:
    """Return a name of a metric, parameter or tag that MLflow takes, parts joined by `/`."""
    return "/".join(re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII).lstrip(".") or "_" for part in parts)[:250]


def tags_of(artifact: Artifact, experiment_id: str, made: Made) -> dict[str, str]:
    """Return the tags of a run: identity, model, commit, and the run of each parent."""
    manifest, commit = artifact.manifest, run_facts_of(artifact).get("commit")
    parents = {role: made[parent.sha256] for role, parent in manifest.parents.items() if parent.sha256 in made}
    tags = {
        HASH_TAG: artifact.sha256,
        **({RUN_HASH_TAG: run_hash(artifact)} if manifest.stage == "pretrain" else {}),
        "stage": manifest.stage,
        "kind": KINDS.get(manifest.stage, "data"),
        "stage_version": str(manifest.stage_version),
        **model_tags(artifact),
        **{link_tag("parent", role, name): run_id for role, (name, run_id) in parents.items()},
        NOTE_TAG: note(manifest.stage, experiment_id, list(parents.values()), []),
        "mlflow.source.name": manifest.stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": USER,
    }
    return tags | ({"commit": commit, "mlflow.source.git.commit": commit} if commit else {})


def metrics_of(artifact: Artifact, times: tuple[int, int]) -> list["Metric"]:
    """Return summary metrics, curves and scores with their steps; what is no finite number is left out.

    A summary metric of the name of a curve is left to the curve, whose last point it is. Points are spread over the
    run's time by their step.
    """
    from mlflow.entities import Metric

    curves = curves_of(artifact)
    names = {name for name, _ in curves}
    summary = {
        (name, 0): value for name, value in _flat_metrics(artifact.manifest.metrics).items() if name not in names
    }
    start, end = times
    last = max((step for _, step in curves), default=0)
    moments = {step: start + (end - start) * step // last if last else end for _, step in curves}
    return [
        Metric(name, value, moments.get(step, end) if (name, step) in curves else end, step)
        for (name, step), value in {**summary, **scores_of(artifact), **curves}.items()
    ]


def flat_params(config: dict[str, Any], *path: str) -> dict[str, str]:
    """Return a nested config as `shape.hidden_size: "512"`; lists as JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flat_params(value, *path, key)
        else:
            flat[metric_name(".".join([*path, key]))] = value if isinstance(value, str) else json.dumps(value)
    return flat


def small_files(artifact: Artifact) -> Iterator[tuple[Path, str | None]]:
    """Yield manifest, run facts, tables and pages that are worth a copy, each with its folder; never weights."""
    yield artifact.folder / MANIFEST, None
    if (artifact.folder / "run.json").is_file():
        yield artifact.folder / "run.json", None
    for record in artifact.manifest.files:
        if (
            record.path.endswith((".csv", ".html", ".svg", ".md", "data_card.json", "certificate.json"))
            and record.bytes <= MAX_FILE_BYTES
        ):
            yield artifact.file(record.path), record.path.rpartition("/")[0] or None


def data_set_of(artifact: Artifact) -> "DatasetInput":
    """Return a corpus, or a split of tokens, as MLflow's data set: its identity is the hash of the manifest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config, metrics = artifact.manifest.config, artifact.manifest.metrics
    data_set = Dataset(
        name=artifact_id(artifact),
        digest=artifact.sha256[:DIGEST_LENGTH],
        source_type="openspectra",
        source=json.dumps({"manifest_sha256": artifact.sha256, "sources": sorted(config.get("sources", {}))}),
        profile=json.dumps({key: value for key, value in metrics.items() if key in DATA_SET_PROFILE}),
    )
    return DatasetInput(data_set, [InputTag("mlflow.data.context", config.get("split", "all splits"))])


def times_of(artifact: Artifact) -> tuple[int, int]:
    """Return start and end of the run that made an artifact, in milliseconds since 1970; the manifest's time if unknown."""
    facts = run_facts_of(artifact)
    start, duration = _number(facts.get("started_unix_seconds")), _number(facts.get("duration_seconds"))
    if start is None:
        start = (artifact.folder / MANIFEST).stat().st_mtime
    return int(1000 * start), int(1000 * (start + (duration or 0)))


def model_tags(artifact: Artifact) -> dict[str, str]:
    """Return model_id, family, size, bits and variant of an artifact that is, or scores, a model."""
    evaluation = artifact.manifest.stage == "evaluate"
    name = evaluated_model(artifact) if evaluation else artifact.manifest.config.get("model_id")
    return _tags_of_model(name) | ({"suite": suite_name(artifact)} if evaluation else {}) if name else {}


def live_tags(identity: dict[str, Any], experiment_id: str, made: Made) -> dict[str, str]:
    """Return the tags of a run whose artifact does not stand yet, from the identity of its training."""
    parents = {role: made[sha256] for role, sha256 in identity["parents"].items() if sha256 in made}
    return {
        "stage": "pretrain",
        "kind": KINDS["pretrain"],
        "stage_version": str(identity["stage_version"]),
        **_tags_of_model(identity["config"]["model_id"]),
        **{link_tag("parent", role, name): run_id for role, (name, run_id) in parents.items()},
        NOTE_TAG: note("pretrain", experiment_id, list(parents.values()), []),
        "mlflow.source.name": "pretrain",
        "mlflow.source.type": "LOCAL",
    }


def _tags_of_model(name: str) -> dict[str, str]:
    model_id = ModelId.parse(name)
    bits = nominal_bits(model_id)
    tags = {"model_id": name, "family": model_id.family, "size": model_id.size}
    tags |= {"bits": f"{bits:g}"} if bits else {}
    return tags | ({"variant": model_id.variant} if model_id.variant else {})


def run_hash(artifact: Artifact) -> str:
    """Return the hash that a training run had before its artifact stood: the name of its folder of checkpoints."""
    manifest = artifact.manifest
    parents = {role: parent.sha256 for role, parent in manifest.parents.items()}
    return config_hash(run_identity(manifest.config, parents, manifest.stage_version))


def link_tag(kind: str, role: str, name: str) -> str:
    """Return the tag of a parent or child: its role, or its name where the role is a path, as a report's are."""
    return f"{kind}.{role}" if role.isidentifier() else f"{kind}.{metric_name(*name.split('/'))}"


def note(stage: str, experiment_id: str, parents: list[tuple[str, str]], children: list[tuple[str, str]]) -> str:
    """Return the description of a run in Markdown, with links to the runs that it was made from and that it led to."""
    lines = [f"Stage {stage}."]
    for title, runs in (("Made from", parents), ("Led to", children)):
        links = [f"[{name}](#/experiments/{experiment_id}/runs/{run_id})" for name, run_id in runs]
        shown = links[: max(1, MAX_NOTE // 2 // max(map(len, links), default=1))]
        more = f" and {len(links) - len(shown)} more: see the tags." if len(links) > len(shown) else "."
        lines += [f"{title} {', '.join(shown)}{more}"] if links else []
    return "\n\n".join(lines)


def curves_of(artifact: Artifact) -> Numbers:
    """Return every column of the training curves by step; of the discrete weights the means over all matrices."""
    if artifact.manifest.stage != "pretrain":
        return {}  # the report holds the means of all models again
    rows = [row for name in CURVES for row in artifact.rows(name)]
    rows += means_by_step(artifact.rows("ternary.csv"))
    return {
        (metric_name(column), int(row["step"])): value
        for row in rows
        for column, entry in row.items()
        if column != "step" and (value := _number(entry)) is not None
    }


def scores_of(artifact: Artifact) -> Numbers:
    """Return value and standard error of every evaluation score: `cloze/acc`, `cloze/acc_stderr`."""
    numbers = {}
    for row in artifact.rows("scores.csv"):
        if artifact.manifest.stage != "evaluate":
            continue  # the report holds the scores of all models again
        filtered = [row["filter"]] if row["filter"] not in ("", "none") else []
        for suffix, column in (("", "value"), ("_stderr", "stderr")):
            value = _number(row[column])
            if value is not None:
                numbers[metric_name(row["task"], row["metric"] + suffix, *filtered), 0] = value
    return numbers


def finite(values: dict[str, Any]) -> dict[str, float]:
    """Return those of some values that are finite numbers, or texts of such."""
    return {name: number for name, value in values.items() if (number := _number(value)) is not None}


def _flat_metrics(metrics: dict[str, Any], *path: str) -> dict[str, float]:
    """Return the finite numbers among nested metrics as `documents/train: 700.0`; keys may hold `/` themselves."""
    flat = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat_metrics(value, *path, key)
        elif not isinstance(value, str) and (number := _number(value)) is not None:
            flat[metric_name(*path, *key.split("/"))] = number
    return flat


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
