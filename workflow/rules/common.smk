"""The study, checked before any job is planned, and the helpers that rules share."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from openspectra.errors import ConfigError
from openspectra.export.config import FAMILIES
from openspectra.model_ids import ModelId
from openspectra.reporting.plan import plan_of
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.study import load_study, resolved_configs
from openspectra.work import training_flop

NAME = str(config.get("study"))
if not {"study"} <= set(config) <= {"study", "site"} or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", NAME):
    raise WorkflowError(
        "config.yaml: keys are `study`, the name of a file in studies/, and `site`, the file of a cluster's nodes; "
        f"got {dict(config)}."
    )
STUDY_FILE = f"studies/{NAME}.yaml"
try:
    STUDY = load_study(Path(STUDY_FILE))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

ENVIRONMENT = "../../envs/environment.yaml"
RESULTS = f"results/{NAME}"
REPORTS = f"reports/{NAME}"
LOGS = f"logs/{NAME}"
CONFIGS = resolved_configs(STUDY, NAME)


def manifests(*stages: str) -> list[str]:
    """Return the manifests of all artifacts of the study that these stages make."""
    return [f"{RESULTS}/{place}/manifest.json" for place, stage in STUDY.artifacts.items() if stage in stages]


SOURCE_JOBS = manifests("source")
CORPUS_PARTS = manifests("part")
CORPUS = manifests("corpus")  # none where the text is tokens already
TOKEN_PARTS = manifests("token_part")
TOKENS = manifests("tokens")
CONTAMINATION = manifests("contamination")
SUITES = STUDY.evaluation.suites if STUDY.evaluation else {}
BENCHMARKS = manifests("benchmarks")
# those that the text is searched for are fetched where the study does not give them all as files
SEARCHED = BENCHMARKS if STUDY.corpus and not set(STUDY.lm_eval_tasks) <= set(STUDY.corpus.benchmarks) else []
BUILT_TASKS = manifests("tasks")
ALL_QUANTIZED = [*STUDY.quantized, *STUDY.trajectory]
QUANTIZED_FROM = sorted({f"{RESULTS}/{ModelId.parse(model).float_parent}/manifest.json" for model in ALL_QUANTIZED})

# Every artifact is a target, by itself: of a missing one whose consumers exist, Snakemake would plan nothing.
UP_TO = {
    "corpus": manifests("source", "sources", "part", "corpus", "contamination") + (BUILT_TASKS if CORPUS else []),
    "tokens": manifests("source", "sources", "part", "corpus", "tokenizer", "token_part", "tokens"),
}
RELEASED = manifests("release")
UP_TO["pretrain"] = UP_TO["tokens"] + manifests("pretrain", "release")
UP_TO["quantize"] = UP_TO["tokens"] + QUANTIZED_FROM + manifests("quantize")
UP_TO["evaluate"] = UP_TO["pretrain"] + manifests("quantize", "tasks", "benchmarks", "evaluate")
UP_TO["export"] = UP_TO["tokens"] + [f"{RESULTS}/{each.model}/manifest.json" for each in STUDY.exported.values()]
UP_TO["export"] += manifests("export")
UP_TO["report"] = [*manifests(*STAGE_VERSIONS), f"{REPORTS}/manifest.json"]
UP_TO["all"] = [*UP_TO["report"], f"{RESULTS}/tracking.json"]


def one_of(names) -> str:
    """Return a pattern of some places, short by their common folders: `floatlm/(?:99M|190M)|trilm/(?:99M|190M)`."""
    return any_of(map(re.escape, names))


def checkpoints_of(models) -> str:
    """Return the pattern of the checkpoints of some models: `floatlm/99M@1000`, `quantlm/99M@1000-4bit`."""
    trained = {model: str(replace(ModelId.parse(model), bits=None, calibration=None)) for model in models}
    return any_of(rf"{re.escape(name)}@\d+{re.escape(model.removeprefix(name))}" for model, name in trained.items())


def any_of(patterns) -> str:
    folders: dict[str, list[str]] = {}
    for pattern in patterns:
        folder, slash, last = pattern.rpartition("/")
        folders.setdefault(folder + slash, []).append(last)
    return "|".join(f"{folder}(?:{'|'.join(found)})" for folder, found in folders.items()) or "none"


def of_one_job(models, wildcard: str) -> list[str]:
    """Return what one job makes, as patterns: all models of a size where these share processes, else one model."""
    if not STUDY.shares_processes:
        return [f"{{{wildcard}}}"]
    first = next(iter(STUDY.jobs_of(models).values()), [])
    return [str(replace(ModelId.parse(model), size="{size}")) for model in first] or ["none/{size}"]


def in_one_process(commands: list[str]) -> str:
    """Return the command that runs several stage commands in one process; `--threads` is to follow."""
    return f"openspectra {commands[0]}" if len(commands) == 1 else shlex.join(["openspectra", "batch", *commands])


QUANTIZED = of_one_job(ALL_QUANTIZED, "quantized")
EVALUATED = of_one_job(STUDY.models, "model")


wildcard_constraints:
    path="|".join([one_of(CONFIGS), checkpoints_of(STUDY.quantized)]),
    source=one_of(STUDY.corpus.sources if STUDY.corpus else []),
    job=r"\d+",
    part=r"\d+",
    split="|".join(STUDY.splits),
    pretrained=one_of(STUDY.pretrained),
    released=one_of(STUDY.imported),
    step=r"\d+",
    size=one_of(STUDY.sizes),
    quantized=one_of(ALL_QUANTIZED),
    model=one_of(STUDY.models),
    format=one_of(FAMILIES),


def resolved_config(wildcards) -> str:
    """Return the resolved config of an artifact as JSON; it changes exactly when a key that its stage reads does."""
    known = CONFIGS.get(wildcards.path)
    return (known or STUDY.quantize_config(wildcards.path)).model_dump_json(indent=2)


def training_work(model: str) -> tuple[float, bool]:
    """Return how much a training computes, and whether QuantLMs wait for it."""
    return training_flop(STUDY.pretrained[model]), f"{RESULTS}/{model}/manifest.json" in QUANTIZED_FROM


# A long training that starts last would leave all other cores without work at the end.
LONGEST_LAST = sorted(STUDY.pretrained, key=training_work)


def teacher_of(wildcards) -> list[str]:
    """Return the manifest of the model that a distilled training learns from; none of any other training."""
    section = STUDY.pretrained[wildcards.pretrained].distillation
    return [f"{RESULTS}/{section.teacher}/manifest.json"] if section else []


def trained_run(wildcards) -> str:
    """Return the manifest of the run that a checkpoint comes from."""
    steps = STUDY.pretrained[wildcards.pretrained].checkpoint_steps
    if int(wildcards.step) not in steps:
        raise WorkflowError(
            f"{wildcards.pretrained}@{wildcards.step}: no weights are kept at this step; kept: {sorted(steps)}."
        )
    return f"{RESULTS}/{wildcards.pretrained}/manifest.json"


def quantized_by(wildcards) -> list[str]:
    """Return the ids of the QuantLMs that a job makes."""
    patterns = ["{checkpoint}"] if "checkpoint" in wildcards.keys() else QUANTIZED
    return [pattern.format(**wildcards) for pattern in patterns]


def float_manifests(wildcards) -> list[str]:
    """Return the manifests of the FloatLMs, or of their checkpoints, that a job's QuantLMs are made from."""
    parents = [ModelId.parse(model).float_parent for model in quantized_by(wildcards)]
    return [f"{RESULTS}/{parent}/manifest.json" for parent in dict.fromkeys(parents)]


def quantize_command(wildcards) -> str:
    return in_one_process(
        [
            f"quantize --config {RESULTS}/configs/{model}.json --model {RESULTS}/{ModelId.parse(model).float_parent}"
            f" --train {RESULTS}/tokens/train --valid {RESULTS}/tokens/valid --out {RESULTS}/{model}"
            f" --log {LOGS}/quantize_model/{model}.log"
            for model in quantized_by(wildcards)
        ]
    )


def evaluated_by(wildcards) -> list[str]:
    """Return the ids of the models that a job evaluates."""
    patterns = ["{checkpoint}"] if "checkpoint" in wildcards.keys() else EVALUATED
    return [pattern.format(**wildcards) for pattern in patterns]


def evaluate_command(wildcards) -> str:
    """Return the command that evaluates the models of a job, each on all suites."""
    tasks = f" --tasks {RESULTS}/tasks" if BUILT_TASKS else ""
    commands = []
    for model in evaluated_by(wildcards):
        suites = [
            f" --config {RESULTS}/configs/evaluation/{suite}.json --out {RESULTS}/evaluation/{model}/{suite}"
            for suite in SUITES
        ]
        log = f"{LOGS}/evaluate_model/{model}.log"
        commands.append(f"evaluate{''.join(suites)} --model {RESULTS}/{model}{tasks} --log {log}")
    return in_one_process(commands)


def describe_training(wildcards) -> str:
    """Return what a training job will do, in one line, for the log and the dry run."""
    return STUDY.pretrained[wildcards.pretrained].summary


def describe_quantization(wildcards) -> str:
    """Return what a quantization job will do, in one line."""
    models = quantized_by(wildcards)
    runs = [STUDY.quantize_config(model) for model in models]
    widths = ", ".join(str(bits) for bits in dict.fromkeys(run.bits for run in runs))
    first = runs[0]
    group = f"group {first.group_size}" if first.group_size > 0 else "one scale per output"
    how = f"to {widths} bits" + (f", {group}" if len(runs) == 1 else f": {len(runs)} QuantLMs in one process")
    tokens = f"{first.num_calibration_samples} x {first.calibration_sequence_length} tokens"
    return f"{ModelId.parse(models[0]).float_parent if len(models) > 1 else models[0]}: GPTQ {how}, {tokens}"


def describe_evaluation(wildcards) -> str:
    models = evaluated_by(wildcards)
    return f"evaluation of {models[0] if len(models) == 1 else f'the {len(models)} models of size {wildcards.size}'}"


def track_live() -> None:
    """Start what shows trainings in MLflow while they go on, if any is planned. It ends with this process, and waits for no job.

    It reads the files that trainings write: no job knows of it or waits for it.
    """
    global TRACKER  # its stdin closes when this process ends, however it does
    if any(job.rule.name == "pretrain_model" for job in workflow.dag.needrun_jobs()):
        # of the Python that runs this: with environments per rule no other need have the library
        command = [sys.executable, "-m", "openspectra.cli", "track", "live", NAME, "--log", f"{LOGS}/track_live.log"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        TRACKER = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **silent)
