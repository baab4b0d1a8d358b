"""Tasks built from held-out text: every item's claim is checked against the documents, with the standard library alone."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import yaml

from openspectra.artifacts import Artifact, open_artifact, write_artifact
from openspectra.data import corpus as corpus_module
from openspectra.data.config import CorpusConfig
from openspectra.data.corpus import Document, write_documents
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.evaluation.build_tasks import build_tasks
from openspectra.evaluation.config import TasksConfig

TASKS = ("held_out_text", "cloze", "continuation", "minimal_pairs")
CONFIG = TasksConfig(seed=3, num_documents=5, document_characters=300, num_items=24)
FOLDER = "results/some/tasks"


def module_text(number: int) -> str:
    """Return an invented module; its lines differ from those of any other number, and repeat words."""
    lines = [f'"""Tools for colour{number} and the names of colour{number}."""\n']
    for index in range(8):
        colour = f"colour{number}_{index}"
        lines += [
            f"def mix_{colour}(paint, water={index}):",
            f"    if paint in {colour}_table and water <= {number}:",
            f"        return paint * water + len({colour}_table[paint])",
            f"    for drop in range({number}, {index + 40}):",
            f"        paint = paint.add(drop, limit={{'wet': {colour}_limit}})",
            f"    # a drop of {colour} makes paint of {colour}, whatever the limit",
            f"    return paint.dry({index}) - {colour}_limit\n",
        ]
    return "\n".join(lines)


def make_corpus(folder: Path, texts: list[str]) -> Artifact:
    """Write a corpus whose test split holds `texts`, its train split other ones."""
    config = CorpusConfig.model_validate(
        {"sources": {"stdlib": {"adapter": "python_stdlib"}}, "valid_fraction": 0.1, "test_fraction": 0.1}
    )
    with write_artifact(folder, "corpus", config, {}) as draft:
        write_documents(documents_of(texts), draft.folder / "test.parquet")
        write_documents(documents_of(["train " + text for text in texts]), draft.folder / "train.parquet")
    return open_artifact(folder)


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(hashlib.sha256(text.encode()).hexdigest()[:16], text, f"{i}.py") for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [module_text(number) for number in range(12)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, texts) -> Artifact:
    return make_corpus(tmp_path_factory.mktemp("corpus"), texts)


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    build_tasks(CONFIG, corpus, folder, FOLDER)
    return folder


@pytest.fixture(scope="module")
def text_of(texts) -> dict[str, str]:
    return {document.id: document.text for document in documents_of(texts)}


def items_of(folder: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_build_tasks_writes_requested_number_of_items_with_distinct_ids(built):
    for task in TASKS:
        items = items_of(built, task)
        assert len(items) == (CONFIG.num_documents if task == "held_out_text" else CONFIG.num_items)
        assert len({item["item_id"] for item in items}) == len(items)


def test_a_large_test_split_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """40 MB of text in 2,000 documents, of which 5 are asked for and 100 drawn at a time."""
    monkeypatch.setattr(corpus_module, "DRAWN", 100)
    corpus = make_corpus(tmp_path / "corpus", [f"{number} " * (20_000 // len(f"{number} ")) for number in range(2000)])
    config = CONFIG.model_copy(update={"tasks": ["held_out_text"]})
    tracemalloc.start()
    try:
        build_tasks(config, corpus, tmp_path, FOLDER)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(items_of(tmp_path, "held_out_text")) == 5 and peak < 10e6


def test_documents_drawn_a_few_at_a_time_give_the_same_bytes(corpus, built, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "DRAWN", 5)  # of 12
    build_tasks(CONFIG, corpus, tmp_path, FOLDER)
    assert content_of(tmp_path) == content_of(built)


def test_items_spread_over_all_test_documents(built, text_of):
    for task in TASKS[1:]:
        assert {item["document_id"] for item in items_of(built, task)} == set(text_of)


def test_near_copies_of_a_document_do_not_repeat_a_question(tmp_path):
    copies = make_corpus(
        tmp_path / "corpus", [*(module_text(1) + f"# {n}\n" for n in range(4)), module_text(2), module_text(3)]
    )
    build_tasks(CONFIG, copies, tmp_path, FOLDER)
    for task, choices in (("cloze", None), ("continuation", "endings"), ("minimal_pairs", "texts")):
        items = items_of(tmp_path, task)
        answers = [(item.get("context"), item[choices][item["label"]] if choices else item["target"]) for item in items]
        assert len(set(answers)) == len(answers) == CONFIG.num_items


def test_held_out_text_is_the_beginning_of_different_documents(built, text_of):
    items = items_of(built, "held_out_text")
    assert len({item["document_id"] for item in items}) == len(items)
    assert all(item["text"] == text_of[item["document_id"]][:300] for item in items)


def test_cloze_predicts_a_whole_word_that_stands_in_the_context(built, text_of):
    for item in items_of(built, "cloze"):
        _, after = text_of[item["document_id"]].split(item["context"] + item["target"], 1)
        assert item["target"][0] == " " and not item["context"][-1].isspace()
        assert not (after[0].isalnum() or after[0] == "_")
        assert item["target"][1:] in re.split(r"\W+", item["context"])
        assert 60 <= len(item["context"]) <= 220
        assert 0 < item["chance"] < 1


def test_continuation_truth_follows_and_others_stand_elsewhere(built, text_of):
    labels = set()
    for item in items_of(built, "continuation"):
        truth = item["endings"][item["label"]]
        others = [ending for ending in item["endings"] if ending != truth]
        assert item["context"] + truth in text_of[item["document_id"]]
        assert len(others) == 3
        assert not any(item["context"] + ending in text_of[item["document_id"]] for ending in others)
        for ending in others:
            assert any(ending in text for source, text in text_of.items() if source != item["document_id"])
        labels.add(item["label"])
    assert len(labels) > 1


def test_continuation_endings_do_not_differ_in_indentation_or_length(built):
    for item in items_of(built, "continuation"):
        spaces = {ending[: len(ending) - len(ending.lstrip())] for ending in item["endings"]}
        lengths = [len(ending) for ending in item["endings"]]
        assert len(spaces) == 1
        assert max(lengths) - min(lengths) <= 8


def test_minimal_pairs_differ_in_validity_but_not_in_length(built, text_of):
    kinds, labels = set(), set()
    for item in items_of(built, "minimal_pairs"):
        valid, broken = item["texts"][item["label"]], item["texts"][1 - item["label"]]
        ast.parse(valid)
        with pytest.raises(SyntaxError):
            ast.parse(broken)
        assert len(valid) == len(broken) and len(valid.encode()) <= 110
        assert all(line.strip() in text_of[item["document_id"]] for line in valid.splitlines())
        kinds.add(item["edit"])
        labels.add(item["label"])
    assert len(kinds) >= 4
    assert labels == {0, 1}


def test_build_tasks_twice_gives_equal_bytes(built, corpus, tmp_path):
    build_tasks(CONFIG, corpus, tmp_path, FOLDER)
    assert content_of(tmp_path) == content_of(built)


def test_build_tasks_does_not_depend_on_hash_seed(built, corpus, tmp_path):
    code = (
        "import sys; from pathlib import Path; from openspectra.artifacts import open_artifact\n"
        "from openspectra.evaluation.config import TasksConfig; from openspectra.evaluation.build_tasks import build_tasks\n"
        f"build_tasks(TasksConfig(**{CONFIG.model_dump()}), open_artifact(Path(sys.argv[1])), Path(sys.argv[2]), {FOLDER!r})"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code, corpus.folder, tmp_path], env=environment, check=True)
    assert content_of(tmp_path) == content_of(built)


def test_build_tasks_with_other_seed_draws_other_items(built, corpus, tmp_path):
    build_tasks(CONFIG.model_copy(update={"seed": 4}), corpus, tmp_path, FOLDER)
    for task in TASKS:
        assert items_of(tmp_path, task) != items_of(built, task)


def test_files_name_data_relative_to_the_project_and_no_absolute_path(built, corpus):
    for task in TASKS:
        config = yaml.safe_load((built / f"{task}.yaml").read_text())
        assert config["task"] == task
        assert config["dataset_kwargs"] == {"data_files": {"test": f"{FOLDER}/{task}.jsonl"}}
    for name, content in content_of(built).items():
        assert str(built).encode() not in content, name
        assert str(corpus.folder).encode() not in content, name


def test_task_table_states_chance_and_the_characters_a_model_reads(corpus, tmp_path):
    table = build_tasks(CONFIG, corpus, tmp_path, FOLDER)
    assert table == json.loads((tmp_path / "tasks.json").read_text())
    assert [table[task]["chance"] for task in ("held_out_text", "continuation", "minimal_pairs")] == [None, 0.25, 0.5]
    clozes = items_of(tmp_path, "cloze")
    assert table["cloze"]["chance"] == pytest.approx(sum(item["chance"] for item in clozes) / len(clozes))
    assert table["cloze"]["num_characters"] == sum(len(item["context"] + item["target"]) for item in clozes)
    continuations = items_of(tmp_path, "continuation")
    read = sum(len(item["context"] + ending) for item in continuations for ending in item["endings"])
    assert table["continuation"]["num_characters"] == read


def test_build_tasks_with_too_few_documents_names_key_and_remedy(corpus, tmp_path):
    with pytest.raises(
        ConfigError, match=r"num_documents: task `held_out_text` finds 12 items .* lower `num_documents`"
    ):
        build_tasks(CONFIG.model_copy(update={"num_documents": 13}), corpus, tmp_path, FOLDER)


def test_build_tasks_from_prose_names_every_task_without_items(tmp_path):
    prose = make_corpus(tmp_path / "corpus", [f"Rain fell on the {n} hills, and more rain. " * 30 for n in range(9)])
    with pytest.raises(ConfigError) as caught:
        build_tasks(CONFIG, prose, tmp_path, FOLDER)
    assert "`minimal_pairs` finds 0 items (only Python source" in str(caught.value)
    assert "`cloze`" not in str(caught.value)
    assert not list(tmp_path.glob("*.jsonl"))


def test_blank_documents_are_never_scored(texts, tmp_path):
    blank = make_corpus(tmp_path / "corpus", [*texts, "\n \n", "\t"])
    build_tasks(CONFIG.model_copy(update={"num_documents": 12}), blank, tmp_path, FOLDER)
    assert all(item["text"].strip() for item in items_of(tmp_path, "held_out_text"))


def test_word_perplexity_is_left_out_where_text_has_no_spaces(texts, tmp_path):
    spaceless = make_corpus(tmp_path / "corpus", [*texts, *["字" * 3000 + str(number) for number in range(40)]])
    build_tasks(CONFIG.model_copy(update={"num_documents": 52}), spaceless, tmp_path, FOLDER)
    config = yaml.safe_load((tmp_path / "held_out_text.yaml").read_text())
    assert [entry["metric"] for entry in config["metric_list"]] == ["bits_per_byte", "byte_perplexity"]


def test_build_tasks_refuses_altered_corpus(texts, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", texts)
    path = corpus.folder / "test.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedArtifactError, match="test.parquet"):
        build_tasks(CONFIG, corpus, tmp_path, FOLDER)
