"""The artifact: a folder of files described by a `manifest.json` that is written last.

A manifest holds only what two runs must agree on: stage and version, resolved config, parents (by the hash of their
manifests), every file with bytes and sha256, summary metrics. Time, host, commit and package versions go to
`run.json` beside it, outside every hash. A folder without a valid manifest does not exist for the next stage.
"""

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.model.families import FAMILY_NAMES
from openspectra.model_ids import QUANTLM
from openspectra.printable import escaped
from openspectra.stage_versions import STAGE_VERSIONS
from openspectra.writing import only_writer, write_atomically

MANIFEST = "manifest.json"
RUN = "run.json"
"""Facts of the run; it marks a folder as an artifact's where the manifest was taken away to make it again."""
FINISHED = "finished.json"
"""A copy of the manifest beside it, where a job makes several artifacts (`finished.py`)."""
UNHASHED = {
    *(
        RUN,
        FINISHED,
        "answers.jsonl",
        "speed.jsonl",
        "checkpoints",
        ".staging",
        "lock",
        "owner.json",
        "interrupted.json",
        "parts",
    )
}
"""What may lie beside a manifest without being part of the artifact."""
RECORDED_PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "datasets", "gptqmodel", "lm_eval", "numpy")


class FileRecord(BaseModel):
    """One file of an artifact, `path` relative to its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    bytes: int
    sha256: str


class Parent(BaseModel):
    """An artifact this one was made from. `path` is relative to this artifact's folder; the hash is what counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, and from what it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stage: str
    stage_version: int
    config: dict[str, Any]
    parents: dict[str, Parent]
    files: list[FileRecord]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, opened for reading. Every file is checked against the manifest when it is asked for."""

    folder: Path
    manifest: Manifest
    sha256: str
    """Hash of the manifest's bytes: the identity of the artifact."""

    def file(self, name: str) -> Path:
        """Return the path of file `name`. Raises `DamagedArtifactError` where it is missing or differs."""
        _check_file(self.folder, self.record(name))
        return self.folder / name

    def has(self, name: str) -> bool:
        """Return whether the manifest lists file `name`."""
        return any(record.path == name for record in self.manifest.files)

    def record(self, name: str) -> FileRecord:
        """Return what the manifest says of file `name`. Raises `DamagedArtifactError` where it does not list it."""
        for record in self.manifest.files:
            if record.path == name:
                return record
        raise DamagedArtifactError(
            f"{self.folder / name}: not listed in {MANIFEST}; rerun the {self.manifest.stage} stage."
        )

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a CSV, checked as `file` does; none where the artifact has no such file."""
        if not self.has(name):
            return []
        with self.file(name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def parents(self, stage: str) -> list["Artifact"]:
        """Return the parents of one stage. Raises `DamagedArtifactError` where one is missing or was made anew since."""
        found = []
        for parent in self.manifest.parents.values():
            artifact = self.open_parent(parent)
            if artifact.sha256 != parent.sha256:
                raise DamagedArtifactError(
                    f"{artifact.folder / MANIFEST}: not the one that {self.folder} was made from; run the workflow again."
                )
            found.append(artifact)
        return [artifact for artifact in found if artifact.manifest.stage == stage]

    def open_parent(self, parent: Parent) -> "Artifact":
        """Return what is a parent's place now, made anew or not. Raises `DamagedArtifactError` where nothing is there."""
        return open_artifact(self.parent_folder(parent))

    def parent_folder(self, parent: Parent) -> Path:
        """Return the folder that a parent's path leads to, followed as it is written, for that is how it was made.

        So `..` of a folder that is a link is where the link stands; where nothing is found that way, where it points.
        """
        written, true = (
            Path(os.path.normpath(folder / parent.path)) for folder in (self.folder, self.folder.resolve())
        )
        is_elsewhere = not (written / MANIFEST).exists() and (true / MANIFEST).exists()
        return true if is_elsewhere else written

    def verify(self) -> None:
        """Check every file. Raises `DamagedArtifactError` naming the first that differs."""
        for record in self.manifest.files:
            _check_file(self.folder, record)

    def problems(self, read: Callable[[FileRecord], bool] = lambda record: True) -> list[str]:
        """Return one line for every file and every parent that is not as the manifest says.

        Of a file for which `read` is false only the size is looked at.
        """
        found = []
        for record in self.manifest.files:
            try:
                _check_file(self.folder, record, read(record))
            except DamagedArtifactError as error:
                found.append(str(error))
        for role, parent in self.manifest.parents.items():
            try:
                now = self.open_parent(parent)
            except DamagedArtifactError as error:
                found.append(str(error))
            else:
                if now.sha256 != parent.sha256:
                    found.append(
                        f"{self.folder / MANIFEST}: made from another {role} than {now.folder} holds now; run the workflow "
                        "again, or delete the folder where the study has it no more."
                    )
        return found


def open_artifact(folder: Path, stage: str | None = None) -> Artifact:
    """Return the artifact in `folder` (or of the `manifest.json` given). Raises `DamagedArtifactError` with the remedy.

    With `stage`, an artifact of another stage is refused.
    """
    folder = folder.parent if folder.name == MANIFEST else folder
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise DamagedArtifactError(
            f"{path}: missing, so this is no finished artifact; rerun the stage that makes it."
        ) from None
    except (ValidationError, OSError):
        raise DamagedArtifactError(
            f"{path}: not a readable manifest; delete it and rerun the stage that makes it."
        ) from None
    if stage and manifest.stage != stage:
        raise DamagedArtifactError(
            f"{path}: made by stage `{manifest.stage}`, but `{stage}` is needed here; check the path."
        )
    if _is_misplaced(folder, place := _place_of(manifest)):
        raise DamagedArtifactError(
            f"{path}: belongs into {place} of a study and was put here by hand; delete it and run the same command again."
        )
    return Artifact(folder, manifest, hashlib.sha256(content).hexdigest())


def parts_of(artifacts: Iterable[Artifact], stage: str) -> list[Artifact]:
    """Return the parts (`part` or `token_part`) among `artifacts`, in order."""
    parts = [artifact for artifact in artifacts if artifact.manifest.stage == stage]
    return sorted(parts, key=lambda part: part.manifest.config["part"])


def role_of(artifact: Artifact) -> str:
    """Return the role of a part, or of a source's job, among the parents of what is made from many."""
    config = artifact.manifest.config
    return f"part_{config['part']:05d}" if "part" in config else f"source_{config['name']}_{config['job']:05d}"


def verify_tree(root: Path) -> list[Artifact]:
    """Check every artifact below `root`, its files and the hashes of its parents, and return them.

    Raises `DamagedArtifactError` with one line per problem.
    """
    artifacts, problems = check_tree(root)
    if problems:
        raise DamagedArtifactError(*dict.fromkeys(line for lines in problems.values() for line in lines))
    if not artifacts:
        raise DamagedArtifactError(f"{root}: no artifact here; give a folder that holds a {MANIFEST}.")
    return artifacts


def check_tree(root: Path) -> tuple[list[Artifact], dict[Path, list[str]]]:
    """Check every artifact below `root`, links followed. Return the artifacts, and one line per problem by path.

    The path is the manifest of the artifact, or what kept a folder from being looked into.
    """
    artifacts: list[Artifact] = []
    problems: dict[Path, list[str]] = {}
    for path in _manifests_below(root, problems):
        try:
            artifact = open_artifact(path)
        except DamagedArtifactError as error:
            problems[path] = [str(error)]
            continue
        artifacts.append(artifact)
        if found := artifact.problems():
            problems[path] = found
    return artifacts, problems


def _manifests_below(root: Path, problems: dict[Path, list[str]]) -> list[Path]:
    if not root.is_dir():
        return [root]
    found = []

    def enter(folder: Path, above: tuple[Path, ...]) -> None:
        above = (*above, folder.resolve())
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            problems[folder] = [f"{folder}: not checked, {error.strerror}; mend its permissions."]
            return
        for entry in entries:
            if entry.is_symlink() and not entry.exists():
                problems[entry] = [
                    f"{entry}: not checked, a link to {os.readlink(entry)}, which is missing; mend the link."
                ]
            elif entry.is_symlink() and entry.resolve() in above:
                problems[entry] = [f"{entry}: not checked, a link to a folder that holds it; remove the link."]
            elif entry.is_dir():
                enter(entry, above)
            elif entry.name == MANIFEST:
                found.append(entry)

    enter(root, ())
    return found


def describe_lineage(artifact: Artifact) -> str:
    """Return a tree of the artifact and its ancestors: stage, folder, manifest hash, and where a parent has changed."""
    lines: list[str] = []

    def describe(node: Artifact, role: str, depth: int, note: str) -> None:
        name = f"{role}: " if role else ""
        stage = f"{node.manifest.stage} v{node.manifest.stage_version}"
        lines.append(f"{'  ' * depth}{name}{Path(os.path.normpath(node.folder))}  [{stage}, {node.sha256[:12]}]{note}")
        for role, parent in node.manifest.parents.items():
            try:
                found = node.open_parent(parent)
            except DamagedArtifactError as error:
                lines.append(f"{'  ' * (depth + 1)}{role}: {error}")
                continue
            changed = f"  (made anew since: was {parent.sha256[:12]})" if found.sha256 != parent.sha256 else ""
            describe(found, role, depth + 1, changed)

    describe(artifact, "", 0, "")
    metrics = [f"  {key} = {value}" for key, value in artifact.manifest.metrics.items() if not isinstance(value, dict)]
    return "\n".join(map(escaped, [*lines, "metrics:", *metrics]))


@dataclass
class ArtifactDraft:
    """An artifact in the making: write files below `folder`, set `metrics`; `write_artifact` does the rest."""

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    """Facts of this run alone (speeds, counts of restarts); they go to `run.json`."""


@contextmanager
def write_artifact(
    out: Path, stage: str, config: BaseModel, parents: dict[str, Artifact], started: float | None = None
) -> Iterator[ArtifactDraft]:
    """Yield a draft to fill; on leaving without error, publish it in `out`, the manifest last and atomically.

    Raises `ConfigError` before the work where `out` holds what is no earlier state of this artifact: it would be deleted.

    Files are written to a staging folder beside their final place. An error or a kill leaves what `out` held before
    without a manifest that claims otherwise, and no half-written file under a final name. `started` (Unix seconds)
    says when the work began, where that was before this call.
    """
    started = started or time.time()
    described = partial(
        Manifest,
        stage=stage,
        stage_version=STAGE_VERSIONS[stage],
        config=config.model_dump(mode="json"),
        parents={
            role: Parent(path=os.path.relpath(parent.folder, out), sha256=parent.sha256)
            for role, parent in sorted(parents.items())
        },
    )
    _require_free(out, _place_of(described(files=[], metrics={})), parents.values())
    staging = out / ".staging"
    with only_writer(out):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        draft = ArtifactDraft(staging)
        try:
            yield draft
            _let_umask_rule(staging)
            files = [record_file(path, staging) for path in sorted(staging.rglob("*")) if path.is_file()]
            manifest = described(files=files, metrics=draft.metrics)
            _publish(out, staging, manifest, run_facts(started) | draft.run)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def record_file(path: Path, root: Path) -> FileRecord:
    """Return name relative to `root`, size in bytes and sha256 of a file."""
    return FileRecord(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_hash(*parts: Any) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of `parts` as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON with sorted keys, so that equal data are equal bytes."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` as CSV with a header, so that equal data are equal bytes; a table without rows has a header too."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run_facts(started: float) -> dict[str, Any]:
    """Return what is true of this run alone: when and where it ran, from which commit, with which packages."""
    commit = subprocess.run(
        ["git", "rev-parse", "--verify", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "started_unix_seconds": round(started, 3),
        "duration_seconds": round(time.time() - started, 3),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
        "command": Path(sys.argv[0]).name,
        "threads": os.environ.get("OMP_NUM_THREADS"),  # of this process; equal threads give equal bits
        "packages": {name: metadata.version(name) for name in RECORDED_PACKAGES if _is_installed(name)},
    }


def _require_free(out: Path, place: str, parents: Iterable[Artifact]) -> None:
    """Raise `ConfigError` where publishing in `out` would delete files that are no earlier state of the same artifact."""
    for parent in parents:
        if Path(os.path.abspath(parent.folder)) in Path(os.path.abspath(out)).parents:
            raise ConfigError(
                [f"{out}: lies inside {parent.folder}, which is replaced as a whole; name another folder."]
            )
    try:
        names = sorted(entry.name for entry in out.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError([f"{out}: a file, where a folder is needed; name another folder."]) from None
    found = [name for name in names if name not in UNHASHED and not re.fullmatch(r"\..*\.tmp", name)]
    if MANIFEST in found:
        try:
            other = _place_of(Manifest.model_validate_json((out / MANIFEST).read_bytes()))
        except (ValidationError, OSError):  # damaged: made again
            return
        are_evaluations = other.startswith("evaluation/") and place.startswith("evaluation/")  # of whom, a path says
        if other != place and not are_evaluations:
            raise ConfigError(
                [f"{out}: holds {other}, which {place} would replace; name another folder, or delete it."]
            )
    elif found and not (out / RUN).exists():
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError([f"{out}: holds {shown}, which would be deleted; name a new or empty folder."])


def _publish(out: Path, staging: Path, manifest: Manifest, run: dict[str, Any]) -> None:
    for name in (MANIFEST, FINISHED):
        (out / name).unlink(missing_ok=True)
    write_json(out / RUN, run)  # first: what lies beside it is an artifact's, whatever ends the publishing
    for stale in out.iterdir():
        if stale.name not in UNHASHED:
            shutil.rmtree(stale) if stale.is_dir() and not stale.is_symlink() else stale.unlink()
    for entry in sorted(staging.iterdir()):
        entry.rename(out / entry.name)
    for record in manifest.files:
        with (out / record.path).open("rb") as file:
            os.fsync(file.fileno())
    content = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(out / MANIFEST, content.encode())


def _let_umask_rule(staging: Path) -> None:
    """Give every file and folder the permissions that a plain writer gives: some libraries keep theirs to the owner."""
    mode = stat.S_IMODE(staging.stat().st_mode)  # what the umask, and the folder's own rules, left of a new folder's
    for path in staging.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def _place_of(manifest: Manifest) -> str:
    """Return where in its study an artifact belongs, by what it holds: `trilm/99M`, `evaluation/trilm/99M/*`, `corpus`.

    One that does not say, as nothing of a study is, has the name of its stage.
    """
    stage, config = manifest.stage, manifest.config
    try:
        if stage == "evaluate":
            return "/".join(("evaluation", *Path(manifest.parents["model"].path).parts[-2:], "*"))
        if stage == "export":
            return f"exports/{config['model']}/{config['format']}"
        if stage == "source":
            return f"sources/parts/{config['name']}/{config['job']}"
        if stage in ("part", "token_part"):
            return f"{'corpus' if stage == 'part' else 'tokens'}/parts/{config['part']}"
        return f"tokens/{config['split']}" if stage == "tokens" else config.get("model_id", stage)
    except KeyError:
        return stage


def _is_misplaced(folder: Path, place: str) -> bool:
    """Return whether a folder of `results/<study>` is the place of something else; other layouts may have any names."""
    parts = Path(os.path.abspath(folder)).parts
    if "results" not in parts:
        return False
    _, *found = parts[len(parts) - parts[::-1].index("results") :] or ("",)
    expected = place.split("/")
    named = {"evaluation", "exports", "sources", "corpus", "tokens", "tokenizer", "tasks", *FAMILY_NAMES, QUANTLM}
    comparable = len(found) == len(expected) and found[0] in named
    return comparable and any(b not in ("*", a) for a, b in zip(found, expected, strict=True))


def _check_file(folder: Path, record: FileRecord, read: bool = True) -> None:
    path = folder / record.path
    remedy = "delete the folder's manifest.json and run the same command again."
    if not path.is_file():
        raise DamagedArtifactError(f"{path}: missing, though {MANIFEST} lists it; {remedy}")
    size = path.stat().st_size
    if size != record.bytes:
        raise DamagedArtifactError(f"{path}: {size:,} bytes where {MANIFEST} says {record.bytes:,}; {remedy}")
    if read and sha256_of(path) != record.sha256:
        raise DamagedArtifactError(f"{path}: its sha256 differs from {MANIFEST}, so its content was altered; {remedy}")


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
