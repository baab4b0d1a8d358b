"""`python -m openspectra.cli`: the command line where no script is on the path."""

from openspectra.cli import main

main()
