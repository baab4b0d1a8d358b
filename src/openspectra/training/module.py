"""The training loop as Lightning sees it: one module with the state of a run, one callback that saves and restores it."""

import logging
import math
import time
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from openspectra.data.tokens import Tokens
from openspectra.errors import OpenSpectraError
from openspectra.model.binary_ternary import (
    first_scales,
    held_scales,
    measure_levels,
    set_scales,
    step_relatively,
)
from openspectra.model.distillation import Teacher
from openspectra.model.llama import Llama
from openspectra.training import recipe
from openspectra.training.checkpoint import CheckpointFolder
from openspectra.training.config import PretrainConfig
from openspectra.training.interruption import Interruption
from openspectra.training.loss_scaler import LossScaler
from openspectra.training.records import Records
from openspectra.training.sharding import parts_of, put_back, put_weights, take_part
from openspectra.training.validation import ValidationSample
from openspectra.training.world import World

logger = logging.getLogger(__name__)


class Pretraining(L.LightningModule):
    """Model, optimizer, step, and what the run records.

    `global_step` of Lightning counts from the last start; `self.step` counts optimizer steps of the whole run.

    Non-finite policy: a loss or gradient that is not finite ends the run before the update, on every rank alike, with
    the last state intact; under 16-mixed the update is left out, which holds the schedule, the loss scale follows its
    rule, and the run ends where no scale is left. A spike of the loss is recorded and changes nothing.
    """

    def __init__(self, config: PretrainConfig, valid: Tokens, world: World, teacher: Teacher | None = None):
        super().__init__()
        self.config, self.world, self.teacher = config, world, teacher
        self.validation = ValidationSample(valid, config.valid_sequences, config.sequence_length)
        self.attention = config.attention_form(device_kind())
        self.llama = Llama(config.shape, config.family, self.attention)
        self.llama.reset_parameters(config.seed)
        self.step = 0
        self.records = Records(config)
        self.gradient_norm = self.step_loss = self.step_distance = 0.0

    def configure_model(self) -> None:
        layers = self.llama.model.layers
        for layer in layers:  # compiled block by block: whole-model compilation is not reproducible
            if self.world.recompute == "blocks":
                # the compiler stays inside: around it, it would leave the block as it is without a word
                forward = torch.compile(layer.forward) if self.config.is_compiled else layer.forward
                layer.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
            elif self.config.is_compiled:
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
        if self.teacher:
            self._seat_teacher()
        if self.step == 0:
            if self.llama.family.num_learned_scales:
                self._start_scales()
            self.records.measure(self.step, self.llama)
        self.loss_sum, self.distance_sum = (torch.zeros((), device=self.device) for _ in range(2))
        if self.world.size > 1 and not self.world.is_sharded:
            self._lay_out_buckets()

    def training_step(self, batch: Tensor) -> Tensor:
        input_ids, targets = batch[:, :-1], batch[:, 1:]
        if self.teacher is None:
            loss = self.llama(input_ids, targets)
            self.loss_sum += loss.detach()
            return loss
        loss, cross_entropy, distance = self.llama(input_ids, targets, lesson=self.teacher(input_ids))
        self.loss_sum += cross_entropy
        self.distance_sum += distance
        return loss

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        norm = nn.utils.clip_grad_norm_(self.llama.parameters(), self.config.gradient_clip_norm)
        self.gradient_norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
        self.step_loss = self._mean_of_step(self.loss_sum)
        if self.teacher:
            self.step_distance = self._mean_of_step(self.distance_sum)
        finite = math.isfinite(self.gradient_norm) and math.isfinite(self.step_loss)
        if not finite and not self.config.uses_loss_scaling:
            self._stop_for("loss is {loss}, gradient norm {norm} at step {step}; lower its peak rate.")

    def _mean_of_step(self, total: Tensor) -> float:
        """Return the mean of a loss over the passes of a step, on all ranks; its sum begins anew."""
        mean = self.world.mean(total / self.trainer.accumulate_grad_batches).item()
        total.zero_()
        return mean

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        records, matrices = self.records, optimizer.param_groups[0]
        updates = self.step - records.skipped_steps  # what the schedule counts
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.config, updates)
        matrices["weight_decay"] = recipe.weight_decay(self.config, updates)
        scales = held_scales(self.llama) if self.llama.family.num_learned_scales else {}
        before = {name: scale.clone() for name, scale in scales.items()}
        optimizer.step(closure=optimizer_closure)
        step_relatively(scales, before)
        if self.loss_scaler and self.loss_scaler.has_skipped:
            records.skipped_steps += 1
            if self.loss_scale < 1:
                self._stop_for("gradient is not finite at any loss scale at step {step}; lower its peak rate.")
        records.min_loss_scale = min(records.min_loss_scale, self.loss_scale)
        self.step += 1
        self._record(matrices["lr"])

    def _seat_teacher(self) -> None:
        """Take the teacher to the device, in the precision that products have here anyway, its blocks as the student's."""
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.config.precision)
        self.teacher.llama.to(self.device, half).set_attention(self.attention)
        if self.config.is_compiled:
            for layer in self.teacher.llama.model.layers:
                layer.compile()

    def _start_scales(self) -> None:
        """Let a family's learned scales begin with what the first text gives, outside compiled blocks, on all ranks alike."""
        text = self.trainer.train_dataloader.dataset.first_text().to(self.device)
        with self.trainer.precision_plugin.forward_context():
            values = first_scales(self.llama, text)
        if self.world.is_sharded:
            self.llama.reshard()  # without a backward pass the root's weights would stay gathered
        set_scales(self.llama, self.world.gather(values)[0])

    @torch.no_grad()
    def _levels(self) -> list[dict[str, Any]]:
        """Return what rounded activations do on the first validation sequence, of families that learn their scales."""
        sequence = torch.from_numpy(self.validation.batch(range(1))).to(self.device)[:, :-1]
        with self.trainer.precision_plugin.forward_context():
            rows = measure_levels(self.llama, sequence)
        if self.world.is_sharded:
            self.llama.reshard()
        return rows

    def _lay_out_buckets(self) -> None:
        """Pass forward and backward once without a step, after which DDP lays out its buckets of gradients anew.

        Where a gradient lies in its bucket decides in which order more than two ranks are summed. So every start has
        to do its first step with the layout that all later steps have, or a resumed run would differ in its last bits.
        """
        micro = self.world.micro_batch_of(self.config.global_batch_size)
        tokens = torch.zeros(micro, self.config.sequence_length + 1, dtype=torch.long, device=self.device)
        self.trainer.strategy.training_step(tokens).backward()
        self.optimizers(use_pl_optimizer=False).zero_grad()
        self.loss_sum.zero_()
        self.distance_sum.zero_()

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

    def _record(self, lr: float) -> None:
        config, records, last = self.config, self.records, self.step == self.config.max_steps
        if records.add_loss(self.step, self.step_loss, self.step_distance):
            logger.warning("%s: loss spike at step %d: %.3f", config.model_id, self.step, self.step_loss)
        if last or self.step % config.log_every_steps == 0:
            records.add_train_row(self.step, lr, self.gradient_norm, self.loss_scale)
        if last or self.step % config.valid_every_steps == 0:
            records.add_validation(self.step, self.validation_losses(), self.validation)
            records.measure(self.step, self.llama)
            for row in self._levels() if self.llama.family.num_learned_scales else ():
                records.add("levels", self.step, row)

    def _stop_for(self, reason: str) -> None:
        text = reason.format(loss=self.step_loss, norm=self.gradient_norm, step=self.step)
        raise OpenSpectraError(f"{self.config.model_id}: {text}")

    @torch.no_grad()
    def validation_losses(self) -> Tensor:
        """Return the loss of each validation sequence by source: nats summed over its tokens, float64 [S, K]."""
        world, sample = self.world, self.validation
        sums_SK = torch.zeros(len(sample), len(sample.sources), dtype=torch.float64, device=self.device)
        micro = world.micro_batch_of(self.config.global_batch_size)
        starts = range(0, len(sample), micro)
        for turn in range(0, len(starts), world.size):
            mine = turn + world.rank
            first = starts[min(mine, len(starts) - 1)]  # every rank takes every turn: a sharded model needs them all
            places = range(first, min(first + micro, len(sample)))
            batch = torch.from_numpy(sample.batch(places)).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                token_losses = self.llama(batch[:, :-1], batch[:, 1:], reduction="none").double()
            if mine < len(starts):
                sources = torch.from_numpy(sample.source_ST[places.start : places.stop]).to(self.device)
                for number in range(len(sample.sources)):  # not scatter_add, whose order of sums varies on a GPU
                    own = torch.where(sources == number, token_losses, 0.0)
                    sums_SK[places.start : places.stop, number] = own.sum(dim=1)
        if world.is_sharded:
            self.llama.reshard()  # without a backward pass the root's weights would stay gathered
        return (world.mean(sums_SK) * world.size).cpu()

    @torch.no_grad()
    def whole_llama(self) -> Llama | None:
        """Return the model with all its weights, gathered on rank 0 where ranks hold parts; None on the others."""
        if not self.world.is_sharded:
            return self.llama
        whole = Llama(self.config.shape, self.config.family) if self.world.rank == 0 else None
        for name, parameter in self.llama.named_parameters():
            weight = parameter.full_tensor()
            if whole:
                whole.get_parameter(name).copy_(weight)
        return whole


def device_kind() -> str:
    """Return the kind of device that Lightning takes here (`cpu`, `cuda`, ...)."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


class Checkpointing(L.Callback):
    """Owns the checkpoints of a run: restores the newest state, and saves at the configured steps.

    It saves too after `seconds` without a state, and at the next step boundary after a signal, which then ends the run.
    `llama` is the model as training left it, with all its weights; None on a rank that held a part of them, but for rank 0.
    """

    def __init__(self, folder: CheckpointFolder, interruption: Interruption, seconds: float = math.inf):
        self.folder, self.interruption, self.seconds = folder, interruption, seconds
        self.due = time.monotonic() + seconds
        self.seen_step = -1
        self.llama: Llama | None = None
        self._state: dict[str, Any] | None = None

    def restore(self, module: Pretraining) -> None:
        """Give a new module step and records of the newest state, if there is one; weights where nothing is left to train."""
        self._state = self.folder.load_newest(module.world)
        if self._state:
            module.step = self._state["step"]
            # the form it began with, also where a new run would take another
            module.attention = self._state["attention"]
            module.llama.set_attention(module.attention)
            if module.step >= module.config.max_steps and module.world.rank == 0:
                put_weights(parts_of(self._state), module.llama)
            module.records.load(self._state["records"])

    def on_train_start(self, trainer, module: Pretraining) -> None:
        self.interruption.arm()
        self.seen_step = module.step
        if self._state:
            state, self._state = self._state, None
            put_back(parts_of(state), module.llama, _optimizer(module))
            trainer.precision_plugin.load_state_dict(state["precision"])

    def on_train_batch_end(self, trainer, module: Pretraining, outputs, batch, batch_idx) -> None:
        config, step = module.config, module.step
        if step == self.seen_step:  # in the middle of a step's micro batches
            return
        self.seen_step = step
        stop, due = module.world.any(self.interruption.requested, time.monotonic() >= self.due)
        if step in config.checkpoint_steps:
            self._save_weights(module)
            module.world.barrier()
        if stop or due or step % config.checkpoint_every_steps == 0 or step == config.max_steps:
            self._save_state(module)
            module.world.barrier()  # for FSDP2's own groups wait for rank 0 no longer than torch's default, 600 s with NCCL
            self.due = time.monotonic() + self.seconds
        trainer.should_stop = stop

    def on_train_end(self, trainer, module: Pretraining) -> None:
        self.llama = module.whole_llama()

    def _save_state(self, module: Pretraining) -> None:
        """Write all that the run needs to go on from the present step. Called on every rank.

        Rank 0 writes; of a sharded model every rank writes its part, so that no process holds the whole.
        """
        world, optimizer = module.world, _optimizer(module)
        if not optimizer.state:  # the loss scaler has left out every step; asking for a state would make one
            optimizer = None
        state = {"step": module.step, "model": {}, "optimizer": None, "records": module.records.state()}
        state |= {"attention": module.attention, "precision": module.trainer.precision_plugin.state_dict()}
        if world.is_sharded:
            part = take_part(module.llama, optimizer)
            state["parts"] = world.gather(self.folder.save_part(module.step, world.rank, part))
        else:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state["model"] = get_model_state_dict(module.llama, options=options)
            if optimizer:
                state["optimizer"] = get_optimizer_state_dict(module.llama, optimizer, options=options)
        if world.rank == 0:
            self.folder.save(module.step, state)

    def _save_weights(self, module: Pretraining) -> None:
        """Keep the exported weights of the present step, with their hash and statistics. Called on every rank."""
        llama = module.whole_llama()
        if module.world.rank == 0:
            record = self.folder.save_weights(module.step, llama, module.config.export_dtype)
            module.records.add("checkpoints", module.step, record)


def _optimizer(module: Pretraining) -> torch.optim.Optimizer:
    return module.optimizers(use_pl_optimizer=False)
