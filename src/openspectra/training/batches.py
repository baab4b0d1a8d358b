"""Which sequences a step reads: the next ones of the study's order, whoever reads them."""

import torch
from torch.utils.data import IterableDataset

from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.training.config import PretrainConfig
from openspectra.training.world import World

FIRST_SEQUENCES = 8
"""Text from which a family with learned scales takes their first values."""


class StepData(IterableDataset):
    """Micro batches [micro batch, sequence_length + 1] of one rank, from a step on.

    Step k takes the sequences k * global_batch_size, ... of the order. Ranks take turns, so that the sequences of a
    step are the same for any number of ranks and any micro batch.
    """

    def __init__(self, config: PretrainConfig, tokens: Tokens, start_step: int, world: World):
        self.config, self.tokens, self.start_step, self.world = config, tokens, start_step, world

    def first_text(self) -> torch.Tensor:
        """Return the first sequences [at most 8, sequence_length] of the run, the same on every rank and in every world."""
        return self._sequences(range(min(FIRST_SEQUENCES, self.config.global_batch_size)))[:, :-1]

    def _sequences(self, numbers: range) -> torch.Tensor:
        """Return sequences [numbers, sequence_length + 1] of the order by number."""
        length = self.config.sequence_length
        indices = sequence_at(numbers, self.tokens.num_sequences(length), self.config.seed)
        return torch.from_numpy(self.tokens.sequences(indices, length))

    def __iter__(self):
        config = self.config
        micro = self.world.micro_batch_of(config.global_batch_size)
        first, last = (step * config.global_batch_size for step in (self.start_step, config.max_steps))
        for start in range(first + self.world.rank * micro, last, self.world.size * micro):
            yield self._sequences(range(start, start + micro))
