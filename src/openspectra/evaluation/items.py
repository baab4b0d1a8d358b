"""Items made from running text: whole passages, words that occurred before, and lines that follow.

Each generator yields items of one document in an order of its own; contexts end in a non-space character and targets
begin with the space that separates them, so that a tokenizer splits context and target where we do.
"""

import keyword
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from openspectra.data.corpus import Document

Item = dict[str, Any]

CLOZE_CONTEXT = 220
"""Characters before the word to predict: some 90 tokens, well inside the shortest context of any study."""
CONTINUATION_CONTEXT = 140
"""Characters before each ending: shorter, because lm-eval reads the context once per ending."""
NUM_ENDINGS = 4
ENDING_LENGTHS = (20, 60)
"""Characters of an ending, without the space before it."""
LENGTH_TOLERANCE = 4
"""Characters by which a wrong ending may be longer or shorter, so that length says nothing about truth."""
SHORTEST_CONTEXT = 60
"""Characters below which a context is not worth predicting from."""

_WORD = re.compile(r"[^\W\d]\w{3,}")
_SPACED_WORD = re.compile(r"(?<=\S) ([^\W\d]\w{3,})")
_ENDING = re.compile(rf"\s+(\S.{{{ENDING_LENGTHS[0] - 2},{ENDING_LENGTHS[1] - 2}}}\S)(?=\s|\Z)")
_TRIVIAL = {*keyword.kwlist, "self"}
"""Words of Python that stand anywhere, so that predicting them says little."""

EndingPool = dict[str, list[tuple[str, str]]]
"""Endings with the id of their document, by the space before them (`"\\n    "` for an indented line)."""


def passage(document: Document, num_characters: int) -> Item:
    """Return the beginning of a document, to be scored token by token."""
    return {"source": document.source, "text": document.text[:num_characters]}


def clozes(document: Document, random: Random) -> Iterator[Item]:
    """Yield contexts with the word that follows, where the same word stands in the context already.

    `chance` is that of drawing it from the context's distinct words of at least four letters.
    """
    for match in _shuffled(_SPACED_WORD.finditer(document.text), random):
        context = _context(document.text, match.start(), CLOZE_CONTEXT)
        words = set(_WORD.findall(context)) - _TRIVIAL
        if match[1] in words and len(context) >= SHORTEST_CONTEXT:
            yield {"context": context, "target": match[0], "chance": 1 / len(words)}


def continuations(document: Document, random: Random, pool: EndingPool) -> Iterator[Item]:
    """Yield contexts with the line that follows among lines of other documents, equally indented and about as long."""
    for match in _shuffled(_ENDING.finditer(document.text), random):
        context, truth = _context(document.text, match.start(), CONTINUATION_CONTEXT), match[0]
        others = {
            text
            for source, text in pool[_space_before(match)]
            if source != document.id and text != truth and abs(len(text) - len(truth)) <= LENGTH_TOLERANCE
        }
        if len(others) >= NUM_ENDINGS - 1 and len(context) >= SHORTEST_CONTEXT:
            endings = random.sample(sorted(others), NUM_ENDINGS - 1)
            label = random.randrange(NUM_ENDINGS)
            endings.insert(label, truth)
            yield {"context": context, "endings": endings, "label": label}


def ending_pool(documents: Iterable[Document]) -> EndingPool:
    """Return every possible ending of `documents`."""
    pool = defaultdict(list)
    for document in documents:
        for match in _ENDING.finditer(document.text):
            pool[_space_before(match)].append((document.id, match[0]))
    return pool


def _space_before(match: re.Match) -> str:
    return match[0][: match.start(1) - match.start()]


def _context(text: str, end: int, num_characters: int) -> str:
    """Return up to `num_characters` before `end`, from the beginning of a line or at least of a word."""
    start = max(0, end - num_characters)
    if start:
        line = text.find("\n", start, end - num_characters // 2)
        start = max(start, (line if line >= 0 else text.find(" ", start, end)) + 1)
    return text[start:end]


def _shuffled(matches: Iterator[re.Match], random: Random) -> list[re.Match]:
    found = list(matches)
    random.shuffle(found)
    return found
