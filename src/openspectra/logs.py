"""Where lines go: everything to a file when one is given, the project's own lines to the console."""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from openspectra.errors import OpenSpectraError
from openspectra.printable import escaped
from openspectra.writing import disk_errors

FAILED = "traceback"
"""Name of the logger that writes what a stage ended with."""


class _OneLine(logging.Formatter):
    """A line per message, whatever it holds; only a traceback has several, and no control character either."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record).rstrip("\n"))

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record), keep="\n\t")


@contextmanager
def log_to(path: Path | None, rank: int = 0) -> Iterator[None]:
    """Send the project's INFO lines to stderr and, with `path`, all that libraries log, warn or print to that file.

    An exception that nobody expected has its traceback there; what is raised on is its last line and the log's path.
    Ranks other than the first show errors only, and have files of their own: `<name>.rank<rank>.log`.
    """
    root = logging.getLogger()
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_OneLine("%(message)s"))
    console.addFilter(logging.Filter("openspectra"))
    console.setLevel(logging.ERROR if rank else logging.INFO)
    handlers: list[logging.Handler] = [console]
    streams = ExitStack()
    if path:
        path = path.with_suffix(f".rank{rank}.log") if rank else path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(file)
        streams.enter_context(redirect_stdout(file.stream))
        streams.enter_context(redirect_stderr(file.stream))
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    failed = False
    try:
        yield
    except Exception as error:
        failed = True
        if not path:
            raise
        logging.getLogger(FAILED).exception("failed")
        if isinstance(error, OpenSpectraError):
            raise
        last = traceback.format_exception_only(error)[-1].strip().partition("\n")[0]
        raise OpenSpectraError(f"{last} (not expected here; what led to it stands in {path})") from error
    finally:
        streams.close()
        for handler in handlers:
            root.removeHandler(handler)
            # on a full disk what the run failed with is what counts; a log lost by a run that succeeded is told
            with suppress(OSError) if failed else disk_errors(path):
                handler.close()
