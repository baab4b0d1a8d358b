"""Local files: .txt (a document each), .jsonl (a document per line), .parquet (a document per row), also .gz and .zst."""

import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from openspectra.data.config import FilesSource, ReadConfig
from openspectra.data.rows import NOT_READABLE, ROWS_AT_A_TIME, Row, is_taken, rows_of_table
from openspectra.errors import ConfigError, OpenSpectraError

BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**20


def data_folder() -> Path:
    """Return the folder that the paths of studies start from: `data`, or what OPENSPECTRA_DATA names."""
    return Path(os.environ.get("OPENSPECTRA_DATA") or "data")


def file_rows(config: ReadConfig) -> Iterator[Row]:
    """Yield the rows of one job's share of the files, by name."""
    for path, split in input_files(config):
        name = path.relative_to(data_folder()).as_posix()
        for row in read_rows(path, config.source, config.max_document_bytes, name):
            yield row._replace(split=split)


def input_files(config: ReadConfig) -> list[tuple[Path, str | None]]:
    """Return file and split, if given, of one job's share of a source of local files, by name.

    Raises `ConfigError` for a pattern without file and for a file in two splits.
    """
    if not isinstance(config.source, FilesSource):
        return []
    given = config.source.files
    found: dict[Path, str | None] = {}
    problems = []
    for split, patterns in given.items() if isinstance(given, dict) else [(None, given)]:
        for pattern in patterns:
            paths = matching_files(pattern)
            if not paths:
                problems.append(_no_match(f"corpus.sources.{config.name}.files", pattern))
            for path in paths:
                if found.setdefault(path, split) != split:
                    problems.append(f"corpus.sources.{config.name}.files: {path} is in two splits; keep one of them.")
                if _format(path) is None:
                    problems.append(
                        f"corpus.sources.{config.name}.files: {path}: unknown ending; "
                        "give .txt or .jsonl (also .gz, .zst) or .parquet."
                    )
    if problems:
        raise ConfigError(problems)
    return sorted(found.items())[config.job :: config.source.num_jobs]


def matching_files(pattern: str) -> list[Path]:
    """Return the files below the data folder that a path or pattern names, by name; hidden files are none of them."""
    return sorted(path for path in data_folder().glob(pattern) if path.is_file() and path.name[0] != ".")


def read_rows(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    """Yield the rows of one local file; `name` stands for it in places."""
    try:
        yield from _format(path)(path, source, max_bytes, name)
    except NOT_READABLE as error:
        if getattr(error, "errno", None) is not None:
            raise OpenSpectraError(
                f"{path}: cannot be read ({error.strerror}); check the disk and permissions."
            ) from None
        yield Row(name, None, problem="damaged_file")


def read_text(path: Path, max_bytes: int, name: str) -> Iterator[Row]:
    """Yield the one row of a text file, without byte-order mark and with `\\n` line ends."""
    with _open(path) as file:
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
    with _open(path) as file:
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
    if is_long or data:
        yield None if is_long or len(data) > max_bytes else data


def _json_lines(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    number = 0
    with _open(path) as file:
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
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=sorted(columns) or None):
            yield from rows_of_table(batch, source, name, number)
            number += batch.num_rows


def _format(path: Path) -> Callable[[Path, FilesSource, int, str], Iterator[Row]] | None:
    suffixes = path.suffixes[-2:] if path.suffix in (".gz", ".zst") else [path.suffix]
    plain = {".txt": _text, ".jsonl": _json_lines} | ({} if len(suffixes) == 2 else {".parquet": _parquet})
    return plain.get(suffixes[0])


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 2**20)
    return path.open("rb")


def _no_match(key: str, pattern: str) -> str:
    return f"{key}: no file matches {pattern!r} in {data_folder()}; put it there, or name another folder in OPENSPECTRA_DATA."
