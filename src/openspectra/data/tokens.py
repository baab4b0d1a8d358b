"""Token shards: the documents of one split as a single row of token ids.

Each part of the corpus is tokenized by a job of its own (`build_token_part`); `build_tokens` lists the shards of all
parts in order, and `Tokens` reads them. Every document ends with the end-of-text token.
"""

import bisect
import json
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openspectra.artifacts import Artifact, write_json
from openspectra.config import TokenPartConfig, TokensConfig
from openspectra.data.corpus import parts_of, role_of
from openspectra.data.documents import Document, iterate
from openspectra.data.local_files import data_folder
from openspectra.data.shards import INDEX_COLUMNS, ShardWriter, dtype_for, sha256_of_range
from openspectra.data.tokenizer import end_of_text_id, fingerprint, load_tokenizer
from openspectra.errors import DamagedArtifactError, OpenSpectraError

BATCH_CHARACTERS = 1_000_000
"""Text handed to the tokenizer at a time, enough to keep its threads busy."""
CHARACTERS_IN_FLIGHT = 2_000_000
"""Text in the tokenizer at a time, but for a longer document: one batch is encoded while the one before is written.
The tokenizer needs some 140 bytes of memory for each."""
SHARDS = "shards.json"


def build_token_part(config: TokenPartConfig, part: Artifact, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the shards and indices of one part's splits; return counts, dtype and the tokenizer's fingerprint."""
    encoder, end_of_text = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    dtype = dtype_for(encoder.get_vocab_size())
    splits = {}
    for split in config.splits:
        writer = ShardWriter(folder, split, dtype, config.tokens_per_shard)
        sources = defaultdict(Counter)
        for document, ids in encoded(encoder, iterate(part.file(f"{split}.parquet"))):
            ids.append(end_of_text)
            writer.add(ids, document.id, document.source)
            sources[document.source].update(documents=1, bytes=len(document.text.encode()), tokens=len(ids))
        counts = {source: dict(count) for source, count in sorted(sources.items())}
        splits[split] = {"shards": writer.close(), "num_tokens": writer.num_tokens, "sources": counts}
    return {"dtype": dtype.str, "tokenizer_sha256": fingerprint(tokenizer), "splits": splits}


def build_tokens(config: TokensConfig, tokenizer: Artifact, *others: Artifact, folder: Path) -> dict[str, Any]:
    """Write `shards.json`, the shards of all parts in order; return counts, dtype and the tokenizer's fingerprint.

    Raises `DamagedArtifactError` where a part was made with another tokenizer.
    """
    parts = parts_of(others, "token_part")
    shards, sources = [], defaultdict(Counter)
    num_tokens = 0
    for part in parts:
        metrics = part.manifest.metrics
        if metrics["tokenizer_sha256"] != fingerprint(tokenizer):
            raise DamagedArtifactError(
                f"{part.folder}: made with tokenizer {metrics['tokenizer_sha256'][:12]}, but {tokenizer.folder} is "
                f"{fingerprint(tokenizer)[:12]}; tokenize this part again."
            )
        hashes = {record.path: record.sha256 for record in part.manifest.files}
        split = metrics["splits"][config.split]
        for shard in split["shards"]:
            place = {"part": role_of(part), "part_first_token": num_tokens, "index_sha256": hashes[shard["index"]]}
            shards.append(shard | place)
        num_tokens += split["num_tokens"]
        for source, count in split["sources"].items():
            sources[source].update(count)
    if not shards:
        raise OpenSpectraError(f"tokens: split `{config.split}` has no tokens; give more documents or other fractions.")
    write_json(folder / SHARDS, shards)
    return {
        "num_tokens": num_tokens,
        "num_documents": sum(count["documents"] for count in sources.values()),
        "num_shards": len(shards),
        "dtype": parts[0].manifest.metrics["dtype"],
        "tokenizer_sha256": fingerprint(tokenizer),
        "sources": {source: dict(count) for source, count in sorted(sources.items())},
    }


def encoded(encoder, documents: Iterator[Document]) -> Iterator[tuple[Document, list[int]]]:
    """Yield every document with its token ids, in order; the next batch is encoded meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        waiting, characters = deque(), 0
        for batch in _batches(documents):
            size = sum(len(document.text) for document in batch)
            while waiting and characters + size > CHARACTERS_IN_FLIGHT:
                characters -= waiting[0][1]
                yield from _results(*waiting.popleft())
            texts = [document.text for document in batch]
            waiting.append((batch, size, pool.submit(encoder.encode_batch_fast, texts)))
            characters += size
        while waiting:
            yield from _results(*waiting.popleft())


class Span(NamedTuple):
    """Where part of a sample comes from: tokens `first_token` to `first_token + num_tokens - 1` of one document."""

    document_id: str
    source: str
    first_token: int
    num_tokens: int


class Shard(NamedTuple):
    """Tokens that lie one after the other in a file, and the index of their documents."""

    part: str
    """Role of the part among the artifact's parents; paths are relative to it, of ready files to the data folder."""
    path: str
    first_byte: int
    num_tokens: int
    sha256: str
    external: bool
    """A ready token file in the data folder; else a file of the study's results."""
    index: str
    index_sha256: str
    part_first_token: int
    """Place in the split of the token that the index counts from."""


class Tokens:
    """The tokens of one split. A shard is checked against its hash once, before its first token is used."""

    def __init__(self, artifact: Artifact):
        """Raises `DamagedArtifactError` naming a shard that is missing or of another size."""
        self.split = artifact.manifest.config["split"]
        self.dtype = np.dtype(artifact.manifest.metrics["dtype"])
        rows = json.loads(artifact.file(SHARDS).read_text(encoding="utf-8"))
        self._shards = [Shard(**row) for row in rows]
        parents = artifact.manifest.parents.items()
        self._parts = {role: Path(os.path.normpath(artifact.folder / parent.path)) for role, parent in parents}
        self._open: dict[int, np.memmap] = {}
        self._last_index: dict[int, Any] = {}
        for shard in self._shards:
            self._check_size(shard)

    @cached_property
    def _starts(self) -> list[int]:
        return np.cumsum([0, *(shard.num_tokens for shard in self._shards)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def num_sequences(self, sequence_length: int) -> int:
        """Return how many samples of `sequence_length` inputs and as many targets the split holds."""
        count = (len(self) - 1) // sequence_length
        if count < 1:
            raise OpenSpectraError(f"tokens: split `{self.split}` has {len(self)} tokens, too few for one sequence.")
        return count

    def sequences(self, indices: np.ndarray, sequence_length: int) -> np.ndarray:
        """Return samples [len(indices), sequence_length + 1] as int64; sample i starts at token i * sequence_length."""
        return np.stack([self._slice(int(i) * sequence_length, sequence_length + 1) for i in indices])

    def trace(self, indices: np.ndarray, sequence_length: int) -> list[list[Span]]:
        """Return for each sample the documents that its `sequence_length + 1` tokens come from, in order."""
        order = np.argsort(np.asarray(indices), kind="stable")  # one index in memory at a time
        spans = {i: self._spans(int(indices[i]) * sequence_length, sequence_length + 1) for i in order.tolist()}
        return [spans[i] for i in range(len(spans))]

    def _slice(self, start: int, length: int) -> np.ndarray:
        pieces = [
            self._tokens_of(number)[first : first + count].astype(np.int64)
            for number, first, count in self._pieces(start, length)
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

    def _tokens_of(self, number: int) -> np.memmap:
        if number not in self._open:
            shard, path = self._shards[number], self._path(self._shards[number])
            self._check_size(shard)
            if sha256_of_range(path, shard.first_byte, shard.num_tokens * self.dtype.itemsize) != shard.sha256:
                raise DamagedArtifactError(
                    f"{path}: its sha256 differs from {SHARDS}, so its content was altered; {self._remedy(shard)}"
                )
            self._open[number] = np.memmap(
                path, dtype=self.dtype, mode="r", offset=shard.first_byte, shape=(shard.num_tokens,)
            )
        return self._open[number]

    def _index_of(self, number: int):
        """Return the index of a shard, a `pyarrow.Table` of `INDEX_COLUMNS`; the last one is kept."""
        import pyarrow.parquet

        if number in self._last_index:
            return self._last_index[number]
        shard = self._shards[number]
        path = self._parts[shard.part] / shard.index
        if not path.is_file() or sha256_of_range(path, 0, path.stat().st_size) != shard.index_sha256:
            raise DamagedArtifactError(f"{path}: missing or altered; {self._remedy(shard)}")
        # not read_table, which imports the data set reader
        self._last_index = {number: pyarrow.parquet.ParquetFile(path).read()}
        return self._last_index[number]

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
        if shard.external:
            return "fetch the file again."
        return f"delete {self._parts[shard.part] / 'manifest.json'} and run the same command again."


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        if batch and characters + len(document.text) > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch


def _results(batch: list[Document], size: int, encodings) -> Iterator[tuple[Document, list[int]]]:
    for document, encoding in zip(batch, encodings.result(), strict=True):
        yield document, encoding.ids
