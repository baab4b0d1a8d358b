"""The command line: one command per stage, plus those that look at what stages made.

Every stage reads a resolved config and artifact folders, and writes one artifact folder. Exit codes: 0 done,
1 failed, 2 bad config or arguments, 75 interrupted and resumable by the same command.
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from openspectra.errors import OpenSpectraError
from openspectra.printable import escaped
from openspectra.training.world import Recompute, Strategy

logger = logging.getLogger("openspectra.cli")
WIDTH = 160
"""Characters of a line of tables that go to a file."""
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
StudyArgument = Annotated[str, typer.Argument(help="Study file (YAML), or its name in studies/.")]
SiteOption = Annotated[
    Path | None, typer.Option("--site", help="Site file; none: that of config.yaml, of slurm/, or this machine.")
]
Part = Annotated[int, typer.Option("--part", min=0, help="Number of the part.")]


@app.command()
def check(study: Annotated[Path, typer.Argument(help="Study file (YAML).")], site: SiteOption = None) -> None:
    """Check a study file, with all its problems at once, and list its models with their sizes in bits.

    Among the problems is what fits into no node of the site, where one is given.
    """
    from openspectra.data.tokenizer import file_problems
    from openspectra.errors import ConfigError
    from openspectra.planning import site_of
    from openspectra.resources import StudyResources
    from openspectra.study import load_study

    loaded = load_study(study)
    nodes = site_of(loaded, site)
    if problems := [*file_problems(loaded.tokenizer), *StudyResources(loaded, nodes).problems()]:
        raise ConfigError([f"{study}: {problem}" for problem in problems])
    for model_id, bits in loaded.sizes_in_bits.items():
        run = loaded.pretrained.get(model_id)
        _say(f"{model_id}: {bits / 1e9:,.4g} Gbit" + (f", {run.summary}" if run else ""))
    num_models, made = len(loaded.compared_models), len(loaded.quantized)
    quantized = num_models - len(loaded.pretrained) - len(loaded.imported)
    sets = f", each the mean over {made // quantized} calibration sets ({made} QuantLMs)" if made > quantized else ""
    _say(f"{study}: valid; {num_models} models, {quantized} of them quantized{sets}.")


@app.command()
def assumptions(study: Annotated[Path, typer.Argument(help="Study file (YAML).")]) -> None:
    """List what a study assumes where the paper is silent, each with its evidence: its file, its base, the library."""
    from openspectra.assumptions import collect, study_files
    from openspectra.study import load_study

    load_study(study)
    for each in collect(study_files(study)):
        _say(f"{each.file}:{each.line}: " + (f"{each.code}  # " if each.code else "") + each.text)


@app.command()
def plan(
    study: StudyArgument,
    site: SiteOption = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs (without any: cores) that share the study.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Money for a GPU hour.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine first, two minutes.")] = False,
    chart: Annotated[bool, typer.Option("--chart", help="Print a flow chart (Mermaid) of the stages instead.")] = False,
    page: Annotated[Path | None, typer.Option("--page", help="Write the tables into this HTML file instead.")] = None,
) -> None:
    """Say what a study will cost: jobs, hours, tokens, operations, disk and money, by size and by stage, and why.

    Beside it stands what the jobs that are done took.
    """
    from rich.console import Console

    from openspectra import planning
    from openspectra.plan_view import diagram, plan_page, plan_tables
    from openspectra.study import load_study
    from openspectra.writing import disk_errors, write_atomically

    path = _study_file(study)
    loaded, results = load_study(path), Path("results", path.stem)
    nodes = planning.site_of(loaded, site)
    if calibrate:
        from openspectra.calibration import calibrate as measure

        speeds = measure(loaded, path, nodes, results / planning.CALIBRATION)
    else:
        speeds = planning.speeds_here(results, nodes)
    planned = planning.plan_study(loaded, nodes, speeds)
    if chart:
        _say(diagram(planned, results), keep="\n")
        return
    tables = plan_tables(planned, planning.devices_of(planned, gpus), price, results)
    if page:
        with disk_errors(page):
            write_atomically(page, plan_page(tables, loaded.title).encode())
        return
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=WIDTH, highlight=False)
    console.print(tables)


@app.command()
def status(study: StudyArgument) -> None:
    """Say what of a study is done, running, waiting or failed and why, and which command goes on."""
    from openspectra.status import status_lines
    from openspectra.study import load_study

    path = _study_file(study)
    for line in status_lines(load_study(path), path.stem):
        _say(line)


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
def mirror(
    folder: Annotated[Path, typer.Argument(help="Folder with files <task>/<split>.parquet in the hub's columns.")],
    log: Log = None,
) -> None:
    """Lay files out as data sets of the hub, so that lm-eval's tasks run without a network; say what is not as there."""
    from openspectra.evaluation.mirror import mirror as lay_out

    with _session(log):
        for line in lay_out(folder):
            _say(line)


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
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="Model artifact that a distilled run learns from, too.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads of all processes on a machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share the training.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Processes on each of them: one per GPU.")] = 1,
    strategy: Annotated[
        Strategy, typer.Option(help="ddp: each holds the whole model; fsdp2: each holds a part.")
    ] = "ddp",
    micro_batch: Annotated[
        int, typer.Option(min=0, help="Sequences per pass; 0: the most that divide a rank's share of a step, up to 8.")
    ] = 0,
    recompute: Annotated[
        Recompute, typer.Option(help="blocks: compute each block again in the backward pass, to save memory.")
    ] = "none",
    state_minutes: Annotated[float, typer.Option(min=0, help="Longest time between two saved states.")] = 30,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget checkpoints and train anew.")] = False,
    log: Log = None,
) -> None:
    """Pretrain one model; an interrupted run goes on where it stopped."""
    from openspectra.artifacts import open_artifact
    from openspectra.config import read_config
    from openspectra.training.config import PretrainConfig
    from openspectra.training.interruption import Interruption
    from openspectra.training.world import World, launch

    with _session(log):
        world = World.from_environment(nodes, devices, strategy=strategy, micro_batch=micro_batch, recompute=recompute)
    if world is None:
        sys.exit(launch(nodes, devices, threads, out))
    _set_threads(max(1, threads // devices))
    with _session(log, world.rank), Interruption() as interruption:
        resolved = read_config(PretrainConfig, config)
        inputs = [open_artifact(train, "tokens"), open_artifact(valid, "tokens"), open_artifact(tokenizer, "tokenizer")]
        taught_by = open_artifact(teacher, "pretrain") if teacher else None
        from openspectra.training.pretrain import pretrain as run

        show_bar = log is None and sys.stderr.isatty()
        order, *ordered = os.environ.get("OPENSPECTRA_TRAIN_ANEW", " ").split(" ")  # by the workflow's --forcerun
        order = uuid4().hex if fresh else order if resolved.model_id in ordered else None
        run(resolved, *inputs, out, show_bar, order, world, interruption, 60 * state_minutes, taught_by)
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
def release(config: Config, out: Out, log: Log = None) -> None:
    """Take released weights as they are; those of the hub need the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from openspectra.model.config import ReleaseConfig
    from openspectra.model.release import import_release

    _run_stage("release", ReleaseConfig, config, out, log, {}, import_release)


@app.command()
def quantize(
    config: Config, out: Out, model: Model, train: Train, valid: Valid, threads: Threads = 1, log: Log = None
) -> None:
    """Quantize one FloatLM with GPTQ; what was finished before is not computed again."""
    from openspectra.quantization.config import QuantizeConfig
    from openspectra.quantization.gptq import quantize as run

    _set_threads(threads)
    parents = {"model": (model, None), "tokens_train": (train, "tokens"), "tokens_valid": (valid, "tokens")}
    _run_stage("quantize", QuantizeConfig, config, out, log, parents, run, shares_job=True)


@app.command()
def batch(
    commands: Annotated[list[str], typer.Argument(help='Commands without their first word: "quantize --config ...".')],
    threads: Threads = 1,
) -> None:
    """Run several stage commands in one process, one after the other, so that libraries are loaded once.

    One that fails does not keep the others from being run; the exit code is then theirs: 2 where all that failed had a
    bad config, else 1.
    """
    errors = []
    for command in commands:
        try:
            app([*shlex.split(command), "--threads", str(threads)], standalone_mode=False)
        except OpenSpectraError as error:
            _show_error(error)
            errors.append(error)
    if errors:
        sys.exit(errors[0].exit_code if len({error.exit_code for error in errors}) == 1 else 1)


@app.command("export")
def export_(
    model: Annotated[Path, typer.Argument(help="Model artifact.")],
    form: Annotated[str, typer.Option("--format", help="Format; docs/export.md says which suits which model.")],
    out: Out,
    valid: Annotated[
        Path | None, typer.Option("--valid", help="Token shards to compare on; none: those of the model's training.")
    ] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Write a model in the format of another tool, with a certificate that it is the same model and a model card.

    The card's scores are those of the model's evaluations in its study, as far as they are there.
    """
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.config import validate
    from openspectra.errors import ConfigError
    from openspectra.export.config import ExportConfig

    _set_threads(threads)
    _silence_torchao()
    with _session(log):
        opened = open_artifact(model)
        if "model_id" not in opened.manifest.config:
            raise ConfigError([f"{model}: made by stage {opened.manifest.stage}; give a model."])
        config = validate(ExportConfig, {"model": opened.manifest.config["model_id"], "format": form}, "--format")
        from openspectra.export.stage import evaluations_of, export_model, valid_tokens_of
        from openspectra.identity import suite_name

        tokens = open_artifact(valid, "tokens") if valid else valid_tokens_of(opened)
        evaluations = evaluations_of(opened)
        parents = {"model": opened, "tokens_valid": tokens}
        parents |= {f"evaluation_{suite_name(each)}": each for each in evaluations}
        with write_artifact(out, "export", config, parents) as draft:
            export_model(config, opened, tokens, evaluations, draft, threads)
        logger.info("%s as %s: done, in %s", config.model, config.format, out)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a model or of an export.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="New tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many tokens; 0: among all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the most likely tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of the draw.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; none: all cores.")] = None,
) -> None:
    """Go on with a text, token by token as they come: from every folder and format that this program writes."""
    if threads:
        _set_threads(threads)
    _silence_torchao()
    with _session(None):
        from openspectra.export.generate import Sampling, generate

        sampling = Sampling(tokens, temperature, top_k, top_p, seed)
        generate(model, prompt, sampling, lambda text: typer.echo(escaped(text, keep="\n\t"), nl=False))


@app.command()
def tasks(
    config: Config,
    out: Out,
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Corpus artifact; none for ready tokens.")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Token shards of the test split of ready tokens.")] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Tokenizer of ready tokens.")] = None,
    log: Log = None,
) -> None:
    """Build benchmarks from the documents of the test split: of a corpus, or of ready tokens as text."""
    from openspectra.evaluation.build_tasks import build_tasks, build_tasks_from_tokens
    from openspectra.evaluation.config import TasksConfig

    given = {"corpus": (corpus, "corpus"), "test": (test, "tokens"), "tokenizer": (tokenizer, "tokenizer")}
    parents = {role: parent for role, parent in given.items() if parent[0]}
    if set(parents) not in ({"corpus"}, {"test", "tokenizer"}):
        raise typer.BadParameter(f"give --corpus, or --test and --tokenizer; got {sorted(parents) or 'neither'}.")

    def run(config, folder, **parents):
        build = build_tasks if corpus else build_tasks_from_tokens
        return build(config, **parents, folder=folder, cwd_relative=os.path.relpath(out))

    _run_stage("tasks", TasksConfig, config, out, log, parents, run)


@app.command()
def evaluate(
    config: Annotated[list[Path], typer.Option("--config", help="Resolved config of a suite (JSON); may be repeated.")],
    out: Annotated[list[Path], typer.Option("--out", help="Folder of its artifact, one for each --config, in order.")],
    model: Model,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Artifact of built benchmarks.")] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Run suites of lm-eval tasks on one model; a suite that was finished before is not computed again."""
    from openspectra.artifacts import open_artifact
    from openspectra.config import read_config
    from openspectra.evaluation.config import EvaluateConfig
    from openspectra.evaluation.suites import Suite, evaluate_suites

    if len(config) != len(out):
        raise typer.BadParameter(f"give one --out for each --config; got {len(config)} and {len(out)}.")
    _set_threads(threads)
    with _session(log):
        suites = [Suite(read_config(EvaluateConfig, path), folder) for path, folder in zip(config, out, strict=True)]
        evaluate_suites(suites, open_artifact(model), open_artifact(tasks, "tasks") if tasks else None)


@app.command()
def report(
    study: Annotated[Path, typer.Option(help="Study file (YAML).")],
    out: Out,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="Artifact folders; none given: what is there of the study.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Resolved config (JSON); none given: the study's.")] = None,
    rates: Annotated[Path | None, typer.Option(help="Table of the sweep that the study's rates come from.")] = None,
    paper: Annotated[Path | None, typer.Option(help="Table of the paper's numbers, to hold ours against.")] = None,
    log: Log = None,
) -> None:
    """Write the page, figures and tables of a study, at any moment of it: what is not there is named."""
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.config import read_config
    from openspectra.reporting.config import PUBLISHED, ReportConfig
    from openspectra.reporting.plan import plan_of
    from openspectra.study import load_study

    with _session(log):
        loaded = load_study(study)
        resolved = read_config(ReportConfig, config) if config else loaded.report_config(study.stem)
        tables = [rates] if rates else map(Path, loaded.rates_tables)
        published = paper or (PUBLISHED if PUBLISHED.is_file() else None)
        opened = [open_artifact(path) for path in artifacts or plan_of(loaded).made(Path("results", study.stem))]
        from openspectra.reporting.page import write_report

        parents = {os.path.relpath(artifact.folder, out): artifact for artifact in opened}
        with write_artifact(out, "report", resolved, parents) as draft:
            draft.metrics |= write_report(resolved, opened, draft.folder, next(iter(tables), None), study, published)
        logger.info("report: done, open %s", out / "index.html")


@app.command()
def tables(
    report: Annotated[Path, typer.Argument(help="Folder with models.csv, scores.csv and gaps.csv of a report.")],
    file: Annotated[Path | None, typer.Argument(help="Markdown file that takes them, between its markers.")] = None,
) -> None:
    """Print the tables of a report as Markdown, or put them into a file such as README.md."""
    from openspectra.reporting.markdown import tables as render
    from openspectra.reporting.markdown import with_tables

    block = render(report)
    if file is None:
        _say(block, keep="\n")
    else:
        file.write_text(with_tables(file.read_text(encoding="utf-8"), block, str(file)), encoding="utf-8")


tracking = typer.Typer(help="MLflow: every artifact as a run, and trainings while they go on.", no_args_is_help=True)
app.add_typer(tracking, name="track")
StudyName = Annotated[str, typer.Argument(help="Name of the study.")]
Uri = Annotated[
    str | None, typer.Option(help="Tracking store; default: MLFLOW_TRACKING_URI, else mlflow.db in this folder.")
]


@tracking.command("sync")
def track_sync(
    study: StudyName,
    uri: Uri = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file that takes the run ids.")] = None,
    log: Log = None,
) -> None:
    """Bring MLflow up to date with a study, nothing doubled: artifacts, curves of trainings; end the runs of dead ones."""
    from openspectra.tracking.store import chosen_uri, without_userinfo
    from openspectra.tracking.study_folder import study_folder
    from openspectra.writing import disk_errors, write_atomically

    with _session(log):
        runs = study_folder(study).sync(uri)
        if out:
            with disk_errors(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(out, json.dumps(runs, indent=2, sort_keys=True).encode())
        where = without_userinfo(chosen_uri(uri))
        logger.info(
            "MLflow: %d runs in experiment %s of %s; `openspectra track ui %s` shows them",
            len(runs),
            study,
            where,
            study,
        )


@tracking.command("live")
def track_live(study: StudyName, uri: Uri = None, log: Log = None) -> None:
    """Show trainings in MLflow while they go on, until stdin closes; the workflow starts this by itself."""
    from threading import Event, Thread

    from openspectra.tracking.study_folder import study_folder

    ended = Event()
    with _session(log):
        os.nice(10)  # trainings on this machine go first
        Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        study_folder(study).watch(uri, ended)


@tracking.command("ui")
def track_ui(
    study: StudyName,
    uri: Uri = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Start MLflow's UI on this machine and print the link to the study's first screen; Ctrl-C ends it."""
    from openspectra.tracking.ui import show

    with _session(None):
        show(study, uri, port)


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Artifact, or a folder of artifacts.")]) -> None:
    """Check every file and every parent of the artifacts below a folder; of `results/<study>`, that all are there."""
    from openspectra.errors import DamagedArtifactError
    from openspectra.upkeep import check_study

    with _session(None):
        artifacts, kept, problems = check_study(path)
        if problems:
            raise DamagedArtifactError(*dict.fromkeys(line for lines in problems.values() for line in lines))
        if not artifacts:
            raise DamagedArtifactError(f"{path}: no artifact here; give a folder that holds a manifest.json.")
        files = sum(len(artifact.manifest.files) for artifact in artifacts)
        _say(f"{path}: {len(artifacts)} artifacts with {files} files are as their manifests say.")
        _say(f"{path}: {kept} checkpoints on the way hold the weights of their steps.")


@app.command()
def repair(study: Annotated[str, typer.Argument(help="Name of the study.")]) -> None:
    """Read every file of a study and take the manifest from what is damaged: the workflow then makes it again.

    A workflow finds the same by itself, except for altered content of large files, which takes time to read.
    """
    import re

    from openspectra.errors import ConfigError
    from openspectra.study_file import STUDY_NAME
    from openspectra.upkeep import withdraw_damaged

    with _session(None):
        if not re.fullmatch(STUDY_NAME, study) or not Path("results", study).is_dir():
            raise ConfigError(
                [f"STUDY: {study!r} has no folder results/{study} here; give the name of a study that ran."]
            )
        lines, num_withdrawn = withdraw_damaged([Path("results", study), Path("reports", study)])
        for line in lines:
            _say(line)
        if num_withdrawn:
            _say(f"{num_withdrawn} artifacts are made again by:  snakemake --cores all --config study={study}")
        elif not lines:
            _say(f"results/{study}: nothing to repair.")


@app.command()
def why(path: Annotated[Path, typer.Argument(help="Artifact.")]) -> None:
    """Show what made an artifact, from what, back to the corpus."""
    from openspectra.artifacts import describe_lineage, open_artifact

    with _session(None):
        _say(describe_lineage(open_artifact(path)), keep="\n")


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
        _say(line, keep="\n\t")


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for editors that complete and check them."""
    from openspectra.config import Config

    Config.model_config["use_attribute_docstrings"] = True  # nobody else pays for reading the sources of all classes
    from openspectra.study_file import StudyFile

    typer.echo(json.dumps(StudyFile.model_json_schema(), indent=2))


def main() -> None:
    """Run the command line; end with the exit code that the error names, without a traceback for what users can mend."""
    try:
        app()
    except OpenSpectraError as error:
        _show_error(error)
        sys.exit(error.exit_code)


def _show_error(error: OpenSpectraError) -> None:
    for line in str(error).splitlines():
        print(f"openspectra: {line}", file=sys.stderr)


def _study_file(study: str) -> Path:
    """Return the file of a study that is given as such or by its name."""
    return Path(study) if study.endswith((".yaml", ".yml")) else Path("studies", f"{study}.yaml")


def _say(text: str, keep: str = "") -> None:
    typer.echo(escaped(text, keep))


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
    shares_job: bool = False,
):
    """Read config and parents, run the stage into a draft, publish it in `out`.

    `parents` gives path and stage by role, the name under which `run` takes each; `many` are parts, which know their
    role and are taken as `parts`. `update` goes into the config. Where the artifact may share a job with others
    (`finished.py`), it is not made again once it is finished.
    """
    from openspectra.artifacts import open_artifact, role_of, write_artifact
    from openspectra.config import read_config
    from openspectra.finished import is_finished, mark_finished

    with _session(log):
        resolved = read_config(config_type, config).model_copy(update=update)
        opened = {role: open_artifact(path, parent_stage) for role, (path, parent_stage) in parents.items()}
        parts = [open_artifact(path) for path in many]
        given = opened | ({"parts": parts} if parts else {})
        if shares_job and is_finished(out, stage, resolved, opened):
            return
        with write_artifact(out, stage, resolved, opened | {role_of(part): part for part in parts}) as draft:
            draft.metrics |= run(resolved, **given, folder=draft.folder)
        if shares_job:
            mark_finished(out)
        logger.info("%s: done, in %s", stage, out)


def _silence_torchao() -> None:
    """Keep torchao, which transformers imports, from warning of libraries that are not there."""
    os.environ["TORCHAO_FORCE_SKIP_LOADING_SO_FILES"] = "1"
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def _set_threads(threads: int) -> None:
    """Fix the number of CPU threads before any library reads it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)


if __name__ == "__main__":
    main()
