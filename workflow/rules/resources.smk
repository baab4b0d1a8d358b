"""What each job asks for. The numbers follow from the size of its work and the site's nodes (`openspectra.resources`);
here stands only how Snakemake and its Slurm executor are told. A single resource is changed with --set-resources."""

from collections.abc import Callable

from openspectra.config import validate
from openspectra.resources import Needs, StudyResources
from openspectra.site import LayoutWish, load_site

LAYOUT_KEYS = tuple(LayoutWish.model_fields)


def wished_layout() -> LayoutWish:
    """Return the layout that --set-resources gives all trainings, as numbers and words: memory and time follow from it."""
    asked = workflow.resource_settings.overwrite_resources.get("pretrain_model", {})
    given = {key: getattr(asked[key], "raw", asked[key]) for key in LAYOUT_KEYS if key in asked}
    return validate(LayoutWish, given, "--set-resources pretrain_model")


try:
    SITE = load_site(Path(str(config["site"]))) if config.get("site") else None
    RESOURCES = StudyResources(STUDY, SITE, wished_layout())
    if problems := RESOURCES.problems():
        raise ConfigError([f"{config.get('site') or STUDY_FILE}: {problem}" for problem in problems])
except ConfigError as error:
    raise WorkflowError(str(error)) from None


def needs(kind: str, wildcards) -> Needs:
    """Return what a job asks for; its model, where it has one, is told by its wildcards."""
    names = ("pretrained", "released", "quantized", "model", "checkpoint")
    model = next((wildcards[name] for name in names if name in wildcards.keys()), None)
    return RESOURCES.needs(kind, f"floatlm/{wildcards.size}" if "size" in wildcards.keys() else model)


def threads_of(kind: str) -> Callable:
    return lambda wildcards: needs(kind, wildcards).threads


def resources_of(kind: str) -> dict[str, Callable]:
    """Return the resources of a rule: memory and time, and what its layout and GPUs mean to Slurm.

    A job that failed is given more memory, as far as a node has it.
    """

    def memory(wildcards, attempt):
        asked = needs(kind, wildcards).mem_mb
        return min(asked * attempt, max(asked, int(SITE.memory_gb * 1000))) if SITE else asked * attempt

    resources = {"mem_mb": memory, "runtime": lambda wildcards: needs(kind, wildcards).minutes}
    if kind == "pretrain_model":
        return resources | training_resources()
    if SITE and SITE.gpus and kind in ("quantize_model", "evaluate_model"):
        resources["gres"] = lambda wildcards: f"gpu:{needs(kind, wildcards).devices}"
    return resources


def training_resources() -> dict[str, Callable | int | str]:
    """Return a training's layout, how the machine computes a run, never what; and how Slurm's executor is told.

    The key `mpi` leaves it to the command to start its ranks with srun; of `tasks` and `tasks_per_node` exactly one is
    given where there are several ranks; 0 and "" are not passed on.
    """

    def of(value: Callable) -> Callable:
        return lambda wildcards: value(RESOURCES.layout(wildcards.pretrained))

    layout = {key: of(lambda layout, key=key: getattr(layout, key)) for key in LAYOUT_KEYS}
    return layout | {
        "mpi": of(lambda layout: "srun" if layout.ranks > 1 else ""),
        "tasks": of(lambda layout: layout.nodes if layout.devices == 1 < layout.nodes else 0),
        "tasks_per_node": of(lambda layout: layout.devices if layout.devices > 1 else 0),
        "tasks_per_gpu": 0,
        "cpus_per_task": lambda wildcards, threads: max(1, threads // RESOURCES.layout(wildcards.pretrained).devices),
        "gres": of(lambda layout: f"gpu:{layout.devices}" if SITE and SITE.gpus else ""),
        # the log grows over restarts; training is told 5 minutes before its time limit, to save its state
        "slurm_extra": "--open-mode=append --signal=USR1@300",
    }
