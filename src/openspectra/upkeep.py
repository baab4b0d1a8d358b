"""What a study should hold, and what of it is missing, damaged or made from something else.

`quick_check` runs before every workflow and reads what takes a second; `check_study` reads every file.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import chdir
from pathlib import Path

from openspectra.artifacts import MANIFEST, Artifact, check_tree, open_artifact
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.study import load_study, resolved_configs

READ_BYTES = 256 * 2**20
"""What a quick check reads at most: a second. The smallest files come first; of the others it looks at the size."""


def quick_check(stages: Mapping[Path, str]) -> tuple[dict[Path, list[str]], list[int]]:
    """Check those artifacts that exist: manifest, place, stage, parents, sizes of files, content of the smallest.

    `stages` gives the stage by manifest. Return the problems by manifest, and the sizes of the files that were not read.
    What is missing is no problem: a workflow makes it, and what follows from it.
    """
    problems: dict[Path, list[str]] = {}
    artifacts: dict[Path, Artifact] = {}
    for path, stage in stages.items():
        if path.is_file():
            try:
                artifacts[path] = open_artifact(path, stage)
            except DamagedArtifactError as error:
                problems[path] = [str(error)]
    room, largest = READ_BYTES, -1
    sizes = sorted(record.bytes for artifact in artifacts.values() for record in artifact.manifest.files)
    for size in sizes:
        room -= size
        largest = size if room >= 0 else largest
    for path, artifact in artifacts.items():
        parents = [artifact.parent_folder(parent) / MANIFEST for parent in artifact.manifest.parents.values()]
        if all(map(Path.is_file, parents)) and (found := artifact.problems(lambda record: record.bytes <= largest)):
            problems[path] = found
    return problems, [size for size in sizes if size > largest]


def check_study(path: Path) -> tuple[list[Artifact], int, dict[Path, list[str]]]:
    """Check every file, parent and kept weight below a folder and, where it is `results/<study>`, what is missing there.

    Return the artifacts, the number of kept weights, and the problems by path, which is a manifest where it can be.
    """
    from openspectra.training.trajectory import verify_trajectory

    artifacts, problems = check_tree(path)
    kept = 0
    for artifact in artifacts:
        if artifact.manifest.stage == "pretrain":
            try:
                kept += verify_trajectory(artifact)
            except DamagedArtifactError as error:
                problems[artifact.folder / "checkpoints"] = str(error).splitlines()
    for place, lines in _other_than_the_study_says(path).items():
        problems.setdefault(place, []).extend(lines)
    return artifacts, kept, problems


def withdraw_damaged(roots: Iterable[Path]) -> tuple[list[str], int]:
    """Take the manifest from every artifact below `roots` that is not as it should be, so that a workflow makes it again.

    Return a line per problem, those that this does not mend (kept weights, links) among them, and the number of artifacts
    to be made: withdrawn, or missing before.
    """
    lines, num_withdrawn = [], 0
    for root in filter(Path.is_dir, roots):
        _, _, problems = check_study(root)
        for path, found in problems.items():
            lines += found
            if path.name == MANIFEST:
                path.unlink(missing_ok=True)
                num_withdrawn += 1
    return list(dict.fromkeys(lines)), num_withdrawn


def _other_than_the_study_says(results: Path) -> dict[Path, list[str]]:
    """Return a line for every artifact that a study has and its results lack, or that another config made."""
    root, name = Path(os.path.abspath(results)).parent.parent, Path(os.path.abspath(results)).name
    study_file = root / "studies" / f"{name}.yaml"
    if root / "results" / name != Path(os.path.abspath(results)) or not study_file.is_file():
        return {}
    try:
        with chdir(root):  # a study names its tables from there
            study = load_study(Path("studies", f"{name}.yaml"))
            configs = resolved_configs(study, name)
    except ConfigError as error:
        return {study_file: error.problems}
    problems = {}
    for place, stage in study.artifacts.items():
        manifest = results / place / MANIFEST
        if not manifest.exists():
            problems[manifest] = [f"{manifest}: missing, the study has it; run the workflow again, and it is made."]
            continue
        above, _, last = place.rpartition("/")
        config = configs.get(place) or configs.get(f"evaluation/{last}" if stage == "evaluate" else above)
        try:
            made_with = open_artifact(manifest, stage).manifest.config
        except DamagedArtifactError as error:
            problems[manifest] = [str(error)]
            continue
        keys = [
            key
            for key, value in json.loads(config.model_dump_json()).items()
            if key not in ("job", "part") and made_with.get(key) != value
        ]
        if keys:
            problems[manifest] = [
                f"{manifest}: made with another {', '.join(keys)} than {study_file} says now; run the workflow again."
            ]
    return problems
