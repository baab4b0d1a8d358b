"""Idempotent sync of a study into MLflow: one run per artifact, found again by the hash of its manifest.

Tracking reads artifacts and changes nothing in them: it can be late, repeated, killed or down. A run counts only with
its tag `complete`, which is set last; a run without it, left by a killed sync, is finished or made anew. The run of a
training that goes on (`live`) becomes the run of its artifact.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openspectra.artifacts import Artifact
from openspectra.errors import OpenSpectraError
from openspectra.identity import artifact_id, in_order
from openspectra.tracking.contents import (
    HASH_TAG,
    NOTE_TAG,
    RUN_HASH_TAG,
    USER,
    Made,
    Numbers,
    data_set_of,
    flat_params,
    link_tag,
    metrics_of,
    note,
    run_hash,
    run_name,
    small_files,
    tags_of,
    times_of,
)
from openspectra.tracking.live import Training, send
from openspectra.tracking.models import MODEL_STAGES, show_models
from openspectra.tracking.runs import COMPLETE_TAG, all_runs, create_run, is_live
from openspectra.tracking.store import ARTIFACTS, chosen_uri, files_folder, tracking_store, without_userinfo
from openspectra.tracking.views import experiment_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SUPERSEDED_TAG = "superseded_by"
DATA_SET_STAGES = ("corpus", "tokens")
"""Stages whose artifacts are data sets of MLflow: of their own run, and inputs of what is made from them."""


def track(
    artifacts: list[Artifact],
    experiment: str,
    tracking_uri: str | None = None,
    trainings: Sequence[Training] | None = None,
) -> dict[str, str]:
    """Log every artifact that `experiment` does not hold yet, and return the run id of each by artifact id.

    A second call adds nothing. An artifact whose manifest changed gets a new run, and its older runs a tag
    `superseded_by`. `trainings` are all of the study, where they are known: their curves are brought up to date, and
    the run of one that nobody computes any more is ended. Raises `OpenSpectraError` where the tracking store cannot be
    used; nothing else is changed then.
    """
    uri = chosen_uri(tracking_uri)
    with tracking_store(uri):
        ordered = in_order(artifacts)
        store = _Experiment(experiment, uri, ordered)
        data = ordered[: next((n for n, each in enumerate(ordered) if each.manifest.stage == "pretrain"), len(ordered))]
        run_ids = {artifact_id(artifact): store.log(artifact) for artifact in data}
        store.follow(trainings or [])  # their runs name those of their data, and become those of their models
        run_ids |= {artifact_id(artifact): store.log(artifact) for artifact in ordered[len(data) :]}
        if trainings is not None:
            store.end_the_dead()
        if ordered:
            store.link(ordered)
        show_models(store.client, store.id, experiment, ordered, run_ids)
        return run_ids


class _Experiment:
    """A study's experiment in a store, and what is known of its runs."""

    def __init__(self, name: str, uri: str, artifacts: list[Artifact]):
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        self.files = files_folder(uri)
        self.id = _experiment_id(self.client, name, self.files is not None, uri)
        self.known = all_runs(self.client, self.id)
        self.computed: set[str] = set()
        self.data_sets = {each.sha256: each for each in artifacts if each.manifest.stage in DATA_SET_STAGES}
        self.made: Made = {
            run.data.tags[HASH_TAG]: (run.info.run_name, run.info.run_id)
            for run in self.known
            if HASH_TAG in run.data.tags
        }

    def log(self, artifact: Artifact) -> str:
        """Return the run of an artifact: the complete one, else one to be completed, else a new one."""
        name = run_name(artifact)
        namesakes = [run for run in self.known if run.info.run_name == name]
        run_id = self._log_once(artifact, namesakes)
        self.made[artifact.sha256] = name, run_id
        self._supersede(run_id, namesakes)
        return run_id

    def follow(self, trainings: Sequence[Training]) -> None:
        """Bring the runs of trainings up to date."""
        self.computed = {training.run_hash for training in trainings if training.is_alive()}
        for training in trainings:
            send(self.client, self.id, training, self.known, self.made)
        if trainings:
            self.known = all_runs(self.client, self.id)

    def end_the_dead(self) -> None:
        """End the runs of trainings that nobody computes any more and that did not become an artifact's."""
        for run in self.known:
            if self._is_dead(run) and run.info.status == "RUNNING" and HASH_TAG not in self._tags_now(run):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _is_dead(self, run: "Run") -> bool:
        return is_live(run) and run.data.tags[RUN_HASH_TAG] not in self.computed

    def _tags_now(self, run: "Run") -> dict[str, str]:
        return self.client.get_run(run.info.run_id).data.tags

    def link(self, artifacts: list[Artifact]) -> None:
        """Let the run of every artifact name those of its children, as each names its parents."""
        from mlflow.entities import RunTag

        children = defaultdict(list)
        for artifact in in_order(artifacts):
            for parent in artifact.manifest.parents.values():
                children[parent.sha256].append(self.made[artifact.sha256])
        tags = {run.info.run_id: run.data.tags for run in all_runs(self.client, self.id)}
        for artifact in artifacts:
            run_id, led_to = self.made[artifact.sha256][1], children[artifact.sha256]
            made_from = [self.made[p.sha256] for p in artifact.manifest.parents.values() if p.sha256 in self.made]
            wanted = {link_tag("child", name, name): child for name, child in led_to}
            wanted[NOTE_TAG] = note(artifact.manifest.stage, self.id, made_from, led_to)
            missing = [RunTag(key, value) for key, value in wanted.items() if tags[run_id].get(key) != value]
            self.client.log_batch(run_id, tags=missing)

    def _log_once(self, artifact: Artifact, namesakes: list["Run"]) -> str:
        """Find or make the run of an artifact and complete it.

        Other runs of its name that a killed sync left can be finished by nobody and are deleted; `namesakes` loses them.
        """
        same = [run for run in namesakes if run.data.tags.get(HASH_TAG) == artifact.sha256]
        of_training = []
        if artifact.manifest.stage == "pretrain":
            own = run_hash(artifact)
            of_training = [run for run in namesakes if is_live(run) and run.data.tags[RUN_HASH_TAG] == own]
        complete = next((run for run in same if COMPLETE_TAG in run.data.tags), None)
        if complete:
            self._delete([run for run in of_training if self._is_dead(run)], namesakes)
            return complete.info.run_id
        start, end = times_of(artifact)
        points = {(metric.key, metric.step): metric for metric in metrics_of(artifact, (start, end))}
        kept, held = self._candidate(same + of_training, {place: metric.value for place, metric in points.items()})
        incomplete = [run for run in namesakes if COMPLETE_TAG not in run.data.tags and not is_live(run)]
        self._delete([run for run in incomplete + of_training if run is not kept], namesakes)
        run_id = kept.info.run_id if kept else self._create(artifact, start)
        self._fill(run_id, artifact, [metric for place, metric in points.items() if place not in held], end)
        return run_id

    def _candidate(self, runs: list["Run"], points: Numbers) -> tuple["Run | None", Numbers]:
        """Return the first run whose points agree with those of an artifact, and its points; None where none does."""
        for run in runs:
            histories = (self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
            held = {(point.key, point.step): point.value for history in histories for point in history}
            if _agree(held, points):
                return run, held
        return None, {}

    def _delete(self, runs: list["Run"], namesakes: list["Run"]) -> None:
        for run in runs:
            self.client.delete_run(run.info.run_id)
            namesakes.remove(run)
            self.known.remove(run)

    def _create(self, artifact: Artifact, start: int) -> str:
        """Return the id of a new run that a later sync can find again, should this one be killed."""
        tags = {HASH_TAG: artifact.sha256, "mlflow.user": USER}
        return create_run(self.client, self.id, run_name(artifact), start, tags)

    def _fill(self, run_id: str, artifact: Artifact, points: list, end: int) -> None:
        """Log everything of an artifact into its run; the tag that makes the run count comes last."""
        from mlflow.entities import Param, RunTag

        params = [Param(key, value) for key, value in flat_params(artifact.manifest.config).items()]
        tags = [RunTag(key, value) for key, value in tags_of(artifact, self.id, self.made).items()]
        self.client.log_batch(run_id, points, params, tags)
        self._copy_files(run_id, artifact)
        inputs = {artifact.sha256} if artifact.sha256 in self.data_sets else set()
        if artifact.manifest.stage in MODEL_STAGES:
            inputs = {parent.sha256 for parent in artifact.manifest.parents.values()} & self.data_sets.keys()
        if inputs:
            self.client.log_inputs(run_id, datasets=[data_set_of(self.data_sets[sha256]) for sha256 in sorted(inputs)])
        self.client.set_terminated(run_id, "FINISHED", end_time=end)
        self.client.set_tag(run_id, COMPLETE_TAG, "true")

    def _copy_files(self, run_id: str, artifact: Artifact) -> None:
        """Log the small files of an artifact; beside an SQLite file they are copied to where the UI looks for them."""
        if not self.files:
            for path, folder in small_files(artifact):
                self.client.log_artifact(run_id, str(path), folder)
            return
        location = self.client.get_run(run_id).info.artifact_uri.removeprefix(ARTIFACTS)
        for path, folder in small_files(artifact):
            target = self.files / location / (folder or "") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _supersede(self, run_id: str, namesakes: list["Run"]) -> None:
        """Point older runs of the same name at the current one, which itself is superseded by none."""
        for run in namesakes:
            tag = run.data.tags.get(SUPERSEDED_TAG)
            if run.info.run_id == run_id and tag:
                self.client.delete_tag(run_id, SUPERSEDED_TAG)
            elif run.info.run_id != run_id and tag != run_id and not is_live(run):
                self.client.set_tag(run.info.run_id, SUPERSEDED_TAG, run_id)


def _experiment_id(client: "MlflowClient", name: str, is_local: bool, uri: str) -> str:
    """Return the id of the study's experiment, created, restored or described anew where needed.

    Raises `OpenSpectraError` for one beside an SQLite file whose files have a fixed path: it would not move with it.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = f"{ARTIFACTS}{name}" if is_local else None
        tags = experiment_tags(name, None)
        found = client.get_experiment(client.create_experiment(name, artifact_location=location, tags=tags))
    if is_local and not found.artifact_location.startswith(ARTIFACTS):
        database = uri.removeprefix("sqlite:///")
        raise OpenSpectraError(
            f"tracking store {without_userinfo(uri)}: experiment {name} keeps files at the fixed path "
            f"{found.artifact_location}, which is wrong once the folder moves; all runs are made anew from the artifacts "
            f"after:  mv {database} {database}.old"
        )
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key, value in experiment_tags(name, found.experiment_id).items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _agree(held: Numbers, points: Numbers) -> bool:
    """Return whether what a run holds is part of what an artifact says; what only live runs know says nothing."""
    return all(math.isclose(value, points[place], rel_tol=1e-9) for place, value in held.items() if place in points)
