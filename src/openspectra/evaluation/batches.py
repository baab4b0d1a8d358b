"""How requests become rows and batches: a context that several requests share is read once.

A request is a context and its continuation, in tokens; the model predicts each token of the continuation from those before.
A row is a context followed by the continuations of all its requests, each of which sees the context and itself alone.
Legend: B rows, T tokens of the longest row.
"""

from dataclasses import dataclass, field

Request = tuple[list[int], list[int]]
"""Tokens of context and continuation."""
SHORTEST_SHARED = 2
"""Tokens from which on a context is worth sharing: the windows of a long text have one each."""


@dataclass
class Row:
    """The requests of one context, by their places in the list they came in."""

    context: list[int]
    places: list[int] = field(default_factory=list)
    continuations: list[list[int]] = field(default_factory=list)

    def add(self, place: int, continuation: list[int]) -> None:
        self.places.append(place)
        self.continuations.append(continuation)

    @property
    def length(self) -> int:
        """Tokens that the model reads: of a continuation all but the last, after which nothing is predicted."""
        return len(self.context) + sum(len(each) - 1 for each in self.continuations)

    @property
    def tokens(self) -> list[int]:
        return self.context + [token for each in self.continuations for token in each[:-1]]

    @property
    def positions(self) -> list[int]:
        """The place of each token in its own text."""
        start = len(self.context)
        return [*range(start), *(start + place for each in self.continuations for place in range(len(each) - 1))]

    @property
    def branches(self) -> list[int]:
        """0 for tokens of the context, k for those of the k-th continuation."""
        return [0] * len(self.context) + [
            number for number, each in enumerate(self.continuations, 1) for _ in range(len(each) - 1)
        ]

    @property
    def scored(self) -> list[list[int]]:
        """By continuation the places in the row from which its tokens are predicted."""
        found, start = [], len(self.context)
        for each in self.continuations:
            found.append([len(self.context) - 1, *range(start, start + len(each) - 1)])
            start += len(each) - 1
        return found


def rows_of(requests: list[Request], max_length: int) -> list[Row]:
    """Return rows that hold every request once; a context that is too long loses its beginning, as in lm-eval."""
    rows: list[Row] = []
    shared: dict[tuple[int, ...], Row] = {}
    for place, (context, continuation) in enumerate(requests):
        fits = len(context) + len(continuation) - 1 <= max_length
        key = tuple(context)
        row = shared.get(key) if fits and len(context) >= SHORTEST_SHARED else None
        if row is None or row.length + len(continuation) - 1 > max_length:
            kept = max_length + 1 - len(continuation)
            row = Row(context if fits else context[-kept:])
            rows.append(row)
            if fits:
                shared[key] = row
        row.add(place, continuation)
    return rows


def batches_of(rows: list[Row], batch_size: int) -> list[list[Row]]:
    """Return rows in batches of up to `batch_size` requests and at least one row, longest first, so that little is padded."""
    batches: list[list[Row]] = []
    room = 0
    for row in sorted(rows, key=lambda row: (-row.length, row.tokens)):
        if not batches or len(row.places) > room:
            batches.append([])
            room = batch_size
        batches[-1].append(row)
        room -= len(row.places)
    return batches
