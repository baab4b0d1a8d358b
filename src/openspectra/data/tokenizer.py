"""The tokenizer: a byte-level BPE trained on the train split, or a ready `tokenizer.json`."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact, sha256_of, write_json
from openspectra.data.config import TokenizerConfig
from openspectra.data.corpus import documents_of
from openspectra.data.cutting import ALL_CUTS, cuts_of, pieces
from openspectra.data.encoding import Encoder
from openspectra.data.local_files import data_folder
from openspectra.data.round_trip import require_kept
from openspectra.data.shards import dtype_for
from openspectra.errors import ConfigError, OpenSpectraError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What every model folder carries, so that the loaders of the outside world find a tokenizer beside the weights."""
TRAINING_BYTES = 300_000_000
"""Text that a tokenizer is trained on at most: the beginning of the train split, whose documents lie in the order of their
hashes, so it is a sample. Memory follows the number of different words in it: 715 MB for prose and code."""
PIECE_CHARACTERS = 1_000_000
"""Longer documents are cut for the trainer, wherever that is; each piece comes to it in smaller ones whose words are the
same, as it holds 100 bytes of memory per character of a text, and waits for 256 of them."""
MEASURED_DOCUMENTS = 1000
"""Documents of the valid split that compression is measured on."""


def build_tokenizer(config: TokenizerConfig, folder: Path, corpus: Artifact | None = None) -> dict[str, Any]:
    """Write `tokenizer.json` and `tokenizer_config.json`; return vocabulary size and compression on the valid split.

    What is written encodes as training does, for every loader: no token is added to a text, and a special token written
    out in a text is text. Without a corpus (ready token files) a tokenizer can only be loaded, its compression is unknown.
    Raises `ConfigError` for a tokenizer that adds tokens or has another size, `OpenSpectraError` for one that loses text.
    """
    if not config.file and not corpus:
        raise ConfigError(["tokenizer.file: ready token files need the tokenizer that made them; name it."])
    tokenizer = load_file(config) if config.file else _train(config, corpus)
    if problems := _problems(tokenizer, config):
        raise ConfigError(problems)
    metrics = {"vocab_size": num_ids(tokenizer)}
    if config.file:
        metrics["file_sha256"] = sha256_of(data_folder() / config.file)
    if config.file and not _adds_tokens(tokenizer):  # as it is, so that its fingerprint stays the published one
        shutil.copyfile(data_folder() / config.file, folder / "tokenizer.json")
    else:
        tokenizer = _without_post_processor(tokenizer)
        text = tokenizer.to_str(pretty=True)  # not `save`, whose errors say nothing of a disk
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    pre_tokenizer = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    write_json(folder / "tokenizer_config.json", loader_settings(config.end_of_text, pre_tokenizer))
    tokenizer.encode_special_tokens = True
    return metrics | (_compression(tokenizer, corpus, config.max_lost_fraction) if corpus else {})


def file_problems(config: TokenizerConfig) -> list[str]:
    """Return what keeps a study's tokenizer file from being taken; nothing where there is no file, or not yet."""
    if not config.file or not (data_folder() / config.file).is_file():
        return []
    try:
        return _problems(load_file(config), config)
    except ConfigError as error:
        return error.problems


def takes_pieces(config: TokenizerConfig) -> bool:
    """Return whether a long document can be given to a study's tokenizer in pieces; False for a file that is not there."""
    if not config.file:
        return True
    return (data_folder() / config.file).is_file() and cuts_of(load_file(config)) is not None


def num_ids(tokenizer) -> int:
    """Return the largest id plus one: rows that a table needs. More than the number of entries where ids have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def fingerprint(tokenizer: Artifact) -> str:
    """Return the sha256 of the `tokenizer.json` of a tokenizer artifact: what decides every token."""
    return tokenizer.record("tokenizer.json").sha256


def published_fingerprint(tokenizer: Artifact) -> str:
    """Return the sha256 of the file that a tokenizer was made from; it differs from `fingerprint` where that was changed."""
    return tokenizer.manifest.metrics.get("file_sha256", fingerprint(tokenizer))


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


def _compression(tokenizer, corpus: Artifact, max_lost_fraction: float) -> dict[str, float]:
    """Return the mean bytes per token of the first documents of the valid split.

    Raises `OpenSpectraError` where they lose more than the allowed share: tokenizing need not begin.
    """
    num_bytes = num_tokens = lost_bytes = 0
    encoder = Encoder(tokenizer, dtype_for(num_ids(tokenizer)))
    for document in encoder.encode(islice(documents_of(corpus, "valid"), MEASURED_DOCUMENTS)):
        num_bytes += document.num_bytes
        num_tokens += len(document.ids)
        lost_bytes += document.lost_bytes
    require_kept(
        f"the first {MEASURED_DOCUMENTS:,} documents of the valid split", lost_bytes, num_bytes, max_lost_fraction
    )
    if not num_tokens:
        raise OpenSpectraError(
            "tokenizer: no token for any document of the valid split; give a tokenizer for this text."
        )
    return {"bytes_per_token": num_bytes / num_tokens}


def _problems(tokenizer, config: TokenizerConfig) -> list[str]:
    """Return what of the config does not fit a tokenizer."""
    problems, end_of_text = [], tokenizer.token_to_id(config.end_of_text)
    if end_of_text is None:
        problems.append(f"tokenizer.end_of_text: {config.end_of_text!r} is not in the vocabulary; name its end token.")
    else:
        tokenizer.encode_special_tokens = True
        if end_of_text in tokenizer.encode(config.end_of_text, add_special_tokens=False).ids:
            problems.append(
                f"tokenizer.end_of_text: {config.end_of_text!r} written out in a text would end it; set `special: true` for "
                "it among the `added_tokens` of the file."
            )
    size, entries = num_ids(tokenizer), tokenizer.get_vocab_size()
    if size != config.vocab_size:
        holes = f" ({entries:,} entries with holes between their ids)" if size != entries else ""
        problems.append(
            f"tokenizer.vocab_size: the largest id is {size - 1:,}{holes}, so it must be {size}; got {config.vocab_size}."
        )
    return problems


def loader_settings(end_of_text: str, pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer_config.json` with which transformers 4 and 5 and lm-eval encode as training does."""
    prefix = {key: value for key, value in pre_tokenizer.items() if key == "add_prefix_space"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the class name that both transformers 4 and 5 know
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end_of_text),
        **prefix,  # transformers 4 sets this key of the pre-tokenizer to what stands here
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,  # one that is written out in a text is text
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # a Llama takes no token_type_ids
        "padding_side": "left",
    }


def _adds_tokens(tokenizer) -> bool:
    return tokenizer.num_special_tokens_to_add(False) > 0


def _without_post_processor(tokenizer):
    from tokenizers import Tokenizer

    if not _adds_tokens(tokenizer):
        return tokenizer
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None}))


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
            yield from pieces(document.text[start : start + PIECE_CHARACTERS], ALL_CUTS)
        room -= len(document.text.encode())
        if room <= 0:
            return


def load_file(config: TokenizerConfig):
    """Return the tokenizer in a study's file. Raises `ConfigError` for a missing file and one that alters every text."""
    from tokenizers import Tokenizer

    path = data_folder() / config.file
    if not path.is_file():
        raise ConfigError([f"tokenizer.file: {path}: no such file; put the tokenizer there or set OPENSPECTRA_DATA."])
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise OpenSpectraError(f"{path}: not a readable tokenizer.json ({error}); fetch it again.") from None
    altering = [key for key in ("truncation", "padding") if getattr(tokenizer, key)]
    altering += ["model.dropout"] * bool(getattr(tokenizer.model, "dropout", None))
    if altering:
        raise ConfigError(
            [
                f"tokenizer.file: {path}: `{key}` is set, which would alter every document; set it to null."
                for key in altering
            ]
        )
    if _adds_tokens(tokenizer) and config.post_processor == "refuse":
        added = " ".join(tokenizer.encode("").tokens)
        raise ConfigError(
            [
                f"tokenizer.file: {path}: its post-processor adds {added} to every text, which the text of training does not "
                "have; take it out by tokenizer.post_processor: remove, or give another file."
            ]
        )
    return tokenizer
