"""Token shards on disk: files of little-endian ids, each with an index of the documents that have tokens in it."""

import hashlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

TYPE_CODES = {"<u2": "H", "<u4": "I"}
"""Array types by dtype; they refuse an id that does not fit, where a cast would wrap it."""
INDEX_COLUMNS = ("document_id", "source", "first_token", "num_tokens")
CHUNK_BYTES = 2**24


def dtype_for(vocab_size: int) -> np.dtype:
    """Return the type that holds every id of a vocabulary: uint16 where it fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Writes the tokens of one split of one part as `<split>-00000.bin`, ... and the index of each as `.parquet`.

    `first_token` of an index counts from the first token of the part; a document that crosses into the next shard
    stands in both indices.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int):
        self.folder, self.split, self.tokens_per_shard = folder, split, tokens_per_shard
        self._typecode, self._dtype = TYPE_CODES[dtype.str], dtype
        self._file = None
        self._rows: list[tuple] = []
        self.num_tokens = 0
        self.shards: list[dict[str, Any]] = []

    def add(self, ids: list[int], document_id: str, source: str) -> None:
        """Append one document's ids. Raises `OverflowError` for an id that the dtype does not hold."""
        content = np.frombuffer(array(self._typecode, ids), dtype=self._dtype.newbyteorder("="))
        row = (document_id, source, self.num_tokens, len(content))
        while len(content):
            if self._file is None:
                self._open()
            shard = self.shards[-1]
            piece = content[: self.tokens_per_shard - shard["num_tokens"]]
            data = piece.astype(self._dtype, copy=False).tobytes()
            self._file.write(data)
            self._digest.update(data)
            shard["num_tokens"] += len(piece)
            self.num_tokens += len(piece)
            self._rows.append(row)
            content = content[len(piece) :]
            if shard["num_tokens"] == self.tokens_per_shard:
                self._close_shard()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard and return path, first_byte, num_tokens, sha256 and index of all."""
        if self._file:
            self._close_shard()
        return self.shards

    def _open(self) -> None:
        path = f"{self.split}-{len(self.shards):05d}.bin"
        self._file, self._digest = (self.folder / path).open("wb"), hashlib.sha256()
        index = path.replace(".bin", ".parquet")
        self.shards.append({"path": path, "first_byte": 0, "num_tokens": 0, "index": index, "external": False})

    def _close_shard(self) -> None:
        self._file.close()
        self._file = None
        self.shards[-1]["sha256"] = self._digest.hexdigest()
        write_index(self._rows, self.folder / self.shards[-1]["index"])
        self._rows = []


def write_index(rows: list[tuple], path: Path) -> None:
    """Write rows of `INDEX_COLUMNS` as Parquet."""
    import pyarrow
    import pyarrow.parquet

    types = (pyarrow.string(), pyarrow.string(), pyarrow.int64(), pyarrow.int64())
    schema = pyarrow.schema(list(zip(INDEX_COLUMNS, types, strict=True)))
    columns = dict(zip(INDEX_COLUMNS, zip(*rows, strict=True), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path, compression="zstd")


def sha256_of_range(path: Path, first_byte: int, num_bytes: int) -> str:
    """Return the sha256 of a range of a file's bytes; of fewer, where the file ends sooner."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(first_byte)
        while num_bytes > 0 and (chunk := file.read(min(CHUNK_BYTES, num_bytes))):
            digest.update(chunk)
            num_bytes -= len(chunk)
    return digest.hexdigest()
