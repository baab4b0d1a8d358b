"""From a study file to the resolved config of every stage.

Each stage gets only the keys it reads, so a changed task list re-evaluates and never retrains.
"""

import csv
import itertools
import math
import re
from dataclasses import replace
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
from openspectra.export.config import ExportConfig
from openspectra.model.config import LlamaShape, ReleaseConfig
from openspectra.model.size import (
    bits_per_weight,
    counted_parameters,
    model_size_bits,
    padded_rows,
    parameters_of,
    quantized_embedding,
)
from openspectra.model_ids import DISTILLED, QUANTLM, ModelId, rate_label, seed_label
from openspectra.quantization.config import QuantizeConfig
from openspectra.reporting.config import ReportConfig
from openspectra.strict_yaml import read_yaml
from openspectra.study_file import (
    STUDY_NAME,
    FamilyConfig,
    Intervention,
    PeakRates,
    RatesTable,
    SizeLabel,
    StudyFile,
)
from openspectra.study_problems import export_problems, section_problems, trajectory_problems
from openspectra.training.config import CheckpointConfig, Distillation, FamilyName, PretrainConfig


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

    @property
    def pretrained(self) -> dict[str, PretrainConfig]:
        """Resolved config of every pretraining run, by model id; none where weights are taken as released."""
        return {} if self.released else self.recipes

    @cached_property
    def imported(self) -> dict[str, ReleaseConfig]:
        """Resolved config of every model whose weights are taken as released, by model id."""
        recipes = {name: run for name, run in self.recipes.items() if not ModelId.parse(name).variant}
        return {
            model_id: ReleaseConfig(
                model_id=model_id,
                family=run.family,
                source=source.partition("@")[0],
                revision=source.partition("@")[2] or None,
                shape=run.shape,
                vocab_size=self.tokenizer.vocab_size,
                tokens_seen=self.training.total_tokens,
            )
            for model_id, run in recipes.items()
            if (source := (self.released or {}).get(run.family, {}).get(ModelId.parse(model_id).size))
        }

    @cached_property
    def recipes(self) -> dict[str, PretrainConfig]:
        """Config of every pretraining run that families and sizes describe, also where none is trained; teachers first."""
        configs = self._recipes({})
        return configs | self._recipes(configs)

    def _recipes(self, teachers: dict[str, PretrainConfig]) -> dict[str, PretrainConfig]:
        """Return the configs of the runs that learn from `teachers`; without any, of all that learn from text alone."""
        configs = {}
        for (family, size), rates in self.rates.items():
            recipe, seeds = self.families[family], self.seeds or [self.seed]
            if teachers and size not in self.distilled_sizes(recipe):
                continue
            for rate, intervention, seed in itertools.product(rates, recipe.interventions, seeds):
                labels = [f"lr{rate_label(rate)}"] * (len(rates) > 1) + [intervention] * (intervention != "both")
                labels += [DISTILLED] * bool(teachers) + [seed_label(seed)] * (seed != self.seed)
                model_id = str(ModelId(family, size, variant="-".join(labels) or None))
                config = self._pretrain_config(model_id, family, size, rate, intervention, seed)
                if teachers:
                    twin = recipe.distillation.teacher, size, seed
                    (teacher,) = (name for name, run in teachers.items() if _twin_of(name, run) == twin)
                    section = Distillation(teacher=teacher, hidden_states=recipe.distillation.hidden_states)
                    config = config.model_copy(update={"distillation": section})
                configs[model_id] = config
        return configs

    def distilled_sizes(self, recipe: FamilyConfig) -> list[str]:
        """Return the sizes of a family that are trained with a teacher as well."""
        return (recipe.distillation.sizes or list(self.sizes)) if recipe.distillation else []

    @cached_property
    def quantized(self) -> dict[str, QuantizeConfig]:
        """Resolved config of every QuantLM, by model id."""
        if not self.quantization:
            return {}
        trained = [*self.pretrained, *self.imported]
        parents = [parent for parent in map(ModelId.parse, trained) if parent.family == "floatlm"]
        ids = [
            str(ModelId(QUANTLM, parent.size, parent.variant, bits=bits, calibration=number or None))
            for parent in parents
            for bits in self.quantization.bits
            for number in range(self.quantization.num_calibration_sets)
        ]
        return {model_id: self.quantize_config(model_id) for model_id in ids}

    @cached_property
    def trajectory(self) -> dict[str, QuantizeConfig]:
        """Resolved config of every QuantLM of a checkpoint that the study asks for, by model id."""
        section = self.quantization and self.quantization.trajectory
        if not section:
            return {}
        ids = [
            str(ModelId(QUANTLM, parent.size, parent.variant, step, bits))
            for name, run in self.pretrained.items()
            if (parent := ModelId.parse(name)).family == "floatlm"
            for step in sorted(run.checkpoint_steps if section.steps == "all" else set(section.steps))
            for bits in dict.fromkeys(section.bits)
        ]
        return {model_id: self.quantize_config(model_id) for model_id in ids}

    @cached_property
    def checkpoints(self) -> dict[str, CheckpointConfig | QuantizeConfig]:
        """Resolved config of every checkpoint that is evaluated, and of those that such QuantLMs are made from.

        Raises `ConfigError` for what no training keeps.
        """
        asked = self.evaluation.checkpoints if self.evaluation else None
        if asked == "all":
            asked = [f"{name}@{step}" for name, run in self.pretrained.items() for step in sorted(run.checkpoint_steps)]
        found: dict[str, CheckpointConfig | QuantizeConfig] = {}
        problems = []
        for name in asked or []:
            try:
                model = ModelId.parse(name)
                found |= self._checkpoint_configs(model)
            except ValueError as error:
                problems.append(f"evaluation.checkpoints: {error}")
        if problems:
            raise ConfigError(problems)
        return found

    @property
    def evaluated_checkpoints(self) -> list[str]:
        """The ids of the checkpoints that are evaluated."""
        asked = self.evaluation.checkpoints if self.evaluation else None
        return list(self.checkpoints) if asked == "all" else list(asked or [])

    def _checkpoint_configs(self, model: ModelId) -> dict[str, CheckpointConfig | QuantizeConfig]:
        """Return the configs that one evaluated checkpoint needs. Raises `ValueError` for what no training keeps."""
        trained = model.float_parent if model.family == QUANTLM else model
        run = self.pretrained.get(str(replace(trained, step=None)))
        if run is None:
            raise ValueError(
                f"{model}: no model is trained to keep it; name one of {', '.join(self.pretrained)} with @step."
            )
        if model.step not in run.checkpoint_steps:
            kept = ", ".join(map(str, sorted(run.checkpoint_steps)))
            raise ValueError(f"{model}: no weights are kept of this step; kept: {kept}.")
        configs = {str(trained): CheckpointConfig(model_id=str(trained), family=run.family, step=model.step)}
        if model.family == QUANTLM:
            if str(replace(model, step=None)) not in self.quantized:
                raise ValueError(f"{model}: the study makes no {replace(model, step=None)}; correct it.")
            configs[str(model)] = self.quantize_config(str(model))
        return configs

    def quantize_config(self, model_id: str) -> QuantizeConfig:
        """Return the resolved config of a QuantLM, of a final model or of a checkpoint (`quantlm/99M@1000-4bit`)."""
        section, model = self.quantization, ModelId.parse(model_id)
        return QuantizeConfig(
            model_id=model_id,
            bits=model.bits,
            group_size=section.group_size[model.bits],
            desc_act=section.desc_act,
            damp_percent=section.damp_percent,
            num_calibration_samples=section.num_calibration_samples,
            calibration_sequence_length=section.calibration_sequence_length,
            calibration_set=model.calibration or 0,
            seed=self.seed,
        )

    @property
    def models(self) -> list[str]:
        """The id of every model that is made."""
        return [*self.pretrained, *self.imported, *self.quantized]

    @cached_property
    def shares_processes(self) -> bool:
        """Whether all QuantLMs of a size are made by one process, and all its models evaluated by one.

        So it is where libraries take longer to load than anything takes to compute. Larger models have a job each, which
        a cluster runs side by side; so have the variants of a study, of which sizes have different numbers.
        """
        is_small = not any(run.is_compiled for run in self.recipes.values())
        has_variants = any(ModelId.parse(model_id).variant for model_id in self.recipes)
        return is_small and not has_variants and not self.released

    def jobs_of(self, models: list[str]) -> dict[str, list[str]]:
        """Return which of `models` one job quantizes or evaluates, by what names the job: a size, or the model itself."""
        if not self.shares_processes:
            return {model: [model] for model in models}
        jobs: dict[str, list[str]] = {}
        for model in models:
            jobs.setdefault(ModelId.parse(model).size, []).append(model)
        return jobs

    @property
    def evaluated(self) -> list[str]:
        """The id of everything that the suites are run on: all models, and the checkpoints that are named."""
        return [*self.models, *self.evaluated_checkpoints]

    @property
    def compared_models(self) -> list[str]:
        """The ids that are counted and compared: of several calibration sets the first id stands for their mean."""
        return [model_id for model_id in self.models if not ModelId.parse(model_id).calibration]

    @property
    def exported(self) -> dict[str, ExportConfig]:
        """Resolved config of every export, by its place below `results/<study>`."""
        pairs = [
            (model_id, form)
            for key, forms in (self.exports or {}).items()
            for model_id in self.models_called(key)
            for form in forms
        ]
        return {
            f"exports/{model_id}/{form}": ExportConfig(model=model_id, format=form)
            for model_id, form in dict.fromkeys(pairs)
        }

    def models_called(self, key: str) -> list[str]:
        """Return the models of a key of `exports`: one id, or a kind."""
        if key in self.models:
            return [key]
        return [model_id for model_id in self.compared_models if ModelId.parse(model_id).kind == key]

    @property
    def sizes_in_bits(self) -> dict[str, float]:
        """Size of each compared model by the paper's rule, in bits."""
        return {model_id: self._size_in_bits(ModelId.parse(model_id)) for model_id in self.compared_models}

    @property
    def splits(self) -> list[Split]:
        """Splits that become token shards. The test split of a corpus is read as text; that of ready tokens is made text."""
        if not self.has_text:
            return []
        return ["train", "valid"] if self.corpus else ["train", "valid", "test"]

    @property
    def has_text(self) -> bool:
        """Whether there is anything to read; released weights can be evaluated without."""
        return bool(self.corpus or self.token_files)

    @property
    def source_jobs(self) -> list[tuple[str, int]]:
        """Source and number of every job that reads text."""
        sources = self.corpus.sources if self.corpus else {}
        return [(name, job) for name, source in sources.items() for job in range(source.num_jobs)]

    @property
    def num_parts(self) -> int:
        """Parts that are tokenized in parallel."""
        if not self.has_text:
            return 0
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
        configs: dict[str, Config] = {"tokenizer": self.tokenizer} if self.has_text else {}
        configs |= {f"tokens/{split}": TokensConfig(split=split) for split in self.splits}
        if self.lm_eval_tasks:
            files = {task: path for suite in self.evaluation.suites.values() for task, path in suite.files.items()}
            configs["benchmarks"] = BenchmarksConfig(tasks=self.lm_eval_tasks, files=files)
        if self.token_files:
            return configs | {"tokens/parts": TokenFilePartConfig(**self.token_files.model_dump())}
        if not self.corpus:
            return configs
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

    @property
    def artifacts(self) -> dict[str, str]:
        """What the study consists of: the stage of every artifact by its place below `results/<name>`, causes first."""
        places = {f"sources/parts/{name}/{job}": "source" for name, job in self.source_jobs}
        if self.corpus:
            places["sources"] = "sources"
            places |= {f"corpus/parts/{part}": "part" for part in range(self.num_parts)} | {"corpus": "corpus"}
        places |= {"tokenizer": "tokenizer"} if self.has_text else {}
        places |= {f"tokens/parts/{part}": "token_part" for part in range(self.num_parts)}
        places |= {f"tokens/{split}": "tokens" for split in self.splits}
        if self.lm_eval_tasks:
            places["benchmarks"] = "benchmarks"
        if self.evaluation and self.evaluation.built_tasks:
            places["tasks"] = "tasks"
        if self.checks_contamination:
            places["contamination"] = "contamination"
        places |= dict.fromkeys(self.pretrained, "pretrain") | dict.fromkeys(self.imported, "release")
        checkpoints = [str(ModelId.parse(model).float_parent) for model in self.trajectory]
        places |= dict.fromkeys(checkpoints, "checkpoint")
        places |= dict.fromkeys([*self.quantized, *self.trajectory], "quantize")
        stages = {CheckpointConfig: "checkpoint", QuantizeConfig: "quantize"}
        places |= {name: stages[type(config)] for name, config in self.checkpoints.items()}
        suites = self.evaluation.suites if self.evaluation else ()
        places |= {f"evaluation/{model}/{suite}": "evaluate" for model in self.evaluated for suite in suites}
        return places | dict.fromkeys(self.exported, "export")

    def report_config(self, name: str) -> ReportConfig:
        """Return the resolved config of the report of the study called `name`."""
        return ReportConfig(study=name, title=self.title, seed=self.seed, num_resamples=self.num_resamples)

    def _size_in_bits(self, model: ModelId) -> float:
        trained = model.float_parent if model.family == QUANTLM else model
        shape = self.recipes[str(trained)].shape
        counted = counted_parameters(parameters_of(shape, trained.family), shape, self.tokenizer.vocab_size)
        group_size = self.quantization.group_size[model.bits] if model.bits else None
        width = bits_per_weight(model.kind, group_size)
        embedding = quantized_embedding(shape, self.tokenizer.vocab_size)
        return model_size_bits(shape.num_linear_parameters, counted, width, *embedding)

    def _pretrain_config(
        self, model_id: str, family: FamilyName, size: SizeLabel, rate: float, intervention: Intervention, seed: int
    ) -> PretrainConfig:
        training, recipe, row = self.training, self.families[family], self.sizes[size]
        max_steps, warmup_steps = self.max_steps(family), self.warmup_steps(family)
        drop = recipe.lr_drop if intervention in ("both", "only-lr-drop") else None
        stop = recipe.weight_decay_stop_at if intervention in ("both", "only-decay-stop") else None
        return PretrainConfig(
            model_id=model_id,
            family=family,
            shape=LlamaShape(
                vocab_size=padded_rows(self.tokenizer.vocab_size, row.scales_per_matrix),
                max_position_embeddings=training.sequence_length,
                initialization=training.initialization,
                initializer_range=training.initializer_range,
                quantized_embedding=recipe.quantized_embedding,
                **row.model_dump(),
            ),
            seed=seed,
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
    problems = section_problems(study)
    if not problems:
        try:
            problems += trajectory_problems(study)
            _ = study.pretrained, study.imported, study.quantized, study.checkpoints
            problems += export_problems(study)
        except ValidationError as error:
            raise ConfigError(describe_problems(str(path), error, PretrainConfig)) from None
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return study


def resolved_configs(study: Study, name: str) -> dict[str, Config]:
    """Return every stage config of the study called `name`, by the path of its artifact below `results/<name>`."""
    configs = study.data_configs | study.pretrained | study.imported
    configs |= study.quantized | study.trajectory | study.checkpoints | study.exported
    if study.evaluation:
        if study.evaluation.built_tasks:
            configs["tasks"] = study.evaluation.built_tasks
        configs |= {f"evaluation/{suite}": config for suite, config in study.evaluation.suites.items()}
    return configs | {"report": study.report_config(name)}


def _with_base(path: Path) -> Any:
    """Return the content of a study file on top of its base; a key set to null takes the base's away."""
    content = read_yaml(path)
    base = content.get("base") if isinstance(content, dict) else None
    if base is None:
        return content
    if not isinstance(base, str) or not re.fullmatch(STUDY_NAME, base):
        raise ConfigError([f"{path}: base: must be the name of a study, `a-z`, `0-9`, `-` and `_`; got {ascii(base)}."])
    below = read_yaml(path.parent / f"{base}.yaml")
    if not isinstance(below, dict) or "base" in below:
        raise ConfigError([f"{path}: base: {base!r} must be a study that stands on no other; name its base."])
    return below | content


def _twin_of(model_id: str, run: PretrainConfig) -> tuple[str, str, int]:
    """Return family, size and seed of a run."""
    return run.family, ModelId.parse(model_id).size, run.seed


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
