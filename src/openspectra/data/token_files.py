"""Ready token files: text that somebody tokenized before, used where it lies and checked as our own shards are."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openspectra.artifacts import Artifact
from openspectra.data.config import TokenFilePartConfig
from openspectra.data.local_files import data_folder
from openspectra.data.shards import BlockHasher, IndexWriter, dtype_for, shard_record
from openspectra.data.tokenizer import end_of_text_id, fingerprint, load_tokenizer, num_ids, published_fingerprint
from openspectra.errors import ConfigError, OpenSpectraError

WINDOW = 2**20
"""Tokens that are looked at together."""
LONGEST_DOCUMENT = 2**26
"""Tokens in which a document must end: a hundred long books."""
MANY_IDS = 100
"""So many ids with a 0 after each are no text."""


def index_token_file(config: TokenFilePartConfig, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the document indices of one token file; return its shards by split, counts and the tokenizer's fingerprint.

    The file is not copied: a shard is a range of its bytes with their hash. The test split is the file's end, from the
    first document that begins in it, and the valid split what ends there, likewise. Raises `ConfigError` for a missing file or another tokenizer,
    `OpenSpectraError` for ids that the tokenizer does not have.
    """
    source, name = config.parts[config.part]
    if config.tokenizer_sha256 != published_fingerprint(tokenizer):
        raise ConfigError(
            [
                f"token_files.tokenizer_sha256: {config.tokenizer_sha256[:12]}..., but the study's tokenizer is "
                f"{published_fingerprint(tokenizer)[:12]}...; give the tokenizer that made the files."
            ]
        )
    path, dtype = data_folder() / name, np.dtype({"uint16": "<u2", "uint32": "<u4"}[config.dtype])
    if not path.is_file():
        raise ConfigError([f"token_files.files.{source}: {path}: no such file; put it there or set OPENSPECTRA_DATA."])
    if path.stat().st_size % dtype.itemsize or not path.stat().st_size:
        raise OpenSpectraError(f"{path}: {path.stat().st_size} bytes are no {config.dtype} tokens; fetch it again.")
    vocab_size = num_ids(load_tokenizer(tokenizer))
    if dtype.itemsize < dtype_for(vocab_size).itemsize:
        raise ConfigError(
            [f"token_files.dtype: {config.dtype} cannot hold the {vocab_size} entries of the vocabulary."]
        )
    file = _TokenFile(path, name, source, dtype, end_of_text_id(tokenizer), vocab_size)
    file.check_width()
    file.check_ends()
    size = len(file.tokens)
    valid, test = (
        file.document_after(round(size * (1 - share)))
        for share in (config.test_fraction + config.valid_fraction, config.test_fraction)
    )
    splits, ended = {}, 0
    for split, first, last in (("train", 0, valid), ("valid", valid, test), ("test", test, size)):
        shards, before = [], ended
        for start, block, rows, ended in file.blocks(first, last, config.tokens_per_shard, before):  # noqa: B007  used after
            record = shard_record(f"{split}-{len(shards):05d}", name, start * dtype.itemsize, len(block), external=True)
            index = IndexWriter(folder / record["index"])
            for row in rows:
                index.add(row)
            index.close()
            hasher = BlockHasher()
            hasher.update(block.view(np.uint8))
            (folder / record["hashes"]).write_bytes(hasher.digests())
            shards.append(record)
        counts = {"documents": ended - before, "bytes": 0, "tokens": last - first}
        splits[split] = {"shards": shards, "num_tokens": last - first, "sources": {source: counts}}
    return {"dtype": dtype.str, "tokenizer_sha256": fingerprint(tokenizer), "splits": splits}


@dataclass(frozen=True)
class _TokenFile:
    path: Path
    name: str
    source: str
    dtype: np.dtype
    end_of_text: int
    vocab_size: int

    @cached_property
    def tokens(self) -> np.memmap:
        """The ids, mapped: for looking here and there."""
        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def check_width(self) -> None:
        """Raise `OpenSpectraError` for 4-byte ids read as 2-byte ones: each of their halves would be an id."""
        beginning = self.tokens[:WINDOW]
        if self.dtype.itemsize == 2 and np.count_nonzero(beginning[::2]) >= MANY_IDS and not beginning[1::2].any():
            raise OpenSpectraError(
                f"{self.path}: every second id is 0, as in a file of 4-byte ids; set token_files.dtype to uint32, or fetch "
                "the file again."
            )

    def check_ends(self) -> None:
        """Raise `OpenSpectraError` where no document ends in a long beginning, before all of the file is read."""
        if len(self.tokens) > LONGEST_DOCUMENT and not (self.tokens[:LONGEST_DOCUMENT] == self.end_of_text).any():
            raise OpenSpectraError(
                f"{self.path}: no end-of-text token (id {self.end_of_text}) among the first {LONGEST_DOCUMENT:,}; set "
                "tokenizer.end_of_text to the token that ends documents in this file."
            )

    def read(self, start: int, count: int) -> np.ndarray:
        """Return ids, read: a mapped file counts as memory of this process as far as it has been looked at.

        Raises `OpenSpectraError` for ids that the vocabulary does not have.
        """
        block = np.fromfile(self.path, self.dtype, count, offset=start * self.dtype.itemsize)
        if int(block.max()) >= self.vocab_size:
            place = int(np.argmax(block >= self.vocab_size))
            raise OpenSpectraError(
                f"{self.path}: token {start + place} is {block[place]}, but the vocabulary has {self.vocab_size} entries; "
                "correct token_files.files, token_files.dtype or tokenizer.file."
            )
        return block

    def blocks(
        self, first: int, last: int, size: int, ended: int
    ) -> Iterator[tuple[int, np.ndarray, Iterator[tuple], int]]:
        """Yield the blocks of a split: first token, ids, rows of the index, and documents of the file that end by then.

        `ended` documents end before `first`. One that crosses into the next block stands in the rows of both.
        """
        begin = first  # of the document that the next token belongs to
        known = first  # end of the document that crosses into this block
        for start in range(first, last, size):
            block = self.read(start, min(size, last - start))
            stop = start + len(block)
            ends = np.flatnonzero(block == self.end_of_text) + start + 1
            if not len(ends) or ends[-1] < stop:
                known = known if known > stop else min(last, self.document_after(stop))
                ends = np.append(ends, known)
            begins = np.append(begin, ends[:-1])
            rows = (
                (f"{self.name}:{ended + number}", self.source, int(of_row) - first, int(end - of_row))
                for number, (of_row, end) in enumerate(zip(begins, ends, strict=True))
            )
            num_ended = int(np.count_nonzero(ends <= stop))
            yield start, block, rows, ended + num_ended
            begin, ended = (ends[num_ended - 1] if num_ended else begin), ended + num_ended

    def document_after(self, start: int) -> int:
        """Return the place after the first end-of-text at or behind `start - 1`, or the number of tokens."""
        start = max(0, start - 1)
        while start < len(self.tokens):
            found = np.flatnonzero(self.tokens[start : start + WINDOW] == self.end_of_text)
            if len(found):
                return start + int(found[0]) + 1
            start += WINDOW
        return len(self.tokens)
