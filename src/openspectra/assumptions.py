"""The choices of ours where the paper is silent: every comment marked `ASSUME` in a study and in the library.

A mark within backticks speaks of marks and is none. Of a base those lines count whose top-level key the study does not
set anew.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

import openspectra
from openspectra.strict_yaml import read_yaml

MARK = re.compile(r"(?<!`)(?<!`# )\bASSUME\b:?\s*(?P<text>.*)")
TOP_LEVEL_KEY = re.compile(r"([A-Za-z_]\w*)\s*:")


@dataclass(frozen=True)
class Assumption:
    """One marked comment."""

    file: str
    """`studies/paper.yaml`, or `openspectra/model/llama.py`: never where on this machine it lies."""
    line: int
    """From 1."""
    text: str
    """What the comment says after its mark, with the comment lines that continue it; before it, where nothing follows."""
    code: str
    """What stands before the comment on its line."""


def study_files(path: Path) -> list[Path]:
    """Return a study's file and, after it, that of its base. Raises `ConfigError` for a file that is no YAML."""
    content = read_yaml(path)
    base = content.get("base") if isinstance(content, dict) else None
    return [path, path.parent / f"{base}.yaml"] if isinstance(base, str) else [path]


def package_files() -> list[Path]:
    """Return the library's source files, in order; none where it is installed without them."""
    return sorted(Path(openspectra.__file__).parent.rglob("*.py"))


def collect(study_files: list[Path]) -> list[Assumption]:
    """Return every assumption of a study (its file, then its base), then of the library, by file and line.

    The library gives none where it is installed without its sources: ask `package_files()`.
    """
    root = Path(openspectra.__file__).parent.parent
    found, given = [], set()
    for path in study_files:
        text = path.read_text(encoding="utf-8-sig")
        name = "/".join(path.absolute().parts[-2:])
        keys = _top_level_keys(text)
        found += [each for each in _marked(name, text, _yaml_comments(text)) if keys[each.line - 1] not in given]
        given |= set(keys) - {None}
    for path in package_files():
        text = path.read_text(encoding="utf-8")
        found += _marked(path.relative_to(root).as_posix(), text, _python_comments(text))
    return found


def _marked(file: str, text: str, comments: dict[int, int]) -> Iterator[Assumption]:
    """Yield the assumptions among `comments`: the column of the comment by its line, both from 0."""
    lines = text.splitlines()
    for number, column in comments.items():
        before, comment = lines[number][:column].strip(), lines[number][column:].lstrip("# ")
        match = MARK.search(comment)
        if not match:
            continue
        said = [match["text"] if match["text"].strip(") ") else comment[: match.start()].rstrip("( ")]
        following = number + 1
        while not before and following in comments and not lines[following][: comments[following]].strip():
            continued = lines[following].strip().lstrip("# ")
            if MARK.search(continued):
                break
            said.append(continued)
            following += 1
        yield Assumption(file, number + 1, " ".join(said).strip(), before)


def _python_comments(text: str) -> dict[int, int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] - 1: token.start[1] for token in tokens if token.type == tokenize.COMMENT}


def _yaml_comments(text: str) -> dict[int, int]:
    """Return where comments begin: the first `#` of a line that follows a space and stands in no value."""
    values = [
        (token.start_mark.index, token.end_mark.index)
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        if isinstance(token, yaml.ScalarToken)
    ]
    comments, start = {}, 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        for match in re.finditer(r"(?:^|(?<=\s))#", line):
            if not any(low <= start + match.start() < high for low, high in values):
                comments[number] = match.start()
                break
        start += len(line)
    return comments


def _top_level_keys(text: str) -> list[str | None]:
    """Return the top-level key that each line belongs to; None before the first. A comment at the margin is the next key's."""
    keys: list[str | None] = []
    key, num_waiting = None, 0
    for line in text.splitlines():
        match = TOP_LEVEL_KEY.match(line)
        if match:
            key = match[1]
            keys[len(keys) - num_waiting :] = [key] * num_waiting
        num_waiting = num_waiting + 1 if line.startswith("#") else 0
        keys.append(key)
    return keys
