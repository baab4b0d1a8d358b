"""From a study file to the resolved config of every stage.

Each stage gets only the keys it reads, so a changed task list re-evaluates and never retrains.
"""

import csv
import itertools
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openspectra.config import Config, describe_problems, validate
from openspectra.data.config import (
    ContaminationConfig,
    PartConfig,
    ReadConfig,
    SourcesConfig,
    Split,
    TokenFilePartConfig,
    TokenPartConfig,
    TokensConfig,
)
from openspectra.errors import ConfigError
from openspectra.evaluation.config import BUILT_TASKS, BenchmarksConfig
from openspectra.model.config import LlamaShape
from openspectra.model_ids import QUANTLM, ModelId, rate_label
from openspectra.quantization.config import QuantizeConfig
from openspectra.reporting.config import ReportConfig
from openspectra.strict_yaml import read_yaml
from openspectra.study_file import (
    Intervention,
    PeakRates,
    QuantizationConfig,
    RatesTable,
    SizeConfig,
    SizeLabel,
    StudyFile,
)
from openspectra.training.config import FamilyName, PretrainConfig

VOCAB_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of this times scales_per_matrix (paper, vocabulary rule)."""


class Study(StudyFile):
    """A study file, and everything that follows from it: model ids, and the resolved config of each stage."""

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
        max_steps, warmup_steps = self.max_steps(family), self.warmup_steps(family)
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
            max_steps=max_steps,
            warmup_steps=warmup_steps,
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


def resolved_configs(study: Study, name: str) -> dict[str, Config]:
    """Return every stage config of the study called `name`, by the path of its artifact below `results/<name>`."""
    configs = study.data_configs | study.pretrained | study.quantized
    if study.evaluation:
        if study.evaluation.built_tasks:
            configs["tasks"] = study.evaluation.built_tasks
        configs |= {f"evaluation/{suite}": config for suite, config in study.evaluation.suites.items()}
    return configs | {"report": study.report_config(name)}


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
