"""MLflow's UI of a study on this machine, and the link to its first screen."""

import logging
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path

from openspectra.errors import OpenSpectraError
from openspectra.tracking.store import (
    QUIET,
    chosen_uri,
    environment,
    files_folder,
    sqlite_path,
    tracking_store,
    without_userinfo,
)
from openspectra.tracking.views import links

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"


def show(study: str, uri: str | None, port: int) -> None:
    """Serve the store of a study until interrupted and name the link; of a server only the link is named."""
    uri = chosen_uri(uri)
    experiment_id = _experiment_id(study, uri)
    if sqlite_path(uri) is None:
        _announce(*links(without_userinfo(uri), experiment_id))
        return
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError:
            raise OpenSpectraError(f"--port {port} is in use; name another: --port {port + 1}") from None
    program = str(Path(sys.executable).parent / "mlflow")
    command = [program, "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", os.path.relpath(files_folder(uri))]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with environment(QUIET):
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(server, port)
        _announce(*links(f"http://{HOST}:{port}", experiment_id))
        logger.info("Ctrl-C ends it.")
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _experiment_id(study: str, uri: str) -> str:
    database = sqlite_path(uri)
    if database and not database.exists():
        raise OpenSpectraError(f"{database}: no such store; `openspectra track sync {study}` makes it.")
    with tracking_store(uri):
        from mlflow import MlflowClient

        found = MlflowClient(tracking_uri=uri).get_experiment_by_name(study)
    if found is None:
        raise OpenSpectraError(
            f"tracking store {without_userinfo(uri)} holds no experiment {study}; `openspectra track sync {study}` makes it."
        )
    return found.experiment_id


def _wait(server: subprocess.Popen, port: int) -> None:
    """Wait until the server answers. Raises `OpenSpectraError` where it ends instead."""
    while True:
        with socket.socket() as connection:
            connection.settimeout(0.2)
            if connection.connect_ex((HOST, port)) == 0:
                return
        try:
            code = server.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        raise OpenSpectraError(f"MLflow's UI ended with code {code}; `mlflow server` in this folder says why.")


def _announce(address: str, table: str) -> None:
    print(f"Curves: {address}\nTable:  {table}", flush=True)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        webbrowser.open(address)
