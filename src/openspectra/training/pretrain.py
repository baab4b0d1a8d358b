"""The pretraining stage: one model, trained with Lightning, saved as a Hugging Face folder."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from openspectra.artifacts import Artifact, write_artifact, write_csv
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, Interrupted, OpenSpectraError
from openspectra.memory import keep_freed_memory
from openspectra.model.config import LlamaShape
from openspectra.model.distillation import Teacher
from openspectra.model.hugging_face import WEIGHTS, save_model
from openspectra.model.llama import Llama
from openspectra.training.batches import StepData
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.config import PretrainConfig
from openspectra.training.curves import Curves
from openspectra.training.interruption import Interruption, remove_record, write_record
from openspectra.training.loss_scaler import LossScaler
from openspectra.training.matrices import means_by_step
from openspectra.training.metrics_file import METRICS_FILE
from openspectra.training.module import Checkpointing, Pretraining
from openspectra.training.progress import Progress
from openspectra.training.records import TABLES
from openspectra.training.world import World
from openspectra.writing import only_writer

logger = logging.getLogger(__name__)
TWIN_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
"""What of its shape a teacher shares with the student."""


def pretrain(
    config: PretrainConfig,
    train: Artifact,
    valid: Artifact,
    tokenizer: Artifact,
    out: Path,
    show_bar: bool,
    order: str | None,
    world: World,
    interruption: Interruption,
    state_seconds: float = math.inf,
    teacher: Artifact | None = None,
) -> None:
    """Train one model to its last step and publish it in `out`; continue where an interrupted run stopped.

    After `state_seconds` without a state one is saved: so much work, and a step, is what a kill may cost. With an
    `order` it trains anew, unless states of that very order are there. Every rank calls this; rank 0 alone writes.
    Raises `Interrupted` when a signal has asked the run to stop, `OpenSpectraError` when another process trains here.
    """
    started = time.time()
    parents = {"tokens_train": train, "tokens_valid": valid, "tokenizer": tokenizer}
    parents |= {"teacher": teacher} if teacher else {}
    _check(config, train, valid, world, _teacher_problem(config, tokenizer, teacher))
    checkpoints = CheckpointFolder(out, config, parents)
    keep_freed_memory()
    world.start()
    if world.rank > 0:
        world.barrier()
        world.places()
        try:
            _train(config, parents, checkpoints, Progress(None, False), world, interruption, state_seconds)
        except Interrupted:
            world.barrier()  # srun ends the others as soon as one has left: not before state and record are safe
            raise
        return
    with only_writer(out):
        if order:
            checkpoints.begin_anew(order)
        checkpoints.prepare()
        remove_record(out)
        world.barrier()
        places = world.places()
        progress = Progress(out / "speed.jsonl", show_bar)
        try:
            module, llama = _train(config, parents, checkpoints, progress, world, interruption, state_seconds)
        except Interrupted as interrupted:
            write_record(out, checkpoints.folder.name, interrupted.step)
            world.barrier()
            raise
        with write_artifact(out, "pretrain", config, parents, started) as draft:
            draft.metrics |= save_model(llama, config.family, config.export_dtype, tokenizer, draft.folder)
            draft.metrics |= _save_records(module, draft.folder)
            draft.run |= {
                "ranks": world.size,
                "places": places,
                "strategy": world.strategy,
                "recompute": world.recompute,
            }
            draft.run["attention"] = module.attention
            draft.run["micro_batch"] = world.micro_batch_of(config.global_batch_size)
        checkpoints.remove_other_runs()


def _train(
    config: PretrainConfig,
    parents: dict[str, Artifact],
    checkpoints: CheckpointFolder,
    progress: Progress,
    world: World,
    interruption: Interruption,
    state_seconds: float = math.inf,
) -> tuple[Pretraining, Llama | None]:
    """Return the run at its last step, and on rank 0 its model with all weights."""
    teacher = load_teacher(config, parents["teacher"]) if config.distillation else None
    module = Pretraining(config, Tokens(parents["tokens_valid"]), world, teacher)
    checkpointing = Checkpointing(checkpoints, interruption, state_seconds)
    checkpointing.restore(module)
    if module.step:
        logger.info("%s: continues from step %d of %d", config.model_id, module.step, config.max_steps)
    if module.step == config.max_steps:
        logger.info("%s: nothing is left to train; `--forcerun pretrain_model` or --fresh trains anew", config.model_id)
        return module, module.llama
    (stop,) = world.any(interruption.requested)
    if not stop:
        data = StepData(config, Tokens(parents["tokens_train"]), module.step, world)
        curves = Curves(checkpoints.folder / METRICS_FILE if world.rank == 0 else None)
        trainer = build_trainer(config, module.step, world, [checkpointing, progress, curves])
        trainer.fit(module, DataLoader(data, batch_size=None))
    if module.step == config.max_steps:
        return module, checkpointing.llama
    (stop,) = world.any(interruption.requested)
    if stop:
        done = f"stopped at step {module.step}, state saved" if module.step else "stopped before its first step"
        raise Interrupted(f"{config.model_id}: {done}; the same command continues.", step=module.step)
    raise OpenSpectraError(f"{config.model_id}: ended at step {module.step} of {config.max_steps}; run it again.")


def load_teacher(config: PretrainConfig, artifact: Artifact) -> Teacher:
    """Return the teacher of a run, on the CPU."""
    shape = LlamaShape.model_validate(artifact.manifest.config["shape"])
    llama = Llama(shape, artifact.manifest.config["family"])
    llama.load_latent_weights(load_file(artifact.file(WEIGHTS)))
    return Teacher(llama, config.distillation.hidden_states)


def build_trainer(config: PretrainConfig, step: int, world: World, callbacks: list[L.Callback]) -> L.Trainer:
    """Return the Lightning trainer of a run that goes on from `step`."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # their lines go to our log, not to the console as well
    batch = config.global_batch_size
    arguments = world.trainer_arguments() | {"precision": config.precision}
    if config.uses_loss_scaling:  # given whole: by its name Lightning takes bfloat16 on a CPU and refuses to shard
        device = "cuda" if torch.cuda.is_available() else "cpu"
        arguments["plugins"].append(MixedPrecision(arguments.pop("precision"), device, LossScaler(device)))
    return L.Trainer(
        accelerator="auto",
        max_steps=config.max_steps - step,
        accumulate_grad_batches=batch // (world.micro_batch_of(batch) * world.size),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **arguments,
    )


def _save_records(module: Pretraining, folder: Path) -> dict[str, Any]:
    config, records = module.config, module.records
    for name in TABLES:
        if rows := records.tables[name]:
            write_csv(folder / f"{name}.csv", rows[0], rows)
    np.save(folder / "valid_losses.npy", torch.stack(records.valid_losses).numpy())
    ternary = means_by_step(records.tables["ternary"])
    by_source = {row["source"]: row["valid_loss"] for row in records.tables["valid_sources"]}  # the last validation's
    skipped = records.skipped_steps
    scaling = {"num_skipped_tokens": skipped * config.tokens_per_step, "min_loss_scale": records.min_loss_scale}
    return {
        "tokens_seen": module.tokens_seen,
        "final_train_loss": records.tables["train"][-1]["train_loss"],
        "valid_loss": records.tables["valid"][-1]["valid_loss"],
        **({"valid_loss_by_source": by_source} if by_source else {}),
        "num_loss_spikes": len(records.tables["spikes"]),
        "num_skipped_steps": skipped,
        **(scaling if config.uses_loss_scaling else {}),  # as the paper's table of training runs counts
        **{key: ternary[-1][key] for key in ("sparsity", "flip_rate") if ternary},
    }


def _teacher_problem(config: PretrainConfig, tokenizer: Artifact, teacher: Artifact | None) -> str | None:
    """Return why a teacher, or none, is not what the config asks for."""
    wanted = config.distillation.teacher if config.distillation else None
    if teacher is None:
        return f"--teacher: {config.model_id} learns from {wanted}, too; give its folder." if wanted else None
    manifest = teacher.manifest
    found = manifest.config["model_id"]
    if found != wanted:
        remedy = f"give {wanted}" if wanted else "leave the option out, or set `distillation` in the study"
        return f"--teacher: {teacher.folder} is {found}, from which {config.model_id} does not learn; {remedy}."
    if manifest.parents["tokenizer"].sha256 != tokenizer.sha256:
        return f"--teacher: {teacher.folder} was trained with another tokenizer than {tokenizer.folder}; train it anew."
    own, shape = config.shape.model_dump(), manifest.config["shape"]
    differing = [f"{key} {own[key]} and {shape[key]}" for key in TWIN_KEYS if own[key] != shape[key]]
    return f"--teacher: {teacher.folder} is no twin: {', '.join(differing)}; train it anew." if differing else None


def _check(config: PretrainConfig, train: Artifact, valid: Artifact, world: World, of_teacher: str | None) -> None:
    """Refuse what cannot be trained, and a test split: nothing chosen may depend on what results come from."""
    problems = [
        f"--{role}: {artifact.folder} holds split `{artifact.manifest.config['split']}`; give the {role} split."
        for role, artifact in (("train", train), ("valid", valid))
        if artifact.manifest.config["split"] != role
    ]
    problems += [of_teacher] if of_teacher else []
    try:
        world.micro_batch_of(config.global_batch_size)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
