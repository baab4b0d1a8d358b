"""Idempotent sync of finished artifacts into MLflow: one run per artifact, found again by the hash of its manifest.

Tracking reads artifacts and changes nothing in them: it can be late, repeated, killed or down. A run counts only with
its tag `complete`, which is set last; a run without it, left by a killed sync, is finished or made anew.
"""

from typing import TYPE_CHECKING

from openspectra.artifacts import Artifact
from openspectra.identity import artifact_id, in_order
from openspectra.tracking.contents import (
    HASH_TAG,
    USER,
    Made,
    data_set_of,
    flat_params,
    metrics_of,
    run_name,
    small_files,
    tags_of,
    times_of,
)
from openspectra.tracking.store import DEFAULT_URI, FIRST_CALL, LATER_CALLS, environment, sqlite_path, tracking_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMPLETE_TAG, SUPERSEDED_TAG = "complete", "superseded_by"
NOTE = (
    "OpenSpectra study `{}`: one run per artifact, the newest on top. Filter by `tags.stage = 'pretrain'`, `'quantize'` or "
    "`'evaluate'`, by `tags.family`, `tags.size` and `tags.bits`; group by `size` or `family` to compare."
)


def track(artifacts: list[Artifact], experiment: str, tracking_uri: str | None = None) -> dict[str, str]:
    """Log every artifact that `experiment` does not hold yet, and return the run id of each by artifact id.

    A second call adds nothing. An artifact whose manifest changed gets a new run, and its older runs a tag
    `superseded_by`. Raises `OpenSpectraError` where the tracking store cannot be used; nothing else is changed then.
    """
    uri = tracking_uri or DEFAULT_URI
    with tracking_store(uri):
        return _sync(in_order(artifacts), experiment, uri)


def _sync(artifacts: list[Artifact], experiment: str, uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    with environment(FIRST_CALL):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment_id(client, experiment, uri)
    with environment(LATER_CALLS):
        known = _all_runs(client, experiment_id)
        made = {run.data.tags.get(HASH_TAG, ""): (run.info.run_name, run.info.run_id) for run in known}
        run_ids = {}
        for artifact in artifacts:
            name = run_name(artifact)
            namesakes = [run for run in known if run.info.run_name == name]
            run_id = _log_once(client, experiment_id, artifact, namesakes, made)
            made[artifact.sha256] = name, run_id
            run_ids[artifact_id(artifact)] = run_id
            _supersede(client, run_id, namesakes)
        return run_ids


def _experiment_id(client: "MlflowClient", name: str, uri: str) -> str:
    """Return the id of the study's experiment, created or restored where needed."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(uri)
        location = str(database.parent / "mlruns" / name) if database else None
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": NOTE.format(name)}
        return client.create_experiment(name, artifact_location=location, tags=tags)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _all_runs(client: "MlflowClient", experiment_id: str) -> list["Run"]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _log_once(
    client: "MlflowClient", experiment_id: str, artifact: Artifact, namesakes: list["Run"], made: Made
) -> str:
    """Return the run of an artifact: the complete one, else one that a killed sync left, else a new one.

    Other incomplete runs of the same name can be finished by nobody and are deleted. `namesakes` loses them.
    """
    start, end = times_of(artifact)
    same = [run for run in namesakes if run.data.tags.get(HASH_TAG) == artifact.sha256]
    kept = next((run for run in same if COMPLETE_TAG in run.data.tags), None)
    # Points have the time of the artifact's own run, so logging them again into the same run doubles nothing.
    kept = kept or next((run for run in same if run.info.start_time == start), None)
    for run in [run for run in namesakes if run is not kept and COMPLETE_TAG not in run.data.tags]:
        client.delete_run(run.info.run_id)
        namesakes.remove(run)
    if kept and COMPLETE_TAG in kept.data.tags:
        return kept.info.run_id
    run_id = kept.info.run_id if kept else _create(client, experiment_id, artifact, start)
    _fill(client, run_id, artifact, (start, end), tags_of(artifact, experiment_id, made))
    return run_id


def _create(client: "MlflowClient", experiment_id: str, artifact: Artifact, start: int) -> str:
    """Return the id of a new run that a later sync can find again, should this one be killed."""
    tags = {HASH_TAG: artifact.sha256, "mlflow.user": USER}
    return client.create_run(experiment_id, start_time=start, tags=tags, run_name=run_name(artifact)).info.run_id


def _fill(
    client: "MlflowClient", run_id: str, artifact: Artifact, times: tuple[int, int], tags: dict[str, str]
) -> None:
    """Log everything of an artifact into its run; the tag that makes the run count comes last."""
    from mlflow.entities import Param, RunTag

    params = [Param(key, value) for key, value in flat_params(artifact.manifest.config).items()]
    client.log_batch(run_id, metrics_of(artifact, times), params, [RunTag(key, value) for key, value in tags.items()])
    for path in small_files(artifact):
        client.log_artifact(run_id, str(path))
    if artifact.manifest.stage in ("corpus", "tokens"):
        client.log_inputs(run_id, datasets=[data_set_of(artifact)])
    client.set_terminated(run_id, "FINISHED", end_time=times[1])
    client.set_tag(run_id, COMPLETE_TAG, "true")


def _supersede(client: "MlflowClient", run_id: str, namesakes: list["Run"]) -> None:
    """Point older runs of the same name at the current one, which itself is superseded by none."""
    for run in namesakes:
        tag = run.data.tags.get(SUPERSEDED_TAG)
        if run.info.run_id == run_id and tag:
            client.delete_tag(run_id, SUPERSEDED_TAG)
        elif run.info.run_id != run_id and tag != run_id:
            client.set_tag(run.info.run_id, SUPERSEDED_TAG, run_id)
