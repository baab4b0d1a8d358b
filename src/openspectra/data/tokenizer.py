"""The tokenizer: a byte-level BPE trained on the train split, or a ready `tokenizer.json`."""

import json
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, write_json
from openspectra.config import TokenizerConfig
from openspectra.data.corpus import read_documents
from openspectra.errors import ConfigError, OpenSpectraError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What every model folder carries, so that the loaders of the outside world find a tokenizer beside the weights."""


def build_tokenizer(config: TokenizerConfig, corpus: Artifact, folder: Path) -> dict[str, Any]:
    """Write `tokenizer.json` and `tokenizer_config.json`; return vocabulary size and compression on the valid split."""
    tokenizer = _load(config) if config.file else _train(config, corpus.file("train.parquet"))
    if tokenizer.token_to_id(config.end_of_text) is None:
        raise ConfigError(
            [f"tokenizer.end_of_text: {config.end_of_text!r} is not in the vocabulary; name its end token."]
        )
    size = tokenizer.get_vocab_size()
    if size != config.vocab_size:
        raise ConfigError(
            [f"tokenizer.vocab_size: the tokenizer has {size} entries, the config says {config.vocab_size}."]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), config.end_of_text)
    # the class name that both transformers 4 and 5 know
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    texts = [document.text for document in read_documents(corpus.file("valid.parquet"))]
    num_tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))
    return {"vocab_size": size, "bytes_per_token": sum(len(text.encode()) for text in texts) / num_tokens}


def load_tokenizer(tokenizer: Artifact):
    """Return the `tokenizers.Tokenizer` of a tokenizer artifact."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer.file("tokenizer.json")))


def end_of_text_id(tokenizer: Artifact) -> int:
    """Return the id of the token that ends a document."""
    config = json.loads(tokenizer.file("tokenizer_config.json").read_text(encoding="utf-8"))
    return load_tokenizer(tokenizer).token_to_id(config["eos_token"])


def _train(config: TokenizerConfig, train: Path):
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
    tokenizer.train_from_iterator((document.text for document in read_documents(train)), trainer)
    return tokenizer


def _load(config: TokenizerConfig):
    from tokenizers import Tokenizer

    if not Path(config.file).is_file():
        raise ConfigError([f"tokenizer.file: {config.file}: no such file; put the tokenizer there."])
    try:
        return Tokenizer.from_file(config.file)
    except Exception as error:  # tokenizers raises plain Exception
        raise OpenSpectraError(f"{config.file}: not a readable tokenizer.json ({error}); fetch it again.") from None
