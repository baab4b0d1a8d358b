"""The machine that a benchmark ran on, in words."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """Return cores and name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores {names[0] if names else platform.processor()}"
