"""Minimal pairs in the manner of BLiMP: a statement of Python, and the same with one edit that no parser accepts.

Every edit keeps the number of characters, because a summed log-likelihood prefers the shorter of two texts.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from random import Random

from openspectra.data.corpus import Document
from openspectra.evaluation.config import SNIPPET_BYTES
from openspectra.evaluation.items import Item

KEYWORD_SWAPS = {
    "in": "is", "is": "if", "if": "in", "or": "if", "as": "in", "and": "for", "for": "not", "not": "and", "def": "del",
    "del": "def", "try": "for", "elif": "else", "else": "elif", "from": "with", "with": "from", "class": "raise",
    "raise": "class", "while": "yield", "yield": "while", "return": "except", "import": "except", "except": "import",
}  # fmt: skip
"""Each keyword with another one of the same length."""

_EDITS = {
    "bracket": (re.compile(r"[)\]}]"), lambda match: {")": "]", "]": ")", "}": "]"}[match[0]]),
    "colon": (re.compile(r":(?=\s|\Z)"), lambda match: ","),
    "keyword": (re.compile(rf"\b({'|'.join(KEYWORD_SWAPS)})\b"), lambda match: KEYWORD_SWAPS[match[0]]),
    "comparison": (re.compile(r"([!<>])="), lambda match: f"={match[1]}"),
    "operator": (re.compile(r"(?<= )[<>+*/%-](?= )"), lambda match: "="),
    "word_order": (re.compile(r"\b(\w+) (\w+)\b"), lambda match: f"{match[2]} {match[1]}"),
}


def minimal_pairs(document: Document, random: Random) -> Iterator[Item]:
    """Yield a valid and a broken text of equal length, with the name of the edit and the place of the valid one.

    Kinds of edit take turns, each with a statement of its own; brackets alone would otherwise make half of the pairs.
    """
    snippets = _snippets(document.text, random)
    kinds = list(_EDITS)
    while kinds:
        random.shuffle(kinds)
        for kind in list(kinds):
            pair = next(((text, edited) for text in snippets for edited in _broken(text, kind, random)), None)
            if not pair:
                kinds.remove(kind)
                continue
            snippets.remove(pair[0])
            label = random.randrange(2)
            yield {"edit": kind, "texts": [*pair] if label == 0 else [*reversed(pair)], "label": label}


def _snippets(text: str, random: Random) -> list[str]:
    """Return the statements of a module that are valid when standing alone, shuffled; none where it is no Python."""
    tree = parse(text)
    if not tree:
        return []
    lines = text.split("\n")
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    texts = {textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])).rstrip(): None for node in statements}
    fitting = [text for text in texts if SNIPPET_BYTES[0] <= len(text.encode()) <= SNIPPET_BYTES[1]]
    random.shuffle(fitting)
    return [text for text in fitting if parse(text)]


def _broken(snippet: str, kind: str, random: Random) -> Iterator[str]:
    pattern, replacement = _EDITS[kind]
    matches = list(pattern.finditer(snippet))
    random.shuffle(matches)
    for match in matches:
        edited = snippet[: match.start()] + replacement(match) + snippet[match.end() :]
        if not parse(edited):
            yield edited


def parse(text: str) -> ast.Module | None:
    """Return the syntax tree of `text`, or None where the interpreter's own parser refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
