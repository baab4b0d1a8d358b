"""Items of lm-eval's own tasks from a file: lm-eval's prompt and scoring, our items, and every mistake in one line."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmark_hub import logiqa_row

from openspectra.config import validate
from openspectra.errors import ConfigError
from openspectra.evaluation import harness
from openspectra.evaluation.config import EvaluateConfig
from openspectra.evaluation.harness import _data_rows, load_tasks

SUITE = {"tasks": ["logiqa", "boolq"], "batch_size": 1, "dtype": "float16"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tasks": ["boolq", "logiqa", "boolq"]}, "`tasks` names boolq twice; name each once"),
        ({"files": {"logiqua": "a.jsonl"}}, "`files` may name lm-eval tasks of `tasks` alone; got 'logiqua'"),
        ({"files": {"logiqa": "a.txt"}}, "`files.logiqa` must end in .parquet, .json, .jsonl; got 'a.txt'"),
        ({"files": {"logiqa": "a.jsonl"}, "num_fewshot": 2}, "no examples for `num_fewshot` 2; evaluate zero-shot"),
        ({"tasks": ["cloze"], "files": {"cloze": "a.jsonl"}}, "lm-eval tasks of `tasks` alone; got 'cloze'"),
    ],
)
def test_mistakes_of_a_suite_are_told_when_it_is_read(keys, message):
    with pytest.raises(ConfigError) as caught:
        validate(EvaluateConfig, SUITE | keys, "study.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def manager():
    """lm-eval's index of two of its folders: the whole takes eight seconds."""
    from lm_eval.tasks import TaskManager

    (tasks,) = find_spec("lm_eval.tasks").submodule_search_locations
    folders = [Path(tasks, "logiqa"), Path(tasks, "mmlu/continuation")]
    return TaskManager(include_path=folders, include_defaults=False)


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def load(manager, tmp_path, monkeypatch):
    """Return what loads a task with the items of a file of the test's folder."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    monkeypatch.setattr(harness, "task_manager", lambda *index: manager)
    return lambda name, file: load_tasks([name], files={name: file})[name]["tasks"].values()


def test_task_has_the_items_of_the_file_and_the_prompt_of_lm_eval(load, tmp_path):
    rng = random.Random(0)
    rows = [logiqa_row(rng, number) for number in range(5)]
    write_rows(tmp_path / "test.jsonl", rows)
    (task,) = load("logiqa", "test.jsonl")
    assert list(task.eval_docs) == rows
    prompt = task.doc_to_text(rows[0])
    assert prompt.startswith(f"Passage: {rows[0]['context']}\nQuestion: {rows[0]['question']}\nChoices:\nA. ")
    assert task.doc_to_target(rows[0]) == "abcd".index(rows[0]["label"])
    (before,) = _data_rows({"logiqa": task}, "logiqa/test.jsonl")
    rows[3]["question"] += "?"
    write_rows(tmp_path / "test.jsonl", rows)  # in its place: a task is loaded once for each content
    (task,) = load("logiqa", "test.jsonl")
    (after,) = _data_rows({"logiqa": task}, "logiqa/other.jsonl")
    assert (before["split"], after["split"]) == ("test", "unknown")
    assert before["num_items"] == after["num_items"] == 5 and before["sha256"] != after["sha256"]


def test_what_is_no_file_of_items_is_one_line_with_its_path(load, tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"context": "cut o')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, file, message in (
        ("logiqa", "absent.jsonl", "no such file; put it there or set OPENSPECTRA_DATA"),
        ("logiqa", "broken.jsonl", "does not hold the task's items"),
        ("logiqa", "broken.parquet", "does not hold the task's items"),
        ("mmlu_continuation", "broken.jsonl", "a group of tasks"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(name, file)
        assert message in str(caught.value) and "\n" not in str(caught.value)
