"""Benchmarks from held-out text: a folder of lm-eval tasks, made from the documents of the test split.

A pure function of config and corpus. The folder works with the plain `lm_eval` command line too, from the project's
top folder: `lm_eval --include_path results/demo/tasks --tasks cloze ...` gives the scores of the pipeline.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from openspectra.artifacts import Artifact, write_json
from openspectra.data.corpus import ShuffledDocuments
from openspectra.data.decoding import decoded_documents
from openspectra.data.documents import Document
from openspectra.errors import ConfigError
from openspectra.evaluation.config import GENERATED_TOKENS, TasksConfig
from openspectra.evaluation.generation import STOPS, docstrings, last_sentences
from openspectra.evaluation.items import NUM_ENDINGS, Item, clozes, continuations, ending_pool, passage
from openspectra.evaluation.minimal_pairs import minimal_pairs
from openspectra.evaluation.rouge import METRICS, best_constant_line, rouge

TASK_TABLE = "tasks.json"
"""Per task: num_items, num_characters (what a model reads), chance level and metric to report first; of a generation task
the line whose score is that chance level."""
POOL_DOCUMENTS_PER_ITEM = 4
"""Documents per item wanted from which wrong endings come, and of ready tokens everything: bounds the work where the test
split is very large."""
MAX_BYTES_PER_WORD = 50
"""Above this a text has hardly any spaces, and perplexity per word overflows: it is left out."""
WANTS = {
    "minimal_pairs": " (only Python source yields such items)",
    "docstring": " (only Python source with docstrings yields such items)",
    "last_sentence": " (only paragraphs of sentences in Latin letters yield such items)",
}
"""Texts without which a task finds no items."""

Generator = Callable[[Document, Random], Iterator[Item]]


class Function(str):
    """The name of a function, which lm-eval imports where it reads a task."""


@dataclass(frozen=True)
class Task:
    """One task: its items, and what lm-eval must know to read and score them."""

    name: str
    items: list[Item]
    main_metric: str
    metrics: dict[str, str]
    """Aggregation of each metric, by its name."""
    template: dict[str, Any]
    """Keys of lm-eval's task YAML: kind of request, and the fields of an item that fill it."""
    chance: float | None = None
    """Expected accuracy of guessing; of a generation task the score of the best constant line."""
    constant_line: str | None = None


def build_tasks(config: TasksConfig, corpus: Artifact, folder: Path, cwd_relative: str) -> dict[str, Any]:
    """Write `<task>.jsonl` and `<task>.yaml` of each task and `tasks.json`; return the content of the latter.

    The YAML names its data as `<cwd_relative>/<task>.jsonl`, relative to the project's top folder, so that two clones
    hold the same bytes. Raises `ConfigError` where a task finds fewer items than the config asks for.
    """
    documents = ShuffledDocuments(corpus.file("test.parquet"), f"{config.seed}/documents")
    return _build(config, documents, str(corpus.folder / "test.parquet"), folder, cwd_relative)


def build_tasks_from_tokens(
    config: TasksConfig, test: Artifact, tokenizer: Artifact, folder: Path, cwd_relative: str
) -> dict[str, Any]:
    """Do the same with the test split of ready tokens, from a sample of its documents as text."""
    count = max(config.num_documents, POOL_DOCUMENTS_PER_ITEM * config.num_items)
    documents = decoded_documents(test, tokenizer, count, f"{config.seed}/documents")
    return _build(config, documents, str(test.folder), folder, cwd_relative)


def _build(
    config: TasksConfig, documents: Iterable[Document], place: str, folder: Path, cwd_relative: str
) -> dict[str, Any]:
    builders = {
        "held_out_text": _held_out_text,
        "cloze": _cloze,
        "continuation": _continuation,
        "minimal_pairs": _minimal_pairs,
        "docstring": partial(_generation, "docstring", docstrings),
        "last_sentence": partial(_generation, "last_sentence", last_sentences),
    }
    tasks = [builders[name](config, documents) for name in config.tasks]
    _require_enough(config, place, tasks)
    for task in tasks:
        _write_task(task, folder, cwd_relative)
    table = {task.name: _summary(task) for task in tasks}
    write_json(folder / TASK_TABLE, table)
    return table


def _held_out_text(config: TasksConfig, documents: Iterable[Document]) -> Task:
    items = [
        _identified("held_out_text", number, document, passage(document, config.document_characters))
        for number, document in enumerate(islice(documents, config.num_documents))
    ]
    metrics = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity"}
    num_words = sum(len(item["text"].split()) for item in items)
    if sum(len(item["text"].encode()) for item in items) <= MAX_BYTES_PER_WORD * num_words:
        metrics["word_perplexity"] = "weighted_perplexity"
    template = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    return Task("held_out_text", items, "bits_per_byte", metrics, template)


def _cloze(config: TasksConfig, documents: Iterable[Document]) -> Task:
    items = _draw("cloze", config, documents, clozes)
    chance = sum(item["chance"] for item in items) / max(1, len(items))
    template = {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "target"}
    return Task("cloze", items, "acc", {"acc": "mean", "perplexity": "perplexity"}, template, chance)


def _continuation(config: TasksConfig, documents: Iterable[Document]) -> Task:
    pool = ending_pool(islice(documents, POOL_DOCUMENTS_PER_ITEM * config.num_items))
    items = _draw("continuation", config, documents, lambda *arguments: continuations(*arguments, pool))
    template = _multiple_choice("context", "endings")
    return Task("continuation", items, "acc", {"acc": "mean", "acc_norm": "mean"}, template, 1 / NUM_ENDINGS)


def _minimal_pairs(config: TasksConfig, documents: Iterable[Document]) -> Task:
    items = _draw("minimal_pairs", config, documents, minimal_pairs)
    return Task("minimal_pairs", items, "acc", {"acc": "mean"}, _multiple_choice("", "texts"), 1 / 2)


def _generation(name: str, generator: Generator, config: TasksConfig, documents: Iterable[Document]) -> Task:
    """Return a task whose items are answered in words; `chance` of an item is what the best constant line scores on it."""
    items = _draw(name, config, documents, generator)
    targets = [item["target"] for item in items]
    line = best_constant_line(targets) if items else None
    items = [item | {"chance": rouge(item["target"], line)} for item in items]
    chance = sum(item["chance"][METRICS[0]] for item in items) / max(1, len(items))
    template = {
        "output_type": "generate_until",
        "doc_to_text": "context",
        "doc_to_target": "target",
        "target_delimiter": "",
        "generation_kwargs": {"until": STOPS[name], "do_sample": False, "max_gen_toks": GENERATED_TOKENS},
        "process_results": Function("openspectra.evaluation.rouge.scores"),
    }
    return Task(name, items, METRICS[0], dict.fromkeys(METRICS, "mean"), template, chance, line)


def _multiple_choice(text: str, choices: str) -> dict[str, Any]:
    fields = {"doc_to_text": text, "doc_to_choice": choices, "doc_to_target": "label"}
    return {"output_type": "multiple_choice", **fields, "target_delimiter": ""}


def _draw(name: str, config: TasksConfig, documents: Iterable[Document], generator: Generator) -> list[Item]:
    """Return up to `num_items` different items, one from each document in turn, so that few documents never dominate."""
    unread = ((document, _candidates(name, config, document, generator)) for document in documents)
    waiting: deque[tuple[Document, Iterator[Item]]] = deque()
    items, seen = [], set()
    while len(items) < config.num_items and (turn := next(unread, None) or (waiting and waiting.popleft())):
        document, candidates = turn
        for item in candidates:
            if (question := _question(item)) not in seen:
                seen.add(question)
                items.append(_identified(name, len(items), document, item))
                waiting.append((document, candidates))
                break
    return items


def _candidates(name: str, config: TasksConfig, document: Document, generator: Generator) -> Iterator[Item]:
    yield from generator(document, Random(f"{config.seed}/{name}/{document.id}"))


def _identified(name: str, number: int, document: Document, item: Item) -> Item:
    return {"item_id": f"{name}-{number:05}", "document_id": document.id, **item}


def _require_enough(config: TasksConfig, place: str, tasks: list[Task]) -> None:
    problems = []
    for task in tasks:
        key = "num_documents" if task.name == "held_out_text" else "num_items"
        wanted = getattr(config, key)
        if len(task.items) < wanted:
            hint = WANTS.get(task.name, "")
            problems.append(
                f"built_tasks.{key}: task `{task.name}` finds {len(task.items)} items{hint} in {place}, "
                f"and {wanted} are asked for; lower `{key}`, raise the text's `test_fraction`, or leave it out of `built_tasks.tasks`."
            )
    if problems:
        raise ConfigError(problems)


def _write_task(task: Task, folder: Path, cwd_relative: str) -> None:
    import yaml

    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in task.items)
    (folder / f"{task.name}.jsonl").write_text("".join(lines), encoding="utf-8")
    config = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{cwd_relative}/{task.name}.jsonl"}},
        "test_split": "test",
        **task.template,
        "metric_list": [
            {"metric": name, "aggregation": aggregation, "higher_is_better": name.startswith(("acc", "rouge"))}
            for name, aggregation in task.metrics.items()
        ],
        "metadata": {"version": 1.0},
    }
    text = yaml.dump(config, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=120)
    (folder / f"{task.name}.yaml").write_text(text, encoding="utf-8")


def _dumper():
    """Return PyYAML's safe writer, which also writes what lm-eval reads as a function."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", name))
    return Dumper


def _summary(task: Task) -> dict[str, Any]:
    return {
        "num_items": len(task.items),
        "num_characters": sum(_num_characters(item) for item in task.items),
        "chance": task.chance,
        "main_metric": task.main_metric,
        **({"constant_line": task.constant_line.strip()} if task.constant_line else {}),
    }


def _num_characters(item: Item) -> int:
    """Return the characters a model reads for one item: the context once per choice."""
    choices = _choices(item)
    return len(choices) * len(item.get("context", "")) + sum(map(len, choices))


def _question(item: Item) -> tuple[str, str]:
    """Return context and right answer: what makes two items the same."""
    return item.get("context", ""), _choices(item)[item.get("label", 0)]


def _choices(item: Item) -> list[str]:
    return item.get("endings") or item.get("texts") or [item.get("target") or item["text"]]
