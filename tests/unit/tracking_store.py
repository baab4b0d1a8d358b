"""An MLflow store of one test, looked at through MLflow's own client. The module holds no test of its own."""

from pathlib import Path

EXPERIMENT = "made_up"


class Store:
    """A tracking store of one test, looked at through MLflow's own client."""

    def __init__(self, database: Path):
        from mlflow import MlflowClient

        self.database, self.uri = database, f"sqlite:///{database}"
        self.client = MlflowClient(tracking_uri=self.uri)

    def runs(self) -> list:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        return self.client.search_runs([experiment.experiment_id], max_results=100)

    def run(self, name: str):
        """Return the one run of a name that no other supersedes."""
        (run,) = [run for run in self.runs() if run.info.run_name == name and "superseded_by" not in run.data.tags]
        return run

    def files(self, run_id: str) -> set[str]:
        """Return the files of a run, from where the UI looks for them."""
        folder = self.database.parent / "mlartifacts" / EXPERIMENT / run_id / "artifacts"
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def points(self, run_id: str) -> list[tuple[str, int, float]]:
        """Return name, step and value of every point of a run."""
        keys = self.client.get_run(run_id).data.metrics
        histories = (self.client.get_metric_history(run_id, key) for key in keys)
        return sorted((point.key, point.step, point.value) for history in histories for point in history)

    def num_points(self) -> int:
        return sum(
            len(self.client.get_metric_history(run.info.run_id, key)) for run in self.runs() for key in run.data.metrics
        )
