"""Pretraining of one model, on this machine or on several."""

import os
import sys
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from openspectra.cli.options import Config, Log, Out, Tokenizer, Train, Valid
from openspectra.cli.stage import logger, session, set_threads
from openspectra.training.world import Recompute, Strategy

commands = typer.Typer()


@commands.command()
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

    with session(log):
        world = World.from_environment(nodes, devices, strategy=strategy, micro_batch=micro_batch, recompute=recompute)
    if world is None:
        sys.exit(launch(nodes, devices, threads, out))
    set_threads(max(1, threads // devices))
    with session(log, world.rank), Interruption() as interruption:
        resolved = read_config(PretrainConfig, config)
        inputs = [open_artifact(train, "tokens"), open_artifact(valid, "tokens"), open_artifact(tokenizer, "tokenizer")]
        taught_by = open_artifact(teacher, "pretrain") if teacher else None
        from openspectra.training.pretrain import pretrain as run

        show_bar = log is None and sys.stderr.isatty()
        order, *ordered = os.environ.get("OPENSPECTRA_TRAIN_ANEW", " ").split(" ")  # by the workflow's --forcerun
        order = uuid4().hex if fresh else order if resolved.model_id in ordered else None
        run(resolved, *inputs, out, show_bar, order, world, interruption, 60 * state_minutes, taught_by)
        logger.info("%s: done, in %s", resolved.model_id, out)
