"""How a command runs: log, threads, what it says, and the way of every stage from config and parents to its artifact."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from openspectra.printable import escaped

logger = logging.getLogger("openspectra.cli")


@contextmanager
def session(log: Path | None, rank: int = 0):
    from openspectra.logs import log_to

    with log_to(log, rank):
        yield


def run_stage(
    stage: str,
    config_type: type,
    config: Path,
    out: Path,
    log: Path | None,
    parents: dict,
    run: Callable,
    many: Sequence[Path] = (),
    update: dict | None = None,
    shares_job: bool = False,
):
    """Read config and parents, run the stage into a draft, publish it in `out`.

    `parents` gives path and stage by role, the name under which `run` takes each; `many` are parts, which know their
    role and are taken as `parts`. `update` goes into the config. Where the artifact may share a job with others
    (`finished.py`), it is not made again once it is finished.
    """
    from openspectra.artifacts import open_artifact, role_of, write_artifact
    from openspectra.config import read_config
    from openspectra.finished import is_finished, mark_finished

    with session(log):
        resolved = read_config(config_type, config).model_copy(update=update)
        opened = {role: open_artifact(path, parent_stage) for role, (path, parent_stage) in parents.items()}
        parts = [open_artifact(path) for path in many]
        given = opened | ({"parts": parts} if parts else {})
        if shares_job and is_finished(out, stage, resolved, opened):
            return
        with write_artifact(out, stage, resolved, opened | {role_of(part): part for part in parts}) as draft:
            draft.metrics |= run(resolved, **given, folder=draft.folder)
        if shares_job:
            mark_finished(out)
        logger.info("%s: done, in %s", stage, out)


def silence_torchao() -> None:
    """Keep torchao, which transformers imports, from warning of libraries that are not there."""
    os.environ["TORCHAO_FORCE_SKIP_LOADING_SO_FILES"] = "1"
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def set_threads(threads: int) -> None:
    """Fix the number of CPU threads before any library reads it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)


def say(text: str, keep: str = "") -> None:
    typer.echo(escaped(text, keep))
