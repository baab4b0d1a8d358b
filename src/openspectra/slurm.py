"""What is said to Slurm: by the launcher of a training inside its job, and by the workflow about its jobs.

The one place that knows Slurm's commands and variables. Imports nothing heavy.
"""

import logging
import os
import re
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openspectra.errors import OpenSpectraError

logger = logging.getLogger(__name__)

OWN_JOB = "OPENSPECTRA_OWN_JOB"
"""Set by the workflow where each of its jobs is a Slurm job: an interrupted training puts its own back into the queue."""
NEVER_ENDS = {
    "PartitionTimeLimit": "its `runtime` exceeds the partition's longest time",
    "PartitionNodeLimit": "its `nodes` exceed what the partition has",
    "PartitionConfig": "the partition has no node that could hold it: see `nodes`, `mem_mb`, threads, GPUs",
    "PartitionInactive": "the partition is inactive",
    "PartitionDown": "the partition is down",
    "BadConstraints": "no node has what it asks for: see `constraint`, `gres`, `mem_mb`",
    "AccountNotAllowed": "the partition does not allow the account: see `slurm_account`",
    "InvalidAccount": "the account is not known: see `slurm_account`",
    "InvalidQOS": "the quality of service is not known: see `qos`",
    "AssocMaxWallDurationPerJobLimit": "its `runtime` exceeds the account's longest time",
    "QOSMaxWallDurationPerJobLimit": "its `runtime` exceeds the longest time of its quality of service",
    "JobHeldUser": "it is held: `scontrol release` lets it go",
    "JobHeldAdmin": "it is held by an administrator",
    "DependencyNeverSatisfied": "what it depends on has failed",
    "launch failed requeued held": "it could not be started on its node, and is held: `scontrol release` lets it go",
}
"""Reasons for which a job waits until somebody does something, and what."""
SECONDS_BETWEEN_LOOKS = 5
SECONDS_FOR_ANSWER = 60
PATIENCE = 600
"""Seconds for jobs to save their state and end, before they are cancelled."""


@dataclass(frozen=True)
class Job:
    """A job in Slurm's queue."""

    number: str
    state: str
    reason: str
    rule: str


def job() -> str | None:
    """Return the number of the Slurm job that this process is in."""
    return os.environ.get("SLURM_JOB_ID")


def own_job() -> bool:
    """Return whether the Slurm job around this process is that of one rule alone."""
    return job() is not None and OWN_JOB in os.environ


def place_in_step() -> tuple[int, int, int, int] | None:
    """Return this process's rank, the ranks, and the same on its node, where srun started it; else None."""
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        return None
    rank, size, nodes, local_rank = (
        int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NUM_NODES", "LOCALID")
    )
    return rank, size, local_rank, size // nodes


def first_node() -> str:
    """Return the name of the first node of this job, on which rank 0 runs."""
    nodes = _ask("squeue", "--noheader", "--jobs", job(), "--format", "%N")
    return _ask("scontrol", "show", "hostnames", nodes.strip()).split()[0]


def srun(nodes: int, tasks: int, threads: int) -> list[str]:
    """Return what starts a command `tasks` times on each of the first `nodes` nodes, with `threads` CPUs each.

    Everything is spelled out: of the job's own numbers nothing reaches a command inside a rule.
    """
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"),
        *(f"--cpus-per-task={threads}", "--distribution=block", "--kill-on-bad-exit=1"),
        "--wait=0",  # rank 0 publishes the model after the others have ended
    ]


def all_nodes_answer(nodes: int) -> bool:
    """Return whether a command can still be started on each node of this job."""
    command = [*srun(nodes, 1, 1), "true"]
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, timeout=SECONDS_FOR_ANSWER, check=False).returncode == 0
    return False


def requeue() -> bool:
    """Put this job back into the queue, unless Slurm is ending it (scancel, preemption), which then decides.

    Return whether that was done. The job keeps its number, and whoever waits for it goes on waiting.
    """
    if _ask("squeue", "--noheader", "--jobs", job(), "--format", "%T").strip() != "RUNNING":
        return False
    done = subprocess.run(["scontrol", "requeue", job()], capture_output=True, text=True, check=False)
    if done.returncode:
        logger.warning("job %s stays out of the queue: %s", job(), done.stderr.strip())
    return done.returncode == 0


def jobs_of(study: str, folder: Path, *options: str) -> list[Job]:
    """Return the jobs in the queue that workflows of this study submitted from this folder, by name `<study>_<uuid>`."""
    lines = _ask("squeue", "--noheader", "--me", "--format", "%i|%T|%j|%Z|%k|%r", *options).splitlines()
    fields = [line.split("|", maxsplit=5) for line in lines]
    return [
        Job(number, state, reason, rule)
        for number, state, name, place, rule, reason in fields
        if name.rpartition("_")[0] == study and Path(place) == folder
    ]


def last_state(study: str, folder: Path, rule: str) -> str | None:
    """Return the state of the newest job of a rule, which may have ended some minutes ago; None where Slurm knows none."""
    jobs = [each for each in jobs_of(study, folder, "--states=all") if each.rule == rule]
    return max(jobs, key=lambda each: int(re.match(r"\d+", each.number)[0])).state if jobs else None


def numbers_in_queue() -> set[str]:
    """Return the numbers of all jobs that have not ended."""
    return set(_ask("squeue", "--noheader", "--format", "%i").split())


def end_jobs(study: str, folder: Path) -> None:
    """End the jobs of a workflow that is no more, and wait until none is left; a training saves its state first."""
    asked, deadline = set(), time.monotonic() + PATIENCE
    while left := jobs_of(study, folder):
        is_late = time.monotonic() > deadline
        for each in left:
            if each.number not in asked:
                logger.warning("Slurm job %s (%s), left by a workflow before: ending it", each.number, each.rule)
            if each.state != "RUNNING" or is_late:
                _try("scancel", each.number)
            else:  # a training stops at its next step; it may not requeue its job then
                if each.number not in asked:
                    _try("scontrol", "update", f"JobId={each.number}", "Requeue=0")
                _try("scancel", "--signal=USR1", each.number)  # again and again: its ranks may just be starting
            asked.add(each.number)
        if is_late:
            logger.warning("still waiting for %d Slurm jobs to end", len(left))
            deadline += PATIENCE
        time.sleep(SECONDS_BETWEEN_LOOKS)


def hopeless_jobs(study: str, folder: Path) -> dict[str, str]:
    """Return of each waiting job that will wait for ever: its number, and a line that says why."""
    return {
        each.number: f"Slurm job {each.number} ({each.rule}) waits for ever, {each.reason}: {NEVER_ENDS[each.reason]}"
        for each in jobs_of(study, folder)
        if each.state == "PENDING" and each.reason in NEVER_ENDS
    }


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpenSpectraError(f"`{' '.join(command)}`: {done.stderr.strip()}; run the same command again.")
    return done.stdout


def _try(*command: str) -> None:
    """Run a command whose failure decides nothing: the job may have ended meanwhile."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        logger.warning("`%s`: %s", " ".join(command), done.stderr.strip())
