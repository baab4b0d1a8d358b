"""All suites of one model in one process: libraries, tasks and weights are loaded once, each suite is an artifact."""

import logging
from dataclasses import dataclass
from pathlib import Path

from openspectra.artifacts import Artifact, write_artifact
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.evaluation.answers import FILE as ANSWERS
from openspectra.evaluation.config import EvaluateConfig
from openspectra.finished import is_finished, mark_finished

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """What is to be run, and the folder of its artifact, whose name is the suite's."""

    config: EvaluateConfig
    out: Path


def evaluate_suites(suites: list[Suite], model: Artifact, tasks: Artifact | None = None) -> None:
    """Publish the evaluation of a model on every suite; one that was finished before is not computed again.

    A suite that fails does not keep the others from being run; its error is raised when all are done.
    """
    parents = {"model": model} | ({"tasks": tasks} if tasks else {})
    missing = [suite for suite in suites if not is_finished(suite.out, "evaluate", suite.config, parents)]
    if not missing:
        return
    from openspectra.evaluation.harness import Evaluation

    evaluation = Evaluation(model, tasks)
    errors: dict[str, Exception] = {}
    for suite in missing:
        try:
            with write_artifact(suite.out, "evaluate", suite.config, parents) as draft:
                draft.metrics |= evaluation.run(suite.config, draft.folder, suite.out / ANSWERS)
            mark_finished(suite.out)
            (suite.out / ANSWERS).unlink()
            logger.info("evaluate: done, in %s", suite.out)
        except Exception as error:
            if len(suites) == 1:
                raise
            foreseen = isinstance(error, OpenSpectraError)
            logger.error("suite %s failed: %s", suite.out.name, error, exc_info=None if foreseen else error)
            errors[suite.out.name] = error
    if errors:
        lines = [f"suite {name}: {line}" for name, error in errors.items() for line in _lines(error)]
        all_config = all(isinstance(error, ConfigError) for error in errors.values())
        raise ConfigError(lines) if all_config else OpenSpectraError(*lines)


def _lines(error: Exception) -> list[str]:
    """Return the lines of an error that was foreseen, or name and first line of another."""
    if isinstance(error, OpenSpectraError):
        return str(error).splitlines()
    return [f"{type(error).__name__}: {error}".partition("\n")[0]]
