"""The tokenizer: a byte-level BPE trained on the train split, or a ready `tokenizer.json`."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, write_json
from openspectra.data.config import TokenizerConfig
from openspectra.data.corpus import documents_of
from openspectra.data.local_files import data_folder
from openspectra.errors import ConfigError, OpenSpectraError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What every model folder carries, so that the loaders of the outside world find a tokenizer beside the weights."""
TRAINING_BYTES = 300_000_000
"""Text that a tokenizer is trained on at most: the beginning of the train split, whose documents lie in the order of their
hashes, so it is a sample. Memory follows the number of different words in it: 715 MB for prose and code."""
PIECE_CHARACTERS = 1_000_000
"""Longer documents are handed to the trainer in pieces, as it holds 100 bytes of memory per character."""
MEASURED_DOCUMENTS = 1000
"""Documents of the valid split that compression is measured on."""


def build_tokenizer(config: TokenizerConfig, folder: Path, corpus: Artifact | None = None) -> dict[str, Any]:
    """Write `tokenizer.json` and `tokenizer_config.json`; return vocabulary size and compression on the valid split.

    Without a corpus (ready token files) a tokenizer can only be loaded, and its compression is not known.
    """
    if not config.file and not corpus:
        raise ConfigError(["tokenizer.file: ready token files need the tokenizer that made them; name it."])
    tokenizer = _load(config) if config.file else _train(config, corpus)
    if tokenizer.token_to_id(config.end_of_text) is None:
        raise ConfigError(
            [f"tokenizer.end_of_text: {config.end_of_text!r} is not in the vocabulary; name its end token."]
        )
    size = tokenizer.get_vocab_size()
    if size != config.vocab_size:
        raise ConfigError(
            [f"tokenizer.vocab_size: the tokenizer has {size} entries, the config says {config.vocab_size}."]
        )
    if config.file:  # as it is, so that its fingerprint stays the published one
        shutil.copyfile(data_folder() / config.file, folder / "tokenizer.json")
    else:
        text = tokenizer.to_str(pretty=True)  # not `save`, whose errors say nothing of a disk
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), config.end_of_text)
    # the class name that both transformers 4 and 5 know
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    tokenizer.encode_special_tokens = True
    return {"vocab_size": size} | (_compression(tokenizer, corpus) if corpus else {})


def fingerprint(tokenizer: Artifact) -> str:
    """Return the sha256 of the `tokenizer.json` of a tokenizer artifact: what decides every token."""
    return tokenizer.record("tokenizer.json").sha256


def load_tokenizer(tokenizer: Artifact):
    """Return the `tokenizers.Tokenizer` of a tokenizer artifact; a special token written out in a text is text to it."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer.file("tokenizer.json")))
    loaded.encode_special_tokens = True
    return loaded


def end_of_text_id(tokenizer: Artifact) -> int:
    """Return the id of the token that ends a document."""
    config = json.loads(tokenizer.file("tokenizer_config.json").read_text(encoding="utf-8"))
    return load_tokenizer(tokenizer).token_to_id(config["eos_token"])


def _compression(tokenizer, corpus: Artifact) -> dict[str, float]:
    """Return the mean bytes per token of the first documents of the valid split."""
    num_bytes = num_tokens = 0
    for document in islice(documents_of(corpus, "valid"), MEASURED_DOCUMENTS):
        num_bytes += len(document.text.encode())
        num_tokens += len(tokenizer.encode_batch_fast([document.text], add_special_tokens=False)[0].ids)
    return {"bytes_per_token": num_bytes / num_tokens}


def _train(config: TokenizerConfig, corpus: Artifact):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[config.end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(corpus), trainer)
    return tokenizer


def _training_texts(corpus: Artifact) -> Iterator[str]:
    room = TRAINING_BYTES
    for document in documents_of(corpus, "train"):
        for start in range(0, len(document.text), PIECE_CHARACTERS):
            yield document.text[start : start + PIECE_CHARACTERS]
        room -= len(document.text.encode())
        if room <= 0:
            return


def _load(config: TokenizerConfig):
    from tokenizers import Tokenizer

    path = data_folder() / config.file
    if not path.is_file():
        raise ConfigError([f"tokenizer.file: {path}: no such file; put the tokenizer there or set OPENSPECTRA_DATA."])
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise OpenSpectraError(f"{path}: not a readable tokenizer.json ({error}); fetch it again.") from None
    altering = [key for key in ("truncation", "padding") if getattr(tokenizer, key)]
    if altering:
        raise ConfigError(
            [
                f"tokenizer.file: {path}: `{key}` is set, which would alter every document; set it to null."
                for key in altering
            ]
        )
    return tokenizer
