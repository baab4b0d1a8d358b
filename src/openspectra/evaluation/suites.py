"""All suites of one model in one process: libraries, tasks and weights are loaded once, each suite is an artifact.

A finished suite keeps a copy of its manifest, `finished.json`. Snakemake takes away all manifests of a job before it
starts it; by the copies the command knows what was done, and computes the rest alone.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from openspectra.artifacts import FINISHED, MANIFEST, Artifact, Manifest, open_artifact, write_artifact
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.evaluation.answers import FILE as ANSWERS
from openspectra.evaluation.config import EvaluateConfig
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.writing import only_writer, write_atomically

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
    missing = [suite for suite in suites if not _is_finished(suite, parents)]
    if not missing:
        return
    from openspectra.evaluation.harness import Evaluation

    evaluation = Evaluation(model, tasks)
    errors: dict[str, Exception] = {}
    for suite in missing:
        try:
            with write_artifact(suite.out, "evaluate", suite.config, parents) as draft:
                draft.metrics |= evaluation.run(suite.config, draft.folder, suite.out / ANSWERS)
            write_atomically(suite.out / FINISHED, (suite.out / MANIFEST).read_bytes())
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


def _is_finished(suite: Suite, parents: dict[str, Artifact]) -> bool:
    """Return whether the folder holds exactly this evaluation, whole; then its manifest is there as well."""
    kept = suite.out / FINISHED
    try:
        content = kept.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return False
    wanted = ("evaluate", STAGE_VERSIONS["evaluate"], suite.config.model_dump(mode="json"), _hashes(parents))
    made = {role: parent.sha256 for role, parent in manifest.parents.items()}
    if (manifest.stage, manifest.stage_version, manifest.config, made) != wanted:
        return False
    with only_writer(suite.out):
        write_atomically(suite.out / MANIFEST, content)
        try:
            open_artifact(suite.out, "evaluate").verify()
        except DamagedArtifactError as error:
            (suite.out / MANIFEST).unlink()
            logger.warning("%s", error)
            return False
    logger.info("evaluate: nothing is left to do, in %s; `--forcerun evaluate_model` runs it anew", suite.out)
    return True


def _hashes(parents: dict[str, Artifact]) -> dict[str, str]:
    return {role: parent.sha256 for role, parent in parents.items()}


def _lines(error: Exception) -> list[str]:
    """Return the lines of an error that was foreseen, or name and first line of another."""
    if isinstance(error, OpenSpectraError):
        return str(error).splitlines()
    return [f"{type(error).__name__}: {error}".partition("\n")[0]]
