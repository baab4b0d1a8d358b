"""Writing on a disk that others use and that may fail: one writer per folder, whole files or none, errors of one line."""

import errno
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from openspectra.errors import OpenSpectraError

logger = logging.getLogger(__name__)

DISK_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota",
    errno.EIO: "mend the disk",
    errno.EROFS: "make it writable",
    errno.EACCES: "mend its permissions",
    errno.ENOLCK: "mount it with support for locks",
    errno.EOPNOTSUPP: "mount it with support for locks",
}
"""What a disk may refuse, and the way out."""
WAITS = "OPENSPECTRA_WAIT_FOR_WRITER"
"""Set by the workflow for its jobs: a job that outlived a killed workflow is waited for, by hand it is an error."""


def process_lives(pid: Any) -> bool:
    """Return whether the process of this machine that `owner.json` names is there."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, TypeError, ValueError):
        return False
    return True


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of an artifact's folder, which is made where it is missing; the thread that holds it may take it again.

    The lock ends with the process that holds it; `owner.json` says whose it is. Raises `OpenSpectraError` naming the
    owner where another process writes here: one that outlived the workflow that started it, or a second workflow.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock, owner = FileLock(out / "lock", timeout=0, is_singleton=True), out / "owner.json"
        try:
            lock.acquire()
        except Timeout:
            try:
                who = owner.read_text()
            except FileNotFoundError:  # it begins or ends just now
                who = "another process"
            if WAITS not in os.environ:
                raise OpenSpectraError(f"{out}: {who} is writing here; wait for it or stop it.") from None
            logger.warning("%s: %s is writing here, left by a workflow before; waiting until it ends", out, who)
            lock.acquire(timeout=-1, poll_interval=0.5)
        try:
            if lock.lock_counter == 1:
                if owner.exists():
                    logger.warning("%s: the writer before, %s, ended without a word; going on", out, owner.read_text())
                me = {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
                write_atomically(owner, json.dumps(me).encode())
            yield
        finally:
            if lock.lock_counter == 1:
                owner.unlink(missing_ok=True)
                (out / "lock").unlink(missing_ok=True)
            lock.release()


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `content`, or what it writes, to `path`: a reader sees the old file or the whole new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn what a disk refuses, below `out` or in a file of its own, into an error of one line."""
    try:
        yield
    except OpenSpectraError:
        raise
    except Exception as error:
        number, name = _error_number(error), getattr(error, "filename", None)
        if number not in DISK_ERRORS or (number in (errno.EACCES, errno.EROFS) and not name):
            raise
        raise OpenSpectraError(
            f"{name or out}: {os.strerror(number)}; {DISK_ERRORS[number]} and run the same command again."
        ) from error


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error; libraries in Rust (safetensors, tokenizers) leave it in the text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) or (int(found[1]) if found else None)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
