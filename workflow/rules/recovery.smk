"""What the same command does first, so that it goes on after a kill, repairs what is damaged, and trains anew when told.

And last: the page of what is there, where jobs failed.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from uuid import uuid4

from openspectra import slurm
from openspectra.artifacts import FINISHED, open_artifact
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.upkeep import quick_check
from openspectra.writing import WAITS
from snakemake.logging import logger


def release_locks_of_the_dead() -> None:
    """Remove the locks that a killed Snakemake left on this study, where it is certain that nobody lives.

    Every Snakemake of a study holds `.snakemake/<study>.owner` shared as long as it lives; the kernel ends that with the
    process. Who gets the file alone is the only one. Between machines that proves nothing, not every shared disk has
    such locks: what another machine locked, or has a job writing at, stays locked. On a cluster Slurm knows which of its
    jobs live, and those that a killed Snakemake left are ended.
    """
    global OWNER  # held to the end of the process
    Path(".snakemake").mkdir(exist_ok=True)
    OWNER = open(f".snakemake/{NAME}.owner", "a+", encoding="utf-8")
    try:
        fcntl.flock(OWNER, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # another one lives
        fcntl.flock(OWNER, fcntl.LOCK_SH)
        return
    except OSError:  # a disk without locks
        return
    OWNER.seek(0)
    before = OWNER.read() or "a process that left no name"
    left = [path for path in sorted(Path(".snakemake/locks").glob("*.lock")) if locks_this_study(path)]
    doubts = [before] * (platform.node() not in before.split()) if left else []
    if on_slurm() and not doubts:  # whoever submitted what this study has in the queue lives no more
        slurm.end_jobs(NAME, Path.cwd())
    if left:
        doubts += writers_on_other_machines()
    if doubts:
        for who in doubts:
            logger.warning(f"may still write here: {who}")
        logger.warning("if all have ended: `snakemake --unlock`, then the same command")
    else:
        if left:
            logger.warning(f"process {before}, which ran this study before, was killed; going on")
        for path in left:
            path.unlink(missing_ok=True)
        OWNER.truncate(0)
        OWNER.write(f"{os.getpid()} on {platform.node()}")
        OWNER.flush()
    fcntl.flock(OWNER, fcntl.LOCK_SH)


def writers_on_other_machines() -> list[str]:
    """Return the folder and the owner of every artifact that a job of another machine began and may not have ended."""
    owners = [Path(RESULTS, place, "owner.json") for place in STUDY.artifacts]
    found = [(owner, owner.read_text(encoding="utf-8")) for owner in owners if owner.is_file()]
    others = [(owner, who) for owner, who in found if f'"host": "{platform.node()}"' not in who]
    queue = slurm.numbers_in_queue() if others and on_slurm() else None
    return [f"{owner.parent}: {who}" for owner, who in others if queue is None or json.loads(who)["job"] in queue | {None}]


def locks_this_study(path: Path) -> bool:
    return any(line.startswith((f"{RESULTS}/", f"{REPORTS}/")) for line in path.read_text(encoding="utf-8").splitlines())


def forced(rule_name: str, places: Iterable[str]) -> list[str]:
    """Return those of `places`, all made by one kind of job, that are forced; what is left there would answer at once."""
    settings = workflow.dag_settings
    names = set(settings.forcerun) | (set(settings.targets) if settings.forcetargets else set())
    if settings.forceall or rule_name in names:
        return list(places)
    paths = {os.path.relpath(name) for name in names}
    return [place for place in places if f"{RESULTS}/{place}/manifest.json" in paths]


def forget_what_is_forced() -> None:
    """Take from forced artifacts the copy of the manifest by which their command knows that they are finished."""
    kinds = {"evaluate": "evaluation/*/*/*", "quantize": "quantlm/*"}
    for kind, pattern in kinds.items():
        finished = [str(path.parent.relative_to(RESULTS)) for path in Path(RESULTS).glob(f"{pattern}/{FINISHED}")]
        for place in {*forced(f"{kind}_model", finished), *forced(f"{kind}_checkpoint", finished)}:
            Path(RESULTS, place, FINISHED).unlink()


def other_configs() -> list[str]:
    """Return the configs that hold anything else than the study says, such as a part of it where a disk was full."""
    paths = {place: Path(RESULTS, "configs", f"{place}.json") for place in CONFIGS}
    return [
        str(path)
        for place, path in paths.items()
        if path.exists() and path.read_text(encoding="utf-8") != CONFIGS[place].model_dump_json(indent=2) + "\n"
    ]


def unfetched_benchmarks() -> list[str]:
    """Return the fetched items, where those of a task could not be had: it is tried again."""
    try:
        fetched = [open_artifact(Path(path), "benchmarks") for path in BENCHMARKS]
    except DamagedArtifactError:  # missing, or told by `quick_check`
        return []
    return BENCHMARKS if any("missing" in each.manifest.metrics for each in fetched) else []


def page_has_holes() -> bool:
    """Return whether the page stands and was made without some of what the study has (see `render_what_is_there`)."""
    try:
        page = open_artifact(Path(REPORTS), "report")
    except DamagedArtifactError:  # missing, or told by `quick_check`
        return False
    shown = {os.path.normpath(Path(REPORTS, parent.path, "manifest.json")) for parent in page.manifest.parents.values()}
    return not shown >= set(REPORTED)


def plan_what_is_damaged() -> None:
    """Force the jobs of this call whose artifact stands and is not what its manifest says."""
    stages = {Path(f"{RESULTS}/{place}/manifest.json"): stage for place, stage in STUDY.artifacts.items()}
    problems, unread = quick_check(stages | {Path(f"{REPORTS}/manifest.json"): "report"})
    for line in dict.fromkeys(line for lines in problems.values() for line in lines):
        logger.warning(line)
    if problems:
        logger.warning(f"{len(problems)} artifacts are not as they should be: what this call asks for is made again")
        workflow.dag.forcefiles.update(map(str, problems))
    workflow.dag.forcefiles.update([*other_configs(), *unfetched_benchmarks()])
    if page_has_holes():
        workflow.dag.forcefiles.add(f"{REPORTS}/manifest.json")
    if unread:
        size = f"{sum(unread) / 1e9:,.1f} GB in {len(unread)} files"
        logger.warning(f"{size}: looked at by size alone; `openspectra repair {NAME}` reads all")


def render_what_is_there() -> None:
    """Make the page without what failed, which it names. The next run that lacks nothing makes it again."""
    if not workflow.scheduler.failed or not any(map(os.path.exists, manifests("pretrain", "release"))):
        return  # stopped by hand, or nothing to show
    logger.info(f"the page of what is there: {REPORTS}/index.html")
    command = ["report", "--study", STUDY_FILE, "--out", REPORTS, "--log", f"{LOGS}/render_what_is_there.log"]
    subprocess.run([sys.executable, "-m", "openspectra.cli", *command], check=False)  # tells its error itself


@cache
def recover() -> list[str]:
    """Do all this, once, while Snakemake puts together its jobs. Return no file: it is called as the input of a rule.

    The rule is `write_config`, on which everything stands; no hook of Snakemake's runs before it decides what to run.
    """
    if workflow.is_main_process:
        workflow.dag_settings.force_incomplete = True  # what a killed job left is made again
    if workflow.is_main_process and workflow.execution_settings:  # none where Snakemake only makes its own report
        workflow.execution_settings.keep_incomplete = True  # an output is whole or absent; of a failed job some are whole
        plan_what_is_damaged()
        if workflow.executor_plugin and not workflow.dryrun:
            try:
                release_locks_of_the_dead()
            except OpenSpectraError as error:
                raise WorkflowError(str(error)) from None
            os.environ.update({WAITS: "1"})
            if on_slurm():
                take_slurm()
            forget_what_is_forced()
            if models := forced("pretrain_model", STUDY.pretrained):
                os.environ.update(OPENSPECTRA_TRAIN_ANEW=" ".join([uuid4().hex, *models]))
    return []
