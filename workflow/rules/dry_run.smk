"""What a dry run shows: what will be computed and with which resources, a page rather than a line or more of each job."""

import logging
from collections.abc import Iterable

from openspectra.work import RULES
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

MOST_LISTED = 40
"""Jobs up to which Snakemake lists each with its reason; of more it is asked with `-p`."""


class WithResources(logging.Filter):
    """Adds the resources to Snakemake's table of jobs, and ends a dry run there where it would list too many."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "event", None) != LogEvent.RUN_INFO or not (workflow.dryrun or SITE):
            return True
        logger.removeFilter(self)  # Snakemake shows its table twice
        jobs = [job for job in workflow.dag.needrun_jobs() if job.rule.name in RULES.values()]
        record.msg = "\n".join([str(record.msg).rstrip(), "", *resource_lines(jobs)])
        settings = workflow.output_settings
        if workflow.dryrun and len(jobs) > MOST_LISTED and not (settings.printshellcmds or settings.verbose):
            record.msg += "\n\nThis was a dry run. Every job with its command and its reason: the same with -p."
            settings.quiet = {Quietness.RULES, Quietness.PROGRESS}  # with these it is over
        return True


def resource_lines(jobs: list) -> list[str]:
    """Return a line for each kind of job, and one for each training."""
    by_kind = {name: found for name in RULES.values() if (found := [job for job in jobs if job.rule.name == name])}
    site = f"{config['site']}: {SITE.summary}" if SITE else "this machine (estimates: nothing is reserved)"
    rows = [("job", "count", "GPUs", "cores", "GB a node", "hours")]
    for name, found in by_kind.items():
        different = found if name in workflow.resource_settings.overwrite_resources else one_of_each(found)
        asked = [job.resources for job in different]
        nodes = [each.get("nodes", 1) for each in asked]
        cores = [threads_asked(job) * count for job, count in zip(different, nodes)]
        memory, hours = [each.mem_mb / 1000 for each in asked], [each.runtime / 60 for each in asked]
        rows.append((name, str(len(found)), *map(span, (map(gpus_of, asked), cores, memory, hours))))
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    trainings = [f"{job.message}; {layout_of_job(job)}" for job in by_kind.get("pretrain_model", [])]
    return [f"Resources of a job, on {site}", "", *table, *([""] if trainings else []), *trainings]


def one_of_each(jobs: list) -> Iterable:
    """Return jobs of one kind that differ in what they ask for, which Snakemake takes a millisecond a job to put together."""
    return {needs(job.rule.name, job.wildcards): job for job in jobs}.values()


def gpus_of(resources) -> int:
    gres = str(resources.get("gres", ""))
    return int(gres.rpartition(":")[2]) * resources.get("nodes", 1) if gres.startswith("gpu:") else 0


def threads_asked(job) -> int:
    """Return the threads of a job per node, which a dry run cuts down to one."""
    name = job.rule.name
    return job.threads if name in workflow.resource_settings.overwrite_threads else needs(name, job.wildcards).threads


def span(numbers) -> str:
    """Return the smallest and the largest of some numbers, or the one that all are."""
    numbers = list(numbers)
    low, high = f"{min(numbers):,.3g}", f"{max(numbers):,.3g}"
    return low if low == high else f"{low} to {high}"


def layout_of_job(job) -> str:
    layout = RESOURCES.layout(job.wildcards.pretrained)
    return f"{layout}, {span([job.resources.mem_mb / 1000])} GB a node"


logger.addFilter(WithResources())
