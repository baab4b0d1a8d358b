"""Config of the report."""

from openspectra.config import Config, PositiveInt, Seed


class ReportConfig(Config):
    """The page that shows a study."""

    study: str
    title: str
    seed: Seed
    """Seeds the resampling of documents behind every interval."""
    num_resamples: PositiveInt
    """Bootstrap resamples per interval."""
