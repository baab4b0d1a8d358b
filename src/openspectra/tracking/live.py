"""The curves of a training that goes on, from its metrics file to its run: in batches, on from the byte sent last.

The run is found by the run hash and the moment at which its file began. Sending a line twice changes nothing, for a
point has the time that stands in the file.
"""

import json
import platform
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openspectra.artifacts import config_hash
from openspectra.tracking.contents import RUN_HASH_TAG, USER, Made, finite, flat_params, live_tags
from openspectra.tracking.runs import COMPLETE_TAG, create_run
from openspectra.training.metrics_file import METRICS_FILE, Line, read_lines
from openspectra.writing import process_lives

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SINCE_TAG, BYTES_TAG = "curves_since", "curves_sent_bytes"
BATCH = 999
"""Points of a request: MLflow takes 1,000 entities, and the tag that says how far we are is one. One more made two requests."""
SILENT_SECONDS = 1800
"""A training on another machine that has written nothing for so long is taken for dead; should it live, it goes on."""


@dataclass(frozen=True)
class Training:
    """A run of training, finished or not, by the folder of its checkpoints."""

    folder: Path

    @property
    def run_hash(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        """The file with its curves."""
        return self.folder / METRICS_FILE

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Resolved config, hashes of the parents by role, stage version."""
        return json.loads((self.folder / "run.json").read_bytes())

    def is_alive(self) -> bool:
        """Return whether a process computes it: the owner of the model's folder, which trains the newest run in it."""
        try:
            owner = json.loads((self.folder.parents[1] / "owner.json").read_bytes())
        except (OSError, ValueError):
            return False
        written = self.path.stat().st_mtime
        if any(other.stat().st_mtime > written for other in self.folder.parent.glob(f"*/{METRICS_FILE}")):
            return False
        if owner.get("host") != platform.node():
            return time.time() - written < SILENT_SECONDS
        return process_lives(owner.get("pid"))


def trainings_of(model_folder: Path) -> list[Training]:
    """Return the trainings of a model that have begun to write curves and whose folder is as it was made."""
    found = (Training(path.parent) for path in sorted(model_folder.glob(f"checkpoints/*/{METRICS_FILE}")))
    return [training for training in found if _is_whole(training)]


def send(client: "MlflowClient", experiment_id: str, training: Training, known: list["Run"], made: Made) -> None:
    """Send what a training's file holds and its run does not. A run that was ended while it goes on runs again."""
    with training.path.open(encoding="utf-8") as file:
        first = file.readline()
    if not first.endswith("\n"):
        return
    since = str(json.loads(first)["time"])
    run = next((run for run in known if _key(run) == (training.run_hash, since)), None)
    run_id = run.info.run_id if run else _create(client, experiment_id, training, since, made)
    if run and COMPLETE_TAG not in run.data.tags and run.info.status != "RUNNING" and training.is_alive():
        client.update_run(run_id, status="RUNNING")
    sent = int(run.data.tags.get(BYTES_TAG, 0)) if run else 0
    for metrics, end in _batches(read_lines(training.path, sent)):
        _log(client, run_id, metrics, end)


def _create(client: "MlflowClient", experiment_id: str, training: Training, since: str, made: Made) -> str:
    from mlflow.entities import Param, RunTag

    config = training.identity["config"]
    key = {RUN_HASH_TAG: training.run_hash, SINCE_TAG: since, "mlflow.user": USER}
    run_id = create_run(client, experiment_id, config["model_id"], int(since), key)
    params = [Param(name, value) for name, value in flat_params(config).items()]
    tags = [RunTag(name, value) for name, value in live_tags(training.identity, experiment_id, made).items()]
    client.log_batch(run_id, params=params, tags=tags)
    return run_id


def _batches(lines: list[tuple[Line, int]]):
    """Yield lists of at most `BATCH` points, each with the byte after its last line."""
    from mlflow.entities import Metric

    metrics, end = [], 0
    for line, after in lines:
        new = [Metric(*point, line["time"], line["step"]) for point in finite(line["metrics"]).items()]
        if metrics and len(metrics) + len(new) > BATCH:
            yield metrics, end
            metrics = []
        metrics, end = metrics + new, after
    if lines:
        yield metrics, end


def _log(client: "MlflowClient", run_id: str, metrics: list, end: int) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, metrics, tags=[RunTag(BYTES_TAG, str(end))])


def _key(run: "Run") -> tuple[str | None, str | None]:
    return run.data.tags.get(RUN_HASH_TAG), run.data.tags.get(SINCE_TAG)


def _is_whole(training: Training) -> bool:
    try:
        return config_hash(training.identity) == training.run_hash
    except (OSError, ValueError):
        return False
