"""Where documents come from: adapters of one interface, which yield rows in an order that no folder listing decides.

Only `hub` touches the network. Whatever is wrong with a row or a file is told as the row's problem; what follows is
the source's policy, applied by the reader.
"""

import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from openspectra.config import FilesSource, HubSource, Problem, ReadConfig, StdlibSource
from openspectra.errors import ConfigError, OpenSpectraError

TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are not part of the embedded corpus: its test packages and other people's code."""
BOM = b"\xef\xbb\xbf"
PARQUET_ROWS = 64
"""Rows decoded at a time."""


class Row(NamedTuple):
    """What stands at a place where a document should be: text or bytes, or anything else and then dirty."""

    place: str
    """`file:row`, the first row is 1; a file that holds one document is its own place."""
    content: Any
    split: str | None = None
    """The split that the source gives, if it does."""
    problem: Problem | None = None
    """What the adapter found wrong already."""


def data_folder() -> Path:
    """Return the folder that the paths of studies start from: `data`, or what OPENSPECTRA_DATA names."""
    return Path(os.environ.get("OPENSPECTRA_DATA") or "data")


def rows_of(config: ReadConfig) -> Iterator[Row]:
    """Yield the rows of one job's share of a source."""
    adapters = {StdlibSource: _stdlib_rows, FilesSource: _file_rows, HubSource: _hub_rows}
    return adapters[type(config.source)](config)


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
    """Return the files below the data folder that a path or pattern names, by name."""
    return sorted(path for path in data_folder().glob(pattern) if path.is_file())


def read_rows(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    """Yield the rows of one local file; `name` stands for it in places."""
    try:
        yield from _format(path)(path, source, max_bytes, name)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's errors are OSError and ValueError
        if getattr(error, "errno", None) is not None:
            raise OpenSpectraError(
                f"{path}: cannot be read ({error.strerror}); check the disk and permissions."
            ) from None
        yield Row(name, None, problem="damaged_file")


def _stdlib_rows(config: ReadConfig) -> Iterator[Row]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not TEST_FOLDERS & set(path.relative_to(root).parts))
    # _sysconfigdata holds the paths of the machine that built the interpreter
    paths = [path for path in paths if not path.name.startswith("_sysconfigdata")]
    for path in paths[config.job :: config.source.num_jobs]:
        yield from _text(path, config.source, config.max_document_bytes, path.relative_to(root).as_posix())


def _file_rows(config: ReadConfig) -> Iterator[Row]:
    for path, split in input_files(config):
        name = path.relative_to(data_folder()).as_posix()
        for row in read_rows(path, config.source, config.max_document_bytes, name):
            yield row._replace(split=split)


def _hub_rows(config: ReadConfig) -> Iterator[Row]:
    import datasets

    source = config.source
    for split, hub_split in source.split.items() if isinstance(source.split, dict) else [(None, source.split)]:
        rows = datasets.load_dataset(
            source.path, source.name, revision=source.revision, split=hub_split, streaming=True
        )
        if source.num_jobs > rows.num_shards:
            raise ConfigError(
                [
                    f"corpus.sources.{config.name}.num_jobs: {source.path} has {rows.num_shards} files in "
                    f"{hub_split!r}; got {source.num_jobs}. Give as many or fewer."
                ]
            )
        for number, row in enumerate(rows.shard(source.num_jobs, config.job), 1):
            if _is_taken(row, source):
                yield _field(f"{source.path}/{hub_split}:{number}", row, source)._replace(split=split)


def _text(path: Path, source: StdlibSource | FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    with _open(path) as file:
        content = file.read(max_bytes + 1).removeprefix(BOM).replace(b"\r\n", b"\n")
    yield Row(name, content)


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
    return _field(place, content, source) if _is_taken(content, source) else None


def _is_taken(row: Any, source: FilesSource | HubSource) -> bool:
    for path, wanted in source.where.items():
        value = row
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value != wanted:
            return False
    return True


def _field(place: str, row: Any, source: FilesSource | HubSource) -> Row:
    if not isinstance(row, dict):
        return Row(place, None, problem="wrong_type")
    field = source.text_field
    return Row(place, row[field]) if field in row else Row(place, None, problem="missing_field")


def _parquet(path: Path, source: FilesSource, max_bytes: int, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    field, keys = source.text_field, [path.split(".")[0] for path in source.where]
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        schema = file.schema_arrow
        missing = [name for name in (field, *keys) if name not in schema.names]
        if missing:
            raise ConfigError(
                [f"{path}: no column {missing[0]!r}; it has {schema.names}. Set `text_field` or `where`."]
            )
        is_text = pyarrow.types.is_string(schema.field(field).type) or pyarrow.types.is_large_string(
            schema.field(field).type
        )
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=[field, *keys]):
            column = batch.column(field)
            # as bytes, because Parquet promises UTF-8 and does not check it
            values = (column.cast(pyarrow.large_binary()) if is_text else column).to_pylist()
            rows = batch.select(keys).to_pylist() if keys else [{}] * len(values)
            for value, row in zip(values, rows, strict=True):
                number += 1
                if _is_taken(row, source):
                    yield Row(f"{name}:{number}", value)


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
