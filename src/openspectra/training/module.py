"""The training loop as Lightning sees it: one module with the state of a run, one callback that saves."""

import logging
import math
from functools import partial

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from openspectra.data.tokens import Tokens
from openspectra.errors import OpenSpectraError
from openspectra.model.llama import Llama
from openspectra.training import recipe
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.config import PretrainConfig
from openspectra.training.instruments import Instruments
from openspectra.training.interruption import Interruption
from openspectra.training.loss_scaler import LossScaler
from openspectra.training.spikes import Spikes
from openspectra.training.world import World

logger = logging.getLogger(__name__)

TABLES = ("train", "valid", "ternary", "spikes", "checkpoints")
"""What a run records: rows by step, one CSV each in the artifact."""


class Pretraining(L.LightningModule):
    """Model, optimizer, step, and the rows of the metric tables.

    `global_step` of Lightning counts from the last start; `self.step` counts optimizer steps of the whole run.

    Non-finite policy: a loss or gradient that is not finite ends the run before the update, on every rank alike, with
    the last state intact; under 16-mixed the update is left out, which holds the schedule, the loss scale follows its
    rule, and the run ends where no scale is left. A spike of the loss is recorded and changes nothing.
    """

    def __init__(self, config: PretrainConfig, valid: Tokens, checkpoints: CheckpointFolder, world: World):
        super().__init__()
        self.config, self.valid, self.checkpoints, self.world = config, valid, checkpoints, world
        self.llama = Llama(config.shape, config.family)
        self.llama.reset_parameters(config.seed)
        self.step = 0
        self.tables: dict[str, list[dict[str, float]]] = {name: [] for name in TABLES}
        self.valid_losses: list[Tensor] = []  # nats per token of each validation sequence, one tensor a validation
        self.losses: list[float] = []  # of the steps since the last row of `train`
        self.spikes, self.instruments = Spikes(), Instruments()
        self.skipped_steps = 0
        self.min_loss_scale = math.inf
        self.gradient_norm = self.step_loss = 0.0
        self.resume_state = checkpoints.load_newest()
        if self.resume_state:
            self.step = self.resume_state["step"]
            self.llama.load_latent_weights(self.resume_state["model"])
            self._load_records(self.resume_state["records"])

    def configure_model(self) -> None:
        layers = self.llama.model.layers
        if self.world.recompute == "blocks":
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        if self.config.is_compiled:
            for layer in layers:  # block by block: whole-model compilation is not reproducible
                layer.compile()
        if self.world.is_sharded:
            for module in (*layers, self.llama):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.config
        matrices = [parameter for parameter in self.llama.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in self.llama.parameters() if parameter.dim() != 2]
        # ASSUME: norms are not decayed, embedding and head are, as in GPT-NeoX; the paper does not say
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            groups,
            lr=config.peak_lr,
            betas=tuple(config.adam_betas),
            eps=config.adam_eps,
            # the fused update unscales gradients itself, after they were clipped: not with a loss scaler. One of the
            # two must be asked for: with neither, torch takes a loop over the parameters
            fused=not config.uses_loss_scaling,
            foreach=config.uses_loss_scaling,
        )

    def on_train_start(self) -> None:
        if self.resume_state:
            state, self.resume_state = self.resume_state, None
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.llama, state["model"], options=options)
            if state["optimizer"]:
                set_optimizer_state_dict(self.llama, self._optimizer, state["optimizer"], options=options)
            self.trainer.precision_plugin.load_state_dict(state["precision"])
        else:
            self._measure()
        self.loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.llama(batch[:, :-1], batch[:, 1:])
        self.loss_sum += loss.detach()
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        norm = nn.utils.clip_grad_norm_(self.llama.parameters(), self.config.gradient_clip_norm)
        self.gradient_norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
        self.step_loss = self.world.mean(self.loss_sum / self.trainer.accumulate_grad_batches).item()
        self.loss_sum.zero_()
        finite = math.isfinite(self.gradient_norm) and math.isfinite(self.step_loss)
        if not finite and not self.config.uses_loss_scaling:
            self._stop_for("loss is {loss}, gradient norm {norm} at step {step}; lower its peak rate.")

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        matrices = optimizer.param_groups[0]
        updates = self.step - self.skipped_steps  # what the schedule counts
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.config, updates)
        matrices["weight_decay"] = recipe.weight_decay(self.config, updates)
        optimizer.step(closure=optimizer_closure)
        if self.loss_scaler and self.loss_scaler.has_skipped:
            self.skipped_steps += 1
            if self.loss_scale < 1:
                self._stop_for("gradient is not finite at any loss scale at step {step}; lower its peak rate.")
        self.min_loss_scale = min(self.min_loss_scale, self.loss_scale)
        self.step += 1
        self._record(matrices["lr"])

    @property
    def loss_scaler(self) -> LossScaler | None:
        """What keeps half-precision gradients from vanishing; None in other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def loss_scale(self) -> float:
        return self.loss_scaler.get_scale() if self.loss_scaler else 1.0

    @property
    def tokens_seen(self) -> int:
        return self.step * self.config.tokens_per_step

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers(use_pl_optimizer=False)

    def _record(self, lr: float) -> None:
        config, last, at = self.config, self.step == self.config.max_steps, self._place()
        if math.isfinite(self.step_loss):  # else the loss scaler has left this step out
            self.losses.append(self.step_loss)
            if spike := self.spikes.observe(self.step_loss):
                logger.warning("%s: loss spike at step %d: %.3f", config.model_id, self.step, self.step_loss)
                self.tables["spikes"].append(at | {"train_loss": self.step_loss} | spike)
        if last or self.step % config.log_every_steps == 0:
            loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
            row = {"train_loss": loss, "learning_rate": lr, "gradient_norm": self.gradient_norm}
            scaling = {"loss_scale": self.loss_scale, "skipped_steps": self.skipped_steps}
            self.tables["train"].append(at | row | (scaling if config.uses_loss_scaling else {}))
            self.losses = []
        if last or self.step % config.valid_every_steps == 0:
            self.valid_losses.append(self.sequence_losses())
            self.tables["valid"].append(at | {"valid_loss": self.valid_losses[-1].mean().item()})
            self._measure()

    def _measure(self) -> None:
        self.tables["ternary"] += [self._place() | row for row in self.instruments.measure(self.llama)]

    def _place(self) -> dict[str, int]:
        return {"step": self.step, "tokens_seen": self.tokens_seen}

    def _stop_for(self, reason: str) -> None:
        text = reason.format(loss=self.step_loss, norm=self.gradient_norm, step=self.step)
        raise OpenSpectraError(f"{self.config.model_id}: {text}")

    @torch.no_grad()
    def sequence_losses(self) -> Tensor:
        """Return the loss in nats per token of each of the first `valid_sequences` of the valid split, float64 [S]."""
        config, world = self.config, self.world
        count = min(config.valid_sequences, self.valid.num_sequences(config.sequence_length))
        losses = torch.zeros(count, dtype=torch.float64, device=self.device)
        micro = world.micro_batch_of(config.global_batch_size)
        starts = range(0, count, micro)
        for turn in range(0, len(starts), world.size):
            mine = turn + world.rank
            first = starts[min(mine, len(starts) - 1)]  # every rank takes every turn: a sharded model needs them all
            indices = range(first, min(first + micro, count))
            batch = torch.from_numpy(self.valid.sequences(indices, config.sequence_length)).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                token_losses = self.llama(batch[:, :-1], batch[:, 1:], reduction="none")
            if mine < len(starts):
                losses[indices.start : indices.stop] = token_losses.double().mean(dim=1)
        if world.is_sharded:
            self.llama.reshard()  # without a backward pass the root's weights would stay gathered
        return (world.mean(losses) * world.size).cpu()

    def whole_llama(self) -> Llama:
        """Return the model with all its weights: itself, or gathered from all ranks (complete on rank 0)."""
        if not self.world.is_sharded:
            return self.llama
        weights = {name: parameter.full_tensor().cpu() for name, parameter in self.llama.named_parameters()}
        whole = Llama(self.config.shape, self.config.family)
        whole.load_latent_weights(weights)
        return whole

    def save_state(self) -> None:
        """Write all that the run needs to go on from the present step. Called on every rank; rank 0 writes."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_model_state_dict(self.llama, options=options), None
        if self._optimizer.state:  # else the loss scaler has left out every step: asking for the state would make one
            optimizer = get_optimizer_state_dict(self.llama, self._optimizer, options=options)
        if self.world.rank == 0:
            state = {"step": self.step, "model": model, "optimizer": optimizer, "records": self._records()}
            self.checkpoints.save(self.step, state | {"precision": self.trainer.precision_plugin.state_dict()})

    def save_weights(self) -> None:
        """Keep the exported weights of the present step, with their hash and statistics. Called on every rank."""
        llama = self.whole_llama()
        if self.world.rank == 0:
            record = self.checkpoints.save_weights(self.step, llama, self.config.export_dtype)
            self.tables["checkpoints"].append(self._place() | record)

    def _records(self) -> dict[str, object]:
        return {
            "tables": self.tables,
            "valid_losses": self.valid_losses,
            "losses": self.losses,
            "spike_window": self.spikes.window,
            "states": self.instruments.states,
            "skipped_steps": self.skipped_steps,
            "min_loss_scale": self.min_loss_scale,
        }

    def _load_records(self, records: dict) -> None:
        self.tables, self.valid_losses = records["tables"], records["valid_losses"]
        self.losses, self.skipped_steps = records["losses"], records["skipped_steps"]
        self.min_loss_scale = records["min_loss_scale"]
        self.spikes, self.instruments = Spikes(records["spike_window"]), Instruments(records["states"])


class Checkpointing(L.Callback):
    """Saves at the configured steps, and at the next step boundary after a signal, which then ends the run.

    `llama` is the model as training left it, with all its weights (complete on rank 0).
    """

    def __init__(self, interruption: Interruption):
        self.interruption = interruption
        self.seen_step = -1
        self.llama: Llama | None = None

    def on_train_start(self, trainer, module: Pretraining) -> None:
        self.interruption.arm()
        self.seen_step = module.step

    def on_train_batch_end(self, trainer, module: Pretraining, outputs, batch, batch_idx) -> None:
        config, step = module.config, module.step
        if step == self.seen_step:  # in the middle of a step's micro batches
            return
        self.seen_step = step
        stop = module.world.any(self.interruption.requested)
        if step in config.checkpoint_steps:
            module.save_weights()
        if stop or step % config.checkpoint_every_steps == 0 or step == config.max_steps:
            module.save_state()
        trainer.should_stop = stop

    def on_train_end(self, trainer, module: Pretraining) -> None:
        self.llama = module.whole_llama()
