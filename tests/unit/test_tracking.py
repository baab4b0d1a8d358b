"""The sync into a real MLflow store on SQLite: complete, idempotent, and safe to kill."""

import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from loopback import free_port
from reporting_study import CHANCE, FakeStudy
from tracking_store import EXPERIMENT, Store

from openspectra.errors import OpenSpectraError
from openspectra.tracking.contents import metric_name
from openspectra.tracking.store import _message, without_userinfo
from openspectra.tracking.sync import track
from openspectra.training.config import CheckpointConfig


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


def test_a_distilled_model_names_the_run_of_its_teacher(tmp_path, store):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    for family in ("floatlm", "bilm"):  # whose name stands before its teacher's
        study.add_pretrained(f"{family}/0.4M")
    study.add_distilled("bilm", "0.4M")
    run_ids = track(list(study.artifacts.values())[::-1], EXPERIMENT, store.uri)
    taught, plain = store.run("bilm/0.4M+distilled").data, store.run("bilm/0.4M").data
    assert taught.tags["parent.teacher"] == run_ids["floatlm/0.4M"] and "parent.teacher" not in plain.tags
    assert taught.tags["variant"] == "distilled"
    assert taught.params["distillation.teacher"] == "floatlm/0.4M"
    assert "distillation" not in " ".join(plain.params)


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


@pytest.mark.parametrize("behaviour", ["silent", "slow", "500", "dropping"])
def test_server_in_trouble_is_given_up_within_five_seconds(study, behaviour):
    import requests  # noqa: F401  (its import is none of the server's trouble)

    with troubled_server(behaviour) as port:
        started = time.monotonic()
        with pytest.raises(OpenSpectraError, match="cannot be used") as caught:
            track([study.artifacts["corpus"]], EXPERIMENT, f"http://127.0.0.1:{port}")
        assert time.monotonic() - started < 5
        assert "\n" not in str(caught.value)


@contextmanager
def troubled_server(behaviour: str):
    """Serve on a port: no answer at all, one after ten seconds, the status 500, or a closed connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if behaviour == "slow":
                ended.wait(10)
            if behaviour == "500":
                self.send_error(500)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    ended = threading.Event()
    if behaviour == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


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


def test_moved_and_copied_store_keeps_its_files_and_writes_nowhere_else(study, empty_store, tmp_path):
    before = tmp_path / "before 100%20 #"
    before.mkdir()
    shutil.copy(empty_store, before / "mlflow.db")
    run_id = track([study.artifacts["corpus"]], EXPERIMENT, f"sqlite:///{before}/mlflow.db")["corpus"]
    shutil.copytree(before, tmp_path / "copy")
    before.rename(tmp_path / "after")
    for name in ("copy", "after"):
        store = Store(tmp_path / name / "mlflow.db")
        new = track([study.artifacts["corpus"], study.artifacts["tokenizer"]], EXPERIMENT, store.uri)["tokenizer"]
        assert "manifest.json" in store.files(run_id) & store.files(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "copy"]


def test_store_of_fixed_paths_is_refused_with_the_way_out(study, store):
    store.client.create_experiment("old", artifact_location="/somewhere/mlruns/old")
    with pytest.raises(OpenSpectraError) as caught:
        track([study.artifacts["corpus"]], "old", store.uri)
    assert "/somewhere/mlruns/old, which is wrong once the folder moves" in str(caught.value)
    assert str(caught.value).endswith(f"mv {store.database} {store.database}.old")


def test_store_of_mlflows_own_variable_is_used(study, store, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    track([study.artifacts["corpus"]], EXPERIMENT)
    assert [run.info.run_name for run in store.runs()] == ["corpus"]
    assert list(Path.cwd().iterdir()) == []


def test_file_store_that_hides_ours_is_told(study, store, caplog):
    folder = store.database.parent / "mlruns"
    (folder / "0").mkdir(parents=True)
    track([], EXPERIMENT, store.uri)
    assert not caplog.records
    (folder / "0" / "meta.yaml").touch()
    track([], EXPERIMENT, store.uri)
    (record,) = caplog.records
    assert str(folder) in record.getMessage()
    assert "shows instead of mlflow.db" in record.getMessage()


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql", "mssql"])
@pytest.mark.parametrize(
    "userinfo", ["canary:pa/nary", "canary:pa@nary", "ca:nary:x", "canary:p#nary", "canary:100%nary"]
)
def test_secret_that_a_uri_cannot_hold_is_refused_and_not_printed(scheme, userinfo):
    with pytest.raises(OpenSpectraError) as caught:
        track([], EXPERIMENT, f"{scheme}://{userinfo}@127.0.0.1:1/x")
    message = str(caught.value)
    assert message.startswith(f"tracking store {scheme}://127.0.0.1:1/x: its user name or password holds a character")
    assert "nary" not in message and "\n" not in message


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_secret_is_printed_in_no_form(scheme, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary3")
    with pytest.raises(OpenSpectraError) as caught:
        track([], EXPERIMENT, f"{scheme}://canary1:%2Fcanary2%40@127.0.0.1:{free_port()}/x")
    assert "canary" not in str(caught.value)
    for cause in ("no user canary1 here", "wrong password /canary2@", "%2Fcanary2%40", "token canary3"):
        message = _message("postgresql://canary1:%2Fcanary2%40@host/x", ValueError(cause))
        assert message.startswith("tracking store postgresql://host/x cannot be used (ValueError)")


def test_metric_name_keeps_what_mlflow_takes():
    assert metric_name("cloze (held_out)", "acc,none") == "cloze _held_out_/acc_none"
    assert metric_name("../x") == "_x"


def test_userinfo_is_taken_out_of_every_uri():
    assert without_userinfo("at http://a:b@host/x and postgresql://c@db") == "at http://host/x and postgresql://db"
    assert without_userinfo("http://me:pa/ss@w@host") == "http://host"


def test_corpus_and_tokens_are_data_sets(study, store):
    track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    (corpus,) = store.run("corpus").inputs.dataset_inputs
    assert corpus.dataset.digest == study.artifacts["corpus"].sha256[:36]
    assert json.loads(corpus.dataset.profile)["documents"] == {"train": 700, "valid": 100, "test": 200}
    (train,) = store.run("tokens/train").inputs.dataset_inputs
    assert (train.dataset.name, train.tags[0].value) == ("tokens/train", "train")
    assert json.loads(train.dataset.profile)["num_tokens"] == 3_000_000


def test_server_that_gives_the_id_of_another_run_is_refused(study, store, monkeypatch):
    from mlflow import MlflowClient

    run_ids = track([study.artifacts["corpus"]], EXPERIMENT, store.uri)
    points = store.num_points()
    other = store.client.get_run(run_ids["corpus"])
    monkeypatch.setattr(MlflowClient, "create_run", lambda *arguments, **named: other)
    with pytest.raises(OpenSpectraError, match="creation of run tokenizer with the id of another run"):
        track([study.artifacts["tokenizer"]], EXPERIMENT, store.uri)
    assert store.num_points() == points
    assert store.client.get_run(run_ids["corpus"]).data.tags == other.data.tags


def test_parents_and_children_are_linked_both_ways(study, store):
    run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    model, evaluation = store.run("trilm/0.4M"), store.run("trilm/0.4M/held_out")
    assert model.data.tags["child.trilm/0.4M/held_out"] == evaluation.info.run_id
    assert evaluation.data.tags["parent.model"] == model.info.run_id
    note = model.data.tags["mlflow.note.content"]
    for name in ("tokens/train", "evaluation/trilm/0.4M/held_out"):
        assert f"/runs/{run_ids[name]})" in note


def test_models_view_holds_every_model_with_its_scores(study, store):
    run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    models = {model.name: model for model in store.client.search_logged_models([experiment.experiment_id])}
    assert sorted(models) == ["floatlm-0_4M", "quantlm-0_4M-4bit", "trilm-0_4M"]
    scores = {
        row["task"]: float(row["value"]) for row in study.artifacts["evaluation/trilm/0.4M/held_out"].rows("scores.csv")
    }
    logged = {metric.key: metric.value for metric in models["trilm-0_4M"].metrics}
    run = store.client.get_run(run_ids["trilm/0.4M"])
    assert logged["held_out/held_out_text/bits_per_byte"] == scores["held_out_text"]
    assert run.data.metrics["held_out/held_out_text/bits_per_byte"] == scores["held_out_text"]
    assert [output.model_id for output in run.outputs.model_outputs] == [models["trilm-0_4M"].model_id]
    registered = store.client.get_model_version_by_alias(f"openspectra-{EXPERIMENT}-trilm-0.4M", "final")
    assert registered.run_id == run.info.run_id
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"tokens/train", "tokens/valid"}


def test_best_and_final_version_of_a_training(tmp_path, store):
    study = FakeStudy(tmp_path / "results")
    study.add_data()
    model, registered = "trilm/0.4M", f"openspectra-{EXPERIMENT}-trilm-0.4M"
    steps = [500, 1000, 1500]
    valid = pd.DataFrame({"step": steps, "tokens_seen": steps, "valid_loss": [3.4, 3.1, 3.2]})
    study.add_pretrained(model, records={"valid.csv": valid})
    for step in steps[:2]:
        config = CheckpointConfig(model_id=f"{model}@{step}", family="trilm", step=step)
        study.add(config.model_id, "checkpoint", config, {"run": model}, lambda draft: None)
    for _ in range(2):
        run_ids = track(list(study.artifacts.values()), EXPERIMENT, store.uri)
    aliases = {
        alias: store.client.get_model_version_by_alias(registered, alias) for alias in ("best", "final", "step-500")
    }
    assert {alias: version.run_id for alias, version in aliases.items()} == {
        "best": run_ids[f"{model}@1000"],
        "final": run_ids[model],
        "step-500": run_ids[f"{model}@500"],
    }
    assert len(store.client.search_model_versions(f"name = '{registered}'")) == 3
