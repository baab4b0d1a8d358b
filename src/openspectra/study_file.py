"""What a study file may hold: one YAML file that says what is computed."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from openspectra.config import Config, Fraction, PositiveInt, Rate, Seed, Text
from openspectra.data.config import CorpusConfig, TokenFilesConfig, TokenizerConfig
from openspectra.evaluation.config import BUILT_TASKS, EvaluateConfig, TasksConfig
from openspectra.export.config import Format
from openspectra.model.config import Initialization
from openspectra.quantization.config import Bits, Damping
from openspectra.training.config import FamilyName, Precision

STUDY_NAME = r"^[a-z0-9][a-z0-9_-]{0,99}$"
SizeLabel = Annotated[str, Field(pattern=r"^[0-9A-Za-z]+(\.[0-9]+)?[A-Za-z]?$", max_length=16)]


class SizeConfig(Config):
    """One row of the model table; the label of the row is its key."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    scales_per_matrix: PositiveInt = 1
    """Scales of a ternary matrix: the MP column of the published model table."""


class RatesTable(Config):
    """Peak rates read from the result table of a sweep: per family and size the one with the lowest validation loss."""

    table: Text
    """CSV with columns family, size, peak_lr and valid_loss, relative to the project's folder."""


PeakRates = RatesTable | dict[SizeLabel, Rate | Annotated[list[Rate], Field(min_length=1)]]
"""A table, or a rate per size; a list of rates makes one variant per rate (`trilm/0.4M+lr4e-3`)."""


Intervention = Literal["both", "only-lr-drop", "only-decay-stop", "none"]
"""The four schedules of the paper's ablation; all but `both` are part of the model id (`trilm/1.1B+only-lr-drop`)."""


class LrDrop(Config):
    """The mid-run drop of the peak learning rate (paper, TriLM schedule)."""

    at: Fraction
    """Share of the steps after which the lower peak holds; past the warm-up."""
    to: Rate | dict[SizeLabel, Rate]
    """The lower peak: a rate per size, or one factor for all sizes."""


class DistillationConfig(Config):
    """A run more of each of some sizes, which learns from a finished model too (`trilm/0.4M+distilled`)."""

    teacher: Literal["floatlm"] = "floatlm"
    """Family of the teacher: the model of the same size, and seed, that this study trains."""
    sizes: Annotated[list[SizeLabel], Field(min_length=1)] | None = None
    """Sizes that are trained with a teacher as well as without; null: all."""
    hidden_states: bool = False
    """Whether the residual stream follows the teacher's after every block, beside the soft targets."""


class FamilyConfig(Config):
    """The recipe of a family."""

    schedule: Literal["cosine", "linear"]
    batch_tokens: PositiveInt
    """Tokens per optimizer step: a multiple of `training.sequence_length`."""
    peak_lr: PeakRates
    min_lr_fraction: Fraction = 0.0
    """Lowest learning rate after the warm-up, as a share of the peak: where a cosine ends, the floor of a line."""
    lr_drop: LrDrop | None = None
    weight_decay: Fraction
    weight_decay_stop_at: Fraction | None = None
    """Share of the steps after which weight decay is off."""
    quantized_embedding: bool = False
    """Whether the embedding is rounded by the family's rule for weights, each row with a scale of its own, and counted so;
    for families that have such a rule (`tbt_*`)."""
    interventions: Annotated[list[Intervention], Field(min_length=1)] = ["both"]
    """Which of `lr_drop` and `weight_decay_stop_at` take place; several make one variant each (paper, ablation)."""
    distillation: DistillationConfig | None = None
    """Whether the family is trained with soft targets of its FloatLM twin as well (arXiv 2306.01841)."""

    @model_validator(mode="after")
    def _interventions_exist(self):
        if self.interventions != ["both"] and not (self.lr_drop and self.weight_decay_stop_at is not None):
            raise ValueError(
                f"`interventions` chooses among `lr_drop` and `weight_decay_stop_at`; got {self.interventions} without both."
            )
        return self


class TrainingConfig(Config):
    """What all families share, so that they are twins."""

    total_tokens: PositiveInt
    """Tokens each model sees."""
    sequence_length: PositiveInt
    initialization: Initialization = "normal"
    """`normal` draws all matrices alike; `scaled_normal` and `small_init` those that write to the residual stream by depth."""
    initializer_range: Rate
    """Standard deviation of the initial normal draw; `small_init` takes its own from the width."""
    precision: Precision
    warmup_fraction: Fraction
    """Share of the steps until the peak learning rate is reached."""
    adam_betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    adam_eps: Rate
    gradient_clip_norm: Annotated[float, Field(gt=0)]
    checkpoints_per_run: PositiveInt
    validations_per_run: PositiveInt
    valid_sequences: PositiveInt
    """Sequences of each validation: a fixed sample of the whole valid split."""
    log_every_steps: PositiveInt
    export_dtype: Literal["float32", "float16"]


class TrajectoryConfig(Config):
    """Checkpoints of every FloatLM that are quantized too: the report draws the loss that this adds over training."""

    steps: Literal["all"] | Annotated[list[PositiveInt], Field(min_length=1)]
    """Steps whose weights a training keeps; `all`: every one."""
    bits: Annotated[list[Bits], Field(min_length=1)]


class QuantizationConfig(Config):
    """The QuantLMs: GPTQ of every FloatLM at each width."""

    bits: Annotated[list[Bits], Field(min_length=1)]
    group_size: dict[Bits, Annotated[int, Field(ge=-1)]]
    """Weights of a row that share a scale, by width; -1: the whole row."""
    num_calibration_samples: PositiveInt
    calibration_sequence_length: PositiveInt
    num_calibration_sets: PositiveInt = 1
    """Disjoint sets per width: the first gives `quantlm/<size>-<bits>bit`, the others `...-c1`, `...-c2`. In reports the
    first name stands for the mean over the sets."""
    desc_act: bool = False  # ASSUME: the paper does not state it; the default of GPTQ's own code
    """Whether GPTQ takes the columns in the order of their activations."""
    damp_percent: Damping = 0.01  # ASSUME: the paper does not state it; the default of GPTQ's own code
    """What GPTQ adds to the diagonal of the Hessian, as a share of its mean."""
    trajectory: TrajectoryConfig | None = None

    @model_validator(mode="after")
    def _complete(self):
        widths = {*self.bits, *(self.trajectory.bits if self.trajectory else [])}
        if missing := sorted(widths - set(self.group_size)):
            raise ValueError(f"`group_size` needs an entry for every width in `bits`; got none for {missing}.")
        return self


class EvaluationConfig(Config):
    """Benchmarks built from the test split, and the suites of tasks that are run on every model."""

    built_tasks: TasksConfig | None = None
    suites: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)], EvaluateConfig], Field(min_length=1)
    ]
    checkpoints: Literal["all"] | Annotated[list[Text], Field(min_length=1)] | None = None
    """Weights of earlier steps that are evaluated on every suite as well, so that scores are drawn against tokens seen:
    `trilm/99M@1000`, `quantlm/99M@1000-4bit`, or `all` that the trainings keep."""


class StudyFile(Config):
    """Everything that is computed. Threads, memory and folders are not here: they never change a number."""

    title: Text
    seed: Seed
    """Seeds the initial draw and the order of text (equal for all families), calibration, tasks and resampling."""
    seeds: Annotated[list[Seed], Field(min_length=2)] | None = None
    """Seeds of training, each a run of its own: that of `seed`, which must be among them, has the plain name, the others
    are variants (`trilm/99M+seed2`). All else of the study follows from `seed` alone."""
    base: Annotated[str, Field(pattern=STUDY_NAME)] | None = None
    """Study whose top-level keys hold where this file does not give them."""
    corpus: CorpusConfig | None = None
    """Text; or give `token_files`."""
    token_files: TokenFilesConfig | None = None
    """Text that is tokens already, in place of `corpus`."""
    tokenizer: TokenizerConfig
    training: TrainingConfig
    families: Annotated[dict[FamilyName, FamilyConfig], Field(min_length=1)]
    sizes: Annotated[dict[SizeLabel, SizeConfig], Field(min_length=1)]
    released: dict[FamilyName, dict[SizeLabel, Text]] | None = None
    """Released weights in place of training, by family and size: a folder below the data folder, or a repository of the hub,
    `owner/name` or `owner/name@commit`."""
    quantization: QuantizationConfig | None = None
    evaluation: EvaluationConfig | None = None
    """Left out in a sweep, which must not see the test split."""
    exports: dict[Text, Annotated[list[Format], Field(min_length=1)]] | None = None
    """Formats that models are taken away in, by model id (`trilm/99M`) or kind (`trilm`, `quantlm-4bit`: all of its sizes)."""
    num_resamples: PositiveInt = 2000
    """Bootstrap resamples of test documents behind every interval of the report."""

    @model_validator(mode="after")
    def _text_is_given(self):
        if self.released and self.quantization and self.quantization.trajectory:
            raise ValueError("`quantization.trajectory` needs trainings, whose checkpoints it quantizes; drop it.")
        if self.released and not (self.corpus or self.token_files):
            built = self.evaluation and self.evaluation.built_tasks
            wanting = [
                name
                for name, section in (("quantization", self.quantization), ("evaluation.built_tasks", built))
                if section
            ]
            if wanting:
                raise ValueError(
                    f"`{'` and `'.join(wanting)}` need text: give `corpus` or `token_files`, or set them to null."
                )
            return self
        if (self.corpus is None) == (self.token_files is None):
            raise ValueError("give `corpus` (text) or `token_files` (ready tokens), and not both.")
        if self.token_files and not self.tokenizer.file:
            raise ValueError("`token_files` need `tokenizer.file`, the tokenizer that made them; name it.")
        return self

    @model_validator(mode="after")
    def _seeds_make_runs(self):
        if self.seeds:
            if len(set(self.seeds)) < len(self.seeds) or self.seed not in self.seeds:
                raise ValueError(f"`seeds` must hold `seed`, {self.seed}, and each seed once; got {self.seeds}.")
            if self.released:
                raise ValueError(
                    "`seeds` are those of training, and `released` weights are not trained; drop one of them."
                )
        return self

    @model_validator(mode="after")
    def _released_models_are_known(self):
        for family, sources in (self.released or {}).items():
            if family not in self.families:
                raise ValueError(f"released.{family}: add the family to `families`, or drop it here.")
            if unknown := sorted(set(sources) - set(self.sizes)):
                raise ValueError(
                    f"released.{family}: {', '.join(unknown)}: no row in `sizes` ({', '.join(self.sizes)})."
                )
        return self

    @model_validator(mode="after")
    def _built_tasks_are_built(self):
        if self.evaluation:
            built = self.evaluation.built_tasks.tasks if self.evaluation.built_tasks else []
            for name, suite in self.evaluation.suites.items():
                if absent := [task for task in suite.tasks if task in BUILT_TASKS and task not in built]:
                    raise ValueError(
                        f"evaluation.suites.{name}.tasks: {', '.join(absent)} must be built; add to evaluation.built_tasks.tasks."
                    )
        return self

    @model_validator(mode="after")
    def _sizes_exist(self):
        length = self.training.sequence_length
        for name, family in self.families.items():
            if family.batch_tokens % length:
                raise ValueError(
                    f"families.{name}.batch_tokens must be a multiple of training.sequence_length, {length}; "
                    f"got {family.batch_tokens}. The next one is {-(-family.batch_tokens // length) * length}."
                )
            rates = {"peak_lr": family.peak_lr, "lr_drop.to": family.lr_drop and family.lr_drop.to}
            for key, by_size in rates.items():
                if isinstance(by_size, dict) and set(by_size) != set(self.sizes):
                    unknown, missing = sorted(set(by_size) - set(self.sizes)), sorted(set(self.sizes) - set(by_size))
                    raise ValueError(
                        f"families.{name}.{key} must have one entry for each of `sizes` ({', '.join(self.sizes)}); "
                        f"unknown: {unknown}, missing: {missing}."
                    )
        if len(self.rates_tables) > 1:
            raise ValueError(f"families must take their rates from one table; got {self.rates_tables}.")
        if self.quantization and "floatlm" not in self.families:
            raise ValueError(
                "`quantization` needs family `floatlm`, which it quantizes; add it or drop `quantization`."
            )
        return self

    @model_validator(mode="after")
    def _drops_follow_the_warm_up(self):
        for name, family in self.families.items():
            steps, warmup = self.max_steps(name), self.warmup_steps(name)
            if family.lr_drop and round(family.lr_drop.at * steps) < max(1, warmup):
                raise ValueError(
                    f"families.{name}.lr_drop.at: the drop must follow the warm-up of {warmup} steps; got "
                    f"{family.lr_drop.at} of {steps}. Drop later, lower training.warmup_fraction or raise "
                    "training.total_tokens"
                )
        return self

    def max_steps(self, family: FamilyName) -> int:
        """Return the optimizer steps of each run of a family."""
        return math.ceil(self.training.total_tokens / self.families[family].batch_tokens)

    def warmup_steps(self, family: FamilyName) -> int:
        """Return the optimizer steps until the peak learning rate."""
        return round(self.training.warmup_fraction * self.max_steps(family))

    @model_validator(mode="after")
    def _items_are_the_same_everywhere(self):
        suites = self.evaluation.suites if self.evaluation else {}
        given: dict[str, tuple[str, str | None]] = {}
        for name, suite in suites.items():
            for task in suite.tasks:
                other, path = given.setdefault(task, (name, suite.files.get(task)))
                if path != suite.files.get(task):
                    raise ValueError(
                        f"evaluation.suites.{name}.files.{task}: must be as in suite {other}, whose items are fetched and looked "
                        f"for in the text; got {suite.files.get(task)} and {path}."
                    )
        return self

    @property
    def rates_tables(self) -> list[str]:
        """Paths of the sweep tables that the study takes its rates from."""
        rates = [family.peak_lr for family in self.families.values()]
        return sorted({choice.table for choice in rates if isinstance(choice, RatesTable)})
