"""From sources to token shards: read, sources, part, corpus, tokenizer, tokenize, tokens; and contamination."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import Artifacts, Config, Corpus, CorpusIfAny, Log, Out, Threads, Tokenizer
from openspectra.cli.stage import run_stage, set_threads

commands = typer.Typer()

Sources = Annotated[Path, typer.Option("--sources", help="Artifact that lists what was read.")]
Part = Annotated[int, typer.Option("--part", min=0, help="Number of the part.")]


@commands.command()
def read(config: Config, out: Out, job: Annotated[int, typer.Option("--job", min=0)] = 0, log: Log = None) -> None:
    """Read one job's share of a source; one on the hub needs the network."""
    from openspectra.data.config import ReadConfig
    from openspectra.data.read import read_source

    run_stage("source", ReadConfig, config, out, log, {}, read_source, update={"job": job})


@commands.command()
def sources(config: Config, out: Out, jobs: Artifacts, log: Log = None) -> None:
    """List what the jobs of all sources read."""
    from openspectra.data.config import SourcesConfig
    from openspectra.data.corpus import list_sources

    run_stage("sources", SourcesConfig, config, out, log, {}, list_sources, many=jobs)


@commands.command()
def part(config: Config, out: Out, sources: Sources, part: Part = 0, log: Log = None) -> None:
    """Remove duplicates from one part of the corpus, sample the mixture, divide into train, valid and test."""
    from openspectra.data.config import PartConfig
    from openspectra.data.corpus import build_part

    parents = {"sources": (sources, "sources")}
    run_stage("part", PartConfig, config, out, log, parents, build_part, update={"part": part})


@commands.command()
def corpus(config: Config, out: Out, sources: Sources, parts: Artifacts, log: Log = None) -> None:
    """Join all parts to the corpus, with its data card; every document accounted for."""
    from openspectra.data.config import CorpusConfig
    from openspectra.data.corpus import build_corpus

    parents = {"sources": (sources, "sources")}
    run_stage("corpus", CorpusConfig, config, out, log, parents, build_corpus, many=parts)


@commands.command()
def tokenizer(
    config: Config,
    out: Out,
    corpus: CorpusIfAny = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Train a byte-level BPE on the train split, or load one."""
    from openspectra.data.config import TokenizerConfig
    from openspectra.data.tokenizer import build_tokenizer

    set_threads(threads)
    parents = {"corpus": (corpus, "corpus")} if corpus else {}
    run_stage("tokenizer", TokenizerConfig, config, out, log, parents, build_tokenizer)


@commands.command()
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

    set_threads(threads)
    parents = ({"part": (corpus_part, "part")} if corpus_part else {}) | {"tokenizer": (tokenizer, "tokenizer")}
    config_type, run = (TokenPartConfig, build_token_part) if corpus_part else (TokenFilePartConfig, index_token_file)
    run_stage("token_part", config_type, config, out, log, parents, run, update={"part": part})


@commands.command()
def tokens(
    config: Config,
    out: Out,
    tokenizer: Tokenizer,
    parts: Artifacts,
    corpus: CorpusIfAny = None,
    log: Log = None,
) -> None:
    """List the token shards of one split over all parts, in order."""
    from openspectra.data.config import TokensConfig
    from openspectra.data.tokenizing import build_tokens

    def run(config, tokenizer, parts, folder, corpus=None):  # the corpus stands in the lineage, and is not read
        return build_tokens(config, tokenizer, parts, folder)

    parents = {"tokenizer": (tokenizer, "tokenizer")} | ({"corpus": (corpus, "corpus")} if corpus else {})
    run_stage("tokens", TokensConfig, config, out, log, parents, run, many=parts)


@commands.command()
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
    run_stage("contamination", ContaminationConfig, config, out, log, parents, run)
