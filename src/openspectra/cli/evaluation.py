"""Benchmarks and their scores: items fetched from a hub or built from the test split, suites of lm-eval on a model."""

import os
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import Config, CorpusIfAny, Log, Model, Out, Threads
from openspectra.cli.stage import run_stage, say, session, set_threads

commands = typer.Typer()


@commands.command()
def benchmarks(config: Config, out: Out, log: Log = None) -> None:
    """Fetch the items of lm-eval's tasks, and with them the cache that evaluation reads; may touch the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from openspectra.evaluation.benchmarks import fetch_benchmarks
    from openspectra.evaluation.config import BenchmarksConfig

    run_stage("benchmarks", BenchmarksConfig, config, out, log, {}, fetch_benchmarks)


@commands.command()
def mirror(
    folder: Annotated[Path, typer.Argument(help="Folder with files <task>/<split>.parquet in the hub's columns.")],
    log: Log = None,
) -> None:
    """Lay files out as data sets of the hub, so that lm-eval's tasks run without a network; say what is not as there."""
    from openspectra.evaluation.mirror import mirror as lay_out

    with session(log):
        for line in lay_out(folder):
            say(line)


@commands.command()
def tasks(
    config: Config,
    out: Out,
    corpus: CorpusIfAny = None,
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

    run_stage("tasks", TasksConfig, config, out, log, parents, run)


@commands.command()
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
    set_threads(threads)
    with session(log):
        suites = [Suite(read_config(EvaluateConfig, path), folder) for path, folder in zip(config, out, strict=True)]
        evaluate_suites(suites, open_artifact(model), open_artifact(tasks, "tasks") if tasks else None)
