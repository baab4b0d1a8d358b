"""Runs of an experiment: made, listed, told apart."""

from typing import TYPE_CHECKING

from openspectra.errors import OpenSpectraError
from openspectra.tracking.contents import HASH_TAG, RUN_HASH_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COMPLETE_TAG = "complete"


def create_run(client: "MlflowClient", experiment_id: str, name: str, start: int, tags: dict[str, str]) -> str:
    """Return the id of a new run. Raises `OpenSpectraError` where the server answers with another run's."""
    run_id = client.create_run(experiment_id, start_time=start, tags=tags, run_name=name).info.run_id
    held = client.get_run(run_id)
    if held.info.run_name != name or any(held.data.tags.get(key) != value for key, value in tags.items()):
        raise OpenSpectraError(f"the tracking server answered the creation of run {name} with the id of another run.")
    return run_id


def all_runs(client: "MlflowClient", experiment_id: str) -> list["Run"]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def is_live(run: "Run") -> bool:
    """Return whether a run belongs to a training whose artifact did not stand yet."""
    return RUN_HASH_TAG in run.data.tags and HASH_TAG not in run.data.tags
