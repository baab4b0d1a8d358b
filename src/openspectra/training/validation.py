"""What runs are validated on: a fixed sample of the whole valid split, and the source of each of its tokens."""

from functools import cached_property

import numpy as np

from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens

SAMPLE_KEY = 0
"""Key of the permutation of the valid split: one for all studies, so a run's seed never changes what it is measured on."""


class ValidationSample:
    """S sequences of T target tokens, from all over the split: its parts stand in the order of their files.

    The n-th sequence depends on the split and n alone, so a smaller sample is the beginning of a larger one.
    """

    def __init__(self, tokens: Tokens, num_sequences: int, sequence_length: int):
        self.tokens, self.sequence_length = tokens, sequence_length
        available = tokens.num_sequences(sequence_length)
        self.indices_S = sequence_at(range(min(num_sequences, available)), available, SAMPLE_KEY)

    def __len__(self) -> int:
        return len(self.indices_S)

    def batch(self, places: range) -> np.ndarray:
        """Return samples [len(places), sequence_length + 1] as int64."""
        return self.tokens.sequences(self.indices_S[places.start : places.stop], self.sequence_length)

    @cached_property
    def sources(self) -> list[str]:
        """The sources of the sample's target tokens, sorted."""
        return self._traced[0]

    @cached_property
    def source_ST(self) -> np.ndarray:
        """The source of each target token: its place in `sources`, int16 [S, T]."""
        return self._traced[1]

    @cached_property
    def _traced(self) -> tuple[list[str], np.ndarray]:
        numbers: dict[str, int] = {}
        rows = [
            np.repeat(
                [numbers.setdefault(span.source, len(numbers)) for span in spans], [span.num_tokens for span in spans]
            )
            for spans in self.tokens.trace(self.indices_S, self.sequence_length)
        ]
        sources = sorted(numbers)
        place_of_number = np.array([sources.index(source) for source in numbers], dtype=np.int16)
        return sources, place_of_number[np.stack(rows)[:, 1:]]  # the first token of a sample is no target
