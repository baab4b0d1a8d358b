"""The data card: what each source gave, and what each split holds of it."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from openspectra.artifacts import Artifact

CARD = "data_card.json"


class Card:
    """Documents, bytes, a histogram of lengths (documents of 2^k to 2^(k+1) - 1 bytes by k), and a hash of them all.

    The hash is the sum of the documents' own, modulo 2^128: equal for equal documents, in whatever files, order, jobs
    and parts they came.
    """

    def __init__(self):
        self.documents, self.bytes, self.lengths, self.hash = 0, 0, Counter(), 0

    def add(self, text: str, document_hash: str) -> None:
        """Count one document."""
        size = len(text.encode())
        self.documents += 1
        self.bytes += size
        self.lengths[size.bit_length() - 1] += 1
        self.hash = (self.hash + int(document_hash, 16)) % 2**128

    def as_dict(self) -> dict[str, Any]:
        """Return the card as it stands in JSON."""
        lengths = {str(power): self.lengths[power] for power in sorted(self.lengths)}
        totals = {"documents": self.documents, "bytes": self.bytes, "hash": f"{self.hash:032x}"}
        return totals | {"length_log2_bytes": lengths}


def merged(cards: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the entry of a data card for all documents of several entries together."""
    total = Card()
    for card in filter(None, cards):
        total.documents += card["documents"]
        total.bytes += card["bytes"]
        total.lengths.update({int(power): count for power, count in card["length_log2_bytes"].items()})
        total.hash = (total.hash + int(card["hash"], 16)) % 2**128
    return total.as_dict()


def card_of(corpus: Artifact) -> dict[str, Any]:
    """Return the data card of a corpus: per source its licence, weight, counts, and per split documents, bytes, lengths
    and hash."""
    return json.loads(corpus.file(CARD).read_text(encoding="utf-8"))
