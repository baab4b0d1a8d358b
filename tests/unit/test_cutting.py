"""Long documents reach the tokenizer in pieces, whose tokens are those of the whole."""

import json
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
from data_study import texts
from test_tokenizers import byte_level, llama_style, words_only
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from openspectra.data import cutting, encoding
from openspectra.data.cutting import KNOWN_PATTERNS, cuts_of, pieces
from openspectra.data.documents import Document
from openspectra.data.encoding import Encoder
from openspectra.data.round_trip import RoundTrip

PARTS = [
    *" \t\n\r\v\f\x1c\x85\xa0\u1680\u2000\u2001\u200b\u2028\u3000\u180e\ufeff", "  ", "   ", "\r\n", "\n\n", " \n ",
    *"abzABZ09_²½ªß'’", "'s", "'LL", "'t", "ſ", *"!\"#$%&()*+,-./:;<=>?@[\\]^`{|}~",
    *"éйµक界的ぁかガ가각、。，！？…", *"\u0301\u0338\u3099\u0327\u11a8\u093f", "e\u0301", "\u212b", "\u1fef", "\u037e",
    "\U0001f600", "\U0001d400", "<|endoftext|>", "<bos>",
]  # fmt: skip
"""What a text is put together from: all that some pattern, normal form or added token treats in its own way."""


def random_text(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(PARTS, k=length))


def as_gpt_neox() -> Tokenizer:
    """Return a tokenizer that composes accents, has tokens of spaces, and no token for bytes that UTF-8 never has."""
    content = json.loads(byte_level(500).to_str())
    for byte in (0xC0, 0xC1, *range(0xF5, 0x100)):
        del content["model"]["vocab"][chr(byte)]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    return tokenizer


def with_pattern(pattern: str) -> Tokenizer:
    """Return a tokenizer as Llama 3's or Qwen 2's, trained on strange texts so that it merges what it can."""
    tokenizer = byte_level()
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return trained(tokenizer)


def with_digits() -> Tokenizer:
    tokenizer = byte_level()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return trained(tokenizer)


def trained(tokenizer: Tokenizer) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([random_text(400, seed) for seed in range(100)], trainer)
    return tokenizer


KINDS = {
    "own": byte_level,
    "merging": lambda: trained(byte_level()),
    "GPT-NeoX": as_gpt_neox,
    "digits": with_digits,
    **{f"pattern {n}": lambda pattern=p: with_pattern(pattern) for n, p in enumerate(sorted(KNOWN_PATTERNS))},
}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def cut_everywhere(text: str, cuts: re.Pattern) -> Iterator[tuple[str, str]]:
    for cut in cuts.finditer(text):
        yield text[: cut.start()], text[cut.start() :]


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_changes_a_token(kind):
    tokenizer = KINDS[kind]()
    tokenizer.encode_special_tokens = True
    cuts, count = cuts_of(tokenizer), 0
    for seed in range(400):
        text = random_text(40, seed)
        whole = ids_of(tokenizer, text)
        for left, right in cut_everywhere(text, cuts):
            count += 1
            assert ids_of(tokenizer, left) + ids_of(tokenizer, right) == whole, (left, right)
    assert count > 400  # that many places were tried
    changed = sum(
        ids_of(tokenizer, text[:20]) + ids_of(tokenizer, text[20:]) != ids_of(tokenizer, text)
        for text in (random_text(40, seed) for seed in range(400))
    )
    assert changed > 0  # it is not so that any cut would do


def test_tokenizer_that_may_look_across_a_cut_gets_whole_documents():
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    unknown = with_pattern(r"\w+ \w+|\s+|[^\s]+")
    lower = byte_level()
    lower.normalizer = normalizers.Lowercase()
    single = byte_level()
    single.add_tokens([AddedToken("word", single_word=True)])
    whole = byte_level()
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for tokenizer in (llama_style(), words_only(), spaced, unknown, lower, single, whole, Tokenizer(models.BPE())):
        assert cuts_of(tokenizer) is None
    assert list(pieces("a b" * 100_000, None)) == ["a b" * 100_000]


def test_added_token_is_never_cut():
    tokenizer = byte_level()
    tokenizer.add_tokens(["two words", "x=y"])
    cuts = cuts_of(tokenizer)
    assert not cuts.search("two words x=y") and cuts.search("a\nb")


@pytest.mark.parametrize("kind", ["own", "GPT-NeoX"])
def test_long_document_reaches_the_tokenizer_in_pieces(kind, monkeypatch):
    """One document, of which the tokenizer would hold 100 to 250 bytes for each of its bytes."""
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(encoding, "BATCH_BYTES", 4000)
    monkeypatch.setattr(encoding, "BYTES_IN_FLIGHT", 8000)
    tokenizer = KINDS[kind]()
    given, waiting = [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode_batch_fast(self, batch, **settings):
            given.extend(batch)
            waiting.append(sum(len(text.encode()) for text in batch))
            return tokenizer.encode_batch_fast(batch, **settings)

    lines = {"prose": " ".join(texts(300)), "one line of Chinese": "的界一，" * 5000, "base64": "TWFuIGlzIGQ3" * 2000}
    lines |= {"strange": random_text(20_000, 0), "short": "short", "accents": "e\u0301 \u212b " * 5000, "empty": ""}
    documents = [Document(name, text, "web") for name, text in lines.items()]
    encoded = list(Encoder(Watched(), np.dtype("<u2")).encode(documents))
    assert max(map(len, given)) < 1100 and max(waiting) <= 4000
    assert "".join(given) == "".join(lines.values())
    assert [document for document, *_ in encoded] == documents
    for document, ids, num_bytes, lost_bytes in encoded:
        assert ids.tolist() == ids_of(tokenizer, document.text)
        assert num_bytes == len(document.text.encode())
        assert lost_bytes == RoundTrip(tokenizer).lost_bytes(document.text, ids.tolist())
    assert [document.document.id for document in encoded if document.lost_bytes] == (
        ["strange", "accents"] if kind == "GPT-NeoX" else []
    )
