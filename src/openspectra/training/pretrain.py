"""The pretraining stage: one model, trained with Lightning, saved as a Hugging Face folder."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from openspectra.artifacts import Artifact, write_artifact, write_csv
from openspectra.config import PretrainConfig
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, Interrupted, OpenSpectraError
from openspectra.model.hugging_face import save_model
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.interruption import Interruption
from openspectra.training.module import Checkpointing, Pretraining, StepData
from openspectra.training.progress import Progress

logger = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig,
    train: Artifact,
    valid: Artifact,
    tokenizer: Artifact,
    out: Path,
    show_bar: bool,
    fresh: bool,
) -> None:
    """Train one model to its last step and publish it in `out`; continue where an interrupted run stopped.

    Raises `Interrupted` when a signal asked the run to stop, `OpenSpectraError` when another process trains here.
    """
    started = time.time()
    parents = {"tokens_train": train, "tokens_valid": valid, "tokenizer": tokenizer}
    _check_splits(train, valid)
    if config.precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigError(["precision: 16-mixed needs a GPU, Lightning would silently take bfloat16; choose 32-true."])
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "lock", timeout=0):
            module = _train(config, parents, out, show_bar, fresh)
            with write_artifact(out, "pretrain", config, parents, started) as draft:
                draft.metrics |= save_model(module.llama, config, tokenizer, draft.folder)
                draft.metrics |= _save_rows(module, draft.folder)
            module.checkpoints.remove_other_runs()
    except Timeout:
        raise OpenSpectraError(f"{out}: another process trains this model; wait for it or stop it.") from None


def _train(config: PretrainConfig, parents: dict[str, Artifact], out: Path, show_bar: bool, fresh: bool) -> Pretraining:
    checkpoints = CheckpointFolder(out, config, parents)
    if fresh:
        checkpoints.remove()
    module = Pretraining(config, Tokens(parents["tokens_valid"]), checkpoints)
    if module.step:
        logger.info("%s: continues from step %d of %d", config.model_id, module.step, config.max_steps)
    if module.step < config.max_steps:
        data = StepData(config, Tokens(parents["tokens_train"]), module.step)
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).handlers.clear()  # their lines go to our log, not to the console as well
        with Interruption() as interruption:
            trainer = L.Trainer(
                accelerator="auto",
                devices=1,
                precision=config.precision,
                max_steps=config.max_steps - module.step,
                accumulate_grad_batches=config.global_batch_size // config.micro_batch_size,
                callbacks=[Checkpointing(interruption), Progress(out / "speed.jsonl", show_bar)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(module, DataLoader(data, batch_size=None))
        if interruption.requested and module.step < config.max_steps:
            raise Interrupted(
                f"{config.model_id}: stopped at step {module.step}, state saved; the same command continues."
            )
    if module.step != config.max_steps:
        raise OpenSpectraError(f"{config.model_id}: ended at step {module.step} of {config.max_steps}; run it again.")
    return module


def _save_rows(module: Pretraining, folder: Path) -> dict[str, Any]:
    for name, rows in (("train.csv", module.train_rows), ("valid.csv", module.valid_rows)):
        write_csv(folder / name, rows[0], rows)
    ternary = {"sparsity": module.train_rows[-1]["sparsity"]} if "sparsity" in module.train_rows[-1] else {}
    return {
        "tokens_seen": module.tokens_seen,
        "final_train_loss": module.train_rows[-1]["train_loss"],
        "valid_loss": module.valid_rows[-1]["valid_loss"],
    } | ternary


def _check_splits(train: Artifact, valid: Artifact) -> None:
    """Refuse a test split: nothing that is chosen may depend on the documents that results come from."""
    for role, artifact in (("train", train), ("valid", valid)):
        if artifact.manifest.config["split"] != role:
            raise ConfigError(
                [
                    f"--{role}: {artifact.folder} holds split `{artifact.manifest.config['split']}`; give the {role} split."
                ]
            )
