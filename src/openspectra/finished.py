"""What a job that makes several artifacts need not make again.

A finished artifact of such a job keeps a copy of its manifest, `finished.json`. Snakemake takes away all manifests of a
job before it starts it; by the copies the command knows what was done, and computes the rest alone.
"""

import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

from openspectra.artifacts import FINISHED, MANIFEST, Artifact, Manifest, open_artifact
from openspectra.errors import DamagedArtifactError
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.writing import only_writer, write_atomically

logger = logging.getLogger(__name__)


def mark_finished(out: Path) -> None:
    """Keep a copy of the manifest in `out`, by which `is_finished` finds it."""
    write_atomically(out / FINISHED, (out / MANIFEST).read_bytes())


def is_finished(out: Path, stage: str, config: BaseModel, parents: dict[str, Artifact]) -> bool:
    """Return whether `out` holds what this stage makes of config and parents, whole; then its manifest is there as well."""
    try:
        content = (out / FINISHED).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return False
    wanted = (stage, STAGE_VERSIONS[stage], config.model_dump(mode="json"), _hashes(parents))
    made = {role: parent.sha256 for role, parent in manifest.parents.items()}
    if (manifest.stage, manifest.stage_version, manifest.config, made) != wanted:
        return False
    with only_writer(out):
        write_atomically(out / MANIFEST, content)
        try:
            open_artifact(out, stage).verify()
        except DamagedArtifactError as error:
            (out / MANIFEST).unlink()
            logger.warning("%s", error)
            return False
    logger.info("%s: nothing is left to do, in %s; `--forcerun %s_model` runs it anew", stage, out, stage)
    return True


def _hashes(parents: dict[str, Artifact]) -> dict[str, str]:
    return {role: parent.sha256 for role, parent in parents.items()}
