"""What was made, looked at again: is it whole, how is it mended, what was it made from."""

import re
from pathlib import Path
from typing import Annotated

import typer

from openspectra.cli.options import StudyName
from openspectra.cli.stage import say, session

commands = typer.Typer()


@commands.command()
def verify(path: Annotated[Path, typer.Argument(help="Artifact, or a folder of artifacts.")]) -> None:
    """Check every file and every parent of the artifacts below a folder; of `results/<study>`, that all are there."""
    from openspectra.errors import DamagedArtifactError
    from openspectra.upkeep import check_study

    with session(None):
        artifacts, kept, problems = check_study(path)
        if problems:
            raise DamagedArtifactError(*dict.fromkeys(line for lines in problems.values() for line in lines))
        if not artifacts:
            raise DamagedArtifactError(f"{path}: no artifact here; give a folder that holds a manifest.json.")
        files = sum(len(artifact.manifest.files) for artifact in artifacts)
        say(f"{path}: {len(artifacts)} artifacts with {files} files are as their manifests say.")
        say(f"{path}: {kept} checkpoints on the way hold the weights of their steps.")


@commands.command()
def repair(study: StudyName) -> None:
    """Read every file of a study and take the manifest from what is damaged: the workflow then makes it again.

    A workflow finds the same by itself, except for altered content of large files, which takes time to read.
    """
    from openspectra.errors import ConfigError
    from openspectra.study_file import STUDY_NAME
    from openspectra.upkeep import withdraw_damaged

    with session(None):
        if not re.fullmatch(STUDY_NAME, study) or not Path("results", study).is_dir():
            raise ConfigError(
                [f"STUDY: {study!r} has no folder results/{study} here; give the name of a study that ran."]
            )
        lines, num_withdrawn = withdraw_damaged([Path("results", study), Path("reports", study)])
        for line in lines:
            say(line)
        if num_withdrawn:
            say(f"{num_withdrawn} artifacts are made again by:  snakemake --cores all --config study={study}")
        elif not lines:
            say(f"results/{study}: nothing to repair.")


@commands.command()
def why(path: Annotated[Path, typer.Argument(help="Artifact.")]) -> None:
    """Show what made an artifact, from what, back to the corpus."""
    from openspectra.artifacts import describe_lineage, open_artifact

    with session(None):
        say(describe_lineage(open_artifact(path)), keep="\n")
