"""Where a study stands: what is done, running, waiting, failed and why. Read from what its jobs leave on the disk.

Nothing is asked of Snakemake or Slurm, so it answers at once, on any machine that sees the folders. A job holds
`owner.json` while it writes; where its process is gone without a word, or its log ends in an error, it has failed.
"""

import json
import platform
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openspectra.artifacts import MANIFEST
from openspectra.printable import escaped, span_of
from openspectra.study import Study
from openspectra.work import RULES
from openspectra.writing import process_lives

SILENT_SECONDS = 1800
"""A job of another machine that has written nothing for so long may have ended without a word."""
LAST_BYTES = 20_000
"""Of a log, read from its end."""
ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Interrupted|Exception|Exit|Interrupt))(?:: (.*))?$")


@dataclass(frozen=True)
class Running:
    """A job that writes now."""

    place: str
    who: str
    """Machine, process and, on a cluster, the job's number."""
    progress: str
    """Step, tokens per second and time left of a training; else how long ago it began."""


@dataclass
class Status:
    """The jobs of a study by state, each by its artifact's place below `results/<study>`."""

    total: int
    done: list[str] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    interrupted: dict[str, str] = field(default_factory=dict)
    """Stopped with its state saved: the reason by place."""
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)


def status_of(study: Study, name: str) -> Status:
    """Return where the study called `name` stands, in the project that is the working directory."""
    places = _places(study)
    status = Status(total=len(places))
    for place, stage in places.items():
        folder = Path("reports", name) if place == "report" else Path("results", name, place)
        finished = Path("results", name, "tracking.json") if place == "tracking" else folder / MANIFEST
        owner = _read_json(folder / "owner.json")
        reason = _ended(owner, folder) if owner else last_error(log_of(name, place, stage))
        if owner and not reason:
            status.running.append(Running(place, _who(owner), _progress(study, place, folder)))
        elif finished.is_file():
            status.done.append(place)
        elif reason and reason.startswith("Interrupted: "):
            status.interrupted[place] = reason.removeprefix("Interrupted: ").removeprefix(f"{place}: ")
        elif reason:
            status.failed[place] = reason
        else:
            status.waiting.append(place)
    return status


def status_lines(study: Study, name: str) -> list[str]:
    """Return where a study stands, for a terminal."""
    status = status_of(study, name)
    lines = [f"{name}: {len(status.done)} of {status.total} artifacts are done."]
    lines += _section("running", [f"{each.place}: {each.progress} ({each.who})" for each in status.running])
    lines += _section("interrupted", [f"{place}: {reason}" for place, reason in status.interrupted.items()])
    lines += _section("failed", [f"{place}: {reason}" for place, reason in status.failed.items()])
    kinds = Counter(map(_places(study).get, status.waiting))
    lines += _section("waiting", [", ".join(f"{count} {stage}" for stage, count in kinds.items())] if kinds else [])
    if controller := _controller(name):
        lines.append(f"Snakemake works on it: {controller}.")
    elif len(status.done) < status.total:
        local = f"snakemake --cores all --config study={name}"
        lines.append(f"It goes on by: {local}   (on a cluster: snakemake --profile slurm --config study={name})")
    return [escaped(line) for line in lines]


def log_of(name: str, place: str, stage: str) -> Path:
    """Return the log of the job that makes an artifact: its rule's folder, and its wildcards as a path."""
    rule, logs = RULES[stage], Path("logs", name)
    wildcards = {
        "source": place.removeprefix("sources/parts/"),
        "part": place.removeprefix("corpus/parts/"),
        "token_part": place.removeprefix("tokens/parts/"),
        "tokens": place.removeprefix("tokens/"),
        "pretrain": place,
        "checkpoint": place,
        "quantize": place,
        "evaluate": place.removeprefix("evaluation/"),
        "export": place.removeprefix("exports/"),
    }.get(stage)
    if wildcards is None:
        return logs / f"{rule}.log"
    own = logs / rule / f"{wildcards}.log"
    return own if own.is_file() or stage != "evaluate" else own.parent.with_suffix(own.parent.suffix + ".log")


def last_error(log: Path) -> str | None:
    """Return how a log ends, where that is an error: its name and text in one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").rstrip().splitlines()
    except OSError:
        return None
    for number in range(len(lines) - 1, -1, -1):
        if re.match(r"^\d{4}-\d\d-\d\d ", lines[number]) and not lines[number].endswith(" ERROR traceback: failed"):
            return None  # it went on after its last error, or there was none
        if found := ERROR.match(lines[number]):
            text = f"{found[1]}: {found[2]}" if found[2] else found[1]
            return f"{text} [{log}]" if found[1] != "Interrupted" else text
    return None


def _places(study: Study) -> dict[str, str]:
    """Return the stage of every artifact, of the page and of tracking, by place."""
    return study.artifacts | {"report": "report", "tracking": "track"}


def _section(title: str, rows: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {row}" for row in rows)] if rows else []


def _progress(study: Study, place: str, folder: Path) -> str:
    began = time.time() - (folder / "owner.json").stat().st_mtime
    run = study.pretrained.get(place)
    row = _last_row(folder / "speed.jsonl") if run else None
    if row is None or row["step"] > run.max_steps or (folder / "speed.jsonl").stat().st_mtime < time.time() - began:
        return f"since {span_of(began)}"
    speed = row["tokens_per_second"]
    left = (run.max_steps - row["step"]) * run.tokens_per_step / max(speed, 1e-9)
    return f"step {row['step']:,} of {run.max_steps:,}, {speed:,.0f} tokens/s, {span_of(left)} left"


def _last_row(path: Path) -> dict[str, Any] | None:
    try:
        lines = path.read_bytes()[-LAST_BYTES:].splitlines()
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):  # not begun, or in the middle of a line
        return None


def _ended(owner: dict[str, Any], folder: Path) -> str | None:
    """Return why a job that left its mark writes no more; None where it may be at work."""
    if owner.get("host") == platform.node():
        return None if process_lives(owner.get("pid")) else "ended without a word: killed, or out of memory"
    last = max((path.stat().st_mtime for path in folder.iterdir() if path.is_file()), default=0.0)
    silent = time.time() - last
    return None if silent < SILENT_SECONDS else f"nothing was written for {span_of(silent)} by {_who(owner)}"


def _controller(name: str) -> str | None:
    """Return the process of Snakemake that works on a study on this machine, if one does."""
    try:
        words = Path(".snakemake", f"{name}.owner").read_text(encoding="utf-8").split()
    except OSError:
        return None
    is_here = len(words) == 3 and words[2] == platform.node() and process_lives(words[0])
    return f"process {' '.join(words)}" if is_here else None


def _who(owner: dict[str, Any]) -> str:
    job = f", Slurm job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
