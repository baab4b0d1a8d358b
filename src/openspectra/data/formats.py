"""What files hold: text, JSON, CSV and tables. Each reader yields rows of a file in bounded memory, whatever is in it.

With a source, a row is its text, and rows of other sources are left out; without one, it is the whole object.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from openspectra.data.config import FilesSource
from openspectra.data.packed import PACKED, open_file
from openspectra.data.rows import (
    NOT_READABLE,
    ROWS_AT_A_TIME,
    Row,
    cause_of,
    columns_of,
    damaged_file,
    one_column,
    refuse_disk_error,
    rows_of_table,
    taken,
)

if TYPE_CHECKING:
    import pyarrow

BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**20
BATCH_BYTES = 32_000_000
"""Text of a Parquet file that is decoded at a time, as far as its own statistics tell."""
ENDINGS = ".txt, .jsonl, .json, .csv, .tsv (also .gz, .zst, .bz2, .xz), .parquet or .arrow"
Reader = Callable[[Path, str, int, FilesSource | None], Iterator[Row]]
"""Yields the rows of a file, which has a name in places; what is longer than so many bytes is `too_long`."""


def format_of(path: Path) -> Reader | None:
    """Return the reader for a file's ending, if there is one."""
    if path.suffix in PACKED:
        return _STREAMS.get(path.with_suffix("").suffix)
    return (_STREAMS | _TABLES).get(path.suffix)


def has_fields(path: Path) -> bool:
    """Return whether the rows of a file have fields to choose among."""
    return format_of(path) is not _text


def read_rows(path: Path, name: str, max_bytes: int, source: FilesSource | None = None) -> Iterator[Row]:
    """Yield the rows of a file of a known ending; damage ends them with a row of its own, which says what it is."""
    try:
        yield from format_of(path)(path, name, max_bytes, source)
    except NOT_READABLE as error:
        refuse_disk_error(error, path)
        yield damaged_file(name, error, path)


def read_text(path: Path, name: str, max_bytes: int) -> Iterator[Row]:
    """Yield the one row of a text file, without byte-order mark and with `\\n` line ends."""
    with open_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        yield Row(name, None, problem="too_long")
    else:
        yield Row(name, content.removeprefix(BOM).replace(b"\r\n", b"\n"))


def _text(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    if source is None or source.separator is None:
        yield from read_text(path, name, max_bytes)
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


def _json_lines(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    with open_file(path) as file:
        yield from _json_rows(_lines(file, max_bytes), name, source)


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of a file, None for one longer than `max_bytes`."""
    is_first = True
    while line := file.readline(max_bytes + 1):
        is_long = len(line) > max_bytes
        yield None if is_long else line.removeprefix(BOM) if is_first else line
        is_first = False
        while is_long and line and not line.endswith(b"\n"):
            line = file.readline(max_bytes + 1)


def _json_rows(values: Iterator[bytes | None], name: str, source: FilesSource | None) -> Iterator[Row]:
    """Yield the rows of values in JSON, None for one that is too long; white space is an empty row."""
    for number, value in enumerate(values, 1):
        place = f"{name}:{number}"
        if value is None:
            yield Row(place, None, problem="too_long")
        elif not value.strip():
            yield Row(place, "")
        else:
            try:
                content = json.loads(value.decode())
            except UnicodeDecodeError:
                yield Row(place, None, problem="invalid_utf8")
            except (ValueError, RecursionError) as error:
                cause = "nested too deeply" if isinstance(error, RecursionError) else cause_of(error)
                yield Row(place, None, problem="invalid_json", cause=cause)
            else:
                if row := taken(place, content, source):
                    yield row


def _json(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    """Yield the rows of an array of objects, of one object over several lines, or of objects line by line."""
    beginning = _beginning(path, max_bytes)
    with open_file(path) as file:
        if beginning.startswith(b"["):
            yield from _json_rows(_elements(file, max_bytes), name, source)
        elif _is_one_object(beginning):
            content = file.read(max_bytes + 1)
            yield from _json_rows(
                iter([content.removeprefix(BOM) if len(content) <= max_bytes else None]), name, source
            )
        else:
            yield from _json_rows(_lines(file, max_bytes), name, source)


def _beginning(path: Path, max_bytes: int) -> bytes:
    """Return the beginning of a file up to where its second line begins, as far as it can be read and is not too long."""
    content = b""
    with open_file(path) as file:
        while len(content) <= max_bytes and not content.startswith(b"[") and not content.partition(b"\n")[2].strip():
            try:
                more = file.read1(CHUNK_BYTES)
            except NOT_READABLE:  # who reads the rows comes to this place too, with those before it
                break
            if not more:
                break
            content = (content + more).removeprefix(BOM).lstrip()
    return content


def _is_one_object(content: bytes) -> bool:
    """Return whether JSON goes over the line's end: its first line is no value, and no second line begins an object."""
    first, _, rest = content.partition(b"\n")
    if not rest.strip() or rest.lstrip().startswith(b"{"):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


_NOTHING = object()
_IN_STRING, _OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["\[\]{},]')


def _elements(file: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the elements of a JSON array, None for one longer than `max_bytes`; of that little is in memory.

    Raises `EOFError` for an array that does not end, `ValueError` for what follows its end.
    """
    element, is_long, in_string, depth, skipped, number = bytearray(), False, False, 0, 0, 0
    for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
        begin, position, skipped = 0, skipped, 0
        while mark := (_IN_STRING if in_string else _OUTSIDE).search(chunk, position):
            position, byte = mark.end(), mark[0]
            if byte == b'"':
                in_string = not in_string
            elif byte == b"\\":
                position += 1  # what follows is no mark, though it may lie in the next chunk
            elif byte in (b"[", b"{"):
                depth += 1
                begin = position if depth == 1 else begin
            elif depth == 1 and byte in (b",", b"]"):
                element += chunk[begin : mark.start()]
                number += 1
                if is_long or element.strip() or byte == b"," or number > 1:
                    yield None if is_long or len(element) > max_bytes else bytes(element).strip() or b","
                element, is_long, begin = bytearray(), False, position
                if byte == b"]":
                    if chunk[position:].strip() or any(
                        more.strip() for more in iter(lambda: file.read(CHUNK_BYTES), b"")
                    ):
                        raise ValueError("something follows the end of the array")
                    return
            elif byte in (b"]", b"}"):
                depth = max(1, depth - 1)  # one that closes nothing spoils its element only
        skipped = max(0, position - len(chunk))
        element += chunk[begin:] if depth else b""
        if len(element) > max_bytes:
            element, is_long = bytearray(), True
    raise EOFError("the array does not end")


def _csv(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    """Yield the rows of a table in text: a header, fields in quotes where they hold separators, quotes or line ends."""
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    csv.field_size_limit(2**31 - 1)
    if source:  # nothing in it is a number
        source = source.model_copy(update={"where": {key: str(value) for key, value in source.where.items()}})
    with open_file(path) as file:
        records = _records(file, delimiter.encode(), max_bytes)
        if (first := next(records, _NOTHING)) is _NOTHING:
            return
        header = _header(first, delimiter)
        if source:
            for key in (source.text_field, *source.where):
                one_column(header, key, name)
        for number, record in enumerate(records, 1):
            place = f"{name}:{number}"
            if record is None:
                yield Row(place, None, problem="too_long")
                continue
            try:
                fields = _fields(record, delimiter)
                if fields and len(fields) != len(header):
                    raise csv.Error(f"{len(fields)} fields where the header has {len(header)}")
            except UnicodeDecodeError:
                yield Row(place, None, problem="invalid_utf8")
            except csv.Error as error:
                yield Row(place, None, problem="invalid_csv", cause=cause_of(error))
            else:
                row = taken(place, dict(zip(header, fields, strict=True)), source) if fields else Row(place, "")
                if row:
                    yield row


def _header(record: bytes | None, delimiter: str) -> list[str]:
    try:
        names = _fields(record or b"", delimiter)
    except csv.Error as error:
        raise ValueError(f"its first line: {error}") from None
    if not names:
        raise ValueError("its first line names no columns")
    return names


def _fields(record: bytes, delimiter: str) -> list[str]:
    """Return the fields of a record of CSV, none of an empty line."""
    return next(csv.reader(io.StringIO(record.decode(), newline=""), delimiter=delimiter, strict=True), [])


def _records(file: BinaryIO, delimiter: bytes, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the records of CSV, None for one longer than `max_bytes`; quotes may hold line ends.

    Raises `EOFError` where a quote does not end.
    """
    rest = b'[^"]*+(?:""[^"]*+)*+("|\\Z)'
    begins, goes_on = re.compile(b'[\n%b]"%b' % (delimiter, rest)), re.compile(rest)
    record, is_long, is_open, before = bytearray(), False, False, b"\n"
    is_first = True
    while line := file.readline(max_bytes + 1):
        while line.endswith(b'"') and len(line) <= max_bytes + CHUNK_BYTES and (more := file.readline(1)):
            line += more  # a pair of quotes stays together
        line, is_first = line.removeprefix(BOM) if is_first else line, False
        position = 0
        if is_open:
            end = goes_on.match(line)
            position, is_open = end.end() + 1, not end[1]
        if not is_open:
            for field in begins.finditer(before + line, position):
                is_open = not field[1]
        before = line[-1:] or b"\n"
        is_long = is_long or len(record) + len(line) > max_bytes
        record += line
        if is_long:
            record = bytearray()
        if before == b"\n" and not is_open:
            yield None if is_long else bytes(record)
            record, is_long = bytearray(), False
    if is_open:
        raise EOFError("a quote does not end")
    if record or is_long:
        yield None if is_long else bytes(record)


def _parquet(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    import pyarrow.parquet

    number = 1
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        wanted = None
        if source:
            columns_of(file.schema_arrow, source, name)
            wanted = sorted({source.text_field, *source.where})  # of a column with fields inside only those
        for group in range(file.num_row_groups):  # a batch over several groups would hold them all
            facts = file.metadata.row_group(group)
            rows = min(ROWS_AT_A_TIME, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
            for batch in file.iter_batches(max(1, rows), row_groups=[group], columns=wanted):
                yield from rows_of_table(batch, source, name, number)
                number += batch.num_rows


def _arrow(path: Path, name: str, max_bytes: int, source: FilesSource | None) -> Iterator[Row]:
    """Yield the rows of Arrow's file format or of its stream, a record batch in memory at a time."""
    import pyarrow

    number = 1
    with pyarrow.OSFile(str(path)) as file:
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        with pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file) as reader:
            for batch in _batches(reader, is_stream):
                if source:
                    keys, text = columns_of(batch.schema, source, name)
                    batch = batch.select([*keys, text] if text not in keys else keys)
                _check_offsets(batch)
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    yield from rows_of_table(batch.slice(start, ROWS_AT_A_TIME), source, name, number + start)
                number += batch.num_rows


def _batches(reader: "pyarrow.RecordBatchReader", is_stream: bool) -> Iterator["pyarrow.RecordBatch"]:
    """Yield the record batches of a file. Raises `ValueError` where a damaged one claims to be larger than the memory."""
    import pyarrow

    try:
        yield from reader if is_stream else map(reader.get_batch, range(reader.num_record_batches))
    except pyarrow.ArrowMemoryError as error:
        raise ValueError(str(error)) from None


def _check_offsets(batch: "pyarrow.RecordBatch") -> None:
    """Raise `pyarrow.ArrowInvalid` where a damaged batch points outside of its memory; whether text is UTF-8, rows tell."""
    for column in batch.columns:
        as_bytes = _as_bytes(column.type)
        (column if as_bytes == column.type else column.view(as_bytes)).validate(full=True)


def _as_bytes(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """Return a type with bytes in place of all text, the same in memory."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    twins = ((pyarrow.string(), pyarrow.binary()), (pyarrow.large_string(), pyarrow.large_binary()))
    return dict((*twins, (pyarrow.string_view(), pyarrow.binary_view()))).get(kind, kind)


_STREAMS = {".txt": _text, ".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv}
_TABLES = {".parquet": _parquet, ".arrow": _arrow}
