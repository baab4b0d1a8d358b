"""The command line: one command per stage, plus those that look at what stages made.

Every stage reads a resolved config and artifact folders, and writes one artifact folder. Exit codes: 0 done,
1 failed, 2 bad config or arguments, 75 interrupted and resumable by the same command.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from openspectra.errors import OpenSpectraError
from openspectra.training.world import Recompute, Strategy

logger = logging.getLogger("openspectra.cli")
app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Config = Annotated[Path, typer.Option("--config", help="Resolved config of this stage (JSON).")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the artifact to write.")]
Log = Annotated[Path | None, typer.Option("--log", help="File that takes every log line.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads; equal threads give equal bits.")]
Corpus = Annotated[Path, typer.Option("--corpus", help="Corpus artifact.")]
Tokenizer = Annotated[Path, typer.Option("--tokenizer", help="Tokenizer artifact.")]
Train = Annotated[Path, typer.Option("--train", help="Token shards of the train split.")]
Valid = Annotated[Path, typer.Option("--valid", help="Token shards of the valid split.")]
Model = Annotated[Path, typer.Option("--model", help="Model artifact.")]
Artifacts = Annotated[list[Path], typer.Argument(help="Artifact folders.")]
Sources = Annotated[Path, typer.Option("--sources", help="Artifact that lists what was read.")]
Part = Annotated[int, typer.Option("--part", min=0, help="Number of the part.")]


@app.command()
def check(study: Annotated[Path, typer.Argument(help="Study file (YAML).")]) -> None:
    """Check a study file, with all its problems at once, and list its models."""
    from openspectra.study import load_study

    loaded = load_study(study)
    for model_id, run in loaded.pretrained.items():
        typer.echo(f"{model_id}: {run.summary}")
    typer.echo(f"{study}: valid; {len(loaded.models)} models, {len(loaded.quantized)} of them quantized.")


@app.command()
def read(config: Config, out: Out, job: Annotated[int, typer.Option("--job", min=0)] = 0, log: Log = None) -> None:
    """Read one job's share of a source; one on the hub needs the network."""
    from openspectra.data.config import ReadConfig
    from openspectra.data.read import read_source

    _run_stage("source", ReadConfig, config, out, log, {}, read_source, update={"job": job})


@app.command()
def sources(config: Config, out: Out, jobs: Artifacts, log: Log = None) -> None:
    """List what the jobs of all sources read."""
    from openspectra.data.config import SourcesConfig
    from openspectra.data.corpus import list_sources

    _run_stage("sources", SourcesConfig, config, out, log, {}, list_sources, many=jobs)


@app.command()
def part(config: Config, out: Out, sources: Sources, part: Part = 0, log: Log = None) -> None:
    """Remove duplicates from one part of the corpus, sample the mixture, divide into train, valid and test."""
    from openspectra.data.config import PartConfig
    from openspectra.data.corpus import build_part

    parents = {"sources": (sources, "sources")}
    _run_stage("part", PartConfig, config, out, log, parents, build_part, update={"part": part})


@app.command()
def corpus(config: Config, out: Out, sources: Sources, parts: Artifacts, log: Log = None) -> None:
    """Join all parts to the corpus, with its data card; every document accounted for."""
    from openspectra.data.config import CorpusConfig
    from openspectra.data.corpus import build_corpus

    parents = {"sources": (sources, "sources")}
    _run_stage("corpus", CorpusConfig, config, out, log, parents, build_corpus, many=parts)


@app.command()
def tokenizer(
    config: Config,
    out: Out,
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Corpus artifact; none for ready tokens.")] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Train a byte-level BPE on the train split, or load one."""
    from openspectra.data.config import TokenizerConfig
    from openspectra.data.tokenizer import build_tokenizer

    _set_threads(threads)
    parents = {"corpus": (corpus, "corpus")} if corpus else {}
    _run_stage("tokenizer", TokenizerConfig, config, out, log, parents, build_tokenizer)


@app.command()
def tokenize(
    config: Config,
    out: Out,
    tokenizer: Tokenizer,
    corpus_part: Annotated[Path | None, typer.Option("--corpus-part", help="Part of the corpus.")] = None,
    part: Part = 0,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Turn one part of the corpus into token shards, or index one ready token file."""
    from openspectra.data.config import TokenFilePartConfig, TokenPartConfig
    from openspectra.data.token_files import index_token_file
    from openspectra.data.tokenizing import build_token_part

    _set_threads(threads)
    parents = ({"part": (corpus_part, "part")} if corpus_part else {}) | {"tokenizer": (tokenizer, "tokenizer")}
    config_type, run = (TokenPartConfig, build_token_part) if corpus_part else (TokenFilePartConfig, index_token_file)
    _run_stage("token_part", config_type, config, out, log, parents, run, update={"part": part})


@app.command()
def tokens(
    config: Config,
    out: Out,
    tokenizer: Tokenizer,
    parts: Artifacts,
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Corpus artifact; none for ready tokens.")] = None,
    log: Log = None,
) -> None:
    """List the token shards of one split over all parts, in order."""
    from openspectra.data.config import TokensConfig
    from openspectra.data.tokenizing import build_tokens

    def run(config, tokenizer, parts, folder, corpus=None):  # the corpus stands in the lineage, and is not read
        return build_tokens(config, tokenizer, parts, folder)

    parents = {"tokenizer": (tokenizer, "tokenizer")} | ({"corpus": (corpus, "corpus")} if corpus else {})
    _run_stage("tokens", TokensConfig, config, out, log, parents, run, many=parts)


@app.command()
def benchmarks(config: Config, out: Out, log: Log = None) -> None:
    """Fetch the items of lm-eval's tasks, and with them the cache that evaluation reads; may touch the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from openspectra.evaluation.benchmarks import fetch_benchmarks
    from openspectra.evaluation.config import BenchmarksConfig

    _run_stage("benchmarks", BenchmarksConfig, config, out, log, {}, fetch_benchmarks)


@app.command()
def contamination(
    config: Config,
    out: Out,
    corpus: Corpus,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Artifact of built benchmarks.")] = None,
    benchmarks: Annotated[Path | None, typer.Option("--benchmarks", help="Artifact of fetched items.")] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Look for the 13-grams of benchmark items in the train split, and list the hits."""
    from openspectra.data.config import ContaminationConfig
    from openspectra.data.contamination import check_contamination

    run = partial(check_contamination, num_processes=threads)
    parents = {"corpus": (corpus, "corpus")} | ({"tasks": (tasks, "tasks")} if tasks else {})
    parents |= {"benchmarks": (benchmarks, "benchmarks")} if benchmarks else {}
    _run_stage("contamination", ContaminationConfig, config, out, log, parents, run)


@app.command()
def pretrain(
    config: Config,
    out: Out,
    train: Train,
    valid: Valid,
    tokenizer: Tokenizer,
    threads: Threads = 1,
    devices: Annotated[int, typer.Option(min=1, help="Processes that share the training: one per GPU.")] = 1,
    strategy: Annotated[
        Strategy, typer.Option(help="ddp: each holds the whole model; fsdp2: each holds a part.")
    ] = "ddp",
    micro_batch: Annotated[
        int, typer.Option(min=0, help="Sequences per pass; 0: the most that divide a rank's share of a step, up to 8.")
    ] = 0,
    recompute: Annotated[
        Recompute, typer.Option(help="blocks: compute each block again in the backward pass, to save memory.")
    ] = "none",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget checkpoints and train anew.")] = False,
    log: Log = None,
) -> None:
    """Pretrain one model; an interrupted run goes on where it stopped."""
    from openspectra.artifacts import open_artifact
    from openspectra.config import read_config
    from openspectra.training.config import PretrainConfig
    from openspectra.training.interruption import Interruption
    from openspectra.training.world import World, launch

    world = World.from_environment(devices, strategy=strategy, micro_batch=micro_batch, recompute=recompute)
    if world is None:
        sys.exit(launch(devices, threads))
    _set_threads(max(1, threads // world.size))
    with _session(log, world.rank), Interruption() as interruption:
        resolved = read_config(PretrainConfig, config)
        inputs = [open_artifact(train, "tokens"), open_artifact(valid, "tokens"), open_artifact(tokenizer, "tokenizer")]
        from openspectra.training.pretrain import pretrain as run

        show_bar = log is None and sys.stderr.isatty()
        run(resolved, *inputs, out, show_bar, fresh, world, interruption)
        logger.info("%s: done, in %s", resolved.model_id, out)


@app.command()
def checkpoint(
    out: Out,
    model: Model,
    step: Annotated[int, typer.Option(min=1, help="Step of the run whose weights are wanted.")],
    log: Log = None,
) -> None:
    """Publish the weights of one step of a training run as a model of its own."""
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.training.trajectory import checkpoint_config, publish_checkpoint

    with _session(log):
        run = open_artifact(model, "pretrain")
        config = checkpoint_config(run, step)
        with write_artifact(out, "checkpoint", config, {"model": run}) as draft:
            draft.metrics |= publish_checkpoint(config, run, draft.folder)
        logger.info("%s: done, in %s", config.model_id, out)


@app.command()
def quantize(config: Config, out: Out, model: Model, train: Train, threads: Threads = 1, log: Log = None) -> None:
    """Quantize one FloatLM with GPTQ."""
    from openspectra.quantization.config import QuantizeConfig
    from openspectra.quantization.gptq import quantize as run

    _set_threads(threads)
    parents = {"model": (model, None), "tokens_train": (train, "tokens")}
    _run_stage("quantize", QuantizeConfig, config, out, log, parents, run)


@app.command()
def tasks(config: Config, out: Out, corpus: Corpus, log: Log = None) -> None:
    """Build benchmarks from the documents of the test split."""
    from openspectra.evaluation.build_tasks import build_tasks
    from openspectra.evaluation.config import TasksConfig

    def run(config, corpus, folder):
        return build_tasks(config, corpus, folder, os.path.relpath(out))

    _run_stage("tasks", TasksConfig, config, out, log, {"corpus": (corpus, "corpus")}, run)


@app.command()
def evaluate(
    config: Config,
    out: Out,
    model: Model,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Artifact of built benchmarks.")] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Run one suite of lm-eval tasks on one model."""
    from openspectra.evaluation.config import EvaluateConfig
    from openspectra.evaluation.harness import evaluate as run

    _set_threads(threads)
    parents = {"model": (model, None)} | ({"tasks": (tasks, "tasks")} if tasks else {})
    _run_stage("evaluate", EvaluateConfig, config, out, log, parents, run)


@app.command()
def report(
    config: Config,
    out: Out,
    artifacts: Artifacts,
    rates: Annotated[Path | None, typer.Option(help="Table of the sweep that the study's rates come from.")] = None,
    log: Log = None,
) -> None:
    """Write the page, figures and tables of a study."""
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.config import read_config
    from openspectra.reporting.config import ReportConfig

    with _session(log):
        resolved = read_config(ReportConfig, config)
        opened = [open_artifact(path) for path in artifacts]
        from openspectra.reporting.page import write_report

        parents = {os.path.relpath(artifact.folder, out): artifact for artifact in opened}
        with write_artifact(out, "report", resolved, parents) as draft:
            draft.metrics |= write_report(resolved, opened, draft.folder, rates)
        logger.info("report: done, open %s", out / "index.html")


@app.command()
def track(
    artifacts: Artifacts,
    experiment: Annotated[str, typer.Option(help="MLflow experiment: the name of the study.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file that takes the run ids.")],
    uri: Annotated[str | None, typer.Option(help="Tracking server; default: mlflow.db in this folder.")] = None,
    log: Log = None,
) -> None:
    """Bring MLflow up to date with finished artifacts: one run each, nothing doubled."""
    from openspectra.artifacts import open_artifact, write_json
    from openspectra.tracking.sync import track as run

    with _session(log):
        runs = run([open_artifact(path) for path in artifacts], experiment, uri)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, runs)
        logger.info("MLflow: %d runs in experiment %s; browse them with `mlflow ui`", len(runs), experiment)


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Artifact, or a folder of artifacts.")]) -> None:
    """Check every file and every parent of the artifacts below a folder."""
    from openspectra.artifacts import verify_tree
    from openspectra.training.trajectory import verify_trajectory

    with _session(None):
        artifacts = verify_tree(path)
        files = sum(len(artifact.manifest.files) for artifact in artifacts)
        kept = sum(verify_trajectory(artifact) for artifact in artifacts if artifact.manifest.stage == "pretrain")
        typer.echo(f"{path}: {len(artifacts)} artifacts with {files} files are as their manifests say.")
        typer.echo(f"{path}: {kept} checkpoints on the way hold the weights of their steps.")


@app.command()
def why(path: Annotated[Path, typer.Argument(help="Artifact.")]) -> None:
    """Show what made an artifact, from what, back to the corpus."""
    from openspectra.artifacts import describe_lineage, open_artifact

    with _session(None):
        typer.echo(describe_lineage(open_artifact(path)))


@app.command()
def step(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    number: Annotated[int, typer.Argument(metavar="STEP", help="Training step, from 1.")],
    model: Annotated[str | None, typer.Option("--model", help="The model, where batches differ by family.")] = None,
) -> None:
    """Print the very text that a training step read, and the documents it comes from."""
    from openspectra.artifacts import open_artifact
    from openspectra.errors import ConfigError
    from openspectra.study import load_study
    from openspectra.training.steps import describe_step

    runs = load_study(Path("studies", f"{study}.yaml")).pretrained
    if model is None and len({run.global_batch_size for run in runs.values()}) > 1:
        raise ConfigError([f"--model: batches of study {study} differ by family; name one of {', '.join(runs)}."])
    if model is not None and model not in runs:
        raise ConfigError([f"--model: {model!r} is not trained in study {study}; name one of {', '.join(runs)}."])
    results = Path("results", study)
    train, tokenizer = open_artifact(results / "tokens/train", "tokens"), open_artifact(results / "tokenizer")
    for line in describe_step(runs[model or next(iter(runs))], number, train, tokenizer):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors that complete and check them."""
    import json

    from openspectra.study_file import StudyFile

    typer.echo(json.dumps(StudyFile.model_json_schema(), indent=2))


def main() -> None:
    """Run the command line; end with the exit code that the error names, without a traceback for what users can mend."""
    try:
        app()
    except OpenSpectraError as error:
        for line in str(error).splitlines():
            print(f"openspectra: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


@contextmanager
def _session(log: Path | None, rank: int = 0):
    from openspectra.logs import log_to

    with log_to(log, rank):
        yield


def _run_stage(
    stage: str,
    config_type: type,
    config: Path,
    out: Path,
    log: Path | None,
    parents: dict,
    run: Callable,
    many: Sequence[Path] = (),
    update: dict | None = None,
):
    """Read config and parents, run the stage into a draft, publish it in `out`.

    `parents` gives path and stage by role, the name under which `run` takes each; `many` are parts, which know their
    role and are taken as `parts`. `update` goes into the config.
    """
    from openspectra.artifacts import open_artifact, role_of, write_artifact
    from openspectra.config import read_config

    with _session(log):
        resolved = read_config(config_type, config).model_copy(update=update)
        opened = {role: open_artifact(path, parent_stage) for role, (path, parent_stage) in parents.items()}
        parts = [open_artifact(path) for path in many]
        given = opened | ({"parts": parts} if parts else {})
        with write_artifact(out, stage, resolved, opened | {role_of(part): part for part in parts}) as draft:
            draft.metrics |= run(resolved, **given, folder=draft.folder)
        logger.info("%s: done, in %s", stage, out)


def _set_threads(threads: int) -> None:
    """Fix the number of CPU threads before any library reads it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)


if __name__ == "__main__":
    main()
