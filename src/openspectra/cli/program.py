"""The command line: one command per stage, plus those that look at what stages made.

Every stage reads a resolved config and artifact folders, and writes one artifact folder. Exit codes: 0 done,
1 failed, 2 bad config or arguments, 75 interrupted and resumable by the same command.
"""

import shlex
import sys
from typing import Annotated

import typer

from openspectra.cli import data, evaluation, models, pretraining, reporting, studies, tracking, upkeep
from openspectra.cli.options import Threads
from openspectra.errors import OpenSpectraError

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for group in (studies, data, evaluation, pretraining, models, reporting, upkeep):
    app.add_typer(group.commands)
app.add_typer(tracking.commands, name="track")


def main() -> None:
    """Run the command line; end with the exit code that the error names, without a traceback for what users can mend."""
    try:
        app()
    except OpenSpectraError as error:
        _show_error(error)
        sys.exit(error.exit_code)


@app.command()
def batch(
    commands: Annotated[list[str], typer.Argument(help='Commands without their first word: "quantize --config ...".')],
    threads: Threads = 1,
) -> None:
    """Run several stage commands in one process, one after the other, so that libraries are loaded once.

    One that fails does not keep the others from being run; the exit code is then theirs: 2 where all that failed had a
    bad config, else 1.
    """
    errors = []
    for command in commands:
        try:
            app([*shlex.split(command), "--threads", str(threads)], standalone_mode=False)
        except OpenSpectraError as error:
            _show_error(error)
            errors.append(error)
    if errors:
        sys.exit(errors[0].exit_code if len({error.exit_code for error in errors}) == 1 else 1)


def _show_error(error: OpenSpectraError) -> None:
    for line in str(error).splitlines():
        print(f"openspectra: {line}", file=sys.stderr)
