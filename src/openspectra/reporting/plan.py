"""What a study plans, so that its report names what is not there (yet), at any moment of a running study."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openspectra.artifacts import MANIFEST, Artifact
from openspectra.identity import artifact_id
from openspectra.study import Study

DATA_STAGES = ("corpus", "tokenizer", "tokens", "tasks", "contamination")
"""Stages before the models that the report is about; parts and jobs stand in what they add up to."""

PAPER_TEXTS = ("SlimPajama", "FineWeb-Edu")


@dataclass(frozen=True)
class Plan:
    """The artifacts that the report of a study is about, by the names that are also their folders below its results."""

    data: list[str]
    models: list[str]
    suites: dict[str, list[str]]
    """Tasks by suite; every model is evaluated on every suite."""
    text: str
    """The corpus that all its text is from, where it is one of the paper's; else `other`."""

    @property
    def artifacts(self) -> list[str]:
        return [*self.data, *self.models, *(name for suite in self.suites for name in self._evaluations(suite))]

    def made(self, results: Path) -> list[Path]:
        """Return the folders of those artifacts that are finished below `results`."""
        return [results / name for name in self.artifacts if (results / name / MANIFEST).is_file()]

    def holes(self, artifacts: Iterable[Artifact]) -> list[str]:
        """Return a sentence for each kind of artifact that is planned and not among `artifacts`."""
        given = {artifact_id(artifact) for artifact in artifacts}
        data, models = ([name for name in names if name not in given] for names in (self.data, self.models))
        sentences = [f"Not there: {', '.join(data)}."] if data else []
        if models:
            sentences.append(f"Models not there, {_count(models, self.models)}.")
        for suite, tasks in self.suites.items():
            absent = [
                model
                for model, name in zip(self.models, self._evaluations(suite), strict=True)
                if name not in given and model not in models
            ]
            if absent:
                what = suite if tasks == [suite] else f"{suite} ({', '.join(tasks)})"
                sentences.append(f"Not evaluated on suite {what}, {_count(absent, self.models)}.")
        return sentences

    def _evaluations(self, suite: str) -> list[str]:
        return [f"evaluation/{model}/{suite}" for model in self.models]


def plan_of(study: Study) -> Plan:
    """Return what the report of a study is about."""
    data = [place for place, stage in study.artifacts.items() if stage in DATA_STAGES]
    suites = study.evaluation.suites if study.evaluation else {}
    return Plan(data, study.models, {name: list(suite.tasks) for name, suite in suites.items()}, _text_of(study))


def _text_of(study: Study) -> str:
    """Return which of the paper's corpora a study reads, by the paths of all its sources."""
    if study.corpus:
        sources = [json.dumps(source.model_dump(mode="json")) for source in study.corpus.sources.values()]
    else:
        sources = [path for files in study.token_files.files.values() for path in files]
    found = [name for source in sources for name in PAPER_TEXTS if name.lower() in source.lower()]
    return found[0] if len(found) == len(sources) and len(set(found)) == 1 else "other"


def _count(absent: list[str], planned: list[str]) -> str:
    """Return how many of the planned models are absent, and which, where that is not all of them."""
    if len(absent) == len(planned):
        return f"all {len(planned)}" if len(planned) > 1 else planned[0]
    return f"{len(absent)} of {len(planned)}: {', '.join(absent)}"
