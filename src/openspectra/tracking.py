"""Idempotent sync of finished artifacts into MLflow: one run per artifact, found again by the hash of its manifest.

Tracking reads artifacts and changes nothing in them: it can be late, repeated, killed or down. A run counts only with
its tag `complete`, which is set last; a run without it, left by a killed sync, is finished or made anew.
"""

import csv
import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from openspectra.artifacts import MANIFEST, Artifact
from openspectra.errors import OpenSpectraError
from openspectra.model_ids import ModelId
from openspectra.reporting.identity import (
    artifact_id,
    evaluated_model,
    in_order,
    nominal_bits,
    run_facts_of,
    suite_name,
)
from openspectra.training.matrices import means_by_step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default, so that plain `mlflow ui` in the project's folder shows the study."""
HASH_TAG, COMPLETE_TAG, SUPERSEDED_TAG = "manifest_sha256", "complete", "superseded_by"
USER = "openspectra"
"""Stands as the creator of every run: who pressed the key is no fact of an artifact."""
CURVES = ("train.csv", "valid.csv")
MAX_FILE_BYTES = 5_000_000
"""Larger files stay where they are; their names and hashes stand in the manifest, which is logged."""
MAX_LINKS = 8
DIGEST_LENGTH = 36
"""The longest digest of a data set that MLflow takes."""
DATA_SET_PROFILE = ("counts", "documents", "bytes", "num_tokens", "num_documents", "dtype", "tokenizer_sha256")
LOCK_SECONDS = 600
CONNECT_SECONDS = 5
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
FIRST_CALL = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A server that cannot be reached is known to be so within 15 seconds."""
LATER_CALLS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
NOTE = (
    "OpenSpectra study `{}`: one run per artifact, the newest on top. Filter by `tags.stage = 'pretrain'`, `'quantize'` or "
    "`'evaluate'`, by `tags.family`, `tags.size` and `tags.bits`; group by `size` or `family` to compare."
)
Numbers = dict[tuple[str, int], float]
"""Metric values by name and step."""
Made = dict[str, tuple[str, str]]
"""Name and run id by the hash of a manifest, or by the role of a parent."""


def track(artifacts: list[Artifact], experiment: str, tracking_uri: str | None = None) -> dict[str, str]:
    """Log every artifact that `experiment` does not hold yet, and return the run id of each by artifact id.

    A second call adds nothing. An artifact whose manifest changed gets a new run, and its older runs a tag
    `superseded_by`. Raises `OpenSpectraError` where the tracking store cannot be used; nothing else is changed then.
    """
    uri = tracking_uri or DEFAULT_URI
    with _environment(QUIET), _lock(uri):
        _check_host(uri)
        # Imported here: mlflow reads its environment on import, and it is heavy.
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _quiet_logs():
                _create_sqlite(uri)
                return _sync(in_order(artifacts), experiment, uri)
        except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: network and disk
            raise OpenSpectraError(_message(uri, str(error))) from None


def run_name(artifact: Artifact) -> str:
    """Return the name of an artifact's run: its id, for evaluations model first, because lists cut long names."""
    return artifact_id(artifact).removeprefix("evaluation/")


def metric_name(*parts: str) -> str:
    """Return a name of a metric, parameter or tag that MLflow takes, parts joined by `/`."""
    return "/".join(re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII).lstrip(".") or "_" for part in parts)[:250]


def without_userinfo(text: str) -> str:
    """Return `text` with user name and password taken out of every URI in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


def _sync(artifacts: list[Artifact], experiment: str, uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    with _environment(FIRST_CALL):
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment_id(client, experiment, uri)
    with _environment(LATER_CALLS):
        known = _all_runs(client, experiment_id)
        made = {run.data.tags.get(HASH_TAG, ""): (run.info.run_name, run.info.run_id) for run in known}
        run_ids = {}
        for artifact in artifacts:
            name = run_name(artifact)
            namesakes = [run for run in known if run.info.run_name == name]
            run_id = _log_once(client, experiment_id, artifact, namesakes, made)
            made[artifact.sha256] = name, run_id
            run_ids[artifact_id(artifact)] = run_id
            _supersede(client, run_id, namesakes)
        return run_ids


def _create_sqlite(uri: str) -> None:
    """Create the tables of an SQLite store under another name first: a half-made file under its own could never be used.

    The caller holds the lock. A file that stands already is left as it is.
    """
    from mlflow import MlflowClient

    database = _sqlite_path(uri)
    if database is None or database.exists():
        return
    folder = database.parent / f".{database.name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    MlflowClient(tracking_uri=f"sqlite:///{folder / database.name}").search_experiments()
    if not database.exists():  # somebody's `mlflow ui` may have been faster
        (folder / database.name).rename(database)
    shutil.rmtree(folder)


def _experiment_id(client: "MlflowClient", name: str, uri: str) -> str:
    """Return the id of the study's experiment, created or restored where needed."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = _sqlite_path(uri)
        location = str(database.parent / "mlruns" / name) if database else None
        tags = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": NOTE.format(name)}
        return client.create_experiment(name, artifact_location=location, tags=tags)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _all_runs(client: "MlflowClient", experiment_id: str) -> list["Run"]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _log_once(
    client: "MlflowClient", experiment_id: str, artifact: Artifact, namesakes: list["Run"], made: Made
) -> str:
    """Return the run of an artifact: the complete one, else one that a killed sync left, else a new one.

    Other incomplete runs of the same name can be finished by nobody and are deleted. `namesakes` loses them.
    """
    start, end = _times(artifact)
    same = [run for run in namesakes if run.data.tags.get(HASH_TAG) == artifact.sha256]
    kept = next((run for run in same if COMPLETE_TAG in run.data.tags), None)
    # Points have the time of the artifact's own run, so logging them again into the same run doubles nothing.
    kept = kept or next((run for run in same if run.info.start_time == start), None)
    for run in [run for run in namesakes if run is not kept and COMPLETE_TAG not in run.data.tags]:
        client.delete_run(run.info.run_id)
        namesakes.remove(run)
    if kept and COMPLETE_TAG in kept.data.tags:
        return kept.info.run_id
    run_id = kept.info.run_id if kept else _create(client, experiment_id, artifact, start)
    _fill(client, run_id, artifact, (start, end), _tags(artifact, experiment_id, made))
    return run_id


def _create(client: "MlflowClient", experiment_id: str, artifact: Artifact, start: int) -> str:
    """Return the id of a new run that a later sync can find again, should this one be killed."""
    tags = {HASH_TAG: artifact.sha256, "mlflow.user": USER}
    return client.create_run(experiment_id, start_time=start, tags=tags, run_name=run_name(artifact)).info.run_id


def _fill(
    client: "MlflowClient", run_id: str, artifact: Artifact, times: tuple[int, int], tags: dict[str, str]
) -> None:
    """Log everything of an artifact into its run; the tag that makes the run count comes last."""
    from mlflow.entities import Param, RunTag

    params = [Param(key, value) for key, value in _flat_params(artifact.manifest.config).items()]
    client.log_batch(run_id, _metrics(artifact, times), params, [RunTag(key, value) for key, value in tags.items()])
    for path in _small_files(artifact):
        client.log_artifact(run_id, str(path))
    if artifact.manifest.stage in ("corpus", "tokens"):
        client.log_inputs(run_id, datasets=[_data_set(artifact)])
    client.set_terminated(run_id, "FINISHED", end_time=times[1])
    client.set_tag(run_id, COMPLETE_TAG, "true")


def _data_set(artifact: Artifact) -> "DatasetInput":
    """Return a corpus, or a split of tokens, as MLflow's data set: its identity is the hash of the manifest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config, metrics = artifact.manifest.config, artifact.manifest.metrics
    data_set = Dataset(
        name=artifact_id(artifact),
        digest=artifact.sha256[:DIGEST_LENGTH],
        source_type="openspectra",
        source=json.dumps({"manifest_sha256": artifact.sha256, "sources": sorted(config.get("sources", {}))}),
        profile=json.dumps({key: value for key, value in metrics.items() if key in DATA_SET_PROFILE}),
    )
    return DatasetInput(data_set, [InputTag("mlflow.data.context", config.get("split", "all splits"))])


def _supersede(client: "MlflowClient", run_id: str, namesakes: list["Run"]) -> None:
    """Point older runs of the same name at the current one, which itself is superseded by none."""
    for run in namesakes:
        tag = run.data.tags.get(SUPERSEDED_TAG)
        if run.info.run_id == run_id and tag:
            client.delete_tag(run_id, SUPERSEDED_TAG)
        elif run.info.run_id != run_id and tag != run_id:
            client.set_tag(run.info.run_id, SUPERSEDED_TAG, run_id)


def _tags(artifact: Artifact, experiment_id: str, made: Made) -> dict[str, str]:
    """Return the tags of a run: identity, model, commit, and the run of each parent."""
    manifest, commit = artifact.manifest, run_facts_of(artifact).get("commit")
    parents = {role: made[parent.sha256] for role, parent in manifest.parents.items() if parent.sha256 in made}
    tags = {
        HASH_TAG: artifact.sha256,
        "stage": manifest.stage,
        "stage_version": str(manifest.stage_version),
        **_model_tags(artifact),
        **{_parent_tag(role, name): run_id for role, (name, run_id) in parents.items()},
        "mlflow.note.content": _description(artifact, experiment_id, parents),
        "mlflow.source.name": manifest.stage,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": USER,
    }
    return tags | ({"commit": commit, "mlflow.source.git.commit": commit} if commit else {})


def _model_tags(artifact: Artifact) -> dict[str, str]:
    """Return model_id, family, size, bits and variant of an artifact that is, or scores, a model."""
    evaluation = artifact.manifest.stage == "evaluate"
    name = evaluated_model(artifact) if evaluation else artifact.manifest.config.get("model_id")
    if name is None:
        return {}
    model_id = ModelId.parse(name)
    bits = nominal_bits(model_id)
    tags = {"model_id": name, "family": model_id.family, "size": model_id.size}
    tags |= {"bits": f"{bits:g}"} if bits else {}
    tags |= {"variant": model_id.variant} if model_id.variant else {}
    return tags | ({"suite": suite_name(artifact)} if evaluation else {})


def _parent_tag(role: str, name: str) -> str:
    """Return the tag of a parent: its role, or its name where the role is a path, as a report's are."""
    return f"parent.{role}" if role.isidentifier() else f"parent.{metric_name(*name.split('/'))}"


def _description(artifact: Artifact, experiment_id: str, parents: Made) -> str:
    """Return a line of Markdown with a link to the run of each parent; of many parents only the tags lead there."""
    if len(parents) > MAX_LINKS:
        return f"Stage {artifact.manifest.stage}, made from {len(parents)} artifacts: see the tags `parent.*`."
    links = [f"[{name}](#/experiments/{experiment_id}/runs/{run_id})" for name, run_id in parents.values()]
    return f"Stage {artifact.manifest.stage}" + (f", made from {', '.join(links)}." if links else ".")


def _metrics(artifact: Artifact, times: tuple[int, int]) -> list["Metric"]:
    """Return summary metrics, curves and scores with their steps; what is no finite number is left out.

    A summary metric of the name of a curve is left to the curve, whose last point it is. Points are spread over the
    run's time by their step.
    """
    from mlflow.entities import Metric

    curves = _curves(artifact)
    names = {name for name, _ in curves}
    summary = {
        (name, 0): value for name, value in _flat_metrics(artifact.manifest.metrics).items() if name not in names
    }
    start, end = times
    last = max((step for _, step in curves), default=0)
    moments = {step: start + (end - start) * step // last if last else end for _, step in curves}
    return [
        Metric(name, value, moments.get(step, end) if (name, step) in curves else end, step)
        for (name, step), value in {**summary, **_scores(artifact), **curves}.items()
    ]


def _curves(artifact: Artifact) -> Numbers:
    """Return every column of the training curves by step; of the discrete weights the means over all matrices."""
    if artifact.manifest.stage != "pretrain":
        return {}  # the report holds the means of all models again
    rows = [row for name in CURVES for row in _rows(artifact, name)]
    rows += means_by_step(_rows(artifact, "ternary.csv"))
    return {
        (metric_name(column), int(row["step"])): value
        for row in rows
        for column, entry in row.items()
        if column != "step" and (value := _number(entry)) is not None
    }


def _scores(artifact: Artifact) -> Numbers:
    """Return value and standard error of every evaluation score: `cloze/acc`, `cloze/acc_stderr`."""
    numbers = {}
    for row in _rows(artifact, "scores.csv"):
        if artifact.manifest.stage != "evaluate":
            continue  # the report holds the scores of all models again
        filtered = [row["filter"]] if row["filter"] not in ("", "none") else []
        for suffix, column in (("", "value"), ("_stderr", "stderr")):
            value = _number(row[column])
            if value is not None:
                numbers[metric_name(row["task"], row["metric"] + suffix, *filtered), 0] = value
    return numbers


def _rows(artifact: Artifact, name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV of the artifact, checked against its manifest; none where it has no such file."""
    if all(record.path != name for record in artifact.manifest.files):
        return []
    with artifact.file(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _small_files(artifact: Artifact) -> Iterator[Path]:
    """Yield manifest, run facts, tables and pages that are worth a copy; never weights."""
    yield artifact.folder / MANIFEST
    if (artifact.folder / "run.json").is_file():
        yield artifact.folder / "run.json"
    for record in artifact.manifest.files:
        if record.path.endswith((".csv", ".html", "data_card.json")) and record.bytes <= MAX_FILE_BYTES:
            yield artifact.file(record.path)


def _flat_params(config: dict[str, Any], *path: str) -> dict[str, str]:
    """Return a nested config as `shape.hidden_size: "512"`; lists as JSON."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat_params(value, *path, key)
        else:
            flat[metric_name(".".join([*path, key]))] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _flat_metrics(metrics: dict[str, Any], *path: str) -> dict[str, float]:
    """Return the finite numbers among nested metrics as `documents/train: 700.0`; keys may hold `/` themselves."""
    flat = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat_metrics(value, *path, key)
        elif not isinstance(value, str) and (number := _number(value)) is not None:
            flat[metric_name(*path, *key.split("/"))] = number
    return flat


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _times(artifact: Artifact) -> tuple[int, int]:
    """Return start and end of the run that made an artifact, in milliseconds since 1970; the manifest's time if unknown."""
    facts = run_facts_of(artifact)
    start, duration = _number(facts.get("started_unix_seconds")), _number(facts.get("duration_seconds"))
    if start is None:
        start = (artifact.folder / MANIFEST).stat().st_mtime
    return int(1000 * start), int(1000 * (start + (duration or 0)))


def _sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite tracking URI, None for any other."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return Path(match[1]).resolve() if match else None


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite file: parallel first use breaks the creation of its tables. Servers need none."""
    database = _sqlite_path(uri)
    if database is None:
        yield
        return
    lock = FileLock(f"{database}.lock", timeout=LOCK_SECONDS)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OpenSpectraError(_message(uri, f"another sync held {database.name}.lock for {LOCK_SECONDS} s")) from None
    except OSError as error:
        raise OpenSpectraError(_message(uri, str(error))) from None
    try:
        yield
    finally:
        lock.release()


def _check_host(uri: str) -> None:
    """Raise `OpenSpectraError` where the host of a database does not answer: MLflow would retry for minutes."""
    parts = urlsplit(uri)
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise OpenSpectraError(_message(uri, str(error))) from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables of MLflow for a while; it reads them at each call and has no other way."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silence the many lines of a first migration, and of retries, which would show a URI's password."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _message(uri: str, cause: str) -> str:
    """Return one line: what cannot be used, why, and the way out, without user name or password."""
    reason = without_userinfo(" ".join(cause.partition("[SQL:")[0].split()))
    reason = reason if len(reason) <= 300 else reason[:297] + "..."
    return (
        f"tracking store {without_userinfo(uri)} cannot be used ({reason.rstrip('.')}); artifacts are unchanged, "
        f"so mend it and sync again."
    )
