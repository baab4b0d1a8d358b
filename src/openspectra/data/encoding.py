"""From documents to ids in bounded memory: long documents in pieces, pieces in batches, few of them at a time."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from openspectra.data.cutting import cuts_of, pieces
from openspectra.data.documents import Document
from openspectra.data.round_trip import RoundTrip, num_lost
from openspectra.data.shards import TYPE_CODES
from openspectra.memory import give_back_freed_memory

BATCH_BYTES = 1_000_000
"""Text handed to the tokenizer at a time, enough to keep its threads busy."""
BYTES_IN_FLIGHT = 2_000_000
"""Text in the tokenizer at a time, but for a longer piece: one batch is encoded while the one before is written. The
tokenizer holds 100 to 250 bytes of memory for each, most where its vocabulary fits the text badly."""


class Encoded(NamedTuple):
    """A document with its ids, its size as UTF-8, and the bytes of it that do not come back from the ids."""

    document: Document
    ids: array
    num_bytes: int
    lost_bytes: int


class Piece(NamedTuple):
    """A document or a part of one, in order."""

    document: Document
    text: str
    num_bytes: int
    is_last: bool


class Encoder:
    """Encodes documents with a `tokenizers.Tokenizer`; ids take the memory of `dtype`, which must hold them."""

    def __init__(self, tokenizer, dtype: np.dtype):
        self._tokenizer, self._typecode = tokenizer, TYPE_CODES[dtype.str]
        self._cuts, self._round_trip = cuts_of(tokenizer), RoundTrip(tokenizer)

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """Yield every document encoded, in order; the next batch of text is encoded meanwhile.

        Raises `OverflowError` for an id that the dtype does not hold.
        """
        ids, num_bytes, differences = array(self._typecode), 0, []
        for piece, piece_ids in self._encoded(self._pieces(documents)):
            ids.extend(piece_ids)
            num_bytes += piece.num_bytes
            if difference := self._round_trip.difference(piece.text, piece_ids):
                differences.append(difference)
            if piece.is_last:
                yield Encoded(piece.document, ids, num_bytes, num_lost(differences))
                ids, num_bytes, differences = array(self._typecode), 0, []

    def _pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        for document in documents:
            left = len(document.text)
            for text in pieces(document.text, self._cuts):
                left -= len(text)
                yield Piece(document, text, len(text) if text.isascii() else len(text.encode()), not left)

    def _encoded(self, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, list[int]]]:
        with ThreadPoolExecutor(2) as pool:
            waiting, in_flight = deque(), 0
            for batch in _batches(pieces):
                size = sum(piece.num_bytes for piece in batch)
                while waiting and in_flight + size > BYTES_IN_FLIGHT:
                    in_flight -= waiting[0][1]
                    yield from _results(*waiting.popleft())
                waiting.append((batch, size, pool.submit(self._ids, [piece.text for piece in batch])))
                in_flight += size
            while waiting:
                yield from _results(*waiting.popleft())

    def _ids(self, texts: list[str]):
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        if batch and size + piece.num_bytes > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.num_bytes
    if batch:
        yield batch


def _results(batch: list[Piece], size: int, encodings) -> Iterator[tuple[Piece, list[int]]]:
    for piece, encoding in zip(batch, encodings.result(), strict=True):
        yield piece, encoding.ids
    if size > BATCH_BYTES:  # one long piece, whose blocks the next one would not fit into
        del encoding, encodings
        give_back_freed_memory()
