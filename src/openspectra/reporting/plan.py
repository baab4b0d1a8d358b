"""What a study plans, so that its report names what is not there (yet), at any moment of a running study."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from openspectra.artifacts import MANIFEST, Artifact
from openspectra.identity import artifact_id
from openspectra.logs import FAILED
from openspectra.model_ids import ModelId
from openspectra.study import Study

DATA_STAGES = ("corpus", "tokenizer", "tokens", "tasks", "contamination")
"""Stages before the models that the report is about; parts and jobs stand in what they add up to."""

MANY = 6
"""With more models than this a list names them by kind."""
PAPER_TEXTS = ("SlimPajama", "FineWeb-Edu")


@dataclass(frozen=True)
class Plan:
    """The artifacts that the report of a study is about, by the names that are also their folders below its results."""

    data: list[str]
    """With the QuantLMs of checkpoints, which are neither evaluated nor compared."""
    models: list[str]
    """Checkpoints that are evaluated among them."""
    suites: dict[str, list[str]]
    """Tasks by suite; every model is evaluated on every suite."""
    exports: list[str]
    parameters: dict[str, int]
    """Parameters of the largest model of each size."""
    text: str
    """The corpus that all its text is from, where it is one of the paper's; else `other`."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    """What the last attempt ended with, a line per suite where there are several: by model, and by `evaluation/<model>`."""

    @property
    def artifacts(self) -> list[str]:
        evaluations = [name for suite in self.suites for name in self._evaluations(suite)]
        return [*self.data, *self.models, *evaluations, *self.exports]

    def made(self, results: Path) -> list[Path]:
        """Return the folders of those artifacts that are finished below `results`."""
        return [results / name for name in self.artifacts if (results / name / MANIFEST).is_file()]

    def holes(self, artifacts: Iterable[Artifact]) -> list[str]:
        """Return a sentence for each kind of artifact that is planned and not among `artifacts`, and for what failed."""
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
        if exports := [name.removeprefix("exports/") for name in self.exports if name not in given]:
            sentences.append(f"Not exported: {', '.join(exports)}.")
        return sentences + self._why(given)

    def _why(self, given: set[str]) -> list[str]:
        """Return a sentence for each error that keeps anything from being there."""
        places: dict[str, list[str]] = {}
        for place, lines in self.failures.items():
            model = place.removeprefix("evaluation/")
            absent = [place] if place == model else [f"{place}/{suite}" for suite in self.suites]
            if not given.issuperset(absent):
                for line in lines:
                    places.setdefault(line.rstrip("."), []).append(place)
        return [f"Failed: {', '.join(names)}: {error}." for error, names in places.items()]

    def _evaluations(self, suite: str) -> list[str]:
        return [f"evaluation/{model}/{suite}" for model in self.models]


def plan_of(study: Study, logs: Path | None = None) -> Plan:
    """Return what the report of a study is about; the log files of its jobs, where given, say what failed."""
    data = [place for place, stage in study.artifacts.items() if stage in DATA_STAGES] + list(study.trajectory)
    suites = study.evaluation.suites if study.evaluation else {}
    parameters: dict[str, int] = {}
    for model_id, run in (study.pretrained | study.imported).items():
        size = ModelId.parse(model_id).size
        parameters[size] = max(parameters.get(size, 0), run.shape.num_parameters)
    tasks = {name: list(suite.tasks) for name, suite in suites.items()}
    failures = _failures(study, logs) if logs else {}
    return Plan(data, study.evaluated, tasks, list(study.exported), parameters, _text_of(study), failures)


def _failures(study: Study, logs: Path) -> dict[str, list[str]]:
    rules = dict.fromkeys(study.pretrained, "pretrain_model") | dict.fromkeys(study.imported, "import_release")
    made = {"checkpoint": "publish_checkpoint", "quantize": "quantize_model"}
    rules |= {place: made[stage] for place, stage in study.artifacts.items() if stage in made}
    paths = {model: logs / rule / f"{model}.log" for model, rule in rules.items()}
    paths |= {f"evaluation/{model}": logs / "evaluate_model" / f"{model}.log" for model in study.evaluated}
    paths |= {place: logs / "export_model" / f"{place.removeprefix('exports/')}.log" for place in study.exported}
    return {place: lines for place, path in paths.items() if (lines := failure_in(path))}


def failure_in(log: Path) -> list[str]:
    """Return the lines of the error that a stage's log ends with; none where it did not fail, or has no log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    _, failed, after = text.rpartition(f"ERROR {FAILED}: ")
    if not failed:
        return []
    lines = after.rpartition("Traceback (most recent call last):")[2].splitlines()
    found = [line for line in lines if line.strip() and not line.startswith(" ")]
    if found:
        found[0] = re.sub(r"^openspectra\.errors\.\w+: ", "", found[0])
    return found


def _text_of(study: Study) -> str:
    """Return which of the paper's corpora a study reads, by the paths of all its sources."""
    if not study.has_text:
        return "other"
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
    if len(absent) <= MANY:
        return f"{len(absent)} of {len(planned)}: {', '.join(absent)}"
    places: dict[str, list[str]] = {}
    for name in absent:
        model = ModelId.parse(name)
        set_number = "" if model.calibration is None else f" set {model.calibration}"
        places.setdefault(model.kind + set_number, []).append(_label(model))
    return f"{len(absent)} of {len(planned)}: " + "; ".join(
        f"{kind} {', '.join(sizes)}" for kind, sizes in places.items()
    )


def _label(model: ModelId) -> str:
    """Return what tells a model from the others of its kind: size, and variant and step where it has them."""
    return str(replace(model, bits=None, calibration=None, family="floatlm")).partition("/")[2]
