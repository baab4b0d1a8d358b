"""A row: what stands at a place where a document should be. What all adapters share."""

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openspectra.data.config import FilesSource, HubSource, Problem
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.printable import escaped

if TYPE_CHECKING:
    import pyarrow

NOT_READABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
"""What reading damaged content ends in; pyarrow's errors are OSError and ValueError."""
ROWS_AT_A_TIME = 64
"""Rows of a table that are decoded at a time."""
CAUSE_CHARACTERS = 200
KINDS = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
"""What a value is, in the words of JSON."""


class Row(NamedTuple):
    """Text or bytes of a document, or anything else and then dirty."""

    place: str
    """`file:row`, the first row is 1; a file that holds one document is its own place."""
    content: Any
    split: str | None = None
    """The split that the source gives, if it does."""
    problem: Problem | None = None
    """What the adapter found wrong already."""
    cause: str = ""
    """What lies behind the problem, in one line; the same on every machine."""


def taken(place: str, content: Any, source: FilesSource | HubSource | None) -> Row | None:
    """Return the row of an object: its text, None where it belongs to another source; all of it where no source is given."""
    if not isinstance(content, dict):
        return Row(place, None, problem="wrong_type", cause=f"the row is {_kind(content)}, no object")
    if source is None:
        return Row(place, content)
    if not is_taken(content, source):
        return None
    found, value = field_of(content, source.text_field)
    if not found:
        return Row(place, None, problem="missing_field", cause=source.text_field)
    if value is None or isinstance(value, str | bytes):
        return Row(place, value)
    return Row(place, None, problem="wrong_type", cause=f"it is {_kind(value)}")


def is_taken(content: dict[str, Any], source: FilesSource | HubSource) -> bool:
    """Return whether the fields named in the source's `where` have the values that they must have."""
    return all(field_of(content, path)[1] == wanted for path, wanted in source.where.items())


def field_of(content: dict[str, Any], path: str) -> tuple[bool, Any]:
    """Return whether there is a field `path`, and its value: one of that very name, else `a.b`, the field b of field a."""
    if path in content:
        return True, content[path]
    value: Any = content
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return False, None
        value = value[key]
    return True, value


def one_column(names: list[str], name: str, file: str) -> None:
    """Raise `ConfigError` for a table that has no column `name`, or several."""
    if (count := names.count(name)) != 1:
        number = "no column" if count == 0 else f"{count} columns"
        raise ConfigError([f"{file}: {number} {name!r}; it has {names}. Set `text_field` or `where`."])


def cause_of(error: Exception, path: Path | str = "", name: str = "") -> str:
    """Return the first line of what an error says; a file is called `name`, as on every machine."""
    said = str(error).strip().partition("\n")[0].replace(str(path) or "\0", name) or type(error).__name__
    return escaped(said)[:CAUSE_CHARACTERS].rstrip(".")


def damaged_file(name: str, error: Exception, path: Path | str = "") -> Row:
    """Return the row that stands for a file which cannot be read, or not to its end."""
    return Row(name, None, problem="damaged_file", cause=cause_of(error, path, name))


def refuse_disk_error(error: Exception, path: Path | str) -> None:
    """Raise `OpenSpectraError` where it was the disk that failed, and not the content that is damaged."""
    if getattr(error, "errno", None) is not None:
        raise OpenSpectraError(f"{path}: cannot be read ({error.strerror}); check the disk and permissions.") from None


def columns_of(schema: "pyarrow.Schema", source: FilesSource | HubSource, name: str) -> tuple[list[str], str]:
    """Return the columns of a table that hold the fields of `where`, and the one that holds the text.

    Raises `ConfigError` for a table, called `name`, without them.
    """
    from pyarrow.types import is_struct

    columns = []
    for path in (*source.where, source.text_field):
        column, *inner = [path] if path in schema.names else path.split(".")
        one_column(schema.names, column, name)
        kind = schema.field(column).type
        for key in inner:
            one_column(kind.names if is_struct(kind) else [], key, f"{name}: {path}")
            kind = kind.field(key).type
        columns.append(column)
    return list(dict.fromkeys(columns[:-1])), columns[-1]


def rows_of_table(
    table: "pyarrow.Table | pyarrow.RecordBatch", source: FilesSource | HubSource | None, name: str, first: int
) -> Iterator[Row]:
    """Yield the rows of an Arrow table, of which the first is row number `first` of the file `name`.

    Arrow and Parquet promise UTF-8 and do not check it: a row that breaks the promise is dirty, those around it are not.
    Raises `ConfigError` for a table without the columns that the source names.
    """
    keys, text = columns_of(table.schema, source, name) if source else (table.schema.names, None)
    columns = map(table.column, [*keys, text]) if source else table.columns
    for number, values in enumerate(zip(*columns, strict=True), first):
        place = f"{name}:{number}"
        try:
            content = {key: value.as_py() for key, value in zip(keys, values, strict=False)}
            if source and not is_taken(content, source):
                continue
            if text is not None:
                content[text] = values[-1].as_py()
        except UnicodeDecodeError:
            yield Row(place, None, problem="invalid_utf8")
            continue
        yield taken(place, content, source)


def _kind(value: Any) -> str:
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)
