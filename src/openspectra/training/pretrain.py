"""The pretraining stage: one model, trained with Lightning, saved as a Hugging Face folder."""

import csv
import logging
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from openspectra.artifacts import Artifact, write_artifact, write_json
from openspectra.config import LlamaShape, PretrainConfig
from openspectra.data.order import sequence_at
from openspectra.data.tokenizer import TOKENIZER_FILES, end_of_text_id
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, Interrupted, OpenSpectraError
from openspectra.model.llama import Llama
from openspectra.model.size import bits_per_weight, model_size_bits
from openspectra.model.ternary import ternarize
from openspectra.training import recipe
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.interruption import Interruption
from openspectra.training.progress import Progress

logger = logging.getLogger(__name__)


class StepData(IterableDataset):
    """Micro batches [micro_batch_size, sequence_length + 1] from a step on: step k takes the next sequences in order."""

    def __init__(self, config: PretrainConfig, tokens: Tokens, start_step: int):
        self.config, self.tokens, self.start_step = config, tokens, start_step

    def __iter__(self):
        config, num_sequences = self.config, self.tokens.num_sequences(self.config.sequence_length)
        last = config.max_steps * config.global_batch_size
        for first in range(self.start_step * config.global_batch_size, last, config.micro_batch_size):
            indices = sequence_at(range(first, first + config.micro_batch_size), num_sequences, config.seed)
            yield torch.from_numpy(self.tokens.sequences(indices, config.sequence_length))


class Pretraining(L.LightningModule):
    """The training loop's state: model, optimizer, step, and the rows of the two metric files.

    `global_step` of Lightning counts from the last start; `self.step` counts optimizer steps of the whole run.
    """

    def __init__(self, config: PretrainConfig, valid: Tokens, checkpoints: CheckpointFolder):
        super().__init__()
        self.config, self.checkpoints = config, checkpoints
        self.valid = valid
        self.llama = Llama(config.shape, config.family)
        self.llama.reset_parameters(config.seed)
        self.step = 0
        self.train_rows: list[dict[str, float]] = []
        self.valid_rows: list[dict[str, float]] = []
        self.losses: list[float] = []  # of the micro batches since the last row
        self.gradient_norm = 0.0
        self.resume_state = checkpoints.load_newest()
        if self.resume_state:
            self.llama.load_state_dict(self.resume_state["model"])
            self.step = self.resume_state["step"]
            self.train_rows, self.valid_rows = self.resume_state["train_rows"], self.resume_state["valid_rows"]
            self.losses = self.resume_state["losses"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.config
        matrices = [parameter for parameter in self.llama.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in self.llama.parameters() if parameter.dim() != 2]
        # ASSUME: norms are not decayed, embedding and head are, as in GPT-NeoX; the paper does not say
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups, lr=config.peak_lr, betas=tuple(config.adam_betas), eps=config.adam_eps, fused=True
        )
        if self.resume_state:
            optimizer.load_state_dict(self.resume_state["optimizer"])
            self.resume_state = None
        return optimizer

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.llama.loss(batch)
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise OpenSpectraError(f"{self.config.model_id}: loss is {value} at step {self.step}; lower its peak rate.")
        self.losses.append(value)
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        norm = nn.utils.clip_grad_norm_(self.llama.parameters(), self.config.gradient_clip_norm)
        self.gradient_norm = norm.item()
        if not torch.isfinite(norm):
            raise OpenSpectraError(
                f"{self.config.model_id}: gradient is {norm} at step {self.step}; lower its peak rate."
            )

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        matrices = optimizer.param_groups[0]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.config, self.step)
        matrices["weight_decay"] = recipe.weight_decay(self.config, self.step)
        optimizer.step(closure=optimizer_closure)
        self.step += 1
        self._after_step(matrices["lr"])

    def _after_step(self, lr: float) -> None:
        config, last = self.config, self.step == self.config.max_steps
        if last or self.step % config.log_every_steps == 0:
            self.train_rows.append(self._row(lr))
            self.losses = []
        if last or self.step % config.valid_every_steps == 0:
            loss = self.valid_loss()
            self.valid_rows.append({"step": self.step, "tokens_seen": self.tokens_seen, "valid_loss": loss})

    def _row(self, lr: float) -> dict[str, float]:
        row = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "train_loss": sum(self.losses) / len(self.losses),
            "learning_rate": lr,
            "gradient_norm": self.gradient_norm,
        }
        return row | ({"sparsity": sparsity(self.llama)} if self.config.family == "trilm" else {})

    @property
    def tokens_seen(self) -> int:
        return self.step * self.config.tokens_per_step

    @torch.no_grad()
    def valid_loss(self) -> float:
        """Return the mean loss in nats per token over the first `valid_sequences` of the valid split."""
        config = self.config
        count = min(config.valid_sequences, self.valid.num_sequences(config.sequence_length))
        total = 0.0
        for first in range(0, count, config.micro_batch_size):
            indices = range(first, min(first + config.micro_batch_size, count))
            batch = torch.from_numpy(self.valid.sequences(indices, config.sequence_length)).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                total += self.llama.loss(batch, reduction="sum").item()
        return total / (count * config.sequence_length)

    def save_state(self) -> None:
        """Write a checkpoint of the present step."""
        state = {
            "step": self.step,
            "model": self.llama.state_dict(),
            "optimizer": self.optimizers(use_pl_optimizer=False).state_dict(),
            "train_rows": self.train_rows,
            "valid_rows": self.valid_rows,
            "losses": self.losses,
        }
        self.checkpoints.save(self.step, state)


class Checkpointing(L.Callback):
    """Saves at the configured steps, and at the next step boundary after a signal, which then ends the run."""

    def __init__(self, interruption: Interruption):
        self.interruption = interruption
        self.saved_step = -1

    def on_train_start(self, trainer, module: Pretraining) -> None:
        self.interruption.arm()

    def on_train_batch_end(self, trainer, module: Pretraining, outputs, batch, batch_idx) -> None:
        config, step = module.config, module.step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step == self.saved_step:
            return
        if self.interruption.requested or step % config.checkpoint_every_steps == 0 or step == config.max_steps:
            module.save_state()
            self.saved_step = step
        trainer.should_stop = self.interruption.requested


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
    parents = {"tokens_train": train, "tokens_valid": valid, "tokenizer": tokenizer}
    _check_splits(train, valid)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "lock", timeout=0):
            module = _train(config, parents, out, show_bar, fresh)
            with write_artifact(out, "pretrain", config, parents) as draft:
                draft.metrics |= save_model(module.llama, config, tokenizer, draft.folder)
                draft.metrics |= _save_rows(module, draft.folder)
            module.checkpoints.remove_other_runs()
    except Timeout:
        raise OpenSpectraError(f"{out}: another process trains this model; wait for it or stop it.") from None


def save_model(model: Llama, config: PretrainConfig, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the Hugging Face folder of a model (effective weights, config, tokenizer); return its counts."""
    dtype = getattr(torch, config.export_dtype)
    state = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in model.export_state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json", hugging_face_config(config.shape, config.export_dtype, end_of_text_id(tokenizer))
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer.file(name), folder / name)
    shape, width = config.shape, bits_per_weight(config.family)
    return {
        "num_parameters": shape.num_parameters,
        "num_linear_parameters": shape.num_linear_parameters,
        "bits_per_weight": width,
        "model_size_bits": model_size_bits(shape.num_linear_parameters, shape.num_parameters, width),
    }


def hugging_face_config(shape: LlamaShape, dtype: str, end_of_text: int) -> dict[str, Any]:
    """Return the `config.json` with which unmodified `transformers` builds the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "dtype": dtype,
        "torch_dtype": dtype,
        "num_key_value_heads": shape.num_attention_heads,
        "head_dim": shape.head_dim,
        # both spellings: transformers 5 reads rope_parameters, 4 reads rope_theta and would silently take 10000
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "pretraining_model_parallel": shape.scales_per_matrix,  # the authors' name for scales per matrix
        **shape.model_dump(exclude={"scales_per_matrix"}),
    }


def sparsity(model: Llama) -> float:
    """Return the share of zeros among the ternary states of all linear layers."""
    zeros = total = 0
    with torch.no_grad():
        for layer in model.linear_layers().values():
            states, _ = ternarize(layer.weight, layer.scales_per_matrix, layer.shard_dim)
            zeros += int((states == 0).sum())
            total += states.numel()
    return zeros / total


def _train(config: PretrainConfig, parents: dict[str, Artifact], out: Path, show_bar: bool, fresh: bool) -> Pretraining:
    checkpoints = CheckpointFolder(out, config, parents)
    if fresh:
        checkpoints.remove()
    module = Pretraining(config, Tokens(parents["tokens_valid"]), checkpoints)
    if module.step:
        logger.info("%s: continues from step %d of %d", config.model_id, module.step, config.max_steps)
    if module.step < config.max_steps:
        data = StepData(config, Tokens(parents["tokens_train"]), module.step)
        logging.getLogger("lightning.pytorch").handlers.clear()  # its lines go to our log, not to the console as well
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
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
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
