"""What can go wrong, by cause. Each message is one line that names file, key, value and the way out."""


class OpenSpectraError(Exception):
    """Base of all errors a user can act on; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(OpenSpectraError):
    """A config file or argument is wrong. Holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class DamagedArtifactError(OpenSpectraError):
    """An artifact is missing, incomplete, or differs from its manifest."""


class Interrupted(OpenSpectraError):
    """The run was asked to stop and saved its state: the same command continues it."""

    exit_code = 75
