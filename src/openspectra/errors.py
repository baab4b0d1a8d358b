"""What can go wrong, by cause. Each message is one line that names file, key, value and the way out."""

from openspectra.printable import escaped


class OpenSpectraError(Exception):
    """Base of all errors a user can act on; `exit_code` is what the command line ends with.

    Each argument is one line: what would break it, or move a terminal's cursor, is escaped.
    """

    exit_code = 1

    def __init__(self, *lines: str):
        super().__init__("\n".join(map(escaped, lines)))


class ConfigError(OpenSpectraError):
    """A config file or argument is wrong. Holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, problems: list[str]):
        super().__init__(*problems)
        self.problems = problems


class DamagedArtifactError(OpenSpectraError):
    """An artifact is missing, incomplete, or differs from its manifest."""


class Interrupted(OpenSpectraError):
    """The run was asked to stop and saved its state of `step`: the same command continues it."""

    exit_code = 75

    def __init__(self, line: str, step: int):
        super().__init__(line)
        self.step = step
