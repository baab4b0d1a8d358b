"""The command line, a module for each group of commands: what to type is told by `openspectra --help`."""

from openspectra.cli.program import app, main

__all__ = ["app", "main"]
