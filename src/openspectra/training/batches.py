"""Which sequences a step reads: the next ones of the study's order, whoever reads them."""

import torch
from torch.utils.data import IterableDataset

from openspectra.data.order import sequence_at
from openspectra.data.tokens import Tokens
from openspectra.training.config import PretrainConfig


class StepData(IterableDataset):
    """Micro batches [micro_batch_size, sequence_length + 1] of one rank, from a step on.

    Step k takes the sequences k * global_batch_size, ... of the order. Ranks take turns, so that the sequences of a
    step are the same for any number of ranks and any micro batch.
    """

    def __init__(self, config: PretrainConfig, tokens: Tokens, start_step: int, rank: int = 0, world_size: int = 1):
        self.config, self.tokens, self.start_step = config, tokens, start_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self):
        config, num_sequences = self.config, self.tokens.num_sequences(self.config.sequence_length)
        first, last = (step * config.global_batch_size for step in (self.start_step, config.max_steps))
        own = range(first + self.rank * config.micro_batch_size, last, self.world_size * config.micro_batch_size)
        for start in own:
            indices = sequence_at(range(start, start + config.micro_batch_size), num_sequences, config.seed)
            yield torch.from_numpy(self.tokens.sequences(indices, config.sequence_length))
