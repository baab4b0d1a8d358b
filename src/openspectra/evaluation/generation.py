"""Lines to be written by the model: the first line of a function's docstring, and the last sentence of a paragraph.

Each generator yields whole functions and whole paragraphs that fit into the prompt, in an order of its own. What the model
writes is scored by ROUGE (`evaluation/rouge.py`).
"""

import ast
import copy
import re
import textwrap
from collections.abc import Iterator
from random import Random

from openspectra.data.corpus import Document
from openspectra.evaluation.config import PROMPT_CHARACTERS
from openspectra.evaluation.items import SHORTEST_CONTEXT, Item
from openspectra.evaluation.minimal_pairs import parse
from openspectra.evaluation.rouge import words

SHORTEST_TARGET = 3
"""Words of a target, as ROUGE counts them: pairs of words must be there to be found."""
LONGEST_TARGET = 120
"""Characters of a target: some 50 tokens of a small vocabulary, so that a model can write it to the end."""
QUOTES = '"""'
STOPS = {
    "docstring": ["\n", QUOTES],
    "last_sentence": ["\n\n", *(mark + space for mark in ".!?" for space in " \n")],
}
"""By task, the texts at which the model is stopped."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s|\Z)""")


def docstrings(document: Document, random: Random) -> Iterator[Item]:
    """Yield functions without their docstring, then their head again with a docstring opened, and its first line.

    Left out are functions that are nothing but a docstring, and lines that stand in the code too, or not as written
    between the quotes (escapes).
    """
    tree = parse(document.text)
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)] if tree else []
    random.shuffle(functions)
    lines = document.text.split("\n")
    for function in functions:
        if len(function.body) == 1 or not (text := ast.get_docstring(function, clean=False)):
            continue
        target, first = text.split("\n")[0].strip(), function.body[0]
        head = "\n".join(lines[function.lineno - 1 : first.lineno - 1])
        rest = "\n".join(lines[first.end_lineno : function.end_lineno])
        source = textwrap.dedent(f"{head}\n{rest}").rstrip()
        as_written = target in "\n".join(lines[first.lineno - 1 : first.end_lineno])
        context = f"{source}\n\n{textwrap.dedent(head)}\n    {QUOTES}"
        if as_written and _is_fit(context, target) and _is_rest_of(function, source):
            yield {"context": context, "target": target}


def last_sentences(document: Document, random: Random) -> Iterator[Item]:
    """Yield paragraphs up to their last sentence, and that sentence with the space before it."""
    paragraphs = _BLANK_LINES.split(document.text.strip())
    random.shuffle(paragraphs)
    for paragraph in map(str.rstrip, paragraphs):
        ends = [match.end() for match in _SENTENCE_END.finditer(paragraph)]
        if len(ends) < 2 or ends[-1] < len(paragraph):
            continue
        context, target = paragraph[: ends[-2]], paragraph[ends[-2] :]
        if len(context) >= SHORTEST_CONTEXT and _is_fit(context, target):
            yield {"context": context, "target": target}


def _is_rest_of(function: _Function, source: str) -> bool:
    """Return whether `source` is the function without its docstring, and nothing else was cut or changed."""
    rest = copy.copy(function)
    rest.body, rest.decorator_list = function.body[1:], []
    tree = parse(source)
    return tree is not None and list(map(ast.dump, tree.body)) == [ast.dump(rest)]


def _is_fit(context: str, target: str) -> bool:
    return (
        len(context) <= PROMPT_CHARACTERS
        and len(target) <= LONGEST_TARGET
        and len(words(target)) >= SHORTEST_TARGET
        and target.strip() not in context
    )
