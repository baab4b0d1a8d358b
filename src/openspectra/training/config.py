"""Configs of a training run and of its checkpoints."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from openspectra.config import Config, Fraction, PositiveInt, Rate, Seed
from openspectra.model.config import AttentionForm, LlamaShape
from openspectra.model.families import FAMILY_NAMES

FamilyName = Literal[FAMILY_NAMES]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""`32-true`: everything in float32. Mixed: weights, their updates, norms' mean squares and the loss in float32;
products, residual stream, norms and rotary positions in half precision, as in GPT-NeoX, the authors' code base."""

FLOPS_PER_PARAMETER = 6
"""Floating-point operations per parameter and token of one training step (forward 2, backward 4)."""
COMPILED_FROM_FLOPS = 1e14
"""Runs from this size on compile their blocks: about 15 minutes on two CPU cores, of which compiling takes under one."""
LONGEST_PRODUCTS = 256
"""Longest sequence whose attention is two matrix products on a CPU: the longest that was tried where bfloat16 has
instructions (1.23 x a whole step, not measured again in this repository: LOG.md)."""


class Distillation(Config):
    """What a run learns from beside the text (`model/distillation.py`)."""

    teacher: str
    """Id of the model whose probabilities are its soft targets."""
    hidden_states: bool
    """Whether its residual stream follows the teacher's after every block, too."""


class PretrainConfig(Config):
    """One training run, everything resolved: architecture, recipe, order of text."""

    model_id: str
    family: FamilyName
    shape: LlamaShape
    seed: Seed
    """Seeds the initial draw and the order of text: equal for the twins of a size."""
    precision: Precision
    sequence_length: PositiveInt
    """Tokens the model reads per training sample."""
    global_batch_size: PositiveInt
    """Sequences per optimizer step."""
    max_steps: PositiveInt
    """Optimizer steps of the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Optimizer steps until the peak learning rate is reached."""
    schedule: Literal["cosine", "linear"]
    peak_lr: Rate
    min_lr: Annotated[float, Field(ge=0, le=1)]
    """Lowest learning rate after the warm-up: where a cosine ends, the floor of a line."""
    lr_drop_step: PositiveInt | None = None
    """First step that follows the lower peak, past the warm-up."""
    peak_lr_after_drop: Rate | None = None
    weight_decay: Fraction
    weight_decay_stop_step: Annotated[int, Field(ge=0)] | None = None
    """First step without weight decay."""
    adam_betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    adam_eps: Rate
    gradient_clip_norm: Annotated[float, Field(gt=0)]
    checkpoint_every_steps: PositiveInt
    """Regular interval of the kept weights and of the states from which an interrupted run goes on."""
    valid_every_steps: PositiveInt
    """Interval of validation and of the measurements of discrete weights."""
    valid_sequences: PositiveInt
    """Sequences of each validation: a fixed sample of the whole valid split."""
    log_every_steps: PositiveInt
    export_dtype: Literal["float32", "float16"]
    """Precision of the saved weights."""
    distillation: Annotated[Distillation | None, Field(exclude_if=lambda value: value is None)] = None
    """Left out where there is none, so that such runs are those that they were before there was a choice."""

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length

    @property
    def uses_loss_scaling(self) -> bool:
        """Whether half-precision gradients need a dynamic loss scale."""
        return self.precision == "16-mixed"

    @property
    def is_compiled(self) -> bool:
        """Whether blocks are compiled: by the size of the run, never by a stopwatch, for it changes the last digits."""
        tokens = self.max_steps * self.tokens_per_step
        return FLOPS_PER_PARAMETER * self.shape.num_parameters * tokens >= COMPILED_FROM_FLOPS

    def attention_form(self, device: str) -> AttentionForm:
        """Return how attention is computed on a kind of device (`cpu`, `cuda`): torch's CPU kernel is slow in half precision.

        A rule, never a stopwatch or a look at the processor, for the form changes the last digits. A run that goes on
        keeps the form it began with.
        """
        is_short_half = self.precision != "32-true" and self.sequence_length <= LONGEST_PRODUCTS
        return "products" if device == "cpu" and is_short_half else "fused"

    @cached_property
    def checkpoint_steps(self) -> frozenset[int]:
        """Steps whose weights are kept: 1, 2, 4, ... up to the regular interval, then its multiples.

        The last step is not among them: it is the model itself.
        """
        # ASSUME: the paper announces 500+ checkpoints for 18 runs and states no interval
        early = (2**power for power in range(self.checkpoint_every_steps.bit_length()))
        regular = range(self.checkpoint_every_steps, self.max_steps, self.checkpoint_every_steps)
        return frozenset(step for step in (*early, *regular) if step < self.max_steps)

    @property
    def summary(self) -> str:
        """What the run does, in one line."""
        rates = f"{self.peak_lr:g}" + (f" -> {self.peak_lr_after_drop:g}" if self.peak_lr_after_drop else "")
        return (
            f"{self.shape.num_parameters:,} parameters, peak rate {rates}, {self.max_steps:,} steps of "
            f"{self.global_batch_size} x {self.sequence_length} = {self.tokens_per_step:,} tokens"
            + (f", taught by {self.distillation.teacher}" if self.distillation else "")
        )

    @model_validator(mode="after")
    def _consistent(self):
        if self.sequence_length > self.shape.max_position_embeddings:
            raise ValueError(
                f"`sequence_length` must not exceed `max_position_embeddings`; "
                f"got {self.sequence_length} and {self.shape.max_position_embeddings}."
            )
        if (self.lr_drop_step is None) != (self.peak_lr_after_drop is None):
            raise ValueError("`lr_drop_step` and `peak_lr_after_drop` go together; give both or neither.")
        if self.lr_drop_step is not None and self.lr_drop_step < self.warmup_steps:
            raise ValueError(
                f"`lr_drop_step` must not fall into the warm-up; got {self.lr_drop_step} and {self.warmup_steps} steps."
            )
        return self


class CheckpointConfig(Config):
    """The weights of one step of a training run."""

    model_id: str
    family: FamilyName
    step: PositiveInt
