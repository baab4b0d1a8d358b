"""The sync into a real MLflow store on SQLite: complete, idempotent, and safe to kill."""

import json
import shutil
import socket
import time

import pytest
from reporting_study import CHANCE, FakeStudy
from tracking_store import EXPERIMENT, free_port

from openspectra.errors import OpenSpectraError
from openspectra.tracking.contents import metric_name
from openspectra.tracking.store import without_userinfo
from openspectra.tracking.sync import track


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    study = FakeStudy(tmp_path_factory.mktemp("study") / "results")
    study.add_demo(sizes=("0.4M",), widths=(4,))
    return study


def test_track_logs_one_run_per_artifact(study, store):
    run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    assert set(run_ids) == set(study.artifacts)
    assert sorted(run_ids.values()) == sorted(run.info.run_id for run in store.runs())
    assert {run.info.status for run in store.runs()} == {"FINISHED"}
    assert {run.data.tags["mlflow.user"] for run in store.runs()} == {"openspectra"}


def test_track_logs_params_curves_and_lineage_of_a_model(study, store):
    run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    run = store.run("trilm/0.4M")
    assert run.data.params["shape.hidden_size"] == "64"
    assert run.data.tags["bits"] == "1.58"
    assert run.data.tags["parent.tokens_train"] == run_ids["tokens/train"]
    history = store.client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in history][-1] == 1500
    assert len(history) == 20
    assert run.info.start_time <= history[0].timestamp <= history[-1].timestamp == run.info.end_time


def test_track_logs_scores_and_small_files_but_no_weights(study, store):
    run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    run = store.run("quantlm/0.4M-4bit/held_out")
    scored = {f"{task}/{metric}" for task in CHANCE for metric in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")}
    assert set(run.data.metrics) == scored | {"held_out_text/bits_per_byte"}  # its standard error was N/A
    assert store.files(run_ids["floatlm/0.4M"]) == {"manifest.json", "run.json", "train.csv", "valid.csv"}


def test_second_track_adds_nothing(study, store):
    first = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    num_points = store.num_points()
    second = track(list(study.artifacts.values())[::-1], EXPERIMENT, store.uri)
    assert second == first
    assert len(store.runs()) == len(first)
    assert store.num_points() == num_points


def test_changed_manifest_supersedes_and_its_return_is_seen(tmp_path, store):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    before = study.add_pretrained("floatlm/0.4M")
    shutil.copytree(before.folder, tmp_path / "before")
    old = track(list(study.artifacts.values()), EXPERIMENT, store.uri)["floatlm/0.4M"]
    changed = study.add_pretrained("floatlm/0.4M", seed=2)
    new = track([changed], EXPERIMENT, store.uri)["floatlm/0.4M"]
    assert old != new
    assert store.client.get_run(old).data.tags["superseded_by"] == new
    assert "superseded_by" not in store.client.get_run(new).data.tags
    shutil.rmtree(before.folder)
    shutil.copytree(tmp_path / "before", before.folder)
    assert track([before], EXPERIMENT, store.uri)["floatlm/0.4M"] == old
    assert store.run("floatlm/0.4M").info.run_id == old


@pytest.mark.parametrize("killed_at", ["log_batch", "copyfile", "set_terminated", "set_tag"])
def test_killed_sync_is_finished_and_nothing_doubled(study, store, monkeypatch, killed_at):
    from mlflow import MlflowClient

    artifacts = [study.artifacts[name] for name in ("corpus", "tokenizer", "floatlm/0.4M")]

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil if killed_at == "copyfile" else MlflowClient, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            track(artifacts, EXPERIMENT, store.uri)
    assert [run.data.tags.get("complete") for run in store.runs()] == [None]
    track(artifacts, EXPERIMENT, store.uri)
    assert sorted(run.info.run_name for run in store.runs()) == ["corpus", "floatlm/0.4M", "tokenizer"]
    assert {run.data.tags.get("complete") for run in store.runs()} == {"true"}
    assert len(store.client.get_metric_history(store.run("corpus").info.run_id, "documents/train")) == 1


def test_incomplete_run_of_an_older_manifest_is_removed(tmp_path, store):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    experiment_id = store.client.get_experiment_by_name(EXPERIMENT).experiment_id
    store.client.create_run(experiment_id, tags={"manifest_sha256": "0" * 64}, run_name="corpus")
    track([study.artifacts["corpus"]], EXPERIMENT, store.uri)
    assert len(store.runs()) == 1


def test_unreachable_server_is_one_line_without_password(study):
    started = time.monotonic()
    with pytest.raises(OpenSpectraError) as caught:
        track([study.artifacts["corpus"]], EXPERIMENT, f"http://user:s3cret@127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 15
    assert "tracking store http://127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreachable_database_server_is_one_line(study):
    with pytest.raises(OpenSpectraError, match=r"tracking store postgresql://127\.0\.0\.1:\d+/mlflow cannot be used"):
        track([study.artifacts["corpus"]], EXPERIMENT, f"postgresql://user:s3cret@127.0.0.1:{free_port()}/mlflow")


@pytest.mark.slow
def test_silent_server_is_given_up_within_fifteen_seconds(study):
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(OpenSpectraError, match="cannot be used"):
            track([study.artifacts["corpus"]], EXPERIMENT, f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 15


def test_file_that_is_no_database_is_one_line(study, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, but some text that is long enough to be looked at")
    with pytest.raises(OpenSpectraError, match="file is not a database"):
        track([study.artifacts["corpus"]], EXPERIMENT, f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_default_store_lies_in_the_working_directory(study, empty_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    track([study.artifacts["corpus"]], "another", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]
    assert list((tmp_path / "mlartifacts" / "another").rglob("manifest.json"))


def test_metric_name_keeps_what_mlflow_takes():
    assert metric_name("cloze (held_out)", "acc,none") == "cloze _held_out_/acc_none"
    assert metric_name("../x") == "_x"


def test_userinfo_is_taken_out_of_every_uri():
    assert without_userinfo("at http://a:b@host/x and postgresql://c@db") == "at http://host/x and postgresql://db"


def test_corpus_and_tokens_are_data_sets(study, store):
    track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    (corpus,) = store.run("corpus").inputs.dataset_inputs
    assert corpus.dataset.digest == study.artifacts["corpus"].sha256[:36]
    assert json.loads(corpus.dataset.profile)["documents"] == {"train": 700, "valid": 100, "test": 200}
    (train,) = store.run("tokens/train").inputs.dataset_inputs
    assert (train.dataset.name, train.tags[0].value) == ("tokens/train", "train")
    assert json.loads(train.dataset.profile)["num_tokens"] == 3_000_000
