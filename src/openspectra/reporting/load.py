"""The artifacts of a study as tables in memory: models, their curves, scores and scored documents.

What is absent is `None` or named in `Model.missing`; nothing absent becomes a zero.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from openspectra.artifacts import Artifact
from openspectra.errors import OpenSpectraError
from openspectra.evaluation.scores import DOCUMENT_COLUMNS, SCORE_COLUMNS
from openspectra.identity import evaluated_model, in_order, kind_rank, suite_name
from openspectra.model_ids import ModelId
from openspectra.reporting.calibration_sets import with_set_means
from openspectra.reporting.plan import Plan

MODEL_STAGES = ("pretrain", "release", "checkpoint", "quantize")
HELD_OUT = "held_out_text"
"""The task whose documents are the test text of a study."""
CURVE_COLUMNS = ("step", "tokens_seen")
CURVE_TEXT = ("layer", "source", "place")
ACCURACY_METRICS = ("acc_norm", "acc", "exact_match")
"""Metrics that may stand for a task, best first, where its builder names none."""
ROUGE = "rouge1"
"""What stands for the generation tasks of a study; in no mean with accuracies."""
PAPER_AVERAGE = {
    "arc_challenge": "acc_norm",
    "arc_easy": "acc_norm",
    "boolq": "acc",
    "hellaswag": "acc_norm",
    "piqa": "acc_norm",
    "winogrande": "acc",
}
"""The six tasks that the paper averages, each by this metric (resources/paper/suite.yaml, evaluation)."""


@dataclass(frozen=True)
class Model:
    """One model of the study, or the gap it leaves: then `artifact` is None and `missing` says why."""

    id: ModelId
    artifact: Artifact | None = None
    evaluations: tuple[Artifact, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return self.artifact.manifest.config if self.artifact else {}

    @property
    def is_trained_here(self) -> bool:
        """Whether it has a training run: neither a QuantLM nor released weights."""
        return bool(self.artifact and self.artifact.manifest.stage == "pretrain")

    def metric(self, name: str) -> float | None:
        """Return a summary metric of the model's own stage, None where it has none."""
        return self.artifact.manifest.metrics.get(name) if self.artifact else None


@dataclass(frozen=True)
class Results:
    """Everything the page shows, read once and checked against the manifests."""

    artifacts: list[Artifact]
    models: list[Model]
    scores: pd.DataFrame
    """Columns model_id and those of `scores.csv`; a task that several suites hold is named `task (suite)`. `num_sets`
    and `spread` speak of calibration sets, over which the score is a mean."""
    documents: pd.DataFrame
    """Columns model_id and those of `documents.csv`: test documents, log-likelihood in nats summed over each."""
    corpora: pd.DataFrame
    """The same of documents that are not of the study's own text."""
    task_facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Chance level, number of items and main metric of the built tasks."""
    plan: Plan | None = None
    """What the study plans, where its file is known."""
    checkpoints: list[Model] = field(default_factory=list)
    """Weights of earlier steps that were evaluated; no table of models and no count holds them."""
    checkpoint_scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    checkpoint_documents: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def study_models(self) -> list[Model]:
        """The models whose ids have no optional part: those that the figures and the counts are about."""
        return [
            model for model in self.models if model.id == ModelId(model.id.family, model.id.size, bits=model.id.bits)
        ]

    @property
    def single_sets(self) -> list[Model]:
        """The QuantLMs of single calibration sets whose mean is one of the study's models."""
        plain = {str(model.id) for model in self.study_models}
        return [
            model
            for model in self.models
            if model.id.calibration is not None and str(replace(model.id, calibration=None)) in plain
        ]

    @cached_property
    def seeds(self) -> dict[str, list[Model]]:
        """The training runs of each model that was trained with several seeds, or quantized from such, its own first."""
        runs: dict[str, list[Model]] = {}
        for model in self.models:
            runs.setdefault(str(model.id.first_seed), []).append(model)
        own_first = {name: sorted(found, key=lambda each: str(each.id) != name) for name, found in runs.items()}
        return {name: found for name, found in own_first.items() if len(found) > 1}

    @cached_property
    def sizes(self) -> list[str]:
        """Size labels, smallest model first."""
        return list(dict.fromkeys(model.id.size for model in self.models))

    @cached_property
    def kinds(self) -> list[str]:
        """The columns of the study (`floatlm`, `trilm`, `quantlm-8bit`, ...) in the order of the legend."""
        return sorted({model.id.kind for model in self.models}, key=kind_rank)

    @cached_property
    def by_id(self) -> dict[str, Model]:
        return {str(model.id): model for model in self.models}

    @cached_property
    def main_metrics(self) -> dict[str, str]:
        """Tasks in order, each with the accuracy or ROUGE that stands for it; the parts of groups are left out."""
        found = {}
        for task, rows in self.scores[~self.scores["is_part"].astype(bool)].groupby("task", sort=True):
            named = self.task_facts.get(task.partition(" (")[0], {}).get("main_metric")
            choices = [metric for metric in (named, *ACCURACY_METRICS) if metric in (*ACCURACY_METRICS, ROUGE)]
            metric = next((choice for choice in choices if choice in set(rows["metric"])), None)
            if metric:
                found[task] = metric
        return found

    @cached_property
    def averaged(self) -> dict[str, str]:
        """The tasks of the mean accuracy with their metrics: the paper's six where all are there, else all accuracies."""
        accuracies = {task: metric for task, metric in self.main_metrics.items() if metric != ROUGE}
        return PAPER_AVERAGE if self.has_paper_average else accuracies

    @property
    def has_paper_average(self) -> bool:
        return PAPER_AVERAGE.keys() <= self.main_metrics.keys()

    @property
    def is_probe(self) -> bool:
        """Whether weights were taken as they were released."""
        return any(artifact.manifest.stage == "release" for artifact in self.artifacts)

    @property
    def is_sweep(self) -> bool:
        """Whether this is a sweep of peak rates: variants of the rate, and nothing scored on the test split."""
        rates = any((model.id.variant or "").startswith("lr") for model in self.models)
        evaluates = any(artifact.manifest.stage == "evaluate" for artifact in self.artifacts)
        return rates and not evaluates and not (self.plan and self.plan.suites)


def load_results(artifacts: list[Artifact], plan: Plan | None = None) -> Results:
    """Return the tables of a study, as far as its artifacts are given; `plan` names what should be there.

    Raises `DamagedArtifactError` where a file differs from its manifest.
    """
    artifacts = in_order(artifacts)
    everything = _models(artifacts, plan)
    models = [model for model in everything if model.id.step is None]
    checkpoints = [model for model in everything if model.id.step is not None and model.evaluations]
    task_facts = {
        task: facts
        for artifact in artifacts
        if artifact.manifest.stage == "tasks"
        for task, facts in artifact.manifest.metrics.items()
        if isinstance(facts, dict)
    }
    models, scores, documents = with_set_means(models, *_tables(models))
    early_scores, early_documents = _tables(checkpoints)
    own, others = _by_origin(documents)
    early, _ = _by_origin(early_documents)
    return Results(artifacts, models, scores, own, others, task_facts, plan, checkpoints, early_scores, early)


def read_curve(model: Model, name: str) -> pd.DataFrame | None:
    """Return the table `name` by step (`train.csv`, `ternary.csv`, ...) of a model; None where it keeps none."""
    if model.artifact is None or not model.artifact.has(name):
        return None
    return read_table(model.artifact.file(name), CURVE_COLUMNS, CURVE_TEXT)


def read_table(path: Path, columns: tuple[str, ...], text: tuple[str, ...]) -> pd.DataFrame:
    """Return a CSV whose columns not in `text` are numbers; what is no number ("", "N/A") becomes missing.

    Lines that start with `#` are left out. Raises `OpenSpectraError` where one of `columns` is absent.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        content = StringIO("".join(line for line in lines if not line.startswith("#")))
        table = pd.read_csv(content, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise OpenSpectraError(f"{path}: not a readable CSV table ({error}); make it again.") from None
    absent = [column for column in columns if column not in table]
    if absent:
        raise OpenSpectraError(
            f"{path}: no column {', '.join(absent)}; it has {', '.join(table.columns)}. Make it again."
        )
    numeric = [column for column in table.columns if column not in text]
    table[numeric] = table[numeric].apply(pd.to_numeric, errors="coerce")
    return table


def _tables(models: list[Model]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores and scored documents of models below each other."""
    scores = _stack(models, "scores.csv", SCORE_COLUMNS, text=("task", "metric", "filter"))
    documents = _stack(models, "documents.csv", DOCUMENT_COLUMNS, text=("task", "document_id"))
    scores = scores.assign(is_part=_parts_of_groups(scores, models))
    return _named_by_suite(scores), _named_by_suite(documents)


def _by_origin(documents: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the documents of the study's test text, and those of other corpora."""
    own = documents["task"].map(lambda task: task.partition(" (")[0] == HELD_OUT).astype(bool)
    return documents[own], documents[~own]


def _models(artifacts: list[Artifact], plan: Plan | None) -> list[Model]:
    """Return every model given or planned, and the gaps in the grid of sizes and kinds, ordered by size and kind."""
    made = [artifact for artifact in artifacts if artifact.manifest.stage in MODEL_STAGES]
    evaluations = [artifact for artifact in artifacts if artifact.manifest.stage == "evaluate"]
    models = [_with_evaluations(artifact, evaluations, plan) for artifact in made]
    given = {model.id for model in models}
    planned = [ModelId.parse(name) for name in plan.models] if plan else []
    models += [Model(each, missing=("planned, and not there",)) for each in planned if each not in given]
    gaps = [Model(model_id, missing=("no artifact of this model was given",)) for model_id in _grid_gaps(models)]
    planned_width = plan.parameters if plan else {}
    width = {
        size: max(model.metric("num_parameters") or 0 for model in models if model.id.size == size)
        or planned_width.get(size, 0)
        for size in {model.id.size for model in models}
    }
    return sorted(
        models + gaps,
        key=lambda model: (width[model.id.size], model.id.size, kind_rank(model.id.kind), str(model.id)),
    )


def _with_evaluations(artifact: Artifact, evaluations: list[Artifact], plan: Plan | None) -> Model:
    """Return the model with the evaluations made from exactly this artifact, and the reason why any is missing."""
    name = artifact.manifest.config["model_id"]
    own = tuple(each for each in evaluations if each.manifest.parents["model"].sha256 == artifact.sha256)
    missing = ()
    if evaluations and not own:
        stale = any(evaluated_model(each) == name for each in evaluations)
        missing = (
            "its evaluation was made from another version of this model; evaluate it again"
            if stale
            else "not evaluated: no evaluation of this model was given",
        )
    elif own and plan and name in plan.models:
        done = {suite_name(each) for each in own}
        missing = tuple(f"not evaluated on suite {suite}" for suite in plan.suites if suite not in done)
    return Model(ModelId.parse(name), artifact, own, missing)


def _grid_gaps(models: list[Model]) -> list[ModelId]:
    """Return the plain ids that the grid of sizes and kinds lacks. A kind seen once only with variants makes none."""
    plain = {model.id for model in models if model.id == ModelId(model.id.family, model.id.size, bits=model.id.bits)}
    columns = {(model_id.family, model_id.bits) for model_id in plain}
    grid = {ModelId(family, size, bits=bits) for family, bits in columns for size in {each.size for each in plain}}
    return sorted(grid - plain, key=str)


def _stack(models: list[Model], name: str, columns: tuple[str, ...], text: tuple[str, ...]) -> pd.DataFrame:
    """Return file `name` of all evaluations below each other, with model and suite; a suite need not have the file."""
    frames = [
        read_table(artifact.file(name), columns, text)[list(columns)].assign(
            model_id=str(model.id), suite=suite_name(artifact)
        )
        for model in models
        for artifact in model.evaluations
        if artifact.has(name)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model_id", "suite", *columns])


def _parts_of_groups(scores: pd.DataFrame, models: list[Model]) -> pd.Series:
    """Return which rows are parts of a task group: tasks that the config of their evaluation does not name.

    Where it names a collection that has no score of its own, what the collection holds stands for it.
    """
    parts = pd.Series(False, index=scores.index)
    for model in models:
        for artifact in model.evaluations:
            own = (scores["model_id"] == str(model.id)) & (scores["suite"] == suite_name(artifact))
            absent = {row["task"] for row in artifact.rows("missing.csv")}
            named = set(artifact.manifest.config["tasks"]) - absent
            if named <= set(scores.loc[own, "task"]):
                parts |= own & ~scores["task"].isin(named)
    return parts


def _named_by_suite(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without its suites; a task name that stands in several suites gets the suite in brackets."""
    suites: Counter[str] = Counter(task for task, _ in set(zip(table["task"], table["suite"], strict=True)))
    shared = table["task"].map(lambda task: suites[task] > 1).astype(bool)
    named = table["task"].where(~shared, table["task"] + " (" + table["suite"] + ")")
    return table.assign(task=named).drop(columns="suite")
