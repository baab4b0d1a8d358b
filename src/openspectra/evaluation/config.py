"""Configs of the benchmarks a study builds, and of a suite of tasks."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from openspectra.config import Config, PositiveInt, Seed, Text

BuiltTask = Literal["held_out_text", "cloze", "continuation", "minimal_pairs"]
"""The benchmarks that a study can build from its test split; any other task is lm-eval's."""
BUILT_TASKS: tuple[BuiltTask, ...] = get_args(BuiltTask)


class TasksConfig(Config):
    """Benchmarks built from the documents of the test split (see `evaluation/build_tasks.py`)."""

    seed: Seed
    num_documents: PositiveInt
    """Test documents whose text is scored for perplexity and bits per byte."""
    document_characters: PositiveInt
    """Characters of each such document, from its beginning."""
    num_items: PositiveInt
    """Items per task."""
    tasks: Annotated[list[BuiltTask], Field(min_length=1)] = list(BUILT_TASKS)
    """Which are built; `minimal_pairs` needs Python source."""


class BenchmarksConfig(Config):
    """The items of lm-eval's own tasks, fetched where there is a network."""

    tasks: list[Text]


class EvaluateConfig(Config):
    """One suite of lm-eval tasks on one model."""

    tasks: Annotated[list[Text], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    batch_size: PositiveInt
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the weights during evaluation; log-softmax is always computed in float32."""
    limit: PositiveInt | None = None
    """Items per task, for smoke runs."""
