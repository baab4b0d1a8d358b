"""A row: what stands at a place where a document should be. What all adapters share."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openspectra.data.config import FilesSource, HubSource, Problem
from openspectra.errors import ConfigError, OpenSpectraError

if TYPE_CHECKING:
    import pyarrow

NOT_READABLE = (OSError, EOFError, zlib.error, ValueError)
"""What reading damaged content ends in; pyarrow's errors are OSError and ValueError."""
ROWS_AT_A_TIME = 64
"""Rows of a table that are decoded at a time."""


class Row(NamedTuple):
    """Text or bytes of a document, or anything else and then dirty."""

    place: str
    """`file:row`, the first row is 1; a file that holds one document is its own place."""
    content: Any
    split: str | None = None
    """The split that the source gives, if it does."""
    problem: Problem | None = None
    """What the adapter found wrong already."""


def is_taken(content: Any, source: FilesSource | HubSource) -> bool:
    """Return whether the fields named in the source's `where` have the values that they must have."""
    for path, wanted in source.where.items():
        value = content
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value != wanted:
            return False
    return True


def refuse_disk_error(error: Exception, path: Path | str) -> None:
    """Raise `OpenSpectraError` where it was the disk that failed, and not the content that is damaged."""
    if getattr(error, "errno", None) is not None:
        raise OpenSpectraError(f"{path}: cannot be read ({error.strerror}); check the disk and permissions.") from None


def rows_of_table(
    table: "pyarrow.Table | pyarrow.RecordBatch", source: FilesSource | HubSource, name: str, first: int
) -> Iterator[Row]:
    """Yield the rows of an Arrow table, of which the first is row number `first` of the file `name`.

    Raises `ConfigError` for a table without the columns that the source names.
    """
    import pyarrow

    keys = list(dict.fromkeys(path.split(".")[0] for path in source.where))
    for key in (source.text_field, *keys):
        if (count := table.schema.names.count(key)) != 1:
            number = "no column" if count == 0 else f"{count} columns"
            raise ConfigError([f"{name}: {number} {key!r}; it has {table.schema.names}. Set `text_field` or `where`."])
    column = table.column(source.text_field)
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())  # Arrow and Parquet promise UTF-8 and do not check it
    fields = table.select(keys).to_pylist() if keys else [{}] * table.num_rows
    for number, (value, field) in enumerate(zip(column, fields, strict=True), first):
        if is_taken(field, source):
            yield Row(f"{name}:{number}", value.as_py())
