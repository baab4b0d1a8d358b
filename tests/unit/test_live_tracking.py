"""Trainings in MLflow while they go on: one run from the first point to the finished artifact, no point twice."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from reporting_study import FakeStudy
from tracking_store import EXPERIMENT, Store

from openspectra.artifacts import open_artifact
from openspectra.tracking.contents import curves_of, run_hash
from openspectra.tracking.live import BYTES_TAG, Training, trainings_of
from openspectra.tracking.sync import track
from openspectra.training.metrics_file import METRICS_FILE, MetricsFile
from openspectra.training.trajectory import run_identity

MODEL = "trilm/0.4M"
SPEED = {"tokens_per_second": 1000.5, "system/peak_memory_gigabytes": 0.5}


class FakeTraining:
    """The folder of a training as it is before its artifact stands, with the curves of that artifact to be written."""

    def __init__(self, root: Path):
        study = FakeStudy(root / "results")
        study.add_data()
        artifact = study.add_pretrained(MODEL)
        self.folder, manifest = artifact.folder, artifact.manifest
        self.data = [study.artifacts[name] for name in ("corpus", "tokenizer", "tokens/train", "tokens/valid")]
        parents = {role: parent.sha256 for role, parent in manifest.parents.items()}
        self.checkpoints = self.folder / "checkpoints" / run_hash(artifact)
        self.checkpoints.mkdir(parents=True)
        identity = run_identity(manifest.config, parents, manifest.stage_version)
        (self.checkpoints / "run.json").write_text(json.dumps(identity))
        self.curves: dict[int, dict[str, float]] = {}
        for (name, step), value in curves_of(artifact).items():
            self.curves.setdefault(step, {})[name] = value
        self.steps = sorted(self.curves)
        self.finished = artifact.folder / "manifest.json"
        self.hidden = self.finished.rename(self.folder / "hidden")

    def live(self, pid: int | None) -> None:
        """Let a process be the owner of the model's folder, or nobody."""
        owner = self.folder / "owner.json"
        if pid is None:
            owner.unlink()
        else:
            owner.write_text(json.dumps({"host": platform.node(), "pid": pid}))

    def write(self, steps: list[int], start: int) -> None:
        file = MetricsFile(self.checkpoints / METRICS_FILE)
        file.start(start)
        file.add([(step, self.curves[step]) for step in steps])

    def track(self, store: Store, finished: bool = False) -> list:
        """Sync, and return the runs of the model."""
        if finished:
            self.hidden.rename(self.finished)
        artifacts = self.data + ([open_artifact(self.folder)] if finished else [])
        track(artifacts, EXPERIMENT, store.uri, trainings_of(self.folder))
        return [run for run in store.runs() if run.info.run_name == MODEL]

    def points(self, steps: list[int]) -> list[tuple[str, int, float]]:
        return sorted((name, step, value) for step in steps for name, value in self.curves[step].items())


@pytest.fixture
def training(tmp_path) -> FakeTraining:
    return FakeTraining(tmp_path)


def test_training_is_one_run_from_its_first_point_to_its_artifact(training, store):
    first, rest = training.steps[:5], training.steps[5:]
    training.live(os.getpid())
    training.write(first, start=0)
    (run,) = training.track(store)
    assert run.info.status == "RUNNING"
    assert store.points(run.info.run_id) == training.points(first)
    assert run.data.params["shape.hidden_size"] == "64"
    assert run.data.tags["parent.tokens_train"] == store.run("tokens/train").info.run_id
    num_points = store.num_points()
    assert [again.info.run_id for again in training.track(store)] == [run.info.run_id]
    assert store.num_points() == num_points

    training.live(None)  # killed
    (dead,) = training.track(store)
    assert (dead.info.run_id, dead.info.status) == (run.info.run_id, "KILLED")

    training.live(os.getpid())  # goes on, from a state before its last point
    training.write(training.steps[3:8], start=training.steps[3])
    (resumed,) = training.track(store)
    assert (resumed.info.run_id, resumed.info.status) == (run.info.run_id, "RUNNING")
    assert store.points(run.info.run_id) == training.points(training.steps[:8])

    MetricsFile(training.checkpoints / METRICS_FILE).add([(training.steps[8], SPEED)])  # known while it trains alone
    training.write(rest, start=training.steps[5])
    training.live(None)
    (whole,) = training.track(store, finished=True)
    assert (whole.info.run_id, whole.info.status) == (run.info.run_id, "FINISHED")
    summary = {"num_parameters", "bits_per_weight"}
    assert summary < set(whole.data.metrics)
    curves = {name for name, _, _ in training.points(training.steps)} | set(SPEED)
    held = [point for point in store.points(run.info.run_id) if point[0] in curves]
    assert held == sorted(training.points(training.steps) + [(n, training.steps[8], v) for n, v in SPEED.items()])
    num_points = store.num_points()
    track([*training.data, open_artifact(training.folder)], EXPERIMENT, store.uri, trainings_of(training.folder))
    assert store.num_points() == num_points
    assert {run.info.status for run in store.runs()} == {"FINISHED"}


def test_batch_that_was_sent_before_a_kill_is_sent_again_and_changes_nothing(training, store):
    training.live(os.getpid())
    training.write(training.steps[:6], start=0)
    (run,) = training.track(store)
    store.client.set_tag(run.info.run_id, BYTES_TAG, "0")  # as if killed before the byte was noted
    training.write(training.steps[6:9], start=training.steps[6])
    training.track(store)
    assert store.points(run.info.run_id) == training.points(training.steps[:9])


def test_a_batch_and_the_tag_beside_it_are_one_request(training, store, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    sizes, log_batch = [], SqlAlchemyStore.log_batch

    def counted(self, run_id, metrics, params, tags):
        sizes.extend(len(metrics) for tag in tags if tag.key == BYTES_TAG)
        log_batch(self, run_id, metrics, params, tags)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", counted)
    training.live(os.getpid())
    training.curves = {step: {"train_loss": 1 / step} for step in range(1, 2501)}
    training.write(list(training.curves), start=0)
    training.track(store)
    assert sizes == [999, 999, 502]


def test_curves_that_a_finished_training_does_not_confirm_are_not_its_run(training, store):
    training.live(os.getpid())
    wrong = training.steps[2]
    training.curves[wrong] = {name: value + 1 for name, value in training.curves[wrong].items()}
    training.write(training.steps[:6], start=0)
    (live,) = training.track(store)
    training.live(None)
    (run,) = training.track(store, finished=True)
    assert run.info.run_id != live.info.run_id
    assert store.client.get_run(live.info.run_id).info.lifecycle_stage == "deleted"


def test_training_is_dead_when_its_process_is_or_when_another_run_is_newer(training):
    training.write(training.steps[:1], start=0)
    (found,) = trainings_of(training.folder)
    assert not found.is_alive()  # nobody writes here
    training.live(os.getpid())
    assert found.is_alive()
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    training.live(finished.pid)
    assert not found.is_alive()
    training.live(os.getpid())
    newer = training.folder / "checkpoints" / ("0" * 16)
    shutil.copytree(training.checkpoints, newer)
    later = found.path.stat().st_mtime + 1
    os.utime(newer / METRICS_FILE, (later, later))
    assert not found.is_alive()
    assert Training(newer).is_alive()
    assert trainings_of(training.folder) == [found]  # the other's folder has not the name of what it holds
    (training.folder / "owner.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(newer / METRICS_FILE, (0, 0))
    assert found.is_alive()
    os.utime(found.path, (0, 0))
    assert not found.is_alive()
