"""A training in MLflow while the workflow computes it: seen live, killed, gone on with, finished, in one run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LAYOUT, run

from openspectra.artifacts import open_artifact
from openspectra.tracking.contents import curves_of

MODEL = "trilm/2L"
COMMAND = ("snakemake", "--config", "study=tiny", *LAYOUT, "--cores", "2", f"results/tiny/{MODEL}/manifest.json")


@pytest.mark.slow
def test_training_is_seen_live_and_goes_on_in_its_run_after_a_kill(tiny_copy):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tiny_copy}/mlflow.db")
    lengthen(tiny_copy / "studies/tiny.yaml")
    workflow = start(tiny_copy)
    try:
        seen = wait_for(lambda: live_run(client), workflow)
        assert seen.data.params["model_id"] == f"{MODEL}"
        wait_for(lambda: client.get_run(seen.info.run_id).data.metrics["tokens_seen"] > 100 * 512, workflow)
    finally:
        os.killpg(workflow.pid, signal.SIGKILL)
        workflow.wait()
    synced = run("openspectra", "track", "sync", "tiny", cwd=tiny_copy)
    assert synced.returncode == 0, synced.stdout
    assert client.get_run(seen.info.run_id).info.status == "KILLED"

    finished = run(*COMMAND, cwd=tiny_copy)
    assert finished.returncode == 0, finished.stdout
    assert "continues from step" in finished.stdout
    synced = run("openspectra", "track", "sync", "tiny", cwd=tiny_copy)
    assert synced.returncode == 0, synced.stdout
    made = client.get_run(seen.info.run_id)
    assert (made.info.status, made.data.tags["complete"]) == ("FINISHED", "true")
    curves = curves_of(open_artifact(tiny_copy / "results/tiny" / MODEL))
    names = {name for name, _ in curves}
    points = [point for name in names for point in client.get_metric_history(seen.info.run_id, name)]
    assert len(points) == len(curves)
    assert {(point.key, point.step): point.value for point in points} == curves


def lengthen(study: Path) -> None:
    """Let the study train for 1,200 steps, half a minute, and keep a state every second."""
    text = re.sub(r"total_tokens: [\d_]+", "total_tokens: 614_400", study.read_text())
    study.write_text(re.sub(r"checkpoints_per_run: \d+", "checkpoints_per_run: 40", text))


def start(project: Path) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(COMMAND, cwd=project, env=os.environ | {"PATH": path}, start_new_session=True, **silent)


def live_run(client):
    """Return the run of the training that goes on; None while there is none with a point."""
    experiment = client.get_experiment_by_name("tiny")
    running = [run for run in client.search_runs([experiment.experiment_id]) if run.info.status == "RUNNING"]
    return next((run for run in running if "tokens_seen" in run.data.metrics), None)


def wait_for(condition, workflow: subprocess.Popen):
    """Return what `condition` gives once it holds, while the workflow still runs."""
    while True:
        assert workflow.poll() is None, "the workflow ended before anything was seen"
        if found := condition():
            return found
        time.sleep(0.5)
