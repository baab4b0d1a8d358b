"""Whether a tokenizer gives back the text it was given: what is lost is no part of any loss in nats, and of no bits per byte."""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from openspectra.errors import OpenSpectraError


class RoundTrip:
    """Compares texts with what their tokens decode to.

    A byte-level BPE that knows every byte gives back every text that its normalizer leaves alone: that is read from the
    tokenizer, so only texts that it would normalize are decoded. Of any other tokenizer all texts are decoded.
    """

    def __init__(self, tokenizer):
        """`tokenizer`: a `tokenizers.Tokenizer`."""
        self._tokenizer = tokenizer
        self._is_byte_level = is_byte_level(tokenizer)

    def lost_bytes(self, text: str, ids: Sequence[int]) -> int:
        """Return the bytes of those characters of `text` that its tokens do not decode to; at least 1 where it differs."""
        difference = self.difference(text, ids)
        return num_lost([difference] if difference else [])

    def difference(self, text: str, ids: Sequence[int]) -> "Difference | None":
        """Return how a text, or a piece of one, differs from what its tokens decode to; None where it does not."""
        if self._is_byte_level and unicodedata.is_normalized("NFC", text):
            return None
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False)
        return None if decoded == text else Difference(Counter(text), Counter(decoded))


class Difference(NamedTuple):
    """How often each character stands in a text, and in what its tokens decode to."""

    given: Counter[str]
    decoded: Counter[str]


def num_lost(differences: list[Difference]) -> int:
    """Return the bytes lost of a text whose pieces differ in this way: at least 1 where one of them does."""
    if not differences:
        return 0
    given, decoded = (sum(counters, Counter()) for counters in zip(*differences, strict=True))
    return max(1, sum(len(character.encode()) * count for character, count in (given - decoded).items()))


def require_kept(where: str, lost_bytes: int, num_bytes: int, allowed: float) -> None:
    """Raise `OpenSpectraError` where more than the `allowed` share of the bytes does not come back from the tokenizer."""
    if lost_bytes > allowed * num_bytes:
        raise OpenSpectraError(
            f"tokenizer: {lost_bytes:,} of {num_bytes:,} bytes of {where} do not come back from their tokens"
            f"; tokenizer.max_lost_fraction allows a share of {allowed:g}. Give a tokenizer that writes every byte, or raise "
            "that share: bits per byte are then withheld where a scored text does not come back."
        )


def is_byte_level(tokenizer) -> bool:
    """Return whether every text in normal form C comes back, by the parts that the tokenizer is made of."""
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    model, vocab = parts["model"], tokenizer.get_vocab(with_added_tokens=False)
    steps = parts["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    return (
        (parts["normalizer"] or {}).get("type") in (None, "NFC")
        and (parts["decoder"] or {}).get("type") == "ByteLevel"
        and model["type"] == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"))
        and [step.get("type") for step in steps].count("ByteLevel") == 1
        and all(map(_keeps_text, steps))
        and vocab.keys() >= _byte_characters()
        and all(_is_kept(tokenizer, token) for token in parts["added_tokens"])
    )


def _keeps_text(step: dict[str, Any]) -> bool:
    """Return whether a pre-tokenizer cuts a text without taking or adding anything."""
    kinds = {
        "ByteLevel": not step.get("add_prefix_space"),
        "Digits": True,
        "Split": step.get("behavior") != "Removed",
    }
    return kinds.get(step.get("type"), False)


def _is_kept(tokenizer, token: dict[str, Any]) -> bool:
    """Return whether an added token takes no space beside it, and decodes to itself."""
    decoded = tokenizer.decode([token["id"]], skip_special_tokens=False)
    return not (token["lstrip"] or token["rstrip"]) and decoded == token["content"]


def _byte_characters() -> set[str]:
    """Return what stands in vocabularies for each byte of UTF-8, which has no C0, C1 and F5 to FF: GPT-NeoX's lacks them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet()) - set(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))  # these stand for themselves
