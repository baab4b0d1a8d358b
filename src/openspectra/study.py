"""A study: one YAML file that says what is computed, and the resolved config of every stage that follows from it.

Each stage gets only the keys it reads, so a changed task list re-evaluates and never retrains.
"""

import csv
import itertools
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from openspectra.config import Config, Fraction, PositiveInt, Rate, Seed, describe_problems, validate
from openspectra.data.config import (
    ContaminationConfig,
    CorpusConfig,
    PartConfig,
    ReadConfig,
    SourcesConfig,
    Split,
    TokenFilePartConfig,
    TokenFilesConfig,
    TokenizerConfig,
    TokenPartConfig,
    TokensConfig,
)
from openspectra.errors import ConfigError
from openspectra.evaluation.config import BUILT_TASKS, BenchmarksConfig, EvaluateConfig, TasksConfig
from openspectra.model.config import LlamaShape
from openspectra.model_ids import QUANTLM, ModelId
from openspectra.quantization.config import Bits, QuantizeConfig
from openspectra.reporting.config import ReportConfig
from openspectra.strict_yaml import read_yaml
from openspectra.training.config import FamilyName, Precision, PretrainConfig

SizeLabel = Annotated[str, Field(pattern=r"^[0-9A-Za-z]+(\.[0-9]+)?[A-Za-z]?$", max_length=16)]

VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of this times scales_per_matrix (paper, vocabulary rule)."""


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

    table: Annotated[str, Field(min_length=1)]
    """CSV with columns family, size, peak_lr and valid_loss, relative to the project's folder."""


PeakRates = RatesTable | dict[SizeLabel, Rate | Annotated[list[Rate], Field(min_length=1)]]
"""A table, or a rate per size; a list of rates makes one variant per rate (`trilm/0.4M+lr4e-3`)."""


Intervention = Literal["both", "only-lr-drop", "only-decay-stop", "none"]
"""The four schedules of the paper's ablation; all but `both` are part of the model id (`trilm/1.1B+only-lr-drop`)."""


class LrDrop(Config):
    """The mid-run drop of the peak learning rate (paper, TriLM schedule)."""

    at: Fraction
    """Share of the steps after which the lower peak holds."""
    to: Fraction | dict[SizeLabel, Rate]
    """The lower peak: a rate per size, or one factor for all sizes."""


class FamilyConfig(Config):
    """The recipe of a family."""

    schedule: Literal["cosine", "linear"]
    batch_tokens: PositiveInt
    """Tokens per optimizer step: a multiple of `training.sequence_length`."""
    micro_batch_size: PositiveInt
    """Sequences per forward and backward pass."""
    peak_lr: PeakRates
    min_lr_fraction: Fraction = 0.0
    """Last learning rate of a cosine schedule, as a share of its peak."""
    lr_drop: LrDrop | None = None
    weight_decay: Fraction
    weight_decay_stop_at: Fraction | None = None
    """Share of the steps after which weight decay is off."""
    interventions: Annotated[list[Intervention], Field(min_length=1)] = ["both"]
    """Which of `lr_drop` and `weight_decay_stop_at` take place; several make one variant each (paper, ablation)."""

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
    initializer_range: Rate
    """Standard deviation of the initial normal draw of every matrix."""
    precision: Precision
    warmup_fraction: Fraction
    """Share of the steps until the peak learning rate is reached."""
    adam_betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    adam_eps: Rate
    gradient_clip_norm: Annotated[float, Field(gt=0)]
    checkpoints_per_run: PositiveInt
    validations_per_run: PositiveInt
    valid_sequences: PositiveInt
    """Sequences of the valid split in each validation."""
    log_every_steps: PositiveInt
    export_dtype: Literal["float32", "float16"]


class QuantizationConfig(Config):
    """The QuantLMs: GPTQ of every FloatLM at each width."""

    bits: Annotated[list[Bits], Field(min_length=1)]
    group_size: dict[Bits, Annotated[int, Field(ge=-1)]]
    """Weights of a row that share a scale, by width; -1: the whole row."""
    num_calibration_samples: PositiveInt
    calibration_sequence_length: PositiveInt
    num_calibration_sets: PositiveInt = 1
    """Disjoint sets per width: the first gives `quantlm/<size>-<bits>bit`, the others `...-c1`, `...-c2`."""

    @model_validator(mode="after")
    def _complete(self):
        missing = sorted(set(self.bits) - set(self.group_size))
        if missing:
            raise ValueError(f"`group_size` needs an entry for every width in `bits`; got none for {missing}.")
        return self


class EvaluationConfig(Config):
    """Benchmarks built from the test split, and the suites of tasks that are run on every model."""

    built_tasks: TasksConfig | None = None
    suites: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], EvaluateConfig], Field(min_length=1)]


class Study(Config):
    """Everything that is computed. Threads, memory and folders are not here: they never change a number."""

    title: str
    seed: Seed
    """Seeds the initial draw and the order of text (equal for all families), calibration, tasks and resampling."""
    base: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] | None = None
    """Study whose top-level keys hold where this file does not give them."""
    corpus: CorpusConfig | None = None
    """Text; or give `token_files`."""
    token_files: TokenFilesConfig | None = None
    """Text that is tokens already, in place of `corpus`."""
    tokenizer: TokenizerConfig
    training: TrainingConfig
    families: Annotated[dict[FamilyName, FamilyConfig], Field(min_length=1)]
    sizes: Annotated[dict[SizeLabel, SizeConfig], Field(min_length=1)]
    quantization: QuantizationConfig | None = None
    evaluation: EvaluationConfig | None = None
    """Left out in a sweep, which must not see the test split."""
    num_resamples: PositiveInt = 2000
    """Bootstrap resamples of test documents behind every interval of the report."""

    @model_validator(mode="after")
    def _text_is_given(self):
        if (self.corpus is None) == (self.token_files is None):
            raise ValueError("give `corpus` (text) or `token_files` (ready tokens), and not both.")
        if self.token_files and not self.tokenizer.file:
            raise ValueError("`token_files` need `tokenizer.file`, the tokenizer that made them; name it.")
        if self.token_files and self.evaluation and self.evaluation.built_tasks:
            raise ValueError(
                "evaluation.built_tasks needs `corpus`, from whose test split it builds; drop one of them."
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
        if len(rates_tables(self)) > 1:
            raise ValueError(f"families must take their rates from one table; got {rates_tables(self)}.")
        if self.quantization and "floatlm" not in self.families:
            raise ValueError(
                "`quantization` needs family `floatlm`, which it quantizes; add it or drop `quantization`."
            )
        return self

    @cached_property
    def rates(self) -> dict[tuple[str, str], list[float]]:
        """Peak rates by (family, size). Raises `ConfigError` where a table is unreadable or lacks an entry."""
        return {
            (name, size): _rates_of(family.peak_lr, name, size)
            for name, family in self.families.items()
            for size in self.sizes
        }

    @cached_property
    def pretrained(self) -> dict[str, PretrainConfig]:
        """Resolved config of every pretraining run, by model id."""
        configs = {}
        for (family, size), rates in self.rates.items():
            for rate, intervention in itertools.product(rates, self.families[family].interventions):
                labels = [f"lr{rate_label(rate)}"] * (len(rates) > 1) + [intervention] * (intervention != "both")
                model_id = str(ModelId(family, size, variant="-".join(labels) or None))
                configs[model_id] = self._pretrain_config(model_id, family, size, rate, intervention)
        return configs

    @cached_property
    def quantized(self) -> dict[str, QuantizeConfig]:
        """Resolved config of every QuantLM, by model id."""
        if not self.quantization:
            return {}
        parents = [parent for parent in map(ModelId.parse, self.pretrained) if parent.family == "floatlm"]
        ids = [
            str(ModelId(QUANTLM, parent.size, parent.variant, bits=bits, calibration=number or None))
            for parent in parents
            for bits in self.quantization.bits
            for number in range(self.quantization.num_calibration_sets)
        ]
        return {model_id: self.quantize_config(model_id) for model_id in ids}

    def quantize_config(self, model_id: str) -> QuantizeConfig:
        """Return the resolved config of a QuantLM, of a final model or of a checkpoint (`quantlm/99M@1000-4bit`)."""
        section, model = self.quantization, ModelId.parse(model_id)
        return QuantizeConfig(
            model_id=model_id,
            bits=model.bits,
            group_size=section.group_size[model.bits],
            num_calibration_samples=section.num_calibration_samples,
            calibration_sequence_length=section.calibration_sequence_length,
            calibration_set=model.calibration or 0,
            seed=self.seed,
        )

    @property
    def models(self) -> list[str]:
        """Every model id of the study."""
        return [*self.pretrained, *self.quantized]

    @property
    def splits(self) -> list[Split]:
        """Splits that become token shards: the test split is read as text, by the tasks alone."""
        return ["train", "valid"]

    @property
    def source_jobs(self) -> list[tuple[str, int]]:
        """Source and number of every job that reads text."""
        sources = self.corpus.sources if self.corpus else {}
        return [(name, job) for name, source in sources.items() for job in range(source.num_jobs)]

    @property
    def num_parts(self) -> int:
        """Parts that are tokenized in parallel."""
        return self.corpus.num_parts if self.corpus else len(self.token_files.parts)

    @property
    def lm_eval_tasks(self) -> list[str]:
        """Tasks of the evaluation that the study does not build: their data come from the hub."""
        suites = self.evaluation.suites.values() if self.evaluation else ()
        return sorted({task for suite in suites for task in suite.tasks} - set(BUILT_TASKS))

    @property
    def checks_contamination(self) -> bool:
        """Whether there is text, and a benchmark to look for in it."""
        return bool(self.corpus and (self.corpus.benchmarks or self.evaluation))

    @property
    def data_configs(self) -> dict[str, Config]:
        """Resolved configs of sources, corpus, tokenizer and tokens; jobs and parts of one kind share theirs."""
        configs: dict[str, Config] = {"tokenizer": self.tokenizer}
        configs |= {f"tokens/{split}": TokensConfig(split=split) for split in self.splits}
        if self.lm_eval_tasks:
            configs["benchmarks"] = BenchmarksConfig(tasks=self.lm_eval_tasks)
        if self.token_files:
            return configs | {"tokens/parts": TokenFilePartConfig(**self.token_files.model_dump())}
        corpus = self.corpus
        weights = {name: source.weight for name, source in corpus.sources.items() if source.weight}
        for name, source in corpus.sources.items():
            configs[f"sources/parts/{name}"] = ReadConfig(
                name=name,
                source=source,
                min_characters=corpus.min_characters,
                max_document_bytes=corpus.max_document_bytes,
                num_parts=corpus.num_parts,
            )
        configs["sources"] = SourcesConfig(sources=list(corpus.sources))
        configs["corpus/parts"] = PartConfig(
            num_parts=corpus.num_parts,
            weights=weights or None,
            valid_fraction=corpus.valid_fraction,
            test_fraction=corpus.test_fraction,
            sample_fraction=corpus.sample_fraction,
        )
        configs["corpus"] = corpus
        configs["tokens/parts"] = TokenPartConfig(splits=self.splits)
        if self.checks_contamination:
            configs["contamination"] = ContaminationConfig(benchmarks=corpus.benchmarks)
        return configs

    def report_config(self, name: str) -> ReportConfig:
        """Return the resolved config of the report of the study called `name`."""
        return ReportConfig(study=name, title=self.title, seed=self.seed, num_resamples=self.num_resamples)

    def _pretrain_config(
        self, model_id: str, family: FamilyName, size: SizeLabel, rate: float, intervention: Intervention
    ) -> PretrainConfig:
        training, recipe, row = self.training, self.families[family], self.sizes[size]
        max_steps = math.ceil(training.total_tokens / recipe.batch_tokens)
        drop = recipe.lr_drop if intervention in ("both", "only-lr-drop") else None
        stop = recipe.weight_decay_stop_at if intervention in ("both", "only-decay-stop") else None
        multiple = VOCAB_MULTIPLE * row.scales_per_matrix
        return PretrainConfig(
            model_id=model_id,
            family=family,
            shape=LlamaShape(
                vocab_size=math.ceil(self.tokenizer.vocab_size / multiple) * multiple,
                max_position_embeddings=training.sequence_length,
                initializer_range=training.initializer_range,
                **row.model_dump(),
            ),
            seed=self.seed,
            precision=training.precision,
            sequence_length=training.sequence_length,
            global_batch_size=recipe.batch_tokens // training.sequence_length,
            micro_batch_size=recipe.micro_batch_size,
            max_steps=max_steps,
            warmup_steps=round(training.warmup_fraction * max_steps),
            schedule=recipe.schedule,
            peak_lr=rate,
            min_lr=recipe.min_lr_fraction * rate,
            lr_drop_step=round(drop.at * max_steps) if drop else None,
            peak_lr_after_drop=(drop.to[size] if isinstance(drop.to, dict) else drop.to * rate) if drop else None,
            weight_decay=recipe.weight_decay,
            weight_decay_stop_step=round(stop * max_steps) if stop is not None else None,
            adam_betas=training.adam_betas,
            adam_eps=training.adam_eps,
            gradient_clip_norm=training.gradient_clip_norm,
            checkpoint_every_steps=math.ceil(max_steps / training.checkpoints_per_run),
            valid_every_steps=math.ceil(max_steps / training.validations_per_run),
            valid_sequences=training.valid_sequences,
            log_every_steps=training.log_every_steps,
            export_dtype=training.export_dtype,
        )


def load_study(path: Path) -> Study:
    """Return the study in a YAML file, every stage config resolved once.

    Raises `ConfigError` with all problems found, each naming file, key, value and remedy.
    """
    study = validate(Study, _with_base(path), str(path))
    problems = []
    for resolve in (lambda: study.pretrained, lambda: study.quantized):
        try:
            resolve()
        except ValidationError as error:
            problems += describe_problems(str(path), error, PretrainConfig)
        except ConfigError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
    for label, row in study.sizes.items():
        problems += _group_size_problems(path, label, row, study.quantization)
    if problems:
        raise ConfigError(problems)
    return study


def rates_tables(study: Study) -> list[str]:
    """Return the paths of the sweep tables that the study takes its rates from."""
    rates = [family.peak_lr for family in study.families.values()]
    return sorted({choice.table for choice in rates if isinstance(choice, RatesTable)})


def resolved_configs(study: Study, name: str) -> dict[str, Config]:
    """Return every stage config of the study called `name`, by the path of its artifact below `results/<name>`."""
    configs = study.data_configs | study.pretrained | study.quantized
    if study.evaluation:
        if study.evaluation.built_tasks:
            configs["tasks"] = study.evaluation.built_tasks
        configs |= {f"evaluation/{suite}": config for suite, config in study.evaluation.suites.items()}
    return configs | {"report": study.report_config(name)}


def rate_label(rate: float) -> str:
    """Return a rate as it stands in model ids: 0.004 -> `4e-3`."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _with_base(path: Path) -> Any:
    """Return the content of a study file on top of its base; a key set to null takes the base's away."""
    content = read_yaml(path)
    base = content.get("base") if isinstance(content, dict) else None
    if not isinstance(base, str):
        return content
    below = read_yaml(path.parent / f"{base}.yaml")
    if not isinstance(below, dict) or "base" in below:
        raise ConfigError([f"{path}: base: {base!r} must be a study that stands on no other; name its base."])
    return below | content


def _group_size_problems(path: Path, label: str, row: SizeConfig, section: QuantizationConfig | None) -> list[str]:
    groups = section.group_size.items() if section else ()
    return [
        f"{path}: quantization.group_size.{bits}: must divide `{name}` of size {label}; got {group} and {width}. Choose a divisor or -1."
        for bits, group in groups
        for name, width in (("hidden_size", row.hidden_size), ("intermediate_size", row.intermediate_size))
        if group == 0 or (group > 0 and width % group)
    ]


def _rates_of(rates: PeakRates, family: str, size: str) -> list[float]:
    if not isinstance(rates, RatesTable):
        given = rates[size]
        return given if isinstance(given, list) else [given]
    key = f"families.{family}.peak_lr.table: {rates.table}"
    try:
        lines = [
            line for line in Path(rates.table).read_text(encoding="utf-8").splitlines() if not line.startswith("#")
        ]
        rows = [row for row in csv.DictReader(lines) if (row["family"], row["size"]) == (family, size)]
        best = min(rows, key=lambda row: float(row["valid_loss"]), default=None)
        rate = float(best["peak_lr"]) if best else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{key}: cannot be read ({error}); run the study that writes it, or list rates."]) from None
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            [f"{key}: not a table of family, size, peak_lr and valid_loss ({error}); write it anew."]
        ) from None
    if rate is None:
        raise ConfigError([f"{key}: no row for {family} {size}; run the study that writes it for this size."])
    return [rate]
