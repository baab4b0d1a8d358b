"""What each job needs of a machine, from the size of its work and a site's nodes: layout, memory, time, threads.

Pure functions. Bytes are 1e9 to a GB, times are in seconds, parameters N are all of a model's, embeddings included.
Without a site, on one machine, a training has one device and one thread, and nothing is asked for: `LOCAL`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from openspectra.data.config import CorpusConfig
from openspectra.errors import ConfigError
from openspectra.evaluation.config import EvaluateConfig
from openspectra.model_ids import QUANTLM, ModelId
from openspectra.site import LayoutWish, Recompute, Site, Strategy
from openspectra.speeds import Speeds, assumed_speeds, job_seconds
from openspectra.study import Study
from openspectra.training.config import PretrainConfig
from openspectra.work import Job, jobs_of, training_flop

GB = 1e9
USABLE = 0.90
"""ASSUME: share of a GPU's memory that a training may plan with; the rest is the allocator's, the driver's and NCCL's."""
LARGEST_MICRO_BATCH = 8
PROCESS_GB = 4.0
"""ASSUME: host memory of a process with torch, CUDA and Lightning loaded, beside what grows with the model."""
DATA_GB_PER_THREAD = 1.0
"""docs/data.md: no data stage needs 1 GB, whatever the size of the corpus; with threads, each may hold as much."""
USUAL_DOCUMENT_BYTES = CorpusConfig.model_fields["max_document_bytes"].default
"""Documents up to this size are within `DATA_GB_PER_THREAD`, and within the 2 GB beside it where they come whole."""
LONG_DOCUMENT_BYTES = 20
"""Memory per byte of a longer document, whose text, columns and file the stages hold side by side (docs/data.md)."""
WHOLE_TEXT_BYTES = 250
"""Memory of a tokenizer per byte of a text that it cannot be given in pieces (docs/data.md)."""
MOST_DATA_THREADS = 16
"""Of tokenizing and of the search for benchmark items, whose bytes do not depend on it."""
REPORT_GB = 16.0
"""ASSUME: a page of some hundred models, with the losses of every test document."""
COPY_BYTES = {
    "quantize_model": 16,
    "evaluate_model": 8,
    "publish_checkpoint": 8,
    "import_release": 8,
    "export_model": 16,
}
"""Bytes per parameter of a model's copies in host memory: in float32, as read, as worked on, as written."""
MARGIN_MINUTES = 30
"""ASSUME: what a job's limit adds to twice its time: loading, saving, waiting for files on a shared disk."""
LEAST_HOURS = {"read_source": 12}
"""ASSUME: a network may be far slower than the processor that reads from it. All other jobs: 1 hour."""
TOKEN_FILE_HOURS = 12
"""ASSUME: so may a disk that many jobs share, from which a ready token file is read. Until the files lie there, nothing says how
the text is divided between them, and one may hold most of it: all 600 GB of the paper's in one file end within 12 hours
where 14 MB come a second. Too short a limit would never end, as a job that was cut off begins its file anew."""
GPTQ_BATCH = 8
"""Sequences of a forward pass of GPTQ."""


@dataclass(frozen=True)
class Layout:
    """How a training is spread over machines. It changes a result by rounding only; bits are equal within one."""

    nodes: int = 1
    devices: int = 1
    """Ranks on each node."""
    strategy: Strategy = "ddp"
    micro_batch: int = 0
    recompute: Recompute = "none"

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    def __str__(self) -> str:
        parts = [f"{self.nodes} x {self.devices}", self.strategy] if self.ranks > 1 else ["1 x 1"]
        parts += [f"micro batch {self.micro_batch}"] if self.micro_batch else []
        return ", ".join(parts + ["blocks recomputed"] * (self.recompute == "blocks"))


LOCAL = Layout()


@dataclass(frozen=True)
class Needs:
    """What a job asks of a machine."""

    threads: int
    mem_mb: int
    """Host memory per node, in MB."""
    minutes: int
    """Time limit. A training that needs longer goes on in the next job; whatever else must end within it."""
    devices: int = 0
    """GPUs per node."""
    nodes: int = 1
    gpu_mb: int = 0
    """Memory of its GPU, in MB, of what is no training: trainings choose their layout by it (`layout_of`)."""


# --- what a training computes and holds -------------------------------------------------------------------------------


def gpu_bytes(run: PretrainConfig, ranks: int, strategy: Strategy, micro_batch: int, recompute: Recompute) -> float:
    """Return the memory of one GPU that a training needs, in bytes (an estimate; measured on no GPU yet).

    Weights, gradients and AdamW's two moments are float32, 16 bytes per parameter; under mixed precision the weights
    are held in half precision beside it, 2 bytes, from the forward to the end of the backward pass. FSDP2 divides the 16
    by the ranks, and has whole the weights and gradients (8 bytes) of one block and of embedding and head. A block keeps
    for the backward pass 34 bytes per token and unit of width in half precision (Korthikanti et al. 2022, attention's
    square left out: it is fused), twice that in float32; recomputed, it keeps its input, and one block at a time is
    whole. Head and loss go in chunks of 512 tokens. A teacher is whole on each GPU, in the precision of products, and has
    logits too; where hidden states are compared, its streams and the differences in float32 are kept, 6 bytes per
    token, unit of width and block.

    With a loss scaler the update is not fused: it holds the square roots of the second moments, 4 bytes per parameter
    that a rank has, when all that the passes kept is gone. The larger of the two counts.
    """
    shape, is_half = run.shape, run.precision != "32-true"
    shards = ranks if strategy == "fsdp2" else 1
    embeddings = 2 * shape.vocab_size * shape.hidden_size
    block = shape.num_linear_parameters / shape.num_hidden_layers
    states = 16 / shards * shape.num_parameters
    gathered = 2 * is_half * shape.num_parameters + 8 * (block + embeddings) * (shards > 1)
    width = (1 if is_half else 2) * micro_batch * run.sequence_length * shape.hidden_size
    activations = 34 * width * shape.num_hidden_layers
    if recompute == "blocks":
        activations = 2 * width * shape.num_hidden_layers + 34 * width
    logits = 3 * 4 * 512 * shape.vocab_size
    if run.distillation:
        states += (2 if is_half else 4) * shape.num_parameters
        logits += 2 * 4 * 512 * shape.vocab_size
        activations += 6 * width * shape.num_hidden_layers * run.distillation.hidden_states
    update = 4 / shards * shape.num_parameters * run.uses_loss_scaling
    return states + max(gathered + activations + logits, update)


def quantize_gpu_bytes(run: PretrainConfig, samples: int, length: int) -> float:
    """Return the memory of the GPU that makes a QuantLM of a model, in bytes (an estimate; measured on no GPU yet).

    GPTQ has one block there in float32, its inputs and outputs for all samples, the Hessian of its widest matrix
    with its factors, and a forward pass of `GPTQ_BATCH` sequences: 8 x 4 bytes per token and unit of the widest layer.
    After it the QuantLM, or rounding, is compared with the FloatLM: two models in float32, the logits of one sequence of
    both, and their distributions in float64, 512 positions at a time. The larger of the two counts.
    """
    shape = run.shape
    block = shape.num_linear_parameters / shape.num_hidden_layers
    gptq = 4 * block + 2 * 4 * samples * length * shape.hidden_size + 4 * 4 * shape.intermediate_size**2
    gptq += 8 * 4 * GPTQ_BATCH * length * shape.intermediate_size
    compared = 2 * 4 * (shape.num_parameters + length * shape.vocab_size) + 5 * 8 * 512 * shape.vocab_size
    return max(gptq, compared)


def evaluate_gpu_bytes(run: PretrainConfig, suites: Iterable[EvaluateConfig]) -> float:
    """Return the memory of the GPU that scores a model, in bytes (an estimate; measured on no GPU yet).

    The weights in the precision of a suite; of a batch keys and values of all layers, as for answers in words, and a
    block's 34 bytes per token and unit of width in half precision; and 2^24 logits, three times in float32.
    """
    shape, largest = run.shape, 0.0
    for suite in suites:
        kept = suite.batch_size * run.sequence_length * shape.hidden_size * (2 * shape.num_hidden_layers + 17)
        largest = max(largest, (4 if suite.dtype == "float32" else 2) * (shape.num_parameters + kept))
    return largest + 3 * 4 * 2**24


def host_bytes(run: PretrainConfig, layout: Layout) -> float:
    """Return the memory of a node that a training on GPUs needs, in bytes.

    Each rank builds the model in float32 before its GPU takes it, 4 bytes per parameter, and a teacher too, beside the
    process.
    """
    models = 1 + bool(run.distillation)
    return layout.devices * (PROCESS_GB * GB + models * 4 * run.shape.num_parameters) + save_bytes(run, layout)


def save_bytes(run: PretrainConfig, layout: Layout) -> float:
    """Return the host memory that saving takes on the first node, in bytes; states are hashed while they are written.

    A state has 12 bytes per parameter, on the first rank, or under FSDP2 shared by all. Kept weights are gathered on the
    first rank: 4 bytes per parameter, and twice as exported in half precision, as tensors and as the file's content.
    """
    state = 12 * run.shape.num_parameters
    if layout.strategy == "fsdp2" and layout.ranks > 1:
        return max(state / layout.nodes, 8 * run.shape.num_parameters)
    return state


def cpu_training_bytes(run: PretrainConfig, layout: Layout) -> float:
    """Return the memory that a training without GPUs needs on one node: what a GPU would hold, and the save."""
    micro = layout.micro_batch or _largest_divisor(run.global_batch_size // layout.ranks or 1)
    held = gpu_bytes(run, layout.ranks, layout.strategy, micro, layout.recompute)
    return layout.devices * (held + PROCESS_GB * GB) + save_bytes(run, layout)


# --- layout -----------------------------------------------------------------------------------------------------------


def layout_of(run: PretrainConfig, site: Site | None, wish: LayoutWish | None = None) -> Layout:
    """Return how a training is laid out: the fewest GPUs with which it fits and ends in time.

    What `wish` gives holds, before what the site's `layouts` say. Of layouts that fit, the first of: nothing recomputed,
    whole models (ddp) before parts (fsdp2), the largest micro batch. Where no number of GPUs ends in time, the most.
    Raises `ConfigError` in one line where nothing fits or the numbers do not divide the batch.
    """
    wish = _joined(wish, site.layouts.get(run.model_id) if site else None, site and _by_size(run, site))
    if site is None or not site.gpus:
        given = {key: value for key, value in wish.model_dump().items() if value is not None}
        return _checked(run, replace(LOCAL, **given))
    best, smallest = None, math.inf
    for nodes, devices in _shapes(site, wish):
        if run.global_batch_size % (nodes * devices):
            continue
        layout, needed = _fit(run, site, nodes, devices, wish)
        smallest = min(smallest, needed)
        if layout is None:
            continue
        best = layout
        if training_seconds(run, site, layout) <= site.days_per_training * 86400:
            break
    if best:
        return _checked(run, best)
    if smallest is math.inf:
        raise ConfigError(
            [
                f"{run.model_id}: no number of GPUs that a job may have divides its batch of {run.global_batch_size} "
                f"sequences{_shown(wish)}. Choose others in `layouts` of the site file."
            ]
        )
    raise ConfigError(
        [
            f"{run.model_id}: needs {smallest / GB:,.0f} GB on each GPU at least, and a GPU of the site has "
            f"{site.gpu_memory_gb:g} GB ({USABLE:.0%} to plan with){_shown(wish)}. Allow more GPUs (`gpus`, `nodes`) "
            "or name larger ones in the site file, or leave this size out of the study."
        ]
    )


def training_seconds(run: PretrainConfig, site: Site, layout: Layout) -> float:
    """Return how long a training computes on GPUs: 6 N D over what its ranks do in a second."""
    return training_flop(run) / (layout.ranks * assumed_speeds(site).rate)


def _joined(*wishes: LayoutWish | None) -> LayoutWish:
    """Return one wish: of each key the first that is given."""
    joined: dict = {}
    for wish in filter(None, wishes):
        joined = {key: value for key, value in wish.model_dump().items() if value is not None} | joined
    return LayoutWish(**joined)


def _by_size(run: PretrainConfig, site: Site) -> LayoutWish | None:
    return site.layouts.get(ModelId.parse(run.model_id).size)


def _shapes(site: Site, wish: LayoutWish) -> list[tuple[int, int]]:
    """Return the pairs of nodes and GPUs per node that a training may have, from few GPUs to many."""
    devices = [2**power for power in range(site.gpus.bit_length()) if 2**power <= site.gpus]
    devices = [wish.devices] if wish.devices else sorted({*devices, site.gpus})
    nodes = [wish.nodes] if wish.nodes else range(1, site.nodes + 1)
    whole = wish.devices or site.gpus  # more than one node only once a node is full
    return [(n, d) for n in nodes for d in devices if n == 1 or d == whole or wish.nodes]


def _fit(run: PretrainConfig, site: Site, nodes: int, devices: int, wish: LayoutWish) -> tuple[Layout | None, float]:
    """Return the first layout on so many GPUs whose memory suffices, if any, and the bytes that the smallest needs."""
    ranks, room = nodes * devices, site.gpu_memory_gb * GB * USABLE
    share = run.global_batch_size // ranks
    micros = [size for size in range(LARGEST_MICRO_BATCH, 0, -1) if share % size == 0]
    micros = [wish.micro_batch] if wish.micro_batch else micros
    strategies: list[Strategy] = [wish.strategy] if wish.strategy else ["ddp", "fsdp2"][: 1 + (ranks > 1)]
    recomputes: list[Recompute] = [wish.recompute] if wish.recompute else ["none", "blocks"]
    smallest = math.inf
    for recompute in recomputes:
        for strategy in strategies:
            for micro in micros:
                needed = gpu_bytes(run, ranks, strategy, micro, recompute)
                if needed <= room:
                    return Layout(nodes, devices, strategy, micro, recompute), needed
                smallest = min(smallest, needed)
    return None, smallest


def _checked(run: PretrainConfig, layout: Layout) -> Layout:
    """Return the layout. Raises `ConfigError` where ranks times micro batch do not divide the batch."""
    if run.global_batch_size % (layout.ranks * max(1, layout.micro_batch)):
        raise ConfigError(
            [
                f"{run.model_id}: {layout.nodes} x {layout.devices} ranks with micro batches of {layout.micro_batch or 1} do "
                f"not divide its batch of {run.global_batch_size} sequences; choose other `devices` or `micro_batch`."
            ]
        )
    return layout


def _largest_divisor(share: int) -> int:
    return max(size for size in range(1, LARGEST_MICRO_BATCH + 1) if share % size == 0)


def _shown(wish: LayoutWish) -> str:
    given = [f"{key} {value}" for key, value in wish.model_dump().items() if value is not None]
    return f"; got {', '.join(given)}" if given else ""


# --- what each job asks for -------------------------------------------------------------------------------------------


class StudyResources:
    """The needs of every job of a study on a site; `site` is None on one machine, where nothing is asked for.

    `wish` is a layout that the caller gives for all trainings (`--set-resources pretrain_model:devices=2`).
    """

    def __init__(self, study: Study, site: Site | None, wish: LayoutWish | None = None):
        self.study, self.site, self.wish = study, site, wish
        self.speeds = assumed_speeds(site)
        self.jobs: dict[tuple[str, str | None], list[Job]] = {}
        for job in jobs_of(study):
            self.jobs.setdefault((job.rule, job.model_id), []).append(job)
        self.layout = cache(self._layout)
        self.needs = cache(self._needs)

    def problems(self) -> list[str]:
        """Return a line for every job that fits into no job of the site."""
        found = []
        for rule, model_id in self.jobs:
            try:
                self.needs(rule, model_id)
            except ConfigError as error:
                found += error.problems
        return list(dict.fromkeys(found))

    def seconds(self, job: Job, speeds: Speeds) -> float:
        """Return how long a job takes on the clock."""
        run = self.run_behind(job.model_id) if job.model_id else None
        ranks = self.layout(job.model_id).ranks if job.rule == "pretrain_model" else 1
        return job_seconds(job, run, ranks, self.threads(job.rule, run), speeds)

    def run_behind(self, model_id: str) -> PretrainConfig:
        """Return the training run that a model, a checkpoint of it or a QuantLM comes from."""
        model = ModelId.parse(model_id)
        trained = model.float_parent if model.family == QUANTLM else model
        return self.study.recipes[str(replace(trained, step=None))]

    def threads(self, rule: str, run: PretrainConfig | None = None) -> int:
        """Return the threads of a job, of a training those of one rank.

        Where they change bits they follow from the run alone, so that a small run has the same on a laptop and a
        cluster: one. A run that is large enough to be compiled is computed by a GPU, which they feed.
        """
        if rule == "tokenize_part" and self.study.token_files:
            return 1  # ready tokens are only indexed
        if rule in ("build_tokenizer", "tokenize_part", "check_contamination"):
            local = 1 if rule == "check_contamination" else 2
            return min(MOST_DATA_THREADS, self.site.cores) if self.site else local
        if self.site is None or not self.site.gpus or run is None or not run.is_compiled:
            return 1
        return max(1, min(4 if rule == "evaluate_model" else 8, self.site.cores // self.site.gpus))

    def _layout(self, model_id: str) -> Layout:
        return layout_of(self.study.pretrained[model_id], self.site, self.wish)

    def _needs(self, rule: str, model_id: str | None = None) -> Needs:
        """Return what a job of `rule` asks for. Raises `ConfigError` where the site has no such node."""
        run = self.run_behind(model_id) if model_id else None
        needs = self._training(run) if rule == "pretrain_model" else self._other(rule, model_id, run)
        return self._checked(f"{rule} {model_id}" if model_id else rule, needs)

    def _training(self, run: PretrainConfig) -> Needs:
        layout, on_gpus = self.layout(run.model_id), bool(self.site and self.site.gpus)
        memory = host_bytes(run, layout) if on_gpus else cpu_training_bytes(run, layout)
        threads = self.threads("pretrain_model", run) * (layout.devices if self.site else 1)
        devices = layout.devices if on_gpus else 0
        return Needs(threads, _mb(memory), self._minutes("pretrain_model", run.model_id), devices, layout.nodes)

    def _other(self, rule: str, model_id: str | None, run: PretrainConfig | None) -> Needs:
        threads = self.threads(rule, run)
        memory = (2 + threads * DATA_GB_PER_THREAD) * GB + self._long_document(rule, threads)
        if rule in ("render_report", "track_artifacts"):
            memory = REPORT_GB * GB
        if run:
            memory = PROCESS_GB * GB + COPY_BYTES[rule] * run.shape.num_parameters
        on_gpu = bool(self.site and self.site.gpus) and rule in ("quantize_model", "evaluate_model")
        on_gpu_bytes = 0.0
        if rule == "quantize_model":  # inputs and outputs of a block, in float32, for all samples
            section = self.study.quantization
            samples, length = section.num_calibration_samples, section.calibration_sequence_length
            memory += 2 * 4 * samples * length * run.shape.hidden_size
            on_gpu_bytes = quantize_gpu_bytes(run, samples, length) if on_gpu else 0.0
        elif on_gpu:
            on_gpu_bytes = evaluate_gpu_bytes(run, self.study.evaluation.suites.values())
        return Needs(threads, _mb(memory), self._minutes(rule, model_id), int(on_gpu), gpu_mb=_mb(on_gpu_bytes))

    def _long_document(self, rule: str, threads: int) -> int:
        """Return the memory that a data job needs for a document of the largest size that the study allows, in bytes."""
        allowed = self.study.corpus.max_document_bytes if self.study.corpus else 0
        if allowed <= USUAL_DOCUMENT_BYTES:
            return 0
        if rule == "check_contamination":  # each process reads documents
            return threads * LONG_DOCUMENT_BYTES * allowed
        from openspectra.data.tokenizer import takes_pieces

        in_pieces = rule not in ("build_tokenizer", "tokenize_part") or takes_pieces(self.study.tokenizer)
        return (LONG_DOCUMENT_BYTES + (0 if in_pieces else WHOLE_TEXT_BYTES)) * allowed

    def _minutes(self, rule: str, model_id: str | None) -> int:
        """Return the time limit of a job: twice its time and a margin, at most the site's.

        A training goes on in a next job. Raises `ConfigError` where another job takes longer than the site's limit.
        """
        seconds = max((self.seconds(job, self.speeds) for job in self.jobs.get((rule, model_id), [])), default=0.0)
        least = LEAST_HOURS.get(rule, 1)
        if rule == "tokenize_part" and self.study.token_files:
            least = TOKEN_FILE_HOURS
        minutes = max(60 * least, MARGIN_MINUTES + math.ceil(2 * seconds / 60))
        if self.site is None:
            return minutes
        if seconds > self.site.hours * 3600 and rule != "pretrain_model":
            raise ConfigError(
                [
                    f"{rule} {model_id or ''}: takes {seconds / 3600:,.0f} hours, a job of the site has {self.site.hours:g} "
                    "(`hours` of the site file); allow longer jobs there, or divide the work in the study file."
                ]
            )
        return min(minutes, math.floor(self.site.hours * 60))

    def _checked(self, job: str, needs: Needs) -> Needs:
        site = self.site
        if site is None:
            return needs
        offered = {
            "nodes": (needs.nodes, site.nodes, "nodes"),
            "gpus": (needs.devices, site.gpus, "GPUs a node"),
            "gpu_memory_gb": (needs.gpu_mb / 1000 / USABLE, site.gpu_memory_gb, "GB on a GPU, a tenth kept free"),
            "memory_gb": (needs.mem_mb / 1000, site.memory_gb, "GB a node"),
            "cores": (needs.threads, site.cores, "cores a node"),
        }
        for key, (asked, most, unit) in offered.items():
            if asked > most:
                raise ConfigError(
                    [
                        f"{job}: needs {asked:,.4g} {unit}, the site has {most:,.4g} (`{key}` of the site file); "
                        "name larger nodes there, or leave this size out of the study."
                    ]
                )
        return needs


def _mb(size: float) -> int:
    return math.ceil(size / 1e6)
