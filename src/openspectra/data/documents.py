"""Documents on disk: Parquet files that are written and read in bounded memory, spread over buckets by hash."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

BUFFER_BYTES = 32_000_000
"""Text that a writer collects before it writes: large enough for row groups worth their overhead."""
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
    """Writes documents of one type as a Parquet file, a row group per `BUFFER_BYTES` of text. No document, no file."""

    def __init__(self, path: Path):
        self.path, self._writer = path, None
        self._waiting: list[NamedTuple] = []
        self.waiting_bytes = 0

    def add(self, document: NamedTuple) -> None:
        self._waiting.append(document)
        self.waiting_bytes += len(document.text)
        if self.waiting_bytes >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        import pyarrow
        import pyarrow.parquet

        if not self._waiting:
            return
        fields = self._waiting[0]._fields
        schema = pyarrow.schema([(name, pyarrow.string()) for name in fields])
        columns = dict(zip(fields, zip(*self._waiting, strict=True), strict=True))
        self._waiting, self.waiting_bytes = [], 0
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, schema, compression="zstd", use_dictionary=False)
        self._writer.write_table(pyarrow.table(columns, schema=schema))

    def close(self) -> None:
        self.flush()
        if self._writer:
            self._writer.close()


class BucketWriter:
    """Spreads raw documents over the files `00000.parquet`, ... by hash; together they hold `BUFFER_BYTES` in memory.

    The files are the buckets `first` to `first + count - 1` of `num_buckets`. A bucket without documents has no file.
    """

    def __init__(self, folder: Path, num_buckets: int, first: int = 0, count: int | None = None):
        self.num_buckets, self.first = num_buckets, first
        self.writers = [DocumentWriter(folder / f"{n:05d}.parquet") for n in range(count or num_buckets)]
        self._waiting_bytes = 0

    def add(self, document: RawDocument) -> int:
        """Take a document and return the number of its bucket."""
        bucket = bucket_of(document.hash, self.num_buckets)
        self.writers[bucket - self.first].add(document)
        self._waiting_bytes += len(document.text)
        if self._waiting_bytes >= BUFFER_BYTES:
            for writer in self.writers:
                writer.flush()
            self._waiting_bytes = 0
        return bucket

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def write_documents(documents: Iterable[Document], path: Path) -> None:
    """Write documents as Parquet with columns id, text, source and place; without documents, a file of no rows."""
    import pyarrow
    import pyarrow.parquet

    writer = DocumentWriter(path)
    for document in documents:
        writer.add(document)
    writer.close()
    if not path.exists():
        schema = pyarrow.schema([(name, pyarrow.string()) for name in Document._fields])
        pyarrow.parquet.write_table(schema.empty_table(), path, compression="zstd")


def iterate(path: Path, kind: type[NamedTuple] = Document) -> Iterator[NamedTuple]:
    """Yield the documents of a Parquet file, a few at a time in memory."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(READ_ROWS):
            yield from map(kind._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))
