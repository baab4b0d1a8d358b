"""What a study has to compute: every job with its operations, tokens, bytes and what it waits for.

Counts follow from the study, and ready token files are as large as they are on the disk; where neither says it (how many
items a task of lm-eval has, how much text a folder holds), the assumption stands here. Times are a matter of the machine
and stand in `planning`.
"""

import math
from dataclasses import dataclass, replace

from openspectra.data.config import Source, StdlibSource
from openspectra.data.local_files import data_folder
from openspectra.evaluation.config import (
    GENERATED_TOKENS,
    GENERATION_TASKS,
    PROMPT_CHARACTERS,
    EvaluateConfig,
    TasksConfig,
)
from openspectra.export.config import HELD_OUT_TOKENS
from openspectra.model_ids import QUANTLM, ModelId
from openspectra.study import Study
from openspectra.training.config import FLOPS_PER_PARAMETER, PretrainConfig

RULES = {
    "source": "read_source",
    "sources": "list_sources",
    "part": "build_part",
    "corpus": "build_corpus",
    "tokenizer": "build_tokenizer",
    "token_part": "tokenize_part",
    "tokens": "list_tokens",
    "benchmarks": "fetch_benchmarks",
    "tasks": "build_tasks",
    "contamination": "check_contamination",
    "pretrain": "pretrain_model",
    "checkpoint": "publish_checkpoint",
    "release": "import_release",
    "quantize": "quantize_model",
    "evaluate": "evaluate_model",
    "export": "export_model",
    "report": "render_report",
    "track": "track_artifacts",
}
"""The rule of the workflow that makes the artifacts of a stage."""
FORWARD = 2
"""Operations per parameter and token of a forward pass."""
STDLIB_BYTES = 12e6
"""Text of the Python standard library without its tests."""
STATES, STATE_BYTES = 2, 12
"""Training states kept, and the bytes per parameter of each: weights and AdamW's two moments in float32."""
ITEMS = {
    "arc_easy": (2376, 4),
    "arc_challenge": (1172, 4),
    "hellaswag": (10042, 4),
    "boolq": (3270, 2),
    "piqa": (1838, 2),
    "winogrande": (1267, 2),
    "lambada_openai": (5153, 1),
    "sciq": (1000, 4),
    "triviaqa": (17944, 16),
    "mmlu_continuation": (14042, 4),
    "logiqa": (651, 4),
    "crows_pairs_english": (1677, 2),
    "truthfulqa_mc1": (817, 5),
    "bigbench_bbq_lite_json_multiple_choice": (16076, 3),
    "bbq": (58492, 3),  # of twelve choices ten are short and say the same
    "toxigen": (940, 2),
    "wikitext": (62, 50),
    **dict.fromkeys(("paloma_ptb", "paloma_c4_en", "paloma_dolma-v1_5", "paloma_falcon-refinedweb"), (1000, 15)),
    **dict.fromkeys(("paloma_m2d2_s2orc_unsplit", "paloma_m2d2_wikipedia_unsplit", "cosmopedia"), (1000, 15)),
    "slimpajama_validation": (1000, 15),
}
"""ASSUME: items of lm-eval's tasks and passes through the model for each: its choices, the tokens of an answer, or parts of a
document."""
OTHER_ITEMS = (1000, 4)
REQUEST_TOKENS = 100
"""ASSUME: tokens of one pass of lm-eval's own tasks."""
CHOICES = {"cloze": 1, "continuation": 4, "minimal_pairs": 2}


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    name: str
    """The place of its artifact, or of its artifacts, below `results/<study>`."""
    rule: str
    after: tuple[str, ...]
    """Names of the jobs whose artifacts it reads."""
    model_id: str | None = None
    flop: float = 0.0
    """Floating-point operations of the products with weights."""
    tokens: float = 0.0
    """Tokens that pass through a model, or that are read and written by a data job."""
    passes: float = 0.0
    """Batches that pass through a model."""
    text_bytes: float = 0.0
    """Text that is read."""
    passed_bytes: float = 0.0
    """Text of other sources in the same files, which is parsed and passed over."""
    token_bytes: float = 0.0
    """Ready tokens that are read."""
    disk_bytes: float = 0.0


def jobs_of(study: Study) -> list[Job]:
    """Return every job of a study but the writing of configs, causes before effects."""
    places = study.artifacts
    of_stage = {stage: tuple(place for place, kind in places.items() if kind == stage) for stage in RULES}
    jobs = [
        _job(study, place, stage, of_stage) for place, stage in places.items() if stage not in ("evaluate", "export")
    ]
    if study.evaluation:
        jobs += [_evaluation(study, model, (*of_stage["tasks"], *of_stage["benchmarks"])) for model in study.evaluated]
    jobs += [_export(study, place) for place in study.exported]
    if study.shares_processes:
        jobs = _sharing_processes(jobs, {*study.models, *study.trajectory})
    jobs.append(Job("report", RULES["report"], tuple(job.name for job in jobs)))
    return [*jobs, Job("tracking", RULES["track"], ("report",))]


def text_of(study: Study) -> tuple[float, float]:
    """Return the bytes and tokens of a study's text, as sampled.

    ASSUME: a source other than the standard library holds the tokens of one run; a token is 4 bytes of text, or 2.5
    where the vocabulary has less than 5,000 entries (LOG.md: 4.12 with the paper's, on the ladder's text).
    """
    per_token = bytes_per_token(study)
    if study.corpus and all(isinstance(source, StdlibSource) for source in study.corpus.sources.values()):
        size = STDLIB_BYTES * study.corpus.sample_fraction
        return size, size / per_token
    return study.training.total_tokens * per_token, float(study.training.total_tokens)


def bytes_per_token(study: Study) -> float:
    return 2.5 if study.tokenizer.vocab_size < 5000 else 4.0


def training_flop(run: PretrainConfig) -> float:
    """Return 6 N D: operations of a training, six per parameter and token; attention's products are not counted.

    A teacher's forward pass, of as many parameters, is two more.
    """
    each = FLOPS_PER_PARAMETER + FORWARD * bool(run.distillation)
    return float(each * run.shape.num_parameters) * training_tokens(run)


def training_tokens(run: PretrainConfig) -> float:
    return float(run.max_steps) * run.tokens_per_step


def validation_tokens(run: PretrainConfig) -> float:
    """Return the tokens of all validations of a run."""
    return float(math.ceil(run.max_steps / run.valid_every_steps) * run.valid_sequences * run.sequence_length)


def run_folder_bytes(run: PretrainConfig) -> float:
    """Return what a training leaves on the disk: the weights kept, the model itself, and its last states."""
    weight = 4 if run.export_dtype == "float32" else 2
    kept = (len(run.checkpoint_steps) + 1) * weight * run.shape.num_parameters
    return kept + STATES * STATE_BYTES * run.shape.num_parameters


def _job(study: Study, place: str, stage: str, of_stage: dict[str, tuple[str, ...]]) -> Job:
    size, tokens = text_of(study)
    read = size / study.corpus.sample_fraction if study.corpus else 0.0  # a sample is drawn of what was read
    data, parts = ("tokenizer", *of_stage["tokens"]), max(1, study.num_parts)
    after = {
        "sources": of_stage["source"],
        "part": of_stage["sources"],
        "corpus": of_stage["part"],
        "tokenizer": of_stage["corpus"],
        "token_part": ("tokenizer", *of_stage["corpus"]),
        "tokens": of_stage["token_part"],
        "tasks": of_stage["corpus"] or data,
        "contamination": (*of_stage["corpus"], *of_stage["tasks"], *of_stage["benchmarks"]),
        "pretrain": data,
    }.get(stage, ())
    rule = RULES[stage]
    if stage == "pretrain":
        run = study.pretrained[place]
        after = (*after, run.distillation.teacher) if run.distillation else after
        flop = training_flop(run) + FORWARD * run.shape.num_parameters * validation_tokens(run)
        batches = math.ceil(run.max_steps * run.global_batch_size / 8)
        return Job(place, rule, after, place, flop, training_tokens(run), batches, disk_bytes=run_folder_bytes(run))
    if stage == "release":
        return Job(place, rule, after, place, disk_bytes=2 * study.recipes[place].shape.num_parameters)
    if stage == "checkpoint":
        run = _run_behind(study, place)
        return Job(place, rule, (run.model_id,), place, disk_bytes=4 * run.shape.num_parameters)
    if stage == "quantize":
        return _quantization(study, place, data)
    if stage == "source":
        return Job(place, rule, after, **_reading(study, place, read))
    if stage == "token_part" and not study.corpus:
        return Job(place, rule, after, token_bytes=_token_file_bytes(study)[int(place.rpartition("/")[2])])
    work = {
        "part": {"text_bytes": read / parts, "disk_bytes": size / 3 / parts},
        "tokenizer": {"text_bytes": 0 if study.tokenizer.file else min(size, 300e6)},
        "token_part": {"tokens": tokens / parts, "disk_bytes": 2 * tokens / parts},
        "contamination": {"text_bytes": size},
    }.get(stage, {})
    return Job(place, rule, after, **work)


def _reading(study: Study, place: str, read: float) -> dict[str, float]:
    """Return what one job of a source reads of it, passes over of others, and writes; `read` bytes are those of all sources.

    ASSUME: sources have the sizes that their weights ask for, or all the same, and files that several name hold those
    and nothing else. What is written is packed to a third.
    """
    sources, name = study.corpus.sources, place.split("/")[2]
    shares = {each: source.weight or 1 for each, source in sources.items()}
    source, whole = sources[name], sum(shares.values())
    beside = sum(shares[each] for each in sources if each != name and _text_place(sources[each]) == _text_place(source))
    own = read * shares[name] / whole / source.num_jobs
    return {
        "text_bytes": own,
        "passed_bytes": read * beside / whole / source.num_jobs if getattr(source, "where", None) else 0.0,
        "disk_bytes": own / 3,
    }


def _text_place(source: Source) -> dict:
    """Return what says where a source's text lies: equal for sources that take their rows of the same files."""
    return source.model_dump(include={"adapter", "files", "path", "name", "revision", "split"})


def _token_file_bytes(study: Study) -> list[float]:
    """Return the size of each ready token file: of one that is not on the disk yet, its share of what the others lack."""
    section = study.token_files
    found = [
        path.stat().st_size if path.is_file() else None for path in (data_folder() / name for _, name in section.parts)
    ]
    whole = {"uint16": 2, "uint32": 4}[section.dtype] * study.training.total_tokens
    lacking = max(0.0, whole - sum(size or 0 for size in found))
    return [lacking / found.count(None) if size is None else float(size) for size in found]


def _sharing_processes(jobs: list[Job], models: set[str]) -> list[Job]:
    """Return the jobs, where the quantizations of all `models` of a size are one, and their evaluations another."""
    members: dict[str, list[Job]] = {}
    for job in jobs:
        kind = {RULES["quantize"]: QUANTLM, RULES["evaluate"]: "evaluation"}.get(job.rule)
        kind = kind if job.model_id in models else None
        members.setdefault(f"{kind}/{ModelId.parse(job.model_id).size}" if kind else job.name, []).append(job)
    name_of = {job.name: name for name, several in members.items() for job in several}
    work = ("flop", "tokens", "passes", "disk_bytes")
    return [
        replace(
            several[0],
            name=name,
            after=tuple(dict.fromkeys(name_of[cause] for job in several for cause in job.after)),
            model_id=several[0].model_id if name in name_of else f"floatlm/{name.partition('/')[2]}",
            **{key: sum(getattr(job, key) for job in several) for key in work},
        )
        for name, several in members.items()
    ]


def _run_behind(study: Study, model_id: str) -> PretrainConfig:
    """Return the training run that a model, a checkpoint of it or a QuantLM comes from."""
    model = ModelId.parse(model_id)
    return study.recipes[str(replace(model.float_parent if model.family == QUANTLM else model, step=None))]


def _quantization(study: Study, place: str, data: tuple[str, ...]) -> Job:
    """GPTQ: two forward passes of the calibration set, a Hessian per matrix, and its inverse (in x in per matrix)."""
    config, parent = study.quantize_config(place), str(ModelId.parse(place).float_parent)
    shape = _run_behind(study, place).shape
    tokens = float(config.num_calibration_samples * config.calibration_sequence_length)
    inputs = [shape.hidden_size] * 6 + [shape.intermediate_size]  # q, k, v, o, gate, up; down
    hessians = shape.num_hidden_layers * sum(2 * tokens * width**2 + width**3 for width in inputs)
    flop = 2 * FORWARD * shape.num_parameters * tokens + hessians
    passes = 2 * shape.num_hidden_layers * math.ceil(config.num_calibration_samples / 8)
    weight = 4 * shape.num_parameters + config.bits / 8 * shape.num_linear_parameters
    return Job(place, RULES["quantize"], (parent, *data), place, flop, tokens, passes, disk_bytes=weight)


def _export(study: Study, place: str) -> Job:
    """Two forward passes of the held-out text: of the model, and of what was read back."""
    model_id = study.exported[place].model
    model = ModelId.parse(model_id)
    run = study.recipes[str(model.float_parent if model.bits else model)]
    after = (model_id, *([f"evaluation/{model_id}"] if study.evaluation else []), "tokens/valid")
    flop, parameters = 2 * FORWARD * run.shape.num_parameters * HELD_OUT_TOKENS, run.shape.num_parameters
    return Job(place, RULES["export"], after, model_id, flop, HELD_OUT_TOKENS, disk_bytes=2 * parameters)


def _evaluation(study: Study, model_id: str, needed: tuple[str, ...]) -> Job:
    """All suites of a model, in one process."""
    run = _run_behind(study, model_id)
    tokens = requests = passes = 0.0
    for suite in study.evaluation.suites.values():
        read, asked = evaluated(suite, study.evaluation.built_tasks, bytes_per_token(study))
        tokens, requests, passes = tokens + read, requests + asked, passes + asked / suite.batch_size
    flop = FORWARD * run.shape.num_parameters * tokens
    name = f"evaluation/{model_id}"
    return Job(name, RULES["evaluate"], (model_id, *needed), model_id, flop, tokens, passes, disk_bytes=150 * requests)


def evaluated(suite: EvaluateConfig, built: TasksConfig | None, bytes_per_token: float) -> tuple[float, float]:
    """Return the tokens and the requests of one model's evaluation on a suite."""
    tokens = requests = 0.0
    for task in suite.tasks:
        if task == "held_out_text" and built:
            count = min(built.num_documents, suite.limit or built.num_documents)
            length = built.document_characters / bytes_per_token
        elif task in CHOICES and built:
            count = min(built.num_items, suite.limit or built.num_items) * CHOICES[task]
            length = REQUEST_TOKENS / 2
        elif task in GENERATION_TASKS and built:  # each token that is written is a pass
            count = min(built.num_items, suite.limit or built.num_items) * GENERATED_TOKENS
            length = 1 + PROMPT_CHARACTERS / bytes_per_token / GENERATED_TOKENS
        else:
            items, each = ITEMS.get(task, OTHER_ITEMS)
            count, length = min(items, suite.limit or items) * each, REQUEST_TOKENS
        tokens, requests = tokens + count * length, requests + count
    return tokens, requests
