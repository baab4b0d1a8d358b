"""The report's data card: the counts of the corpus, source by source."""

import json

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from data_study import DataStudy, corpus_of, study_of, texts

from openspectra.artifacts import open_artifact, write_artifact
from openspectra.data.config import ContaminationConfig
from openspectra.data.contamination import check_contamination
from openspectra.data.corpus import documents_of
from openspectra.data.documents import hash_of
from openspectra.reporting.data_card import data_card


def test_card_shows_sources_splits_tokens_and_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    for name, lines in (("a", texts(60) + texts(5) + [""]), ("b", texts(30, seed=1))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pyarrow.parquet.write_table(pyarrow.table({"text": [texts(1)[0]]}), tmp_path / "bench.parquet")
    sources = {
        "a": {"adapter": "files", "files": ["a.jsonl"], "license": "CC0-1.0", "dirty": {"empty": "skip"}},
        "b": {"adapter": "files", "files": ["b.jsonl"]},
    }
    corpus = corpus_of(sources=sources, benchmarks={"bench": {"files": ["bench.parquet"]}})
    study = DataStudy(study_of(corpus=corpus), tmp_path / "made")
    tokens, corpus = study.tokens("train"), open_artifact(tmp_path / "made/corpus")
    with write_artifact(tmp_path / "made/contamination", "contamination", study.configs["contamination"], {}) as draft:
        draft.metrics |= check_contamination(study.configs["contamination"], corpus, folder=draft.folder)
    card = data_card([corpus, tokens, open_artifact(tmp_path / "made/contamination")])
    views = {title: {row.name: [cell.text for cell in row.cells] for row in view.rows} for title, view in card.views}
    assert [title for title, _ in card.views[0][1].columns] == [
        "Read",
        "Kept",
        "Duplicates",
        "Skipped: empty",
        "Licence",
    ]
    assert views["Documents by source"] == {
        "a": ["66", "60", "5", "1", "CC0-1.0"],
        "b": ["30", "30", "0", "0", "missing"],
    }
    train, valid, test = (views[f"Split {split} by source"] for split in ("train", "valid", "test"))
    assert sum(int(split["a"][0]) for split in (train, valid, test)) == 60
    assert train["all"][0] == str(int(train["a"][0]) + int(train["b"][0]))
    assert int(train["all"][2].replace(",", "")) == tokens.manifest.metrics["num_tokens"]
    assert (len(train["all"]), len(test["all"])) == (5, 3)  # the test split is never tokenized
    assert views["Benchmark items that share 13 words in a row with the train split"]["bench"][0] == "1"
    assert [drawing.name for drawing in card.lengths.drawings] == ["lengths_train", "lengths_valid", "lengths_test"]
    assert "a" in card.lengths.drawings[0].alt and "<svg" in card.lengths.drawings[0].svg
    table = card.table.set_index(["split", "source"])
    assert table.loc[("train", "a"), "license"] == "CC0-1.0" and pd.isna(table.loc[("test", "a"), "tokens"])
    hashes = [
        sum(int(hash_of(d.text.encode()), 16) for d in documents_of(corpus, split) if d.source == source) % 2**128
        for split, source in table.index
    ]
    assert [int(digits, 16) for digits in table["hash"]] == hashes
    assert data_card([]) is None


def test_card_names_the_length_that_was_searched_for(tmp_path):
    config = ContaminationConfig(benchmarks={}, ngram_words=8)
    with write_artifact(tmp_path / "contamination", "contamination", config, {}) as draft:
        draft.metrics["bench"] = {"num_items": 3, "num_too_short": 1, "num_found": 0}
    found = open_artifact(tmp_path / "contamination")
    card = data_card([DataStudy(study_of(), tmp_path / "made").corpus(), found])
    title, view = card.views[-1]
    assert title == "Benchmark items that share 8 words in a row with the train split"
    assert [column for column, _ in view.columns] == ["Items", "Under 8 words", "Found in train"]


def test_card_says_how_many_hits_are_not_listed(tmp_path):
    config = ContaminationConfig(benchmarks={})
    counts = {"num_items": 3, "num_too_short": 1, "num_found": 2}
    with write_artifact(tmp_path / "contamination", "contamination", config, {}) as draft:
        draft.metrics |= {"corpus": counts | {"num_not_listed": 12_345}, "items": counts}
    found = open_artifact(tmp_path / "contamination")
    view = data_card([DataStudy(study_of(), tmp_path / "made").corpus(), found]).views[-1][1]
    assert view.columns[-1] == ("Hits not listed", "documents of an item beyond the first 100")
    assert [row.cells[-1].text for row in view.rows] == ["12,345", "0"]


def test_card_of_a_mixture_shows_wanted_and_kept_shares(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    for name, count in (("a", 300), ("b", 100)):
        lines = texts(count, seed=ord(name))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    sources = {
        name: {"adapter": "files", "files": [f"{name}.jsonl"], "weight": weight}
        for name, weight in (("a", 1), ("b", 3))
    }
    card = data_card([DataStudy(study_of(corpus=corpus_of(sources=sources)), tmp_path / "made").corpus()])
    view = dict(card.views)["Documents by source"]
    assert [title for title, _ in view.columns[-3:]] == ["Weight", "Kept", "Licence"]
    cells = {row.name: [cell.text for cell in row.cells[-3:-1]] for row in view.rows}
    assert (cells["a"][0], cells["b"][0]) == ("25.0", "75.0")
    assert float(cells["b"][1]) == pytest.approx(75, abs=6)
