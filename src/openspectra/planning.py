"""What a study costs before it is computed: time of each job, time of the whole on so many devices, money.

A job's time is its start, its operations over the rate of its devices, and its passes through the layers of a model.
Where nothing was measured, the rates are assumptions (`Speeds`), and the plan says so.
"""

import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openspectra.config import validate
from openspectra.errors import ConfigError
from openspectra.resources import Needs, StudyResources
from openspectra.site import LayoutWish, Site
from openspectra.speeds import Speeds
from openspectra.study import Study
from openspectra.work import Job, jobs_of

CALIBRATION = "calibration.json"
"""Below `results/<study>`: what `openspectra plan --calibrate` measured, on which machine."""


@dataclass(frozen=True)
class Cost:
    """What one job costs."""

    job: Job
    needs: Needs
    seconds: float
    """On the clock."""

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.needs.devices * self.needs.nodes / 3600

    @property
    def core_hours(self) -> float:
        return self.seconds * self.needs.threads * self.needs.nodes / 3600


@dataclass(frozen=True)
class StudyPlan:
    """Every job of a study with its cost, on a site or on this machine."""

    study: Study
    site: Site | None
    resources: StudyResources
    speeds: Speeds
    costs: list[Cost]

    @property
    def on_gpus(self) -> bool:
        return bool(self.site and self.site.gpus)

    def hours(self, costs: Iterable[Cost]) -> float:
        """Return the GPU hours of some jobs, or their core hours where there are no GPUs."""
        return sum(cost.gpu_hours if self.on_gpus else cost.core_hours for cost in costs)

    def wall_seconds(self, devices: int) -> float:
        """Return the time of the whole study on so many GPUs, or cores where there are none: each job as soon as what it
        reads is there and its devices are free, those first that most waits for."""
        return makespan(self.costs, devices, self.on_gpus)


def plan_study(study: Study, site: Site | None, speeds: Speeds, wish: LayoutWish | None = None) -> StudyPlan:
    """Return the plan of a study. Raises `ConfigError` where a job fits into no node of the site."""
    resources = StudyResources(study, site, wish)
    if problems := resources.problems():
        raise ConfigError(problems)
    costs = []
    for job in jobs_of(study):
        needs = resources.needs(job.rule, job.model_id)
        costs.append(Cost(job, needs, resources.seconds(job, speeds)))
    return StudyPlan(study, site, resources, speeds, costs)


def read_speeds(path: Path) -> Speeds | None:
    """Return what was measured here before, if anything was."""
    if not path.is_file():
        return None
    try:
        return validate(Speeds, json.loads(path.read_text(encoding="utf-8")), str(path))
    except ValueError:
        raise ConfigError([f"{path}: not readable; delete it, or measure anew with --calibrate."]) from None


def makespan(costs: list[Cost], devices: int, on_gpus: bool) -> float:
    """Return the seconds from the first start to the last end where `devices` are shared by all jobs."""
    by_name = {cost.job.name: cost for cost in costs}
    waits = {name: {parent for parent in cost.job.after if parent in by_name} for name, cost in by_name.items()}
    children: dict[str, list[str]] = {name: [] for name in by_name}
    for name, parents in waits.items():
        for parent in parents:
            children[parent].append(name)
    ahead: dict[str, float] = {}  # seconds from a job's start to the end of what hangs on it
    for name in reversed(by_name):
        ahead[name] = by_name[name].seconds + max((ahead[child] for child in children[name]), default=0.0)
    ready = sorted((name for name in by_name if not waits[name]), key=ahead.get, reverse=True)
    running: list[tuple[float, str]] = []
    free, now = devices, 0.0
    while ready or running:
        for name in list(ready):
            asked = _devices(by_name[name], devices, on_gpus)
            if asked <= free:
                ready.remove(name)
                free -= asked
                heapq.heappush(running, (now + by_name[name].seconds, name))
        now, done = heapq.heappop(running)
        free += _devices(by_name[done], devices, on_gpus)
        for child in children[done]:
            waits[child].discard(done)
            if not waits[child]:
                ready.append(child)
        ready.sort(key=ahead.get, reverse=True)
    return now


def _devices(cost: Cost, devices: int, on_gpus: bool) -> int:
    """Return how many of the devices a job takes; without GPUs these are cores, to which threads are cut down."""
    asked = cost.needs.devices * cost.needs.nodes if on_gpus else cost.needs.threads
    if on_gpus and asked > devices:
        raise ConfigError([f"--gpus: {cost.job.name} takes {asked} GPUs at once; got {devices}."])
    return min(asked, devices)
