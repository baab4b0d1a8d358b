"""Local files: which of those below the data folder a source names, and that they stay as they were when it was listed."""

import fnmatch
import glob
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from openspectra.artifacts import sha256_of
from openspectra.data.config import FilesSource, ReadConfig, Source
from openspectra.data.formats import ENDINGS, format_of, has_fields, read_rows
from openspectra.data.rows import Row, refuse_disk_error
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.printable import escaped

INPUT_COLUMNS = ("file", "bytes", "sha256")
DATASET_LIST = "dataset_dict.json"
"""What `datasets` writes above the folders of several data sets."""


def data_folder() -> Path:
    """Return the folder that the paths of studies start from: `data`, or what OPENSPECTRA_DATA names."""
    return Path(os.environ.get("OPENSPECTRA_DATA") or "data")


class LocalFile(NamedTuple):
    """A file of a source, as it was when the source was listed."""

    path: Path
    name: str
    """The path below the data folder, escaped to one plain line, which stands for the file in places."""
    split: str | None
    """The split that the study gives it, if it does."""
    bytes: int
    modified: int
    """Nanoseconds since 1970."""


def list_files(name: str, source: Source) -> list[LocalFile]:
    """Return the files of a source called `name`, by name; none where its text does not lie in local files.

    Raises `ConfigError` for a pattern without file, a file in two splits, and what cannot be read as the source says.
    """
    if not isinstance(source, FilesSource):
        return []
    found: dict[Path, LocalFile] = {}
    problems = []
    for split, patterns in source.files.items() if isinstance(source.files, dict) else [(None, source.files)]:
        for pattern in patterns:
            try:
                paths = matching_files(pattern)
            except ConfigError as error:
                problems += error.problems
                continue
            if not paths:
                problems.append(_no_match(pattern))
            for path in paths:
                if found.setdefault(path.resolve(), as_listed(path, split)).split != split:
                    problems.append(f"{path} is in two splits; keep one of them.")
    problems += [f"{file.path}: {problem}" for file in found.values() for problem in _file_problems(file.path, source)]
    if problems:
        raise ConfigError([f"corpus.sources.{name}.files: {problem}" for problem in problems])
    return sorted(found.values())


def _file_problems(path: Path, source: FilesSource) -> Iterator[str]:
    if format_of(path) is None:
        yield f"unknown ending; give {ENDINGS}."
    elif source.where and not has_fields(path):
        yield "`where` chooses rows by their fields, and text has none; take one of the two out."


def as_listed(path: Path, split: str | None = None) -> LocalFile:
    """Return a file below the data folder as it is now. Raises `ConfigError` for a name that no table could hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError([f"{str(path)!r}: the name is not UTF-8; rename it."]) from None
    facts = path.stat()
    name = escaped(path.relative_to(data_folder()).as_posix().replace("\\", "\\\\"))
    return LocalFile(path, name, split, facts.st_size, facts.st_mtime_ns)


def record_input(file: LocalFile) -> dict[str, Any]:
    """Return name, bytes and sha256 of a file that was read. Raises `OpenSpectraError` where it changed meanwhile."""
    try:
        sha256, is_same = sha256_of(file.path), as_listed(file.path, file.split) == file
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise OpenSpectraError(f"{file.path}: changed while it was read; run the same command again.")
    return {"file": file.name, "bytes": file.bytes, "sha256": sha256}


def matching_files(pattern: str) -> list[Path]:
    """Return the files below the data folder that a path or pattern names, by name.

    `**` stands for any folders, linked ones too; what is hidden is no match, and what two links name counts once. A folder
    of `datasets.save_to_disk` stands for its files. Raises `ConfigError` where other folders match, whose files would be
    left out, and `OpenSpectraError` for a link to nothing and for a folder that may not be read, which `glob` passes over.
    """
    literal = data_folder() / pattern
    try:
        if literal.is_file():
            return [literal]
        paths = [literal] if literal.is_dir() else [*_expand(data_folder(), Path(pattern).parts, ())]
        last_stays = sorted(sorted(paths, reverse=True), key=lambda path: -len(path.parts))  # the shorter of two names
        saved = cache(_saved)
        files: dict[Path, Path] = {}
        folders = []
        for path in last_stays:
            if path.is_file() and path.name != DATASET_LIST and path in (saved(path.parent) or [path]):
                files[path.resolve()] = path
            elif path.is_dir():
                files |= {file.resolve(): file for file in saved(path)}
                folders += [] if saved(path) else [path]
    except OSError as error:
        refuse_disk_error(error, error.filename or literal)
        raise
    *_, before, last = ("", "", *Path(pattern).parts)
    if folders and last != "**" and (before != "**" or not files):
        below = (folders[-1].relative_to(data_folder()) / "**").as_posix()
        raise ConfigError(
            [
                f"{'' if files else 'no file matches '}{pattern!r}{' ' if files else ', it '}matches the folder {folders[-1]}, "
                f"whose files it leaves out; write {below!r} for all below it, or a pattern that only files match, as '*.txt'."
            ]
        )
    return sorted(files.values())


def _saved(folder: Path) -> list[Path]:
    """Return the files of a folder that `datasets.save_to_disk` wrote, none for any other folder."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return []
    if absent := [name for name in names if not (folder / Path(name).name).is_file()]:
        raise OpenSpectraError(
            f"{folder / absent[0]}: missing, though state.json beside it lists it; save the data set again."
        )
    return [folder / Path(name).name for name in names]


def _expand(folder: Path, parts: tuple[str, ...], above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield what a pattern names below `folder`; `above` are the real folders passed on the way, for links in a circle."""
    if not parts or not folder.is_dir():
        return
    first, rest = parts[0], parts[1:]
    real = folder.resolve()
    if first == "**":
        yield from _expand(folder, rest or ("*",), above)
        if real not in above:
            for path in _entries(folder, "*"):
                yield from _expand(path, parts, (*above, real))
        return
    for path in _entries(folder, first):
        if rest:
            yield from _expand(path, rest, ())
        else:
            yield path


def _entries(folder: Path, part: str) -> list[Path]:
    """Return what one part of a pattern names in a folder, by name. Raises `OpenSpectraError` for a link to nothing."""
    names = [part]
    if glob.has_magic(part):
        names = [name for name in os.listdir(folder) if name[0] != "." and fnmatch.fnmatchcase(name, part)]
    paths = sorted(folder / name for name in names)
    if dead := [path for path in paths if path.is_symlink() and not path.exists()]:
        raise OpenSpectraError(f"{dead[0]}: a link to nothing; mend or remove it.")
    return paths


def file_rows(config: ReadConfig, files: list[LocalFile]) -> Iterator[Row]:
    """Yield the rows of local files."""
    for file in files:
        for row in read_rows(file.path, file.name, config.max_document_bytes, config.source):
            yield row._replace(split=file.split)


def _no_match(pattern: str) -> str:
    return f"no file matches {pattern!r} in {data_folder()}; put it there, or name another folder in OPENSPECTRA_DATA."
