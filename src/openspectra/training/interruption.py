"""Signals ask a run to stop; it stops itself at the next step boundary, and leaves a record that it did.

The record is written when the state is safe and removed when the run goes on, both under the lock of the folder. So who
started the run can tell an interruption from a failure, whatever became of exit codes on the way.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from openspectra.writing import write_atomically

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Time limits, preemption, Ctrl-C and a lost terminal."""


class Interruption:
    """While active, the signals only set `requested`: no state is saved inside a handler, in the middle of a step."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.arm()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Take the signals over, again where a library has put in handlers of its own meanwhile, as Lightning does."""
        for number in SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame) -> None:
        self.requested = True


RECORD = "interrupted.json"


def write_record(out: Path, run: str, step: int) -> None:
    """Note that the run of hash `run` was interrupted with the state of `step` saved, and in which Slurm job."""
    record = {"job": os.environ.get("SLURM_JOB_ID"), "run": run, "step": step, "time": time.time()}
    write_atomically(out / RECORD, json.dumps(record).encode())


def read_record(out: Path) -> dict[str, Any] | None:
    """Return the record of the last interruption; None where there was none, or the run went on since."""
    path = out / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def remove_record(out: Path) -> None:
    (out / RECORD).unlink(missing_ok=True)
