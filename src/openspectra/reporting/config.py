"""Config of the report."""

from pathlib import Path

from openspectra.config import Config, PositiveInt, Seed

PUBLISHED = Path("resources/paper/results.csv")
"""The paper's numbers, in a project's folder."""
PUBLISHED_TBT = PUBLISHED.with_name("tbt_results.csv")
"""Beside it: the numbers of the paper whose families round activations too (arXiv 2306.01841)."""


class ReportConfig(Config):
    """The page that shows a study."""

    study: str
    title: str
    seed: Seed
    """Seeds the resampling of documents behind every interval."""
    num_resamples: PositiveInt
    """Bootstrap resamples per interval."""
