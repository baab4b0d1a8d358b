"""The tracking store: named, made ready, held by one sync at a time, its errors in one line without a secret."""

import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from openspectra.errors import OpenSpectraError

logger = logging.getLogger(__name__)

DEFAULT_URI = "sqlite:///mlflow.db"
"""MLflow's own default, so that plain `mlflow ui` in the project's folder shows the study."""
ARTIFACTS = "mlflow-artifacts:/"
"""Start of the location of a run's files that holds no path: the UI looks for them in `mlartifacts` where it is started."""
LOCK_SECONDS = 600
CONNECT_SECONDS = 3
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
SECRET_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def chosen_uri(uri: str | None) -> str:
    """Return the tracking store to use: the one given, the one of `MLFLOW_TRACKING_URI`, else MLflow's own default."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


@contextmanager
def tracking_store(uri: str) -> Iterator[None]:
    """Make a tracking store ready and hold it for one sync. Raises `OpenSpectraError` of one line where it cannot be used."""
    _check_userinfo(uri)
    _check_host(uri)
    # models are looked up in the store that the variable names, whatever a client was given
    with environment(QUIET | {"MLFLOW_TRACKING_URI": uri}), _lock(uri):
        _warn_of_file_store(uri)
        # Imported here: mlflow reads its environment on import, and it is heavy.
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _quiet_logs():
                _create_sqlite(uri)
                yield
        except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: network and disk
            raise OpenSpectraError(_message(uri, error)) from None


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


def files_folder(uri: str) -> Path | None:
    """Return the folder beside an SQLite file that holds the files of its runs; None where a server keeps them."""
    database = sqlite_path(uri)
    return database.parent / "mlartifacts" if database else None


def without_userinfo(text: str) -> str:
    """Return `text` with all that stands before the last `@` taken out of every URI in it."""
    return re.sub(r"://\S*@", "://", text)


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
    """Hold a lock beside an SQLite file, for a server in this folder: two syncs would make two runs of one artifact.

    Parallel first use would also break the creation of SQLite's tables.
    """
    database = sqlite_path(uri)
    path = database.with_name(f"{database.name}.lock") if database else Path("mlflow.lock")
    lock = FileLock(path, timeout=LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise OpenSpectraError(_message(uri, f"another sync held {path.name} for {LOCK_SECONDS} s")) from None
    except OSError as error:
        raise OpenSpectraError(_message(uri, error)) from None
    try:
        yield
    finally:
        lock.release()


def _check_userinfo(uri: str) -> None:
    """Refuse a user name or password that a URI cannot hold as it is: libraries would print pieces of it."""
    before, found, _ = uri.partition("://")[2].rpartition("@")
    if found and not re.fullmatch(r"([^/@:#?%\s\[\]]|%[0-9A-Fa-f]{2})*(:([^/@:#?%\s\[\]]|%[0-9A-Fa-f]{2})*)?", before):
        raise OpenSpectraError(
            f"tracking store {without_userinfo(uri)}: its user name or password holds a character that a URI needs written "
            "as its code (`/` as %2F, `@` as %40, `:` as %3A, `#` as %23, `%` as %25); write it so."
        )


def _check_host(uri: str) -> None:
    """Raise `OpenSpectraError` where the host does not answer within seconds: MLflow would retry for minutes."""
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            _check_server(uri)
        elif parts.hostname and (port := DATABASE_PORTS.get(parts.scheme.partition("+")[0])):
            socket.create_connection((parts.hostname, parts.port or port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: no URI at all, or a port that is no number
        raise OpenSpectraError(_message(uri, error)) from None


def _check_server(uri: str) -> None:
    import requests  # heavy

    address = f"{without_userinfo(uri).rstrip('/')}/health"
    try:
        answer = requests.get(address, timeout=CONNECT_SECONDS, stream=True)  # errors of requests are OSErrors
    except requests.Timeout:
        raise OSError(f"no answer within {CONNECT_SECONDS} s") from None
    except requests.ConnectionError:
        raise OSError("no connection, or one that was cut off") from None
    answer.close()
    if answer.status_code >= 500:
        raise OSError(f"it answers {answer.status_code} {answer.reason}")


def _warn_of_file_store(uri: str) -> None:
    """Say so where plain `mlflow ui` would show something else: it prefers a file store of older versions in its folder."""
    database = sqlite_path(uri)
    if database and any((database.parent / "mlruns").glob("[0-9]*/meta.yaml")):
        logger.warning(
            "%s holds runs of an older MLflow, which plain `mlflow ui` shows instead of %s; move the folder away, or use "
            "`mlflow ui --backend-store-uri sqlite:///%s`",
            database.parent / "mlruns",
            database.name,
            database.name,
        )


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silence the many lines of a first migration, and of retries and failures, which may show a URI's password."""
    noisy = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3", "sqlalchemy")]
    levels = [each.level for each in noisy]
    for each in noisy:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(noisy, levels, strict=True):
            each.setLevel(level)


def _message(uri: str, cause: Exception | str) -> str:
    """Return one line: what cannot be used, why, and the way out, without user name or password."""
    reason = without_userinfo(" ".join(str(cause).partition("[SQL:")[0].split()))
    if any(re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", reason) for secret in _secrets(uri)):
        reason = type(cause).__name__
    reason = reason if len(reason) <= 300 else reason[:297] + "..."
    return (
        f"tracking store {without_userinfo(uri)} cannot be used ({reason.rstrip('.')}); artifacts are unchanged, "
        f"so mend it and sync again."
    )


def _secrets(uri: str) -> set[str]:
    """Return user name and password of a URI, and those of MLflow's variables, as written and as meant."""
    before, _, _ = uri.partition("://")[2].rpartition("@")
    written = {*before.partition(":")[::2], *(os.environ.get(name, "") for name in SECRET_VARIABLES)}
    return {form for text in written for form in (text, unquote(text)) if form}
