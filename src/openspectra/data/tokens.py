"""Token shards: the documents of one split as a single row of token ids, cut into files.

Ids are little-endian uint16 where the vocabulary fits, else uint32. Every document ends with the end-of-text token.
`documents.parquet` (document_id, first_token, num_tokens) traces any token back to its document.
"""

import bisect
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openspectra.artifacts import Artifact
from openspectra.config import TokensConfig
from openspectra.data.corpus import read_documents
from openspectra.data.tokenizer import end_of_text_id, load_tokenizer
from openspectra.errors import OpenSpectraError

ENCODE_BATCH = 256
"""Documents handed to the tokenizer at a time, which encodes them in parallel."""


def build_tokens(config: TokensConfig, corpus: Artifact, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the shards `00000.bin`, ... and `documents.parquet` of one split; return counts and dtype."""
    import pyarrow
    import pyarrow.parquet

    encoder, end_of_text = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    dtype = np.dtype("<u2" if encoder.get_vocab_size() <= 2**16 else "<u4")
    documents = read_documents(corpus.file(f"{config.split}.parquet"))
    parts, lengths = [], []
    for start in range(0, len(documents), ENCODE_BATCH):
        batch = [document.text for document in documents[start : start + ENCODE_BATCH]]
        for encoding in encoder.encode_batch_fast(batch):
            parts.append(np.array([*encoding.ids, end_of_text], dtype=dtype))
            lengths.append(len(parts[-1]))
    tokens = np.concatenate(parts)
    for number, start in enumerate(range(0, len(tokens), config.tokens_per_shard)):
        tokens[start : start + config.tokens_per_shard].tofile(folder / f"{number:05d}.bin")
    index = {
        "document_id": [document.id for document in documents],
        "first_token": np.cumsum([0, *lengths[:-1]]),
        "num_tokens": lengths,
    }
    pyarrow.parquet.write_table(pyarrow.table(index), folder / "documents.parquet")
    return {"num_tokens": len(tokens), "num_documents": len(documents), "dtype": dtype.str}


class Tokens:
    """The tokens of one split, read from memory-mapped shards that were checked against their manifest."""

    def __init__(self, artifact: Artifact):
        names = sorted(record.path for record in artifact.manifest.files if record.path.endswith(".bin"))
        dtype = np.dtype(artifact.manifest.metrics["dtype"])
        self.split = artifact.manifest.config["split"]
        self._shards = [np.memmap(artifact.file(name), dtype=dtype, mode="r") for name in names]

    @cached_property
    def _starts(self) -> list[int]:
        return np.cumsum([0, *map(len, self._shards)]).tolist()

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

    def _slice(self, start: int, length: int) -> np.ndarray:
        parts, shard = [], bisect.bisect_right(self._starts, start) - 1
        while length:
            part = self._shards[shard][start - self._starts[shard] :][:length]
            parts.append(part.astype(np.int64))
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts)
