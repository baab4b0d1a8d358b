"""What a machine does in a second, and how long a job then takes: assumed, or measured by `openspectra plan --calibrate`."""

import math
from typing import Annotated

from pydantic import Field

from openspectra.config import Config
from openspectra.site import Site
from openspectra.training.config import PretrainConfig
from openspectra.work import Job

GPU_EFFICIENCY = 0.40
"""ASSUME: share of a GPU's stated rate that training reaches, counted by 6 N operations per token."""
STARTS = {
    "write_config": 0.02,
    "read_source": 0.15,
    "list_sources": 0.1,
    "build_part": 0.15,
    "build_corpus": 0.15,
    "build_tokenizer": 0.15,
    "tokenize_part": 0.15,
    "list_tokens": 0.1,
    "fetch_benchmarks": 1.0,
    "build_tasks": 0.3,
    "check_contamination": 0.2,
    "pretrain_model": 1.3,
    "import_release": 1.0,  # ASSUME: as render_report; not part of the demo
    "publish_checkpoint": 0.2,  # ASSUME: copies a file; not part of the demo
    "quantize_model": 1.2,
    "evaluate_model": 1.1,
    "export_model": 1.3,  # ASSUME: as evaluate_model, and what is written is read again
    "render_report": 1.0,
    "track_artifacts": 1.3,
}
"""Start and end of a job of each rule: libraries, files, hashes. In units of loading torch and Lightning once, measured
with the demo on 2 cores (AMD EPYC) on 2026-11-26; the unit is measured on the machine (`Speeds.start`)."""
TEXT_BYTES_PER_SECOND = {"read_source": 41e6, "build_part": 35e6, "build_tokenizer": 3.8e6, "check_contamination": 13e6}
"""Of one thread (docs/data.md, measured on 2026-11-24)."""
PASSED_BYTES_PER_SECOND = 165e6
"""Of text that a source passes over because its `where` asks for other rows (docs/data.md)."""
TOKENS_PER_SECOND = {"tokenize_part": 0.55e6}
INDEXED_BYTES_PER_SECOND = 255e6
"""Of ready tokens, which are only indexed."""
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Speeds(Config):
    """What one device of a machine does in a second."""

    start: Positive = 6.0
    """Seconds until a process has loaded torch and Lightning. ASSUME: 6."""
    rate: Positive = 2e10
    """Operations per second of a training, by 6 N D. ASSUME: 2e10 for one thread of a CPU."""
    rates: dict[str, Positive] = {}
    """The same by model, where it was measured."""
    forward: Positive = 1.0
    """Rate of evaluation and GPTQ relative to training. ASSUME: 1 on a CPU; 0.1 on a GPU: GPTQ computes in
    float32, evaluation in batches of one."""
    layer_seconds: NonNegative = 0.0
    """Least time of a batch in one layer. ASSUME: 1 ms on a GPU, where a batch of one sequence waits for the launch of
    its kernels; 0 on a CPU."""
    stretch: Positive = 1.0
    """Seconds on the clock per second of computing: above 1 where others use the machine too."""
    measured: str | None = None
    """When and where; None: nothing was measured."""

    def rate_of(self, model_id: str) -> float:
        return self.rates.get(model_id, self.rate)


def assumed_speeds(site: Site | None) -> Speeds:
    """Return what is assumed where nothing was measured."""
    if site and site.gpus:
        return Speeds(start=30.0, rate=site.gpu_teraflops * 1e12 * GPU_EFFICIENCY, forward=0.1, layer_seconds=1e-3)
    return Speeds()


def job_seconds(job: Job, run: PretrainConfig | None, devices: int, threads: int, speeds: Speeds) -> float:
    """Return how long a job takes on the clock, in seconds: start, plus operations over rate, plus passes.

    `run` is the training that its model comes from, `devices` all that share a training.
    """
    busy = STARTS[job.rule] * speeds.start
    if run and job.rule == "pretrain_model":
        busy += job.flop / (speeds.rate_of(run.model_id) * devices)
    elif run:
        computing = job.flop / (speeds.rate_of(run.model_id) * speeds.forward)
        busy += max(computing, job.passes * run.shape.num_hidden_layers * speeds.layer_seconds)
    else:
        busy += job.text_bytes / (TEXT_BYTES_PER_SECOND.get(job.rule, math.inf) * threads)
        busy += job.passed_bytes / (PASSED_BYTES_PER_SECOND * threads)
        busy += job.tokens / (TOKENS_PER_SECOND.get(job.rule, math.inf) * threads)
        busy += job.token_bytes / INDEXED_BYTES_PER_SECOND
    return busy * speeds.stretch
