"""The tracking store: made ready, held by one sync at a time, its errors in one line without a password."""

import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from openspectra.errors import OpenSpectraError

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default, so that plain `mlflow ui` in the project's folder shows the study."""
LOCK_SECONDS = 600
CONNECT_SECONDS = 5
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
FIRST_CALL = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A server that cannot be reached is known to be so within 15 seconds."""
LATER_CALLS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


@contextmanager
def tracking_store(uri: str) -> Iterator[None]:
    """Make a tracking store ready and hold it for one sync. Raises `OpenSpectraError` of one line where it cannot be used."""
    with environment(QUIET), _lock(uri):
        _check_host(uri)
        # Imported here: mlflow reads its environment on import, and it is heavy.
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _quiet_logs():
                _create_sqlite(uri)
                yield
        except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: network and disk
            raise OpenSpectraError(_message(uri, str(error))) from None


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
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


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite tracking URI, None for any other."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return Path(match[1]).resolve() if match else None


def without_userinfo(text: str) -> str:
    """Return `text` with user name and password taken out of every URI in it."""
    return re.sub(r"://[^/\s]*@", "://", text)


def _create_sqlite(uri: str) -> None:
    """Create the tables of an SQLite store under another name first: a half-made file under its own could never be used.

    The caller holds the lock. A file that stands already is left as it is.
    """
    from mlflow import MlflowClient

    database = sqlite_path(uri)
    if database is None or database.exists():
        return
    folder = database.parent / f".{database.name}.new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    MlflowClient(tracking_uri=f"sqlite:///{folder / database.name}").search_experiments()
    if not database.exists():  # somebody's `mlflow ui` may have been faster
        (folder / database.name).rename(database)
    shutil.rmtree(folder)


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite file: parallel first use breaks the creation of its tables. Servers need none."""
    database = sqlite_path(uri)
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
