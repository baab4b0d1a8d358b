"""The tokens of one split: a single row of ids over the shards of all parts, checked before use, traced to documents."""

import bisect
import hashlib
import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openspectra.artifacts import Artifact, sha256_of
from openspectra.data.local_files import data_folder
from openspectra.data.shards import DIGEST_BYTES, INDEX_COLUMNS, SHARDS
from openspectra.errors import DamagedArtifactError, OpenSpectraError


class Span(NamedTuple):
    """Where part of a sample comes from: tokens `first_token` to `first_token + num_tokens - 1` of one document."""

    document_id: str
    source: str
    first_token: int
    num_tokens: int


class DocumentPlace(NamedTuple):
    """Where a document lies in a split: `num_tokens` from token `first_token` on, its end-of-text token included."""

    document_id: str
    source: str
    first_token: int
    num_tokens: int


class Shard(NamedTuple):
    """Tokens that lie one after the other in a file, with the index of their documents and the hashes of their blocks."""

    part: str
    """Role of the part among the artifact's parents; paths are relative to it, of ready files to the data folder."""
    path: str
    first_byte: int
    num_tokens: int
    block_bytes: int
    external: bool
    """A ready token file in the data folder; else a file of the study's results."""
    index: str
    index_sha256: str
    hashes: str
    hashes_sha256: str
    part_first_token: int
    """Place in the split of the token that the index counts from."""


class Tokens:
    """The tokens of one split. A block of a shard is checked against its hash once, before its first token is used."""

    def __init__(self, artifact: Artifact):
        """Raises `DamagedArtifactError` naming a shard that is missing or of another size."""
        self.split = artifact.manifest.config["split"]
        self.dtype = np.dtype(artifact.manifest.metrics["dtype"])
        rows = json.loads(artifact.file(SHARDS).read_text(encoding="utf-8"))
        self._shards = [Shard(**row) for row in rows]
        parents = artifact.manifest.parents.items()
        self._parts = {role: Path(os.path.normpath(artifact.folder / parent.path)) for role, parent in parents}
        self._hashes: dict[int, tuple[bytes, np.ndarray]] = {}
        self._last_index: dict[int, Any] = {}
        for shard in self._shards:
            self._check_size(shard)

    @cached_property
    def _starts(self) -> list[int]:
        return np.cumsum([0, *(shard.num_tokens for shard in self._shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def num_sequences(self, sequence_length: int, key: str = "training.sequence_length") -> int:
        """Return how many samples of `sequence_length` inputs and as many targets the split holds.

        Raises `OpenSpectraError` where there is none; `key` is the study's own for the length.
        """
        count = (len(self) - 1) // sequence_length
        if count < 1:
            section = "token_files" if any(shard.external for shard in self._shards) else "corpus"
            turn = "raise" if self.split == "valid" else "lower"
            raise OpenSpectraError(
                f"tokens: split `{self.split}` has {len(self):,} tokens, and one sequence needs {sequence_length + 1:,}: "
                f"{sequence_length:,} ({key}) and the one that follows; give more text under {section}, {turn} "
                f"{section}.valid_fraction, or lower {key}."
            )
        return count

    def sequences(self, indices: np.ndarray, sequence_length: int) -> np.ndarray:
        """Return samples [len(indices), sequence_length + 1] as int64; sample i starts at token i * sequence_length."""
        return np.stack([self._slice(int(i) * sequence_length, sequence_length + 1) for i in indices])

    def trace(self, indices: np.ndarray, sequence_length: int) -> list[list[Span]]:
        """Return for each sample the documents that its `sequence_length + 1` tokens come from, in order."""
        order = np.argsort(np.asarray(indices), kind="stable")  # one index in memory at a time
        spans = {i: self._spans(int(indices[i]) * sequence_length, sequence_length + 1) for i in order.tolist()}
        return [spans[i] for i in range(len(spans))]

    def documents(self) -> list[DocumentPlace]:
        """Return every document of the split, in order."""
        places = []
        for number, shard in enumerate(self._shards):
            columns = (self._index_of(number)[name].to_pylist() for name in INDEX_COLUMNS)
            for document_id, source, first, count in zip(*columns, strict=True):
                begin = shard.part_first_token + first
                if begin >= self._starts[number]:  # else it began in the shard before, and stands there
                    places.append(DocumentPlace(document_id, source, begin, count))
        return places

    def ids(self, place: DocumentPlace) -> np.ndarray:
        """Return the tokens of a document as int64."""
        return self._slice(place.first_token, place.num_tokens)

    def _slice(self, start: int, length: int) -> np.ndarray:
        pieces = [
            self._checked(number, first, count).astype(np.int64) for number, first, count in self._pieces(start, length)
        ]
        return np.concatenate(pieces)

    def _spans(self, start: int, length: int) -> list[Span]:
        spans: list[Span] = []
        for number, first, count in self._pieces(start, length):
            shard = self._shards[number]
            index, begin = self._index_of(number), self._starts[number] + first - shard.part_first_token
            # by dlpack: every other way to numpy imports pandas, half a second
            first_tokens = np.from_dlpack(index["first_token"].combine_chunks())
            row = int(np.searchsorted(first_tokens, begin, side="right")) - 1
            end = begin + count
            while begin < end:
                document_id, source, document_first, document_tokens = (
                    index[name][row].as_py() for name in INDEX_COLUMNS
                )
                taken = min(end, document_first + document_tokens) - begin
                span = Span(document_id, source, begin - document_first, taken)
                if spans and spans[-1][:2] == span[:2] and sum(spans[-1][2:]) == span.first_token:
                    spans[-1] = spans[-1]._replace(num_tokens=spans[-1].num_tokens + taken)  # crossed into this shard
                else:
                    spans.append(span)
                begin, row = begin + taken, row + 1
        return spans

    def _pieces(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (number of the shard, first token in it, tokens) of a stretch of the split."""
        number = bisect.bisect_right(self._starts, start) - 1
        while length:
            first = start - self._starts[number]
            count = min(length, self._shards[number].num_tokens - first)
            yield number, first, count
            start, length, number = start + count, length - count, number + 1

    def _checked(self, number: int, first: int, count: int) -> np.ndarray:
        """Return tokens of a shard, each block that holds one of them checked."""
        digests, is_checked = self._hashes_of(number)
        shard = self._shards[number]
        size = shard.block_bytes // self.dtype.itemsize
        for block in range(first // size, (first + count - 1) // size + 1):
            if is_checked[block]:
                continue
            tokens = self._read(shard, block * size, min(size, shard.num_tokens - block * size))
            if hashlib.sha256(tokens).digest() != digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:
                raise DamagedArtifactError(
                    f"{self._path(shard)}: the sha256 of its block at byte {shard.first_byte + block * shard.block_bytes:,} "
                    f"differs from {shard.hashes}, so it was altered; {self._remedy(shard)}"
                )
            is_checked[block] = True
        return self._read(shard, first, count)

    def _read(self, shard: Shard, first: int, count: int) -> np.ndarray:
        """Return tokens of a shard from its file, which is closed again: 300B tokens lie in 4,500 shards.

        One step reads from hundreds of them, and many systems let a process open 1,024 files. A mapped file counts.
        """
        offset = shard.first_byte + first * self.dtype.itemsize
        try:
            tokens = np.fromfile(self._path(shard), self.dtype, count, offset=offset)
        except FileNotFoundError:
            tokens = np.empty(0, self.dtype)
        if len(tokens) < count:
            self._check_size(shard)
        return tokens

    def _hashes_of(self, number: int) -> tuple[bytes, np.ndarray]:
        """Return the digests of a shard's blocks, and whether each block has been checked."""
        if number not in self._hashes:
            shard = self._shards[number]
            digests = self._checked_file(shard, shard.hashes, shard.hashes_sha256).read_bytes()
            self._hashes[number] = digests, np.zeros(len(digests) // DIGEST_BYTES, bool)
        return self._hashes[number]

    def _index_of(self, number: int):
        """Return the index of a shard, a `pyarrow.Table` of `INDEX_COLUMNS`; the last one is kept."""
        import pyarrow.parquet

        if number in self._last_index:
            return self._last_index[number]
        shard = self._shards[number]
        path = self._checked_file(shard, shard.index, shard.index_sha256)
        # not read_table, which imports the data set reader
        self._last_index = {number: pyarrow.parquet.ParquetFile(path).read()}
        return self._last_index[number]

    def _checked_file(self, shard: Shard, name: str, sha256: str) -> Path:
        """Return a file that lies beside a shard's part. Raises `DamagedArtifactError` where it is missing or altered."""
        path = self._parts[shard.part] / name
        if not path.is_file() or sha256_of(path) != sha256:
            raise DamagedArtifactError(f"{path}: missing or altered; {self._rebuild(shard)}")
        return path

    def _check_size(self, shard: Shard) -> None:
        path = self._path(shard)
        if not path.is_file():
            raise DamagedArtifactError(f"{path}: missing; {self._remedy(shard)}")
        expected, size = shard.first_byte + shard.num_tokens * self.dtype.itemsize, path.stat().st_size
        if size < expected or (size > expected and not shard.external):
            raise DamagedArtifactError(f"{path}: {size:,} bytes where {expected:,} belong; {self._remedy(shard)}")

    def _path(self, shard: Shard) -> Path:
        return (data_folder() if shard.external else self._parts[shard.part]) / shard.path

    def _remedy(self, shard: Shard) -> str:
        return "fetch the file again." if shard.external else self._rebuild(shard)

    def _rebuild(self, shard: Shard) -> str:
        return f"delete {self._parts[shard.part] / 'manifest.json'} and run the same command again."
