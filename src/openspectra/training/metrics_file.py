"""The file that a run's curves go to while it trains. It only grows; imports nothing heavy, for tracking reads it too.

Each line is `{"time": <ms since 1970>, "step": ..., "metrics": {...}}`; a start of the process is a line without
metrics. The file lies in the folder of the run's checkpoints, which the run hash names.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
Line = dict[str, Any]


def read_lines(path: Path, start: int = 0) -> list[tuple[Line, int]]:
    """Return the whole lines of a metrics file from byte `start` on, each with the byte after it; damaged ones left out."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    lines, end = [], start
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        end += len(line)
        with suppress(ValueError):
            lines.append((json.loads(line), end))
    return lines


class MetricsFile:
    """A metrics file opened for appending: a point that it holds already, of a run that goes on, is not written again."""

    def __init__(self, path: Path):
        self.path = path
        self.known: set[tuple[int, str]] = set()
        if path.exists():
            lines = read_lines(path)
            self.known = {(line["step"], name) for line, _ in lines for name in line["metrics"]}
            with path.open("r+b") as file:  # without the half line that a killed writer left
                file.truncate(lines[-1][1] if lines else 0)

    def start(self, step: int) -> None:
        """Note that the process starts at `step`."""
        self._append([{"step": step, "metrics": {}}])

    def add(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Append the metrics of some steps."""
        lines = []
        for step, metrics in points:
            new = {name: value for name, value in metrics.items() if (step, name) not in self.known}
            self.known |= {(step, name) for name in new}
            lines += [{"step": step, "metrics": new}] if new else []
        if lines:
            self._append(lines)

    def _append(self, lines: list[Line]) -> None:
        moment = int(1000 * time.time())
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"time": moment} | line) + "\n" for line in lines))
