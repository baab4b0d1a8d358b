"""Configs of the benchmarks a study builds, and of a suite of tasks."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from openspectra.config import Config, PositiveInt, Seed, Text
from openspectra.data.config import DataPath

BuiltTask = Literal["held_out_text", "cloze", "continuation", "minimal_pairs", "docstring", "last_sentence"]
"""The benchmarks that a study can build from its test split; any other task is lm-eval's."""
BUILT_TASKS: tuple[BuiltTask, ...] = get_args(BuiltTask)
GENERATION_TASKS: tuple[BuiltTask, ...] = ("docstring", "last_sentence")
"""Those whose items a model answers in words of its own; they are built where a study names them."""
PROMPT_CHARACTERS = 400
"""Longest prompt of a generation task: some 170 tokens of a small vocabulary."""
GENERATED_TOKENS = 64
"""Tokens after which a model that does not stop by itself is stopped."""
SNIPPET_BYTES = (24, 110)
"""Length of a statement of `minimal_pairs`. The longest must fit into a model's context even at one token per byte."""


class TasksConfig(Config):
    """Benchmarks built from the documents of the test split (see `evaluation/build_tasks.py`)."""

    seed: Seed
    num_documents: PositiveInt
    """Test documents whose text is scored for perplexity and bits per byte."""
    document_characters: PositiveInt
    """Characters of each such document, from its beginning."""
    num_items: PositiveInt
    """Items per task."""
    tasks: Annotated[list[BuiltTask], Field(min_length=1)] = [
        task for task in BUILT_TASKS if task not in GENERATION_TASKS
    ]
    """Which are built; `minimal_pairs` and `docstring` need Python source, `last_sentence` paragraphs of sentences."""


FILE_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
"""How `datasets` calls the reader of a file, by its ending."""
TaskFiles = dict[Text, DataPath]
"""By lm-eval task: a file of the data folder (.parquet, .json or .jsonl) with the items that are scored, in the columns
of the task's data set, for a task whose data set the hub no longer gives."""


class BenchmarksConfig(Config):
    """The items of lm-eval's own tasks, fetched where there is a network."""

    tasks: list[Text]
    files: TaskFiles = {}


class EvaluateConfig(Config):
    """One suite of lm-eval tasks on one model."""

    tasks: Annotated[list[Text], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    batch_size: PositiveInt
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the weights during evaluation; log-softmax is always computed in float32."""
    limit: PositiveInt | None = None
    """Items per task, for smoke runs."""
    sample_seed: Seed | None = None
    """Draws the `limit` items of every task; without it they are the first."""
    files: TaskFiles = {}
    """Files in place of what the hub gives, by task; zero-shot, because such a file has no other split."""
    skip_missing: bool = False
    """Whether a task whose data cannot be had is left out with the reason, in place of failing the suite."""

    @model_validator(mode="after")
    def _sample_has_a_size(self):
        if self.sample_seed is not None and not self.limit:
            raise ValueError("`sample_seed` draws `limit` items of every task; give `limit`.")
        return self

    @model_validator(mode="after")
    def _tasks_can_be_run(self):
        if repeated := sorted({task for task in self.tasks if self.tasks.count(task) > 1}):
            raise ValueError(f"`tasks` names {', '.join(repeated)} twice; name each once.")
        for task, path in self.files.items():
            if task not in self.tasks or task in BUILT_TASKS:
                raise ValueError(f"`files` may name lm-eval tasks of `tasks` alone; got {task!r}. Correct it.")
            if Path(path).suffix not in FILE_READERS:
                raise ValueError(f"`files.{task}` must end in {', '.join(FILE_READERS)}; got {path!r}.")
        if self.files and self.num_fewshot:
            raise ValueError(f"`files` hold no examples for `num_fewshot` {self.num_fewshot}; evaluate zero-shot.")
        return self
