"""The corpus: nothing lost, nothing twice, the same bytes however it is read."""

import hashlib
import json
import random

import pytest
from data_study import DataStudy, corpus_of, study_of, texts

from openspectra.data import corpus as corpus_module
from openspectra.data import documents as documents_module
from openspectra.data.card import card_of
from openspectra.data.corpus import documents_of
from openspectra.data.documents import iterate
from openspectra.errors import OpenSpectraError

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OPENSPECTRA_DATA", str(folder))
    return folder


def write_lines(path, lines: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def made(tmp_path, name: str = "made", **keys):
    return DataStudy(study_of(corpus=corpus_of(**keys)), tmp_path / name).corpus()


def content(corpus) -> dict[str, list[tuple[str, str]]]:
    return {split: [(d.id, d.text) for d in documents_of(corpus, split)] for split in SPLITS}


def test_splits_share_no_document_and_hold_all(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(60))
    found = content(made(tmp_path))
    assert sorted(text for split in SPLITS for _, text in found[split]) == sorted(texts(60))
    assert len({id for split in SPLITS for id, _ in found[split]}) == 60


def test_split_and_order_follow_from_the_hash_of_the_text(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(200))
    corpus = made(tmp_path)
    for split, low, high in (("test", 0, 0.2), ("valid", 0.2, 0.4), ("train", 0.4, 1)):
        documents = list(documents_of(corpus, split))
        assert [d.id for d in documents] == sorted(d.id for d in documents)
        for document in documents:
            digest = hashlib.sha256(document.text.encode()).hexdigest()
            assert document.id == digest[:16]
            assert low <= int(digest[8:16], 16) / 2**32 < high


def test_order_of_files_and_rows_changes_no_document(tmp_path, data_folder):
    lines = texts(60)
    write_lines(data_folder / "a.jsonl", lines[:40])
    write_lines(data_folder / "b.jsonl", lines[40:])
    first = content(made(tmp_path, "first"))
    for path in data_folder.iterdir():
        path.unlink()
    random.Random(1).shuffle(lines)
    write_lines(data_folder / "c.jsonl", lines[:7])
    write_lines(data_folder / "a.jsonl", lines[7:])
    assert content(made(tmp_path, "second")) == first


@pytest.mark.parametrize(("num_jobs", "num_parts"), [(3, 1), (1, 5), (2, 4)])
def test_jobs_and_parts_change_no_document(tmp_path, data_folder, num_jobs, num_parts):
    lines = texts(90)
    for number in range(3):
        write_lines(data_folder / f"{number}.jsonl", lines[30 * number :][:30] + lines[:5])
    one = made(tmp_path, "one")
    source = {"adapter": "files", "files": ["*.jsonl"], "num_jobs": num_jobs}
    many = made(tmp_path, "many", sources={"files": source}, num_parts=num_parts)
    assert content(many) == content(one)
    assert many.file("test.parquet").read_bytes() == one.file("test.parquet").read_bytes()
    assert many.manifest.metrics["counts"] == one.manifest.metrics["counts"]
    assert many.manifest.metrics["counts"]["duplicates"] == 15
    assert card_of(many) == card_of(one)


def test_slices_and_row_groups_change_no_document(tmp_path, data_folder, monkeypatch):
    write_lines(data_folder / "a.jsonl", texts(90) + texts(20))
    whole = made(tmp_path, "whole")
    monkeypatch.setattr(corpus_module, "SLICE_BYTES", 3000)
    monkeypatch.setattr(documents_module, "BUFFER_BYTES", 1000)
    sliced = made(tmp_path, "sliced")
    assert content(sliced) == content(whole)
    assert sliced.manifest.metrics == whole.manifest.metrics


def test_part_too_large_names_the_number_of_parts_to_give(tmp_path, data_folder, monkeypatch):
    write_lines(data_folder / "a.jsonl", texts(90))
    monkeypatch.setattr(corpus_module, "SLICE_BYTES", 1000)
    monkeypatch.setattr(corpus_module, "MAX_SLICES", 10)
    with pytest.raises(OpenSpectraError, match=r"corpus\.num_parts: part 0 has .* raise 1 to [67] or more"):
        made(tmp_path)


def test_planted_duplicates_are_removed_across_files_sources_and_given_splits(tmp_path, data_folder):
    """50 exact copies go, from train first; 50 with other white space stay: they are other documents."""
    own, copies = texts(200), texts(50, seed=1)
    write_lines(data_folder / "web.jsonl", own + copies)
    write_lines(data_folder / "held.jsonl", copies[:25])
    write_lines(data_folder / "spaced.jsonl", copies[25:] + [text.replace(" ", "  ", 1) for text in copies])
    sources = {
        "web": {"adapter": "files", "files": {"train": ["web.jsonl"]}},
        "held": {"adapter": "files", "files": {"test": ["held.jsonl"]}},
        "spaced": {"adapter": "files", "files": {"valid": ["spaced.jsonl"]}},
    }
    corpus = made(tmp_path, sources=sources)
    found = {split: [text for _, text in documents] for split, documents in content(corpus).items()}
    assert sorted(found["train"]) == sorted(own)
    assert sorted(found["test"]) == sorted(copies[:25])
    assert len(found["valid"]) == 75
    assert corpus.manifest.metrics["counts"] == {"read": 350, "kept": 300, "duplicates": 50, "skipped": {}}
    card = card_of(corpus)
    assert card["web"]["counts"]["duplicates"] == 50
    assert card["spaced"]["splits"]["valid"]["documents"] == 75


def test_counts_balance_with_sampling(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(300) + texts(30))
    counts = made(tmp_path, sample_fraction=0.5, min_characters=100).manifest.metrics["counts"]
    assert counts["read"] == counts["kept"] + counts["duplicates"] + sum(counts["skipped"].values()) == 330
    assert 100 < counts["skipped"]["not_sampled"] < 200


def test_sample_is_part_of_a_larger_sample(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(300))
    small, large = (content(made(tmp_path, str(f), sample_fraction=f)) for f in (0.3, 0.6))
    for split in SPLITS:
        assert set(small[split]) < set(large[split])


def test_mixture_has_the_bytes_of_its_weights(tmp_path, data_folder):
    write_lines(data_folder / "big.jsonl", texts(3000, seed=1))
    write_lines(data_folder / "small.jsonl", texts(1000, seed=2))
    sources = {
        name: {"adapter": "files", "files": [f"{name}.jsonl"], "weight": weight}
        for name, weight in (("big", 1), ("small", 1.5))
    }
    corpus = made(tmp_path, sources=sources)
    card = card_of(corpus)
    size = {name: sum(split["bytes"] for split in entry["splits"].values()) for name, entry in card.items()}
    assert card["small"]["counts"]["kept"] == 1000  # runs out first, and is taken whole
    assert size["small"] / size["big"] == pytest.approx(1.5, rel=0.08)


def test_copies_are_kept_where_the_sample_of_any_source_holds_them(tmp_path, data_folder):
    """Of two sources with the same text the one that is taken whole supplies what the other's sample lacks."""
    write_lines(data_folder / "a.jsonl", texts(400))
    sources = {
        name: {"adapter": "files", "files": ["a.jsonl"], "weight": weight}
        for name, weight in (("a_few", 1), ("the_rest", 9))
    }
    corpus = made(tmp_path, sources=sources)
    counts = {name: entry["counts"] for name, entry in card_of(corpus).items()}
    assert corpus.manifest.metrics["counts"]["kept"] == 400
    assert counts["a_few"]["kept"] == counts["the_rest"]["duplicates"] > 20
    assert counts["a_few"]["skipped"] == {"not_sampled": 400 - counts["a_few"]["kept"]}


@pytest.mark.parametrize("change", ["added", "removed", "longer"])
def test_jobs_that_saw_other_files_are_refused(tmp_path, data_folder, change):
    """Each job takes its share of a list of files: of two lists some would be read twice, some never."""
    for name in "abcdef":
        write_lines(data_folder / f"{name}.jsonl", texts(20, seed=ord(name)))
    source = {"adapter": "files", "files": ["*.jsonl"], "num_jobs": 2}
    study = DataStudy(study_of(corpus=corpus_of(sources={"files": source})), tmp_path / "made")
    first = study.read_job("files", 0)
    if change == "removed":
        (data_folder / "b.jsonl").unlink()
    else:
        write_lines(data_folder / ("g.jsonl" if change == "added" else "b.jsonl"), texts(21, seed=9))
    with pytest.raises(
        OpenSpectraError,
        match=r"corpus\.sources\.files: files came, went or .* delete the folders of its jobs, .*/0 to .*/1, and",
    ):
        study.list_sources(first, study.read_job("files", 1))
    again = [study.read_job("files", job) for job in range(2)]
    assert (
        study.list_sources(*again).manifest.metrics["files"]["read"]
        == {"added": 141, "removed": 100, "longer": 121}[change]
    )
    with pytest.raises(OpenSpectraError, match=r"corpus\.sources\.files: only 1 of its jobs are given"):
        study.list_sources(again[0])


def test_source_without_a_document_is_refused(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(50))
    write_lines(data_folder / "b.jsonl", [" ", ""])
    sources = {
        "a": {"adapter": "files", "files": ["a.jsonl"]},
        "b": {"adapter": "files", "files": ["b.jsonl"], "dirty": {"empty": "skip"}},
    }
    with pytest.raises(OpenSpectraError, match=r"corpus\.sources\.b: no document in 2 rows read \(2 empty\); correct"):
        made(tmp_path, sources=sources)
    sources["b"] = {"adapter": "files", "files": ["a.jsonl"], "where": {"kind": "none"}}
    with pytest.raises(
        OpenSpectraError, match=r"corpus\.sources\.b: no document in 0 rows read \(none left out\); correct"
    ):
        made(tmp_path, sources=sources)


def test_empty_split_is_refused(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(1))
    with pytest.raises(OpenSpectraError, match="is empty"):
        made(tmp_path)


def test_card_says_what_the_documents_are(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(50))
    source = {"adapter": "files", "files": ["a.jsonl"], "license": "CC0-1.0"}
    corpus = made(tmp_path, sources={"files": source})
    card = card_of(corpus)["files"]
    assert card["license"] == "CC0-1.0"
    documents = list(iterate(corpus.file("test.parquet")))
    test = card["splits"]["test"]
    assert (test["documents"], test["bytes"]) == (len(documents), sum(len(d.text.encode()) for d in documents))
    assert sum(test["length_log2_bytes"].values()) == len(documents)
    assert corpus.manifest.metrics["documents"]["test"] == len(documents)


def test_part_made_anew_is_refused(tmp_path, data_folder):
    write_lines(data_folder / "a.jsonl", texts(60))
    corpus = made(tmp_path)
    write_lines(data_folder / "a.jsonl", texts(61))
    made(tmp_path, "other")
    manifest = tmp_path / "other/corpus/parts/0/manifest.json"
    (tmp_path / "made/corpus/parts/0/manifest.json").write_bytes(manifest.read_bytes())
    with pytest.raises(OpenSpectraError, match=r"parts/0/manifest\.json: not the one"):
        list(documents_of(corpus, "train"))
