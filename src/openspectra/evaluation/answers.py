"""The answers of a model so far, in a file that outlives the process: evaluation goes on at the batch where it stopped.

One line of JSON per batch, keyed by the hash of what was asked. The first line says whose answers they are: of other
weights, another config or another number of threads nothing is taken. A line that a kill cut off is dropped.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

FILE = "answers.jsonl"


class Answers:
    """Answers by batch; without a path they are kept nowhere."""

    def __init__(self, path: Path | None = None, identity: Any = None):
        self.path, self._found = path, {}
        if path is None:
            return
        first = _line(identity)
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        kept = lines[:-1]  # what follows the last end of a line was cut off
        if kept[:1] != [first.rstrip(b"\n")]:
            kept = [first.rstrip(b"\n")]
        self._found = dict(json.loads(line) for line in kept[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line + b"\n" for line in kept))
        self._file = path.open("ab")

    def get(self, key: str) -> Any:
        """Return the answers of a batch, None where it was not asked yet."""
        return self._found.get(key)

    def put(self, key: str, answers: Any) -> None:
        """Keep the answers of a batch; they are in the file when this returns."""
        if self.path:
            self._file.write(_line([key, answers]))
            self._file.flush()

    def close(self) -> None:
        if self.path:
            self._file.close()


def key_of(*asked: Any) -> str:
    """Return the hash of what a batch asks."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"
