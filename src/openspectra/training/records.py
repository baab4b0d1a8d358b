"""What a run records: the rows of its tables, each told to whoever listens, and the state that goes with them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from openspectra.model.llama import Llama
from openspectra.training.config import PretrainConfig
from openspectra.training.instruments import Instruments
from openspectra.training.spikes import Spikes
from openspectra.training.validation import ValidationSample

TABLES = ("train", "valid", "valid_sources", "ternary", "levels", "spikes", "checkpoints")
"""Rows by step, one CSV each in the artifact."""
Row = dict[str, Any]


class Records:
    """Tables, validation losses, spikes and instruments of a run: part of its training state.

    `listeners` are called with the name of a table and each new row of it, as soon as it is there: on every rank, but rows of
    `checkpoints` on rank 0 alone. After a resume the rows since the restored state are told again.
    """

    def __init__(self, config: PretrainConfig):
        self.config = config
        self.tables: dict[str, list[Row]] = {name: [] for name in TABLES}
        self.valid_losses: list[Tensor] = []  # nats per token of each validation sequence, one tensor a validation
        self.losses: list[float] = []  # of the steps since the last row of `train`
        self.distances: list[float] = []  # the same of the distance to a teacher
        self.spikes, self.instruments = Spikes(), Instruments()
        self.skipped_steps = 0
        self.min_loss_scale = math.inf
        self.listeners: list[Callable[[str, Row], None]] = []

    def add(self, table: str, step: int, row: Row) -> None:
        """Append a row to a table, under the step and the tokens seen by then."""
        placed = {"step": step, "tokens_seen": step * self.config.tokens_per_step} | row
        self.tables[table].append(placed)
        for listener in self.listeners:
            listener(table, placed)

    def add_loss(self, step: int, loss: float, distance: float = 0.0) -> bool:
        """Take the loss of one step, in nats, and its distance to a teacher; return whether the loss is a spike."""
        if not math.isfinite(loss):  # the loss scaler has left this step out
            return False
        self.losses.append(loss)
        if self.config.distillation:
            self.distances.append(distance)
        spike = self.spikes.observe(loss)
        if spike:
            self.add("spikes", step, {"train_loss": loss} | spike)
        return bool(spike)

    def add_train_row(self, step: int, learning_rate: float, gradient_norm: float, loss_scale: float) -> None:
        """Append to `train`, with the mean of the losses since the row before."""
        row = {"train_loss": _mean(self.losses), "learning_rate": learning_rate, "gradient_norm": gradient_norm}
        if self.config.uses_loss_scaling:
            row |= {"loss_scale": loss_scale, "skipped_steps": self.skipped_steps}
        if self.config.distillation:
            row |= {"distillation_loss": _mean(self.distances)}
        self.add("train", step, row)
        self.losses, self.distances = [], []

    def add_validation(self, step: int, sums_SK: Tensor, sample: ValidationSample) -> None:
        """Take the loss of each validation sequence by source, in nats summed over its tokens [S, K].

        Sources get rows of their own where the valid split has several.
        """
        self.valid_losses.append(sums_SK.sum(dim=1) / self.config.sequence_length)
        self.add("valid", step, {"valid_loss": self.valid_losses[-1].mean().item()})
        if len(sample.sources) == 1:
            return
        counts_K = np.bincount(sample.source_ST.ravel(), minlength=len(sample.sources))
        losses_K = (sums_SK.sum(dim=0).numpy() / counts_K).tolist()
        for source, loss, count in zip(sample.sources, losses_K, counts_K.tolist(), strict=True):
            self.add("valid_sources", step, {"source": source, "valid_loss": loss, "num_tokens": count})

    def measure(self, step: int, llama: Llama) -> None:
        """Append the measurements of discrete weights to `ternary`."""
        for row in self.instruments.measure(llama):
            self.add("ternary", step, row)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "tables": self.tables,
            "valid_losses": self.valid_losses,
            "losses": self.losses,
            "spike_window": self.spikes.window,
            "states": self.instruments.states,
            "skipped_steps": self.skipped_steps,
            "min_loss_scale": self.min_loss_scale,
            **({"distances": self.distances} if self.config.distillation else {}),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; tensors are copied, for they are mapped from a file that will be pruned."""
        self.tables |= state["tables"]
        self.valid_losses, self.losses = [losses.clone() for losses in state["valid_losses"]], state["losses"]
        states = {name: packed.clone() for name, packed in state["states"].items()}
        self.spikes, self.instruments = Spikes(state["spike_window"]), Instruments(states)
        self.skipped_steps, self.min_loss_scale = state["skipped_steps"], state["min_loss_scale"]
        self.distances = state["distances"] if self.config.distillation else []


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
