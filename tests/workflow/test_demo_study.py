"""The demo as a newcomer runs it, with half of its steps, and what must hold of its numbers.

How long it takes is printed, not asserted: wall time on shared machines says little. README has the measured figure.
"""

import csv
import json
import time

import pytest
from conftest import copy_project, run
from test_tiny_study import edit_study

from openspectra.artifacts import open_artifact
from openspectra.study import load_study
from openspectra.tracking.contents import metrics_of
from openspectra.work import training_flop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("demo") / "project")
    edit_study(project, "total_tokens: 819_200", "total_tokens: 409_600", "demo")
    started = time.monotonic()
    finished = run("snakemake", "--cores", "2", cwd=project)
    assert finished.returncode == 0, finished.stdout[-5000:]
    print(f"demo: {time.monotonic() - started:.0f} s")
    return project


def test_demo_evaluates_and_reports_18_models(demo):
    with (demo / "reports/demo/models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert not [row for row in rows if row["missing"]]


def test_8_and_6_bits_cost_less_than_a_hundredth_of_a_nat(demo):
    with (demo / "reports/demo/gaps.csv").open() as file:
        gaps = {row["model_id"]: float(row["test_loss_difference"]) for row in csv.DictReader(file)}
    near = {model: gap for model, gap in gaps.items() if model.endswith(("-8bit", "-6bit"))}
    assert len(near) == 6
    assert max(map(abs, near.values())) <= 0.01, near


def test_the_longest_training_starts_first(demo):
    """In the order of the study file the largest came last, and one core stood idle beside it."""
    runs = load_study(demo / "studies/demo.yaml").pretrained
    records = {name: json.loads((demo / "results/demo" / name / "run.json").read_text()) for name in runs}
    started = sorted(runs, key=lambda name: records[name]["started_unix_seconds"])
    work = [training_flop(runs[name]) for name in started]
    assert len(set(work)) == 3
    assert work == sorted(work, reverse=True)


def test_every_artifact_is_one_finished_run_and_the_report_leads_to_the_corpus(demo):
    """As a person walks in MLflow's UI: by the tags that name the runs of the parents."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{demo}/mlflow.db")
    experiment = client.get_experiment_by_name("demo")
    runs = {each.info.run_id: each for each in client.search_runs([experiment.experiment_id], max_results=1000)}
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    artifacts = {
        artifact.sha256: artifact
        for root in ("results/demo", "reports/demo")
        for path in (demo / root).rglob("manifest.json")
        if not {"parts", "sources"} & set(path.parts)  # slices of text, which no one looks for
        for artifact in [open_artifact(path.parent)]
    }
    assert sorted(each.data.tags["manifest_sha256"] for each in runs.values()) == sorted(artifacts)
    for run_id, each in runs.items():
        artifact = artifacts[each.data.tags["manifest_sha256"]]
        expected = {(point.key, point.step) for point in metrics_of(artifact, (0, 0))}
        sent = [
            (point.key, point.step)
            for name in {name for name, _ in expected}
            for point in client.get_metric_history(run_id, name)
        ]
        assert sorted(sent) == sorted(expected), each.info.run_name

    def ancestors(run_id: str) -> set[str]:
        parents = {value for tag, value in runs[run_id].data.tags.items() if tag.startswith("parent.")}
        return {run_id}.union(*(ancestors(parent) for parent in parents))

    (report,) = (run_id for run_id, each in runs.items() if each.data.tags["stage"] == "report")
    models = [runs[run_id] for run_id in ancestors(report) if runs[run_id].data.tags["kind"] == "model"]
    assert len(models) == 18
    for model in models:
        assert "corpus" in {runs[run_id].data.tags["stage"] for run_id in ancestors(model.info.run_id)}
