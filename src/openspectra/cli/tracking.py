"""`openspectra track`: a study in MLflow."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import Log, StudyName
from openspectra.cli.stage import logger, session

commands = typer.Typer(help="MLflow: every artifact as a run, and trainings while they go on.", no_args_is_help=True)
Uri = Annotated[
    str | None, typer.Option(help="Tracking store; default: MLFLOW_TRACKING_URI, else mlflow.db in this folder.")
]


@commands.command("sync")
def track_sync(
    study: StudyName,
    uri: Uri = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file that takes the run ids.")] = None,
    log: Log = None,
) -> None:
    """Bring MLflow up to date with a study, nothing doubled: artifacts, curves of trainings; end the runs of dead ones."""
    from openspectra.tracking.store import chosen_uri, without_userinfo
    from openspectra.tracking.study_folder import study_folder
    from openspectra.writing import disk_errors, write_atomically

    with session(log):
        runs = study_folder(study).sync(uri)
        if out:
            with disk_errors(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(out, json.dumps(runs, indent=2, sort_keys=True).encode())
        where = without_userinfo(chosen_uri(uri))
        logger.info(
            "MLflow: %d runs in experiment %s of %s; `openspectra track ui %s` shows them",
            len(runs),
            study,
            where,
            study,
        )


@commands.command("live")
def track_live(study: StudyName, uri: Uri = None, log: Log = None) -> None:
    """Show trainings in MLflow while they go on, until stdin closes; the workflow starts this by itself."""
    from threading import Event, Thread

    from openspectra.tracking.study_folder import study_folder

    ended = Event()
    with session(log):
        os.nice(10)  # trainings on this machine go first
        Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        study_folder(study).watch(uri, ended)


@commands.command("ui")
def track_ui(
    study: StudyName,
    uri: Uri = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Start MLflow's UI on this machine and print the link to the study's first screen; Ctrl-C ends it."""
    from openspectra.tracking.ui import show

    with session(None):
        show(study, uri, port)
