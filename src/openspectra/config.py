"""What every typed config shares: closed schemas, and problems told all at once.

A stage's config lies in its package and has only the keys that the stage reads (`data/config.py`, `training/config.py`,
...). The types are the single source: they validate what is read, and `workflow/schemas/study.schema.json` is written
from them. A resolved config is part of its artifact's identity, so nothing about the machine belongs there.
"""

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from openspectra.errors import ConfigError
from openspectra.printable import escaped

PositiveInt = Annotated[int, Field(ge=1, le=10**15)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
C = TypeVar("C", bound=BaseModel)
KIND = "Input should be "


def _one_line(text: str) -> str:
    if escaped(text) != text or not text.strip():
        raise ValueError(f"must be one line of text without control characters; got {ascii(text)}")
    return text


Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_one_line)]
"""A name, title or path: what a terminal, a table and a page can show as it is."""


class Config(BaseModel):
    """Base of every config: unknown keys, loose types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, defer_build=True)


def describe_problems(source: str, error: ValidationError, model: type[BaseModel], data: Any = None) -> list[str]:
    """Return one line per problem of a failed validation: file, key, value received, and the way out.

    With `data`, what was validated, keys are those that stand there; what a key may be instead is told in its one line.
    """
    found: dict[tuple, list[dict[str, Any]]] = {}
    for problem in error.errors(include_url=False):
        own = _own_path(problem["loc"], data, problem["type"] == "missing") if data is not None else problem["loc"]
        found.setdefault(own or (), []).append(problem)
    deepest = [path for path in found if not any(other[: len(path)] == path != other for other in found) or not path]
    return [line for path in deepest for line in _lines(source, ".".join(map(str, path)), found[path], model)]


def _own_path(loc: tuple, data: Any, is_missing: bool) -> tuple | None:
    """Return the parts of a problem's path that stand in `data`, without the names that pydantic gives to alternatives.

    None where the last part, a key that is missing, would not be missing in an object.
    """
    if not loc or (is_missing and len(loc) == 1):
        return None if loc and not isinstance(data, dict) else loc
    first, rest = loc[0], loc[1:]
    paths = [_own_path(rest, data, is_missing)]
    if first in data if isinstance(data, dict) else isinstance(data, list) and first in range(len(data)):
        below = _own_path(rest, data[first], is_missing)
        paths.append(None if below is None else (first, *below))
    return max((path for path in paths if path is not None), key=len, default=None)


def _lines(source: str, path: str, problems: list[dict[str, Any]], model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of the problems of one key; kinds of value that it may have are one line."""
    kinds = [problem["msg"] for problem in problems if problem["msg"].startswith(KIND) and problem["type"] != "missing"]
    if len(kinds) > 1:
        first, *others = dict.fromkeys(kinds)
        message = first + "".join(f" or {other.removeprefix(KIND)}" for other in others)
        problems = [problem for problem in problems if problem["msg"] not in kinds[1:]]
        problems = [problem | {"msg": message} if problem["msg"] == kinds[0] else problem for problem in problems]
    yield from dict.fromkeys(_describe(source, path, problem, model) for problem in problems)


def _describe(source: str, path: str, problem: dict[str, Any], model: type[BaseModel]) -> str:
    path = path or "(top level)"
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    if problem["type"] == "extra_forbidden":
        names = _valid_names(model)
        close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.5)
        remedy = f"did you mean `{close[0]}`?" if close else "remove it."
        return f"{source}: {path}: unknown key; {remedy}"
    context = problem.get("ctx", {})
    if problem["type"].startswith("union_tag_"):
        path = f"{path}.{context['discriminator'].strip(chr(39))}"
    if problem["type"] == "union_tag_invalid":
        return f"{source}: {path}: must be one of {context['expected_tags']}; got {context['tag']!r}."
    if problem["type"] in ("missing", "union_tag_not_found"):
        return f"{source}: {path}: required key is missing; add it."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "value_error":
        return f"{source}: {path}: {message}."
    return f"{source}: {path}: {message[0].lower() + message[1:]}; got {shown}."


def _valid_names(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for part in parts for name in part.get("properties", {})})


def validate(model: type[C], data: Any, source: str) -> C:
    """Return `data` as `model`. Raises `ConfigError` with every problem, each naming `source` and key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe_problems(source, error, model, data)) from None
    except RecursionError:
        raise ConfigError([f"{source}: nested too deeply; a config has a handful of levels."]) from None


def read_config(model: type[C], path: Path) -> C:
    """Return the resolved stage config in the JSON file `path`. Raises `ConfigError` naming file, key and remedy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; check --config."]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: not a readable JSON config ({error}); let the workflow write it again."]) from None
    return validate(model, data, str(path))
