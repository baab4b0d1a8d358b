"""What Snakemake's Slurm executor does not do itself: trainings that requeue their own jobs, failures that are not tried again."""

import os
import time
from pathlib import Path
from threading import Thread

from openspectra import slurm
from openspectra.errors import ConfigError, OpenSpectraError
from snakemake.jobs import Job
from snakemake.logging import logger


def on_slurm() -> bool:
    return workflow.executor_plugin.name == "slurm"


def take_slurm() -> None:
    """Name this study's jobs after it, let trainings requeue their own, and say which jobs will never start."""
    workflow.executor_settings.jobname_prefix = NAME
    os.environ.update({slurm.OWN_JOB: "1"})
    Job.restart_times = property(retries_of)  # Snakemake has no hook that tells one failure from another
    Thread(target=watch_queue, daemon=True).start()


def retries_of(job: Job) -> int:
    """Return how often a job that has failed may run: as the profile says, but not again what would end as before.

    That is what somebody cancelled, and what refused its config or arguments (exit code 2).
    """
    wildcards = "_".join(job.wildcards).replace(os.sep, "_")
    label = f"rule_{job.rule.name}" + (f"_wildcards_{wildcards}" if wildcards else "")  # as the executor calls it
    if slurm.last_state(NAME, Path.cwd(), label) == "CANCELLED":
        logger.warning(f"{label} was cancelled, and is not tried again; the same command goes on")
        return 0
    if any(refused_its_config(Path(log)) for log in job.log):
        logger.warning(f"{label} refused its configuration, and is not tried again; see its log")
        return 0
    return job.rule.restart_times


def refused_its_config(log: Path) -> bool:
    """Return whether the last thing in a stage's log is that it ended with exit code 2."""
    tail = log.read_text(encoding="utf-8")[-10_000:] if log.is_file() else ""
    return f"\n{ConfigError.__module__}.{ConfigError.__qualname__}: " in tail.rpartition("Traceback")[2]


def watch_queue() -> None:
    """Say of each job, once, that it waits for something that will never come, every minute as long as this lives."""
    said = {}
    while True:
        time.sleep(60)
        try:
            hopeless = slurm.hopeless_jobs(NAME, Path.cwd())
        except OpenSpectraError as error:
            logger.warning(str(error))
            continue
        for number, line in hopeless.items():
            if said.get(number) != line:
                logger.warning(f"{line}; `scancel {number}` ends it")
        said |= hopeless
