"""Documents on disk, written and read in bounded memory: splits as Parquet, and before that raw ones by range of hashes.

Raw documents lie in Arrow streams: a Parquet file would hold the metadata of every row group in memory until its end,
and a job that spreads 70 GB over 300 files writes 600,000 of them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow

BUFFER_BYTES = 32_000_000
"""Memory of the documents that a writer collects before it writes: enough for row groups worth their overhead."""
DOCUMENT_BYTES = 400
"""Memory of a document beside its text: the tuple, its short strings, and its place in a table."""
READ_ROWS = 64
"""Rows decoded at a time."""


class Document(NamedTuple):
    """One text with its id (first 16 hexadecimal digits of its hash), its source, and its place there (`file:row`)."""

    id: str
    text: str
    source: str
    place: str = ""


class RawDocument(NamedTuple):
    """A document that may have duplicates. `hash`: 128 bits in hexadecimal; `split`: what the source says, if it does."""

    hash: str
    text: str
    source: str
    place: str
    split: str | None


def hash_of(text: bytes) -> str:
    """Return the first 128 bits of the sha256 of a text, as 32 hexadecimal digits."""
    return hashlib.sha256(text).hexdigest()[:32]


def bucket_of(document_hash: str, num_buckets: int) -> int:
    """Return the bucket of a hash: buckets are equal ranges of hashes, in their order."""
    return int(document_hash[:8], 16) * num_buckets >> 32


class DocumentWriter:
    """Writes documents as a Parquet file with columns id, text, source and place, a row group per `BUFFER_BYTES`."""

    def __init__(self, path: Path):
        import pyarrow.parquet

        self._writer = pyarrow.parquet.ParquetWriter(path, _schema(Document), compression="zstd", use_dictionary=False)
        self._waiting: list[Document] = []
        self._waiting_bytes = 0

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        self._waiting_bytes += len(document.text) + DOCUMENT_BYTES
        if self._waiting_bytes >= BUFFER_BYTES:
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(_table(self._waiting))
        self._waiting, self._waiting_bytes = [], 0


class BucketWriter:
    """Spreads raw documents over the streams `00000.arrow`, ... by hash; together they hold `BUFFER_BYTES` in memory.

    The files are the buckets `first` to `first + count - 1` of `num_buckets`. A bucket without documents has no file.
    """

    def __init__(self, folder: Path, num_buckets: int, first: int = 0, count: int | None = None):
        self.num_buckets, self.first = num_buckets, first
        self.paths = [bucket_path(folder, number) for number in range(count or num_buckets)]
        self._streams: dict[int, pyarrow.RecordBatchStreamWriter] = {}
        self._waiting: dict[int, list[RawDocument]] = defaultdict(list)
        self._waiting_bytes = 0

    def add(self, document: RawDocument) -> int:
        """Take a document and return the number of its bucket."""
        bucket = bucket_of(document.hash, self.num_buckets)
        self._waiting[bucket - self.first].append(document)
        self._waiting_bytes += len(document.text) + DOCUMENT_BYTES
        if self._waiting_bytes >= BUFFER_BYTES:
            self._flush()
        return bucket

    def close(self) -> None:
        self._flush()
        for stream in self._streams.values():
            stream.close()

    def _flush(self) -> None:
        import pyarrow

        for number, documents in self._waiting.items():
            if number not in self._streams:
                options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
                self._streams[number] = pyarrow.ipc.new_stream(
                    str(self.paths[number]), _schema(RawDocument), options=options
                )
            self._streams[number].write_table(_table(documents))
        self._waiting.clear()
        self._waiting_bytes = 0


def bucket_path(folder: Path, number: int) -> Path:
    """Return the file of a bucket of raw documents."""
    return folder / f"{number:05d}.arrow"


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Write documents as Parquet with columns id, text, source and place; without documents, a file of no rows."""
    writer = DocumentWriter(path)
    for document in documents:
        writer.add(document)
    writer.close()


def iterate(path: Path) -> Iterator[Document]:
    """Yield the documents of a Parquet file, a few at a time in memory."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):  # a batch over several groups would hold them all
            for batch in file.iter_batches(READ_ROWS, row_groups=[group]):
                yield from _documents(batch, Document)


def iterate_raw(path: Path) -> Iterator[RawDocument]:
    """Yield the documents of a bucket, a few at a time in memory."""
    import pyarrow

    with pyarrow.input_stream(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        for batch in stream:
            for start in range(0, batch.num_rows, READ_ROWS):
                yield from _documents(batch.slice(start, READ_ROWS), RawDocument)


def _schema(kind: type[NamedTuple]) -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema([(name, pyarrow.string()) for name in kind._fields])


def _table(documents: Sequence[NamedTuple]) -> "pyarrow.Table":
    import pyarrow

    schema = _schema(type(documents[0]))
    return pyarrow.table(dict(zip(schema.names, zip(*documents, strict=True), strict=True)), schema=schema)


def _documents(batch: "pyarrow.RecordBatch", kind: type[NamedTuple]) -> Iterator[NamedTuple]:
    yield from map(kind._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))
