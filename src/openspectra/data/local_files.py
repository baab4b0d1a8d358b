"""Local files: .txt (a document each), .jsonl (a document per line), .parquet (a document per row), also .gz and .zst."""

import fnmatch
import glob
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from openspectra.artifacts import sha256_of
from openspectra.data.config import FilesSource, ReadConfig, Source
from openspectra.data.rows import NOT_READABLE, ROWS_AT_A_TIME, Row, is_taken, refuse_disk_error, rows_of_table
from openspectra.errors import ConfigError, OpenSpectraError

BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**20
INPUT_COLUMNS = ("file", "bytes", "sha256")
BATCH_BYTES = 32_000_000
"""Text of a table that is decoded at a time, as far as its own statistics tell."""


def data_folder() -> Path:
    """Return the folder that the paths of studies start from: `data`, or what OPENSPECTRA_DATA names."""
    return Path(os.environ.get("OPENSPECTRA_DATA") or "data")


class LocalFile(NamedTuple):
    """A file of a source, as it was when the source was listed."""

    path: Path
    name: str
    """The path below the data folder, which stands for the file in places."""
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
            paths = matching_files(pattern)
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
    if _format(path) is None:
        yield "unknown ending; give .txt or .jsonl (also .gz, .zst) or .parquet."
    elif source.where and _format(path) is _text:
        yield "`where` chooses rows by their fields, and text has none; take one of the two out."


def as_listed(path: Path, split: str | None = None) -> LocalFile:
    """Return a file below the data folder as it is now. Raises `ConfigError` for a name that no table could hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError([f"{str(path)!r}: the name is not UTF-8; rename it."]) from None
    facts = path.stat()
    return LocalFile(path, path.relative_to(data_folder()).as_posix(), split, facts.st_size, facts.st_mtime_ns)


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

    `**` stands for any folders, linked ones too; what is hidden is no match, and what two links name counts once. Raises
    `OpenSpectraError` for a link to nothing and for a folder that may not be read, which `glob` passes over silently.
    """
    literal = data_folder() / pattern
    try:
        paths = [literal] if literal.is_file() else [*_expand(data_folder(), Path(pattern).parts, ())]
        last_stays = sorted(sorted(paths, reverse=True), key=lambda path: -len(path.parts))  # the shorter of two names
        files = {path.resolve(): path for path in last_stays if path.is_file()}
    except OSError as error:
        refuse_disk_error(error, error.filename or literal)
        raise
    return sorted(files.values())


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
        for row in read_rows(file.path, config.source, config.max_document_bytes, file.name):
            yield row._replace(split=file.split)


def read_rows(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    """Yield the rows of one local file; `name` stands for it in places."""
    try:
        yield from _format(path)(path, source, max_bytes, name)
    except NOT_READABLE as error:
        refuse_disk_error(error, path)
        yield Row(name, None, problem="damaged_file")


def read_text(path: Path, max_bytes: int, name: str) -> Iterator[Row]:
    """Yield the one row of a text file, without byte-order mark and with `\\n` line ends."""
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        yield Row(name, None, problem="too_long")
    else:
        yield Row(name, content.removeprefix(BOM).replace(b"\r\n", b"\n"))


def _text(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    if source.separator is None:
        yield from read_text(path, max_bytes, name)
        return
    separator = source.separator.encode().replace(b"\r\n", b"\n")  # as in the text
    with open_file(path) as file:
        for number, piece in enumerate(_pieces(file, separator, max_bytes), 1):
            yield Row(f"{name}:{number}", piece, problem="too_long" if piece is None else None)


def _pieces(file: BinaryIO, separator: bytes, max_bytes: int) -> Iterator[bytes | None]:
    """Yield what stands between separators, None for what is longer than `max_bytes`; of that little is in memory."""
    data, is_long = b"", False
    beginning = file.read(len(BOM)).removeprefix(BOM)
    for chunk in chain([beginning], iter(lambda: file.read(CHUNK_BYTES), b"")):
        while chunk.endswith(b"\r") and (more := file.read(1)):  # half a line end
            chunk += more
        data += chunk.replace(b"\r\n", b"\n")
        *pieces, data = data.split(separator)
        for piece in pieces:
            yield None if is_long or len(piece) > max_bytes else piece
            is_long = False
        if len(data) > max_bytes + len(separator):
            data, is_long = data[-len(separator) :], True
    if is_long or data.strip():  # not the line end after the last separator
        yield None if is_long or len(data) > max_bytes else data


def _json_lines(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    number = 0
    with open_file(path) as file:
        while line := file.readline(max_bytes + 1):
            number += 1
            place, long = f"{name}:{number}", len(line) > max_bytes
            while long and line and not line.endswith(b"\n"):
                line = file.readline(max_bytes + 1)
            row = Row(place, None, problem="too_long") if long else _json(place, line, source)
            if row:
                yield row


def _json(place: str, line: bytes, source: FilesSource) -> Row | None:
    """Return the row of a line; None where it belongs to another source."""
    line = line.removeprefix(BOM) if place.endswith(":1") else line
    if not line.strip():
        return Row(place, "")
    try:
        content = json.loads(line.decode())
    except UnicodeDecodeError:
        return Row(place, None, problem="invalid_utf8")
    except (ValueError, RecursionError):
        return Row(place, None, problem="invalid_json")
    return _field(place, content, source) if is_taken(content, source) else None


def _field(place: str, row: Any, source: FilesSource) -> Row:
    if not isinstance(row, dict):
        return Row(place, None, problem="wrong_type")
    field = source.text_field
    return Row(place, row[field]) if field in row else Row(place, None, problem="missing_field")


def _parquet(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    import pyarrow.parquet

    wanted = {source.text_field, *(where.split(".")[0] for where in source.where)}
    number = 1
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        columns = wanted if wanted <= set(file.schema_arrow.names) else ()
        for group in range(file.num_row_groups):  # a batch over several groups would hold them all
            facts = file.metadata.row_group(group)
            rows = min(ROWS_AT_A_TIME, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
            for batch in file.iter_batches(max(1, rows), row_groups=[group], columns=sorted(columns) or None):
                yield from rows_of_table(batch, source, name, number)
                number += batch.num_rows


def _format(path: Path) -> Callable[[Path, FilesSource, int, str], Iterator[Row]] | None:
    suffixes = path.suffixes[-2:] if path.suffix in (".gz", ".zst") else [path.suffix]
    plain = {".txt": _text, ".jsonl": _json_lines} | ({} if len(suffixes) == 2 else {".parquet": _parquet})
    return plain.get(suffixes[0])


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, what .gz and .zst hold unpacked. Raises one of `NOT_READABLE` where it is damaged."""
    if path.suffix in (".gz", ".zst") and not path.stat().st_size:
        raise EOFError("an archive has some bytes, even of nothing")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 2**20)
    return path.open("rb")


def _no_match(pattern: str) -> str:
    return f"no file matches {pattern!r} in {data_folder()}; put it there, or name another folder in OPENSPECTRA_DATA."
