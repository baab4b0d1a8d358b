"""What may stand in one line: text of others is escaped before it reaches a terminal, a log, a message or a table."""

import re

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, ends a line, turns the direction of writing, or is half of a character."""


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with all that is no plain part of a line written as Python writes it (`\\n`, `\\x1b`), but for `keep`."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def span_of(seconds: float) -> str:
    """Return a time in the unit that reads best."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
