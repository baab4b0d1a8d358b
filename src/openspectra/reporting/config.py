"""Config of the report."""

from pathlib import Path

from openspectra.config import Config, PositiveInt, Seed

PUBLISHED = Path("resources/paper/results.csv")
"""The paper's numbers, in a project's folder."""


class ReportConfig(Config):
    """The page that shows a study."""

    study: str
    title: str
    seed: Seed
    """Seeds the resampling of documents behind every interval."""
    num_resamples: PositiveInt
    """Bootstrap resamples per interval."""
