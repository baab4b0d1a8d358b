"""The study, checked before any job is planned, and the helpers that rules share."""

import re
import subprocess
import sys
from pathlib import Path

from openspectra.assumptions import study_files
from openspectra.errors import ConfigError
from openspectra.export.config import FAMILIES
from openspectra.model_ids import ModelId
from openspectra.reporting.plan import plan_of
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.study import load_study, resolved_configs

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
QUANTIZED_FROM = sorted({f"{RESULTS}/{ModelId.parse(model).float_parent}/manifest.json" for model in STUDY.quantized})

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


def with_steps(model_id: str) -> str:
    """Return the pattern of a model and of its checkpoints: `floatlm/99M@1000`, `quantlm/99M@1000-4bit`."""
    model = ModelId.parse(model_id)
    trained = str(ModelId(model.family, model.size, model.variant))
    return rf"{re.escape(trained)}(@\d+)?{re.escape(model_id.removeprefix(trained))}"


PRETRAINED = "|".join(map(re.escape, STUDY.pretrained)) or "none"
QUANTIZED = "|".join(map(with_steps, STUDY.quantized)) or "none"


wildcard_constraints:
    path="|".join([*map(re.escape, CONFIGS), QUANTIZED]),
    source="|".join(STUDY.corpus.sources if STUDY.corpus else ["none"]),
    job=r"\d+",
    part=r"\d+",
    split="|".join(STUDY.splits),
    pretrained=PRETRAINED,
    released="|".join(map(re.escape, STUDY.imported)) or "none",
    step=r"\d+",
    quantized=QUANTIZED,
    model="|".join(map(with_steps, STUDY.models)),
    format="|".join(map(re.escape, FAMILIES)),


def resolved_config(wildcards) -> str:
    """Return the resolved config of an artifact as JSON; it changes exactly when a key that its stage reads does."""
    known = CONFIGS.get(wildcards.path)
    return (known or STUDY.quantize_config(wildcards.path)).model_dump_json(indent=2)


def trained_run(wildcards) -> str:
    """Return the manifest of the run that a checkpoint comes from."""
    steps = STUDY.pretrained[wildcards.pretrained].checkpoint_steps
    if int(wildcards.step) not in steps:
        raise WorkflowError(
            f"{wildcards.pretrained}@{wildcards.step}: no weights are kept at this step; kept: {sorted(steps)}."
        )
    return f"{RESULTS}/{wildcards.pretrained}/manifest.json"


def float_manifest(wildcards) -> str:
    """Return the manifest of the FloatLM, or of its checkpoint, that a QuantLM is made from."""
    return f"{RESULTS}/{ModelId.parse(wildcards.quantized).float_parent}/manifest.json"


def describe_training(wildcards) -> str:
    """Return what a training job will do, in one line, for the log and the dry run."""
    return STUDY.pretrained[wildcards.pretrained].summary


def describe_quantization(wildcards) -> str:
    """Return what a quantization job will do, in one line."""
    run = STUDY.quantize_config(wildcards.quantized)
    group = f"group {run.group_size}" if run.group_size > 0 else "one scale per output"
    return f"GPTQ to {run.bits} bits, {group}, {run.num_calibration_samples} x {run.calibration_sequence_length} tokens"


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
