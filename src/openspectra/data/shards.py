"""Token shards on disk: files of little-endian ids, each with an index of its documents and the hashes of its blocks.

A block is what a reader checks as a whole before the first of its tokens is used: large enough for few hashes, small
enough that a process which reads here and there in 300 billion tokens need not read them all.
"""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openspectra.artifacts import Artifact

SHARDS = "shards.json"
"""The list of the shards of one split."""
TYPE_CODES = {"<u2": "H", "<u4": "I"}
"""Array types by dtype; they refuse an id that does not fit, where a cast would wrap it."""
INDEX_COLUMNS = ("document_id", "source", "first_token", "num_tokens")
INDEX_ROWS = 100_000
"""Rows of an index that wait in memory before they are written."""
BLOCK_BYTES = 2**20
"""Bytes of a shard that share a hash."""
DIGEST_BYTES = hashlib.sha256().digest_size


def dtype_for(vocab_size: int) -> np.dtype:
    """Return the type that holds every id of a vocabulary: uint16 where it fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes the tokens of one split of one part as `<split>-00000.bin`, ..., the index of each as `.parquet` and the
    hashes of its blocks as `.sha256`.

    `first_token` of an index counts from the first token of the part; a document that crosses into the next shard
    stands in both indices.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int):
        self.folder, self.split, self.tokens_per_shard = folder, split, tokens_per_shard
        self._typecode, self._dtype = TYPE_CODES[dtype.str], dtype
        self._file = None
        self.num_tokens = 0
        self.shards: list[dict[str, Any]] = []

    def add(self, ids: Sequence[int], document_id: str, source: str) -> None:
        """Append one document's ids. Raises `OverflowError` for an id that the dtype does not hold."""
        if not (isinstance(ids, array) and ids.typecode == self._typecode):
            ids = array(self._typecode, ids)
        content = np.frombuffer(ids, dtype=self._dtype.newbyteorder("="))
        row = (document_id, source, self.num_tokens, len(content))
        while len(content):
            if self._file is None:
                self._open()
            shard = self.shards[-1]
            piece = content[: self.tokens_per_shard - shard["num_tokens"]]
            data = piece.astype(self._dtype, copy=False).view(np.uint8)
            self._file.write(data)
            self._hasher.update(data)
            shard["num_tokens"] += len(piece)
            self.num_tokens += len(piece)
            self._index.add(row)
            content = content[len(piece) :]
            if shard["num_tokens"] == self.tokens_per_shard:
                self._close_shard()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard and return path, first_byte, num_tokens, index and hashes of all."""
        if self._file:
            self._close_shard()
        return self.shards

    def _open(self) -> None:
        name = f"{self.split}-{len(self.shards):05d}"
        self._file, self._hasher = (self.folder / f"{name}.bin").open("wb"), BlockHasher()
        self.shards.append(shard_record(name, f"{name}.bin"))
        self._index = IndexWriter(self.folder / self.shards[-1]["index"])

    def _close_shard(self) -> None:
        self._file.close()
        self._file = None
        self._index.close()
        (self.folder / self.shards[-1]["hashes"]).write_bytes(self._hasher.digests())


class BlockHasher:
    """Takes the bytes of a shard as they come and returns the sha256 of each block, one after the other."""

    def __init__(self):
        self._digests, self._block, self._room = [], hashlib.sha256(), BLOCK_BYTES

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        data = memoryview(data)
        while len(data):
            piece = data[: self._room]
            self._block.update(piece)
            self._room -= len(piece)
            data = data[len(piece) :]
            if not self._room:
                self._next_block()

    def digests(self) -> bytes:
        """Return the digests of all blocks; the last block may be shorter."""
        if self._room < BLOCK_BYTES:
            self._next_block()
        return b"".join(self._digests)

    def _next_block(self) -> None:
        self._digests.append(self._block.digest())
        self._block, self._room = hashlib.sha256(), BLOCK_BYTES


def shard_record(
    name: str, path: str, first_byte: int = 0, num_tokens: int = 0, external: bool = False
) -> dict[str, Any]:
    """Return what a part says of a shard: where its tokens, the index of its documents and its hashes lie."""
    return {
        "path": path,
        "first_byte": first_byte,
        "num_tokens": num_tokens,
        "block_bytes": BLOCK_BYTES,
        "external": external,
        "index": f"{name}.parquet",
        "hashes": f"{name}.sha256",
    }


def in_split(shard: dict[str, Any], part: Artifact, role: str, part_first_token: int) -> dict[str, Any]:
    """Return what a split says of a shard: its part by role, where the part begins, and the hashes of its small files."""
    found = {f"{name}_sha256": part.record(shard[name]).sha256 for name in ("index", "hashes")}
    return shard | found | {"part": role, "part_first_token": part_first_token}


class IndexWriter:
    """Writes the index of a shard as Parquet with `INDEX_COLUMNS`, `INDEX_ROWS` in memory at a time."""

    def __init__(self, path: Path):
        import pyarrow.parquet

        types = (pyarrow.string(), pyarrow.string(), pyarrow.int64(), pyarrow.int64())
        self._schema = pyarrow.schema(list(zip(INDEX_COLUMNS, types, strict=True)))
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[tuple] = []

    def add(self, row: tuple) -> None:
        """Take a row."""
        self._rows.append(row)
        if len(self._rows) == INDEX_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        columns = dict(zip(INDEX_COLUMNS, zip(*self._rows, strict=True), strict=True))
        self._writer.write_table(pyarrow.table(columns, schema=self._schema))
        self._rows = []
