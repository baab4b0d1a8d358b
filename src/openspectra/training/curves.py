"""The curves of a run while it trains: written to a file after each step, whoever shows them and however slowly."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from openspectra.training.matrices import means_by_step
from openspectra.training.metrics_file import MetricsFile

SHOWN_TABLES = ("train", "valid", "ternary")
SECONDS_BETWEEN_SPEEDS = 10.0


class Curves(L.Callback):
    """Appends the new rows of a run's tables to its metrics file, and every ten seconds speed, time left and memory.

    Of the discrete weights it takes the means over all matrices. Without a `path`, on all ranks but the first, it is
    silent.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def on_train_start(self, trainer, module) -> None:
        if self.path:
            self.file = MetricsFile(self.path)
            self.file.start(module.step)
            self.seen = dict.fromkeys(SHOWN_TABLES, 0)  # of a run that goes on the file sorts out what it holds
            self.first_step = module.step
            self.started = self.shown = time.monotonic()
            self.used = _cpu_seconds()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if not self.path:
            return
        self._add_rows(module.records.tables)
        if time.monotonic() - self.shown >= SECONDS_BETWEEN_SPEEDS:
            self.file.add([(module.step, self._speed(module))])

    def _add_rows(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        for name in SHOWN_TABLES:
            if len(tables[name]) > self.seen[name]:
                rows = means_by_step(tables[name]) if name == "ternary" else tables[name][self.seen[name] :]
                self.file.add([(row["step"], _numbers(row)) for row in rows])
                self.seen[name] = len(tables[name])

    def _speed(self, module) -> dict[str, float]:
        now, used, config = time.monotonic(), _cpu_seconds(), module.config
        speed = (module.step - self.first_step) * config.tokens_per_step / (now - self.started)
        left = (config.max_steps - module.step) * config.tokens_per_step / max(speed, 1e-9)
        metrics = {
            "tokens_per_second": round(speed, 1),
            "seconds_left": round(left),
            "system/cpu_percent": round(100 * (used - self.used) / (now - self.shown), 1),
            "system/peak_memory_gigabytes": round(_peak_memory_bytes() / 1e9, 3),
        }
        if torch.cuda.is_available():
            metrics["system/peak_gpu_memory_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        self.shown, self.used = now, used
        return metrics


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and value is not None}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return peak if sys.platform == "darwin" else 1024 * peak
