"""The report's data card: the counts of the corpus, source by source."""

import json

import pyarrow
import pyarrow.parquet
from data_study import DataStudy, corpus_of, study_of, texts

from openspectra.artifacts import open_artifact, write_artifact
from openspectra.data.contamination import check_contamination
from openspectra.reporting.data_card import data_cards


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
    documents, train, valid, test, found = data_cards([corpus, tokens, open_artifact(tmp_path / "made/contamination")])
    rows = dict(documents.rows)
    assert documents.columns == ["a", "b"]
    assert rows["Licence"] == ["CC0-1.0", "not stated"]
    assert [rows[key] for key in ("Read", "Kept", "Duplicates", "Skipped: empty")] == [
        ["66", "30"],
        ["60", "30"],
        ["5", "0"],
        ["1", "0"],
    ]
    assert sum(int(dict(table.rows)["Documents"][0]) for table in (train, valid, test)) == 60
    total = sum(int(count.replace(",", "")) for count in dict(train.rows)["Tokens, end of text included"])
    assert total == tokens.manifest.metrics["num_tokens"]
    assert "Tokens, end of text included" not in dict(test.rows)
    assert dict(found.rows)["Items"] == ["1"]
    assert data_cards([]) == []
