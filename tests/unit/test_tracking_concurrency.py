"""Many processes on a store that does not exist yet, many runs through one server: no failure, exact counts."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from loopback import free_port, wait_for
from reporting_study import FakeStudy, pretrain_config
from tracking_store import EXPERIMENT, Store

from openspectra.tracking.live import Training, send
from openspectra.training.metrics_file import METRICS_FILE, MetricsFile

NUM_PROCESSES, NUM_RUNS, NUM_STEPS = 8, 64, 100
TRACK = """
import sys
from pathlib import Path
from openspectra.artifacts import open_artifact
from openspectra.tracking.sync import track
track([open_artifact(Path(path)) for path in sys.argv[3:]], sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_eight_processes_make_one_store_and_one_run_per_artifact(tmp_path):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    folders = [str(artifact.folder) for artifact in study.artifacts.values()]
    store = tmp_path / "mlflow.db"
    command = [sys.executable, "-c", TRACK, EXPERIMENT, f"sqlite:///{store}", *folders]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(NUM_PROCESSES)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES, errors
    assert sorted(run.info.run_name for run in Store(store).runs()) == sorted(study.artifacts)


@pytest.mark.slow
def test_sixty_four_runs_at_once_through_a_server_lose_and_double_no_point(tmp_path):
    from mlflow import MlflowClient

    trainings = [fake_training(tmp_path / "results", number) for number in range(NUM_RUNS)]
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--workers", "2"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", 180)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment_id = client.create_experiment(EXPERIMENT)
        with ThreadPoolExecutor(NUM_RUNS) as pool:
            for _ in range(2):  # the second time nothing is new
                list(pool.map(lambda training: deliver(client, experiment_id, training), trainings))
        runs = client.search_runs([experiment_id], max_results=NUM_RUNS + 1)
        assert len(runs) == NUM_RUNS
        for run in runs:
            number = int(run.data.tags["run_hash"], 16)
            for name in ("train_loss", "gradient_norm"):
                points = client.get_metric_history(run.info.run_id, name)
                assert [(point.step, point.value) for point in points] == [(s, number + s) for s in range(NUM_STEPS)]
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def deliver(client, experiment_id: str, training: Training) -> None:
    """Send until the server takes it, as the syncer does at its next turn: its few connections serve 64 runs."""
    from mlflow.exceptions import MlflowException

    for _ in range(20):
        with suppress(MlflowException):
            known = client.search_runs([experiment_id], max_results=NUM_RUNS + 1)
            return send(client, experiment_id, training, known, {})
        time.sleep(1)
    raise AssertionError("the server took nothing in 20 turns")


def fake_training(results: Path, number: int) -> Training:
    training = Training(results / f"trilm/{number}" / "checkpoints" / f"{number:016x}")
    training.folder.mkdir(parents=True)
    config = pretrain_config("trilm/0.4M").model_dump(mode="json")
    (training.folder / "run.json").write_text(json.dumps({"config": config, "parents": {}, "stage_version": 1}))
    file = MetricsFile(training.folder / METRICS_FILE)
    file.start(0)
    values = [(step, {"train_loss": number + step, "gradient_norm": number + step}) for step in range(NUM_STEPS)]
    file.add(values)
    return training
