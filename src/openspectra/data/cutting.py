"""Where a long document may be cut for the tokenizer, so that the tokens of its pieces are those of the whole.

A tokenizer holds up to 250 bytes of memory for each byte of the text it is given, so a book is given in pieces. A cut
is exact where no step of the tokenizer looks across it:

- no added token holds a place like it, so none can lie across it;
- what follows it is an ASCII character or a full-width stop, with which Unicode's form C composes nothing;
- the pattern that divides a text into words ends one there whatever comes before and after, and what it finds up to there
  does not depend on what follows. Patterns read from left to right and look ahead only in white space, so that is read
  from the known ones below: none has a word that ends in a letter and goes on with what `CUTS` names, and none has white
  space in a word after anything else but white space;
- the model (byte pairs) works on each word by itself.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from openspectra.data.round_trip import is_byte_level

PIECE_CHARACTERS = 50_000
"""Text after which the next place for a cut is looked for."""
CUTS = (
    r"(?<=[\w!-~])(?= )",
    r"(?<=[A-Za-z0-9])(?=\n)",
    r"(?<=[A-Za-z])(?=[0-9\"(),.;:=+/{}\[])",
    r"(?<=[ぁ-んァ-ヶ一-龥])(?=[、。，！？])",
)
"""Between what stands left and right: a word and a space, a word and a line break, a letter and a digit or sign (source
that was made short, base64), a Chinese or Japanese character and a stop."""
ALL_CUTS = re.compile("|".join(CUTS))
"""The cuts of a tokenizer with one of the patterns below, and without added tokens."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
KNOWN_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2; `ByteLevel` has it built in
    *(
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for number in (r"\p{N}{1,3}", r"\p{N}")  # GPT-4 and Llama 3; Qwen 2
    ),
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4o
}


def cuts_of(tokenizer) -> re.Pattern | None:
    """Return what matches, with no width, where a text may be cut for a `tokenizers.Tokenizer`; None where unknown."""
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    steps = parts["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    tokens = parts["added_tokens"]
    if not (
        is_byte_level(tokenizer)
        and all(map(_is_known, steps))
        and steps[-1]["type"] == "ByteLevel"
        and (steps[-1].get("use_regex", True) or any(step["type"] == "Split" for step in steps))
        and not any(token["single_word"] for token in tokens)
    ):
        return None
    exact = [cut for cut in CUTS if not any(re.search(cut, token["content"]) for token in tokens)]
    return re.compile("|".join(exact)) if exact else None


def pieces(text: str, cuts: re.Pattern | None) -> Iterator[str]:
    """Yield a text in pieces that end at the first cut after `PIECE_CHARACTERS`; a text without cuts as it is."""
    start = 0
    while cuts and len(text) - start > PIECE_CHARACTERS and (cut := cuts.search(text, start + PIECE_CHARACTERS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _is_known(step: dict[str, Any]) -> bool:
    if step.get("type") == "Split":
        pattern = step["pattern"].get("Regex")
        return pattern in KNOWN_PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
    return step.get("type") in ("ByteLevel", "Digits")
