"""MLflow's Models view: every model with its scores, registered by name, without a copy of its weights."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from openspectra.artifacts import Artifact
from openspectra.identity import artifact_id, evaluated_model, suite_name
from openspectra.model_ids import ModelId
from openspectra.tracking.contents import HASH_TAG, finite, metric_name, model_tags, scores_of, times_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_STAGES = ("pretrain", "checkpoint", "release", "quantize")
MODEL_TAG, VERSIONS_TAG = "logged_model", "mlflow.modelVersions"
SUMMARY = ("test_loss", "bits_per_byte", "mean_accuracy")
"""What the report says of each model, in the same words."""
FINAL, BEST = "final", "best"
"""Aliases of versions: the model at its last step, and the one of least validation loss among it and its checkpoints."""


def show_models(
    client: "MlflowClient", experiment_id: str, study: str, artifacts: list[Artifact], run_ids: dict[str, str]
) -> None:
    """Let the Models view hold every model among `artifacts`; give it, and its run, the scores among them."""
    scores, moments = _scores_by_model(artifacts)
    models = [artifact for artifact in artifacts if artifact.manifest.stage in MODEL_STAGES]
    best = _best(models)
    for artifact in models:
        name = artifact_id(artifact)
        run_id = run_ids[name]
        model_id = _logged_model(client, experiment_id, artifact, run_id)
        step = _trained(artifact).step
        aliases = [FINAL if step is None else f"step-{step}"] + [BEST] * (name in best)
        _register(client, study, artifact, run_id, model_id, aliases)
        _add_scores(client, run_id, model_id, scores.get(name, {}), moments.get(name, 0))


def _trained(artifact: Artifact) -> ModelId:
    """Return the id of a model, its step only where it is a checkpoint; a QuantLM of one is a model of its own."""
    model_id = ModelId.parse(artifact_id(artifact))
    return model_id if artifact.manifest.stage == "checkpoint" else replace(model_id, step=None)


def _best(models: list[Artifact]) -> set[str]:
    """Return of every training the id of the version with the least validation loss, of several the last."""
    trainings = {artifact_id(model): model for model in models if model.manifest.stage == "pretrain"}
    losses: dict[str, list[tuple[float, int, str]]] = {}
    for model in models:
        name, trained = artifact_id(model), _trained(model)
        run = trainings.get(str(replace(trained, step=None)))
        if run is None or model.manifest.stage == "quantize":
            continue
        by_step = {int(row["step"]): float(row["valid_loss"]) for row in run.rows("valid.csv")}
        step = max(by_step, default=0) if trained.step is None else trained.step
        if step in by_step:
            losses.setdefault(artifact_id(run), []).append((by_step[step], -step, name))
    return {min(versions)[2] for versions in losses.values()}


def _scores_by_model(artifacts: list[Artifact]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the scores of each model (`held_out/cloze/acc`, and the report's summary), and the time of the newest."""
    scores: dict[str, dict[str, float]] = {}
    moments: dict[str, int] = {}
    for artifact in artifacts:
        if artifact.manifest.stage == "evaluate":
            name = evaluated_model(artifact)
            found = {name: {f"{suite_name(artifact)}/{key}": value for (key, _), value in scores_of(artifact).items()}}
        elif artifact.manifest.stage == "report":
            found = {
                row["model_id"]: finite({key: row.get(key) for key in SUMMARY}) for row in artifact.rows("models.csv")
            }
        else:
            continue
        for name, values in found.items():
            scores.setdefault(name, {}).update(values)
            moments[name] = max(moments.get(name, 0), times_of(artifact)[1])
    return scores, moments


def _logged_model(client: "MlflowClient", experiment_id: str, artifact: Artifact, run_id: str) -> str:
    """Return the id of the logged model of a run, made where it has none."""
    from mlflow.entities import LoggedModelOutput

    known = client.get_run(run_id).data.tags.get(MODEL_TAG)
    if known:
        return known
    found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment_id,
            name=metric_name(artifact_id(artifact).replace("/", "-").replace(".", "_")),
            source_run_id=run_id,
            tags={HASH_TAG: artifact.sha256, **model_tags(artifact)},
            model_type=artifact.manifest.stage,
        )
    )
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_tag(run_id, MODEL_TAG, model.model_id)
    return model.model_id


def _register(
    client: "MlflowClient", study: str, artifact: Artifact, run_id: str, model_id: str, aliases: list[str]
) -> None:
    """Let aliases of `openspectra-<study>-<family>-<size>` point at the version of this run."""
    model = ModelId.parse(artifact_id(artifact))
    registered = replace(model, step=None) if artifact.manifest.stage == "checkpoint" else model
    name = metric_name(f"openspectra-{study}-{str(registered).replace('/', '-')}")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, tags=model_tags(artifact))
    versions = [each for each in client.search_model_versions(f"name = '{name}'") if each.run_id == run_id]
    version = (
        versions[0]
        if versions
        else client.create_model_version(
            name, f"models:/{model_id}", run_id, {HASH_TAG: artifact.sha256}, model_id=model_id
        )
    )
    shown = json.dumps([{"name": name, "version": str(version.version)}])  # what the Models view shows of the registry
    if client.get_logged_model(model_id).tags.get(VERSIONS_TAG) != shown:
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: shown})
    known = client.get_registered_model(name).aliases
    for alias in aliases:
        if version.version != known.get(alias):
            client.set_registered_model_alias(name, alias, version.version)


def _add_scores(client: "MlflowClient", run_id: str, model_id: str, scores: dict[str, float], moment: int) -> None:
    """Log the scores that a model's run does not hold yet, or holds with another value."""
    from mlflow.entities import Metric

    held = client.get_run(run_id).data.metrics
    new = {name: value for name, value in scores.items() if held.get(name) != value}
    if new:
        client.log_batch(run_id, [Metric(name, value, moment, 0, model_id=model_id) for name, value in new.items()])
