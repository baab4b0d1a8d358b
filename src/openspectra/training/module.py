"""The training loop as Lightning sees it: data by step, one module, one callback that saves."""

import math

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from openspectra.config import PretrainConfig
from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.errors import OpenSpectraError
from openspectra.model.llama import Llama
from openspectra.model.ternary import ternarize
from openspectra.training import recipe
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.interruption import Interruption


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
            groups,
            lr=config.peak_lr,
            betas=tuple(config.adam_betas),
            eps=config.adam_eps,
            # the fused update unscales gradients itself, after they were clipped: not with a loss scaler
            fused=config.precision != "16-mixed",
        )
        if self.resume_state:
            optimizer.load_state_dict(self.resume_state["optimizer"])
            self.resume_state = None
        return optimizer

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.llama.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            raise OpenSpectraError(f"{self.config.model_id}: loss is {value} at step {self.step}; lower its peak rate.")
        self.losses.append(value)
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        norm = nn.utils.clip_grad_norm_(self.llama.parameters(), self.config.gradient_clip_norm)
        self.gradient_norm = norm.item()
        # under 16-mixed an overflow is the loss scaler's business: it skips the update and lowers the scale
        if not torch.isfinite(norm) and self.config.precision != "16-mixed":
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


def sparsity(model: Llama) -> float:
    """Return the share of zeros among the ternary states of all linear layers."""
    zeros = total = 0
    with torch.no_grad():
        for layer in model.linear_layers().values():
            states, _ = ternarize(layer.weight, layer.scales_per_matrix, layer.shard_dim)
            zeros += int((states == 0).sum())
            total += states.numel()
    return zeros / total
