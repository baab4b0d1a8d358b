"""The very text that a training step read. Imports no torch: it answers in under a second."""

from collections.abc import Iterator

from openspectra.artifacts import Artifact
from openspectra.data.order import sequence_at
from openspectra.data.tokenizer import load_tokenizer
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError
from openspectra.training.config import PretrainConfig


def describe_step(config: PretrainConfig, step: int, train: Artifact, tokenizer: Artifact) -> Iterator[str]:
    """Yield the sequences of the update that took a run to `step` (1 to max_steps): where each comes from, its text.

    `step` counts as the tables of a run do. Raises `ConfigError` for a step that the run does not have.
    """
    if not 1 <= step <= config.max_steps:
        raise ConfigError([f"step: {config.model_id} has steps 1 to {config.max_steps}; got {step}."])
    tokens, decoder, length = Tokens(train), load_tokenizer(tokenizer), config.sequence_length
    numbers = range((step - 1) * config.global_batch_size, step * config.global_batch_size)
    indices = sequence_at(numbers, tokens.num_sequences(length), config.seed)
    yield f"step {step} of {config.max_steps}: {len(numbers)} sequences of {length} tokens and the one that follows"
    samples = zip(numbers, indices, tokens.sequences(indices, length), tokens.trace(indices, length), strict=True)
    for number, index, ids, spans in samples:
        documents = ", ".join(f"{span.document_id} (from its token {span.first_token})" for span in spans)
        yield f"\n[{number}] tokens {index * length:,} to {(index + 1) * length:,} of the split, from {documents}"
        yield decoder.decode(ids.tolist(), skip_special_tokens=False)
