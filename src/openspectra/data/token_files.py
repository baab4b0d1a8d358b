"""Ready token files: text that somebody tokenized before, used where it lies and checked as our own shards are."""

from pathlib import Path
from typing import Any

import numpy as np

from openspectra.artifacts import Artifact
from openspectra.data.config import TokenFilesConfig
from openspectra.data.local_files import data_folder
from openspectra.data.shards import BlockHasher, shard_record, write_index
from openspectra.data.tokenizer import end_of_text_id, fingerprint, load_tokenizer
from openspectra.errors import ConfigError, OpenSpectraError


def index_token_file(config: TokenFilesConfig, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the document indices of one token file; return its shards by split, counts and the tokenizer's fingerprint.

    The file is not copied: a shard is a range of its bytes with their hash. The valid split is the file's end, from
    the first document that begins in it. Raises `ConfigError` for a missing file or another tokenizer,
    `OpenSpectraError` for ids that the tokenizer does not have.
    """
    source, name = config.parts[config.part]
    if config.tokenizer_sha256 != fingerprint(tokenizer):
        raise ConfigError(
            [
                f"token_files.tokenizer_sha256: {config.tokenizer_sha256[:12]}..., but the study's tokenizer is "
                f"{fingerprint(tokenizer)[:12]}...; give the tokenizer that made the files."
            ]
        )
    path, dtype = data_folder() / name, np.dtype({"uint16": "<u2", "uint32": "<u4"}[config.dtype])
    if not path.is_file():
        raise ConfigError([f"token_files.files.{source}: {path}: no such file; put it there or set OPENSPECTRA_DATA."])
    if path.stat().st_size % dtype.itemsize or not path.stat().st_size:
        raise OpenSpectraError(f"{path}: {path.stat().st_size} bytes are no {config.dtype} tokens; fetch it again.")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    end_of_text, vocab_size = end_of_text_id(tokenizer), load_tokenizer(tokenizer).get_vocab_size()
    border = _document_after(tokens, round(len(tokens) * (1 - config.valid_fraction)), end_of_text)
    splits, documents_before = {}, 0
    for split, first, last in (("train", 0, border), ("valid", border, len(tokens))):
        shards, num_documents = [], 0
        begin = first  # of the document that the next token belongs to
        for start in range(first, last, config.tokens_per_shard):
            # read, not mapped: a mapped file counts as memory of this process as far as it has been looked at
            block = np.fromfile(path, dtype, min(config.tokens_per_shard, last - start), offset=start * dtype.itemsize)
            if int(block.max()) >= vocab_size:
                place = start + int(np.argmax(block >= vocab_size))
                raise OpenSpectraError(
                    f"{path}: token {place} is {tokens[place]}, but the vocabulary has {vocab_size} entries; "
                    "check file, dtype and tokenizer."
                )
            ends = np.flatnonzero(block == end_of_text) + start + 1
            open_end = [] if len(ends) and ends[-1] == start + len(block) else [None]
            rows = []
            for end in [*ends.tolist(), *open_end]:
                # the last document of a block may go on in the next one: its end is found there
                stop = end or _document_after(tokens[:last], start + len(block), end_of_text)
                document_id = f"{name}:{documents_before + num_documents}"
                rows.append((document_id, source, begin - first, stop - begin))
                if end:
                    begin, num_documents = end, num_documents + 1
            record = shard_record(f"{split}-{len(shards):05d}", name, start * dtype.itemsize, len(block), external=True)
            write_index(rows, folder / record["index"])
            hasher = BlockHasher()
            hasher.update(block.view(np.uint8))
            (folder / record["hashes"]).write_bytes(hasher.digests())
            shards.append(record)
        num_documents += begin < last  # a last document without end-of-text
        documents_before += num_documents
        counts = {"documents": num_documents, "bytes": 0, "tokens": last - first}
        splits[split] = {"shards": shards, "num_tokens": last - first, "sources": {source: counts}}
    return {"dtype": dtype.str, "tokenizer_sha256": fingerprint(tokenizer), "splits": splits}


def _document_after(tokens: np.ndarray, start: int, end_of_text: int, window: int = 2**20) -> int:
    """Return the place after the first end-of-text at or behind `start - 1`, or the number of tokens."""
    start = max(0, start - 1)
    while start < len(tokens):
        found = np.flatnonzero(tokens[start : start + window] == end_of_text)
        if len(found):
            return start + int(found[0]) + 1
        start += window
    return len(tokens)
