"""A YAML reader that refuses what YAML lets pass: duplicate keys, aliases, numbers read as text."""

import re
from pathlib import Path
from typing import Any

import yaml

from openspectra.errors import ConfigError

MAX_BYTES = 1_000_000
"""Larger files are refused: a study is a page of text."""


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, "aliases are not allowed; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        try:
            content = super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            AttributeError,
            OverflowError,
        ):  # PyYAML's own, of a number or date that is none
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{_shown(node.value)} is no {kind}; write one, or put it in quotes where it is text",
                node.start_mark,
            ) from None
        if isinstance(content, str) and not _is_unicode(content):
            raise yaml.constructor.ConstructorError(
                None, None, f"{_shown(content)} holds half of a surrogate pair, which no file can hold", node.start_mark
            )
        return content

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(
                    None, None, "keys must be text or integers", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}; keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; every number that Python reads is a number here.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else f"{value[:57]}...")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises `ConfigError` naming file and line for anything that is not plain data."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path}: larger than {MAX_BYTES:,} bytes; a study file is a page of text."])
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; check the path."]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); check path and permissions."]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8."]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([f"{path}{where}: {what}; correct the YAML."]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply; a study has a handful of levels."]) from None
