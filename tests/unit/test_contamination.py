"""Planted benchmark items are found in the train split, all of them and nothing else."""

import csv
import gzip
import hashlib
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import run
from data_study import ROOT, DataStudy, corpus_of, study_of
from hub_server import hub

from openspectra.artifacts import open_artifact
from openspectra.data import contamination
from openspectra.data.contamination import LISTED_DOCUMENTS, check_contamination, ngram_hashes, ngrams_in_turns
from openspectra.data.corpus import documents_of
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.evaluation.config import BUILT_TASKS, GENERATION_TASKS
from openspectra.study import load_study

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def plain_ngrams(text: str, num_words: int) -> set[tuple[str, ...]]:
    """Return the n-grams of an ASCII text as words: the slow and obvious way."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return {tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)}


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def check(tmp_path, num_parts: int = 2, num_processes: int = 1, fields: list[str] | None = None):
    benchmark = {"files": ["bench.parquet"], "fields": fields}
    section = corpus_of(benchmarks={"bench": benchmark}, num_parts=num_parts)
    study = DataStudy(study_of(corpus=section), tmp_path / "made")
    corpus = study.corpus()
    metrics = check_contamination(study.configs["contamination"], corpus, folder=tmp_path, num_processes=num_processes)
    with (tmp_path / "hits.csv").open() as file:
        return corpus, metrics, list(csv.DictReader(file))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_planted_items_are_all_found_and_listed(tmp_path, data_folder, num_processes):
    """20 of 60 items stand in documents, in other case and punctuation; two items share a passage."""
    rng = random.Random(0)
    items = [{"question": sentence(rng, 30), "choices": [sentence(rng, 3), sentence(rng, 20)]} for _ in range(58)]
    items += [{"question": sentence(rng, 8), "choices": []}, dict(items[4], choices=[])]
    documents = [sentence(rng, 200) for _ in range(100)]
    for number in range(20):
        planted = items[number]["question"].split()[5:25]
        documents[number] += ". " + ", ".join(planted).upper() + " - " + sentence(rng, 50)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), data_folder / "bench.parquet")
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus, metrics, hits = check(tmp_path, num_processes=num_processes)
    expected = {
        (number, document.id)
        for document in documents_of(corpus, "train")
        for number, item in enumerate(items)
        if any(
            plain_ngrams(text, 13) & plain_ngrams(document.text, 13) for text in [item["question"], *item["choices"]]
        )
    }
    assert {(int(hit["item"].split(":")[1]) - 1, hit["document_id"]) for hit in hits} == expected
    assert len(expected) > 8 and {59, 4} <= {number for number, _ in expected}
    found = {number for number, _ in expected}
    assert metrics == {"bench": {"num_items": 60, "num_too_short": 1, "num_found": len(found)}}
    for hit in hits:
        assert int(hit["num_ngrams"]) >= 20 - 12  # chance may lengthen a passage by a word
        assert len(plain_ngrams(hit["first_ngram"], 13)) == 1


@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_stands_in_many_documents_is_counted_and_listed_a_hundred_times(tmp_path, data_folder, num_processes):
    """A licence at the end of 3 items and of 300 documents, twice in each: more hits of each item than are listed."""
    rng = random.Random(2)
    licence = sentence(rng, 20)
    items = [{"text": f"{sentence(rng, 5)}. {licence}"} for _ in range(3)] + [{"text": sentence(rng, 20)}]
    documents = [f"{sentence(rng, 20)}. {licence}. {licence}" for _ in range(300)]
    documents[0] += f". {items[3]['text']}"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), data_folder / "bench.parquet")
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus, metrics, hits = check(tmp_path, num_parts=3, num_processes=num_processes)
    train = list(documents_of(corpus, "train"))
    single = any(document.text == documents[0] for document in train)
    beyond = 3 * (len(train) - LISTED_DOCUMENTS)
    assert beyond > 100
    assert metrics == {"bench": {"num_items": 4, "num_too_short": 0, "num_found": 3 + single, "num_not_listed": beyond}}
    first = sorted(document.id for document in train)[:LISTED_DOCUMENTS]
    listed = [(hit["item"], hit["document_id"]) for hit in hits if hit["item"] != "bench.parquet:4"]
    assert listed == [(f"bench.parquet:{row}", document) for row in (1, 2, 3) for document in first]
    assert len(hits) == len(listed) + single
    assert (
        min(int(hit["num_ngrams"]) for hit in hits if hit["item"] != "bench.parquet:4") == 2 * 8
    )  # of 20 words, twice
    assert {hit["first_ngram"] for hit in hits} >= {" ".join(licence.split()[:13])}


def test_ngram_hashes_are_equal_for_equal_words_and_no_others():
    rng = random.Random(1)
    text = sentence(rng, 400)
    hashes, starts, ends = ngram_hashes(text.encode(), 13)
    grams = [" ".join(text.split()[i : i + 13]) for i in range(388)]
    assert [text[s:e] for s, e in zip(starts, ends, strict=True)] == grams
    assert len(set(hashes.tolist())) == len(set(grams))
    again = ngram_hashes(f"((( {text.title().replace(' ', ' ... ')}!".encode(), 13)[0]
    assert (again == hashes).all()
    swapped = " ".join(reversed(text.split()[:13]))
    assert ngram_hashes(swapped.encode(), 13)[0][0] not in hashes
    assert len(ngram_hashes(b"too few words", 13)[0]) == len(ngram_hashes(b"", 13)[0]) == 0
    assert ngram_hashes(b"ab c", 2)[0] != ngram_hashes(b"a bc", 2)[0]


def test_punctuation_outside_ascii_separates_words_and_letters_do_not():
    plain = ngram_hashes(b"he said we go to the caf now or later ok", 4)[0]
    curly = "\u201che said\u2014we\u00a0go to \u00abthe caf\u00bb\u2026 now or later\u3000ok\u201d"
    assert (ngram_hashes(curly.encode(), 4)[0] == plain).all()
    assert len(ngram_hashes("déjà vu à Zürich 東京".encode(), 5)[0]) == 1
    assert ngram_hashes("café x".encode(), 2)[0] != ngram_hashes(b"caf x", 2)[0]


def test_unknown_field_of_a_benchmark_is_named(tmp_path, data_folder):
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"]}), data_folder / "bench.parquet")
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50)))
    with pytest.raises(ConfigError, match=r"corpus\.benchmarks\.bench\.fields: .*\['question'\]; got \['query'\]"):
        check(tmp_path, fields=["query"])


@pytest.mark.parametrize(
    "name",
    ["bench.jsonl", "bench.jsonl.gz", "bench.jsonl.zst", "bench.json", "bench.json.gz", "bench.csv", "bench.tsv"],
)
def test_benchmark_files_of_every_kind_are_read_and_recorded(tmp_path, data_folder, name):
    items = [sentence(random.Random(number), 20) for number in range(3)]
    lines = "".join(json.dumps({"question": item}) + "\n" for item in items) + "\n"
    content = b"\xef\xbb\xbf" + (lines if "json" in name else "question\n" + "\n".join(items) + "\n").encode()
    packed = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}
    content = packed["." + name.rpartition(".")[2]](content) if name.endswith((".gz", ".zst")) else content
    (data_folder / "sub").mkdir()
    (data_folder / "sub" / name).write_bytes(content)
    documents = [*items, *(sentence(random.Random(100 + number), 30) for number in range(40))]
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    files = ["sub/*", f"sub/{name}"]  # one file, by two patterns
    study = DataStudy(study_of(corpus=corpus_of(benchmarks={"bench": {"files": files}})), tmp_path / "made")
    corpus = study.corpus()
    metrics = check_contamination(study.configs["contamination"], corpus, folder=tmp_path)
    in_train = {document.text for document in documents_of(corpus, "train")}
    assert metrics["bench"] == {"num_items": 3, "num_too_short": 0, "num_found": sum(i in in_train for i in items)}
    with (tmp_path / "inputs.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {
                "file": f"sub/{name}",
                "bytes": str(len(content)),
                "sha256": hashlib.sha256(content).hexdigest(),
                "items": "3",
            }
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bench.jsonl", b'{"question": "a"}\n{"question"'),
        ("bench.jsonl", b'{"question": "caf\xe9"}\n'),
        ("bench.jsonl", b'["a"]\n'),
        ("bench.jsonl", b"[" * 200_000),
        ("bench.jsonl.gz", b"<html>404 Not Found</html>"),
        ("bench.parquet", b"<html>404 Not Found</html>"),
        ("bench.csv", b"question\ncaf\xe9\n"),
    ],
)
def test_damaged_benchmark_file_is_one_line_with_its_name(tmp_path, data_folder, name, content):
    (data_folder / "sub").mkdir()
    (data_folder / "sub" / name).write_bytes(content)
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50)))
    study = DataStudy(study_of(corpus=corpus_of(benchmarks={"bench": {"files": ["sub/*"]}})), tmp_path / "made")
    with pytest.raises(OpenSpectraError, match=rf"{name}: .*mend it\.$") as caught:
        check_contamination(study.configs["contamination"], study.corpus(), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_benchmark_files_without_fields_and_folders_are_refused(tmp_path, data_folder):
    (data_folder / "sub/more").mkdir(parents=True)
    (data_folder / "sub/more/bench.txt").write_text("x")
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(50)))
    for pattern, message in (
        ("sub/more/*", r"bench\.txt: no ending of a table; give \.txt"),
        ("sub/*", r"write 'sub/more/\*\*'"),
    ):
        study = DataStudy(study_of(corpus=corpus_of(benchmarks={"bench": {"files": [pattern]}})), tmp_path / "made")
        with pytest.raises(ConfigError, match=rf"^corpus\.benchmarks\.bench\.files: .*{message}"):
            check_contamination(study.configs["contamination"], study.corpus(), folder=tmp_path)


@pytest.mark.slow
def test_items_of_lm_eval_are_fetched_once_and_looked_for(tmp_path, data_folder):
    """The first time with a hub, which fills the cache; the second time without one."""
    rng = random.Random(0)
    questions = [sentence(rng, 20) for _ in range(40)]
    rows = [
        {"id": str(n), "question": text, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
        for n, text in enumerate(questions)
    ]
    files = tmp_path / "hub/allenai/ai2_arc" / ("a" * 40)
    for split in ("train", "validation", "test"):
        (files / "ARC-Easy").mkdir(parents=True, exist_ok=True)
        kept = rows if split == "test" else rows[:1]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kept), files / f"ARC-Easy/{split}-00000-of-00001.parquet")
    splits = "".join(f"  - {{split: {s}, path: ARC-Easy/{s}-*}}\n" for s in ("train", "validation", "test"))
    (files / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{splits}---\n")
    documents = [f"{sentence(rng, 30)}. {questions[n]}. {sentence(rng, 30)}" for n in range(30)]
    (data_folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    evaluation = {"suites": {"commonsense": {"tasks": ["arc_easy"], "batch_size": 1, "dtype": "float32"}}}
    study = DataStudy(study_of(corpus=corpus_of(), evaluation=evaluation), tmp_path / "made")
    corpus = study.corpus()
    for name in ("benchmarks", "contamination"):
        (tmp_path / f"{name}.json").write_text(study.configs[name].model_dump_json())
    command = ["openspectra", "benchmarks", "--config", "benchmarks.json", "--out"]
    home = {"HF_HOME": str(tmp_path / "home")}
    absent = run(*command, "absent", cwd=tmp_path, **home)
    assert absent.returncode == 1
    assert "arc_easy: its data are not in the cache of `datasets`" in absent.stdout.splitlines()[-1]
    with hub(tmp_path / "hub") as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        assert run(*command, "online", cwd=tmp_path, **home, **online).returncode == 0
        script = tmp_path / "hub/EleutherAI/logiqa" / ("a" * 40) / "logiqa.py"
        script.parent.mkdir(parents=True)
        script.touch()
        (tmp_path / "script.json").write_text('{"tasks": ["logiqa", "arc_easy"]}')
        partial = run(*command[:-2], "script.json", "--out", "script", cwd=tmp_path, **home, **online)
    assert partial.returncode == 0
    metrics = open_artifact(tmp_path / "script", "benchmarks").manifest.metrics
    assert metrics["num_items"] == {"arc_easy": 40} and list(metrics["missing"]) == ["logiqa"]
    problem = metrics["missing"]["logiqa"]
    assert problem in partial.stdout
    assert (
        "logiqa: Dataset scripts are no longer supported" in problem and "leave this task out of the study" in problem
    )
    assert run(*command, "offline", cwd=tmp_path, **home).returncode == 0
    online, offline = (open_artifact(tmp_path / name, "benchmarks") for name in ("online", "offline"))
    assert online.sha256 == offline.sha256 and online.manifest.metrics == {"num_items": {"arc_easy": 40}}
    command = ["openspectra", "contamination", "--config", "contamination.json", "--corpus", "made/corpus"]
    finished = run(*command, "--benchmarks", "online", "--out", "found", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout
    found = open_artifact(tmp_path / "found")
    train = {document.text for document in documents_of(corpus, "train")}
    planted = {f"arc_easy:{n + 1}" for n in range(30) if documents[n] in train}
    with found.file("hits.csv").open() as file:
        assert {row["item"] for row in csv.DictReader(file)} == planted
    assert found.manifest.metrics == {"arc_easy": {"num_items": 40, "num_too_short": 0, "num_found": len(planted)}}


def test_a_study_looks_for_all_its_benchmarks(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("ladder", "ladder-hub", "paper-text", "paper-fineweb"):
        study = load_study(ROOT / f"studies/{name}.yaml")
        named = {task for suite in study.evaluation.suites.values() for task in suite.tasks}
        assert named - set(BUILT_TASKS) == set(study.data_configs["benchmarks"].tasks), name
    ladder = load_study(ROOT / "studies/ladder.yaml")
    assert set(ladder.lm_eval_tasks) <= set(ladder.corpus.benchmarks)  # all of them given as files


def test_built_benchmarks_are_looked_for_too(tiny):
    metrics = open_artifact(tiny / "results/tiny/contamination").manifest.metrics
    assert set(metrics) == set(BUILT_TASKS) - set(GENERATION_TASKS)
    assert {name: entry["num_items"] for name, entry in metrics.items()} == {
        "held_out_text": 5,
        "cloze": 12,
        "continuation": 12,
        "minimal_pairs": 12,
    }


@pytest.mark.parametrize("turn_bytes", [1, 7, 40, 10_000])
def test_turns_give_every_ngram_of_a_long_document_once(turn_bytes, monkeypatch):
    rng = np.random.default_rng(0)
    words = ["we", "go,", "to..", "naïve\n", "界", "界。", "(the)", "caf\u00e9\u2014now", "x" * 30, "\u3000"]
    text = " ".join(rng.choice(words, 300)).encode() + "界、".encode() * 100
    whole = ngram_hashes(text, 5)
    monkeypatch.setattr(contamination, "SEARCHED_BYTES", turn_bytes)
    turns = list(ngrams_in_turns(text, 5))
    for found, expected in zip(zip(*turns, strict=True), whole, strict=True):
        assert np.array_equal(np.concatenate(found), expected)
    assert (len(turns) > 20) == (turn_bytes <= 40)
