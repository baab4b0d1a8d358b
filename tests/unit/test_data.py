"""Corpus, tokenizer and token shards on a few small documents."""

import numpy as np
import pytest

from openspectra.artifacts import open_artifact, write_artifact
from openspectra.config import CorpusConfig, TokenizerConfig, TokensConfig
from openspectra.data import corpus as corpus_module
from openspectra.data.corpus import build_corpus, read_documents
from openspectra.data.tokenizer import build_tokenizer, end_of_text_id, load_tokenizer
from openspectra.data.tokens import Tokens, build_tokens
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError

STDLIB = {"documents": {"source": "python_stdlib"}, "valid_fraction": 0.2, "test_fraction": 0.2}


def texts(count: int = 60) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    words = ["def", "return", "x", "value", "import", "(", ")", ":", "\n    ", "=", "self", "naïve", "界"]
    return [(f"file{i}.py", " ".join(rng.choice(words, 80)) + f" {i}") for i in range(count)]


def build(folder, stage, config, parents, function, *inputs):
    with write_artifact(folder, stage, config, parents) as draft:
        draft.metrics |= function(config, *inputs, draft.folder)
    return open_artifact(folder, stage)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "read_source", lambda config: iter(texts()))
    return build(tmp_path / "corpus", "corpus", CorpusConfig(**STDLIB), {}, build_corpus)


@pytest.fixture
def tokenizer(tmp_path, corpus):
    config = TokenizerConfig(vocab_size=280)
    return build(tmp_path / "tokenizer", "tokenizer", config, {"corpus": corpus}, build_tokenizer, corpus)


def test_splits_share_no_document_and_hold_all(corpus):
    ids = [[d.id for d in read_documents(corpus.file(f"{split}.parquet"))] for split in ("train", "valid", "test")]
    assert sum(map(len, ids)) == len(set().union(*ids)) == 60


def test_order_of_reading_changes_nothing(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(corpus_module, "read_source", lambda config: iter(reversed(texts())))
    again = build(tmp_path / "again", "corpus", CorpusConfig(**STDLIB), {}, build_corpus)
    assert again.sha256 == corpus.sha256


def test_every_document_is_accounted_for(tmp_path, monkeypatch):
    dirty = [("a", b"\xff\xfe"), ("b", ""), ("c", "  \n"), ("d", "xy"), ("z", "same text"), ("e", "same text")]
    monkeypatch.setattr(corpus_module, "read_source", lambda config: iter(texts() + dirty))
    config = CorpusConfig(**STDLIB, min_characters=5, max_documents=50)
    made = build(tmp_path / "c", "corpus", config, {}, build_corpus)
    counts = made.manifest.metrics["counts"]
    assert counts == {
        "read": 66,
        "kept": 50,
        "empty": 2,
        "too_short": 1,
        "duplicate": 1,
        "invalid_utf8": 1,
        "over_limit": 11,
    }
    assert counts["read"] == sum(value for key, value in counts.items() if key != "read")


def test_empty_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "read_source", lambda config: iter(texts(1)))
    with pytest.raises(OpenSpectraError, match="is empty"):
        build(tmp_path / "c", "corpus", CorpusConfig(**STDLIB), {}, build_corpus)


def test_stdlib_corpus_has_no_tests_and_no_build_paths():
    sources = {source for source, _ in corpus_module.read_source(CorpusConfig(**STDLIB))}
    assert "argparse.py" in sources
    assert not [s for s in sources if "/test/" in f"/{s}" or "/tests/" in f"/{s}" or "_sysconfigdata" in s]


def test_local_files_are_read_through_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    documents = {"source": "datasets", "path": "json", "data_files": ["a.jsonl"]}
    config = CorpusConfig(**STDLIB | {"documents": documents})
    assert [text for _, text in corpus_module.read_source(config)] == ["one", "two"]
    missing = CorpusConfig(**STDLIB | {"documents": documents | {"data_files": ["b.jsonl"]}})
    with pytest.raises(ConfigError, match="no file matches 'b.jsonl'"):
        list(corpus_module.read_source(missing))


def test_tokens_decode_to_the_documents(tmp_path, corpus, tokenizer):
    config = TokensConfig(split="train", tokens_per_shard=100)
    made = build(tmp_path / "t", "tokens", config, {}, build_tokens, corpus, tokenizer)
    tokens = Tokens(made)
    ids = np.concatenate([np.fromfile(p, dtype="<u2") for p in sorted((tmp_path / "t").glob("*.bin"))])
    assert len(ids) == len(tokens) > 1000
    decoder, end = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    documents = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
    expected = [document.text for document in read_documents(corpus.file("train.parquet"))]
    assert [decoder.decode(part[:-1].tolist()) for part in documents] == expected
    across_shards = tokens.sequences(np.array([0, 1, 5]), 70)
    np.testing.assert_array_equal(across_shards, np.stack([ids[start : start + 71] for start in (0, 70, 350)]))


def test_flipped_bit_in_a_shard_stops_the_reader(tmp_path, corpus, tokenizer):
    made = build(tmp_path / "t", "tokens", TokensConfig(split="train"), {}, build_tokens, corpus, tokenizer)
    shard = tmp_path / "t" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[101] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"00000\.bin"):
        Tokens(made)


def test_vocabulary_of_another_size_is_refused(tmp_path, corpus, tokenizer):
    config = TokenizerConfig(vocab_size=281, file=str(tokenizer.file("tokenizer.json")))
    with pytest.raises(ConfigError, match="the tokenizer has 280 entries, the config says 281"):
        build(tmp_path / "x", "tokenizer", config, {}, build_tokenizer, corpus)
