"""Models made from models: a step of a training, released weights, QuantLMs, exports; and text from any of them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import Config, Log, Model, Out, Threads, Train, Valid
from openspectra.cli.stage import logger, run_stage, session, set_threads, silence_torchao
from openspectra.printable import escaped

commands = typer.Typer()


@commands.command()
def checkpoint(
    out: Out,
    model: Model,
    step: Annotated[int, typer.Option(min=1, help="Step of the run whose weights are wanted.")],
    log: Log = None,
) -> None:
    """Publish the weights of one step of a training run as a model of its own."""
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.training.trajectory import checkpoint_config, publish_checkpoint

    with session(log):
        run = open_artifact(model, "pretrain")
        config = checkpoint_config(run, step)
        with write_artifact(out, "checkpoint", config, {"model": run}) as draft:
            draft.metrics |= publish_checkpoint(config, run, draft.folder)
        logger.info("%s: done, in %s", config.model_id, out)


@commands.command()
def release(config: Config, out: Out, log: Log = None) -> None:
    """Take released weights as they are; those of the hub need the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "0")
    from openspectra.model.config import ReleaseConfig
    from openspectra.model.release import import_release

    run_stage("release", ReleaseConfig, config, out, log, {}, import_release)


@commands.command()
def quantize(
    config: Config, out: Out, model: Model, train: Train, valid: Valid, threads: Threads = 1, log: Log = None
) -> None:
    """Quantize one FloatLM with GPTQ; what was finished before is not computed again."""
    from openspectra.quantization.config import QuantizeConfig
    from openspectra.quantization.gptq import quantize as run

    set_threads(threads)
    parents = {"model": (model, None), "tokens_train": (train, "tokens"), "tokens_valid": (valid, "tokens")}
    run_stage("quantize", QuantizeConfig, config, out, log, parents, run, shares_job=True)


@commands.command("export")
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

    set_threads(threads)
    silence_torchao()
    with session(log):
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


@commands.command()
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
        set_threads(threads)
    silence_torchao()
    with session(None):
        from openspectra.export.generate import Sampling, generate

        sampling = Sampling(tokens, temperature, top_k, top_p, seed)
        generate(model, prompt, sampling, lambda text: typer.echo(escaped(text, keep="\n\t"), nl=False))
