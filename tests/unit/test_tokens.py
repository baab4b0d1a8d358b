"""Token shards: what the tokenizer gives, traced back to documents, and no damaged byte ever read."""

import csv
import hashlib
import json
import os
import resource
import shutil

import numpy as np
import pytest
from data_study import ROOT, DataStudy, corpus_of, study_of, texts

from openspectra.artifacts import open_artifact, write_artifact, write_json
from openspectra.data import encoding as encoding_module
from openspectra.data import shards as shards_module
from openspectra.data import token_files as token_files_module
from openspectra.data import tokenizer as tokenizer_module
from openspectra.data import tokenizing as tokenizing_module
from openspectra.data.config import TokenizerConfig, TokensConfig
from openspectra.data.corpus import documents_of
from openspectra.data.shards import SHARDS, ShardWriter, dtype_for, in_split
from openspectra.data.tokenizer import build_tokenizer, end_of_text_id, load_tokenizer
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.evaluation.build_tasks import build_tasks_from_tokens
from openspectra.evaluation.config import TasksConfig
from openspectra.quantization.calibration import draw_calibration
from openspectra.quantization.config import QuantizeConfig
from openspectra.reporting.data_card import data_card

LENGTH = 70
BLOCK_BYTES = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The data stages of a study of 200 documents in 3 parts, with several shards each, and several blocks each."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "BLOCK_BYTES", BLOCK_BYTES)
        patch.setenv("OPENSPECTRA_DATA", str(folder / "data"))
        return make(folder)


def make(folder, num_parts: int = 3, tokens_per_shard: int = 1000) -> DataStudy:
    (folder / "data").mkdir(exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in texts(200)]
    (folder / "data/a.jsonl").write_text("".join(lines))
    study = DataStudy(study_of(corpus=corpus_of(num_parts=num_parts)), folder / "results")
    update = {"tokens_per_shard": tokens_per_shard}
    study.configs["tokens/parts"] = study.configs["tokens/parts"].model_copy(update=update)
    study.tokens("valid")
    study.tokens("train")
    return study


def tokens_of(study: DataStudy, split: str = "train") -> Tokens:
    return Tokens(open_artifact(study.folder / f"tokens/{split}"))


def all_ids(tokens: Tokens) -> np.ndarray:
    count = tokens.num_sequences(LENGTH)
    return tokens.sequences(np.arange(count), LENGTH)[:, :-1].ravel()


def test_tokens_decode_to_the_documents_in_order(made):
    tokenizer, corpus = (open_artifact(made.folder / name) for name in ("tokenizer", "corpus"))
    decoder, end = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    ids = all_ids(tokens_of(made))
    documents = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
    expected = [document.text for document in documents_of(corpus, "train")]
    assert len(documents) > 100
    assert [decoder.decode(part[:-1].tolist()) for part in documents] == expected[: len(documents)]
    metrics = open_artifact(made.folder / "tokens/train").manifest.metrics
    assert metrics["num_documents"] == len(expected)
    assert metrics["num_tokens"] == sum(len(decoder.encode(text).ids) + 1 for text in expected)
    assert metrics["sources"]["files"]["bytes"] == sum(len(text.encode()) for text in expected)


def test_shards_and_parts_change_no_token(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    other = make(tmp_path, num_parts=1, tokens_per_shard=10**9)
    assert np.array_equal(all_ids(tokens_of(other)), all_ids(tokens_of(made)))
    assert len(list(made.folder.rglob("train-*.bin"))) > 10 * len(list(other.folder.rglob("train-*.bin")))


def test_batches_change_no_token(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(encoding_module, "BATCH_BYTES", 700)
    monkeypatch.setattr(encoding_module, "BYTES_IN_FLIGHT", 1400)
    again = make(tmp_path)
    hashes = [open_artifact(study.folder / "tokens/train").sha256 for study in (again, made)]
    assert hashes[0] == hashes[1]


def test_every_token_is_traced_to_its_document(made):
    """Encoding the traced documents anew gives every sample, token by token."""
    tokenizer = open_artifact(made.folder / "tokenizer")
    encoder, end = load_tokenizer(tokenizer), end_of_text_id(tokenizer)
    corpus = {
        d.id: [*encoder.encode(d.text).ids, end] for d in documents_of(open_artifact(made.folder / "corpus"), "train")
    }
    tokens = tokens_of(made)
    indices = np.random.default_rng(0).permutation(tokens.num_sequences(LENGTH))
    for sample, spans in zip(tokens.sequences(indices, LENGTH), tokens.trace(indices, LENGTH), strict=True):
        traced = [corpus[s.document_id][s.first_token : s.first_token + s.num_tokens] for s in spans]
        assert sum(traced, []) == sample.tolist()
        assert {span.source for span in spans} == {"files"}
        assert len({span.document_id for span in spans}) == len(spans)


def test_300_flipped_bits_are_found_before_the_tokens_are_used(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    shards = sorted((folder / "tokens/parts").rglob("train-*.bin"))
    rng = np.random.default_rng(0)
    for _ in range(300):
        shard = shards[rng.integers(len(shards))]
        content = shard.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        shard.write_bytes(damaged)
        tokens = Tokens(open_artifact(folder / "tokens/train"))
        with pytest.raises(
            DamagedArtifactError, match=f"{shard.parent.name}/{shard.name}: the sha256 of its block at byte"
        ):
            all_ids(tokens)
        shard.write_bytes(content)
    all_ids(Tokens(open_artifact(folder / "tokens/train")))


def test_50_truncations_are_found_before_anything_is_read(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    shards = sorted((folder / "tokens/parts").rglob("train-*.bin"))
    rng = np.random.default_rng(1)
    for number in range(50):
        shard = shards[rng.integers(len(shards))]
        content = shard.read_bytes()
        shard.write_bytes(content[: -[1, 2, 100, len(content)][number % 4]])
        with pytest.raises(DamagedArtifactError, match=f"{shard.name}: .* bytes where"):
            Tokens(open_artifact(folder / "tokens/train"))
        shard.write_bytes(content)


def test_swapped_and_missing_shards_are_found(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    part = folder / "tokens/parts/1"
    first, second, third = (part / f"train-0000{number}.bin" for number in range(3))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=r"parts/1/train-00000\.bin: the sha256 of its block"):
        all_ids(Tokens(open_artifact(folder / "tokens/train")))
    third.unlink()
    with pytest.raises(DamagedArtifactError, match=r"parts/1/train-00002\.bin: missing"):
        Tokens(open_artifact(folder / "tokens/train"))


def test_index_of_another_build_is_found(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    shutil.copy(folder / "tokens/parts/0/train-00001.parquet", folder / "tokens/parts/0/train-00000.parquet")
    with pytest.raises(DamagedArtifactError, match=r"train-00000\.parquet: missing or altered"):
        Tokens(open_artifact(folder / "tokens/train")).trace([0], LENGTH)


def test_a_block_is_checked_when_it_is_used_and_once(made, tmp_path, monkeypatch):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    shard = folder / "tokens/parts/0/train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[5 * BLOCK_BYTES] ^= 1
    shard.write_bytes(content)
    checked = []
    original = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *data: [checked.append(len(d)) for d in data] and original(*data))
    tokens = Tokens(open_artifact(folder / "tokens/train"))
    checked.clear()
    for _ in range(3):
        tokens.sequences([0, 1], LENGTH)  # 141 tokens of two bytes: one block of 150
    assert [2 * count for count in checked] == [BLOCK_BYTES]
    with pytest.raises(DamagedArtifactError, match=r"train-00000\.bin: the sha256 of its block at byte 1,500 differs"):
        tokens.sequences([5 * BLOCK_BYTES // 2 // LENGTH], LENGTH)


def test_hundreds_of_shards_need_a_handful_of_open_files(made, tmp_path, monkeypatch):
    """The paper's 300B tokens lie in 4,500 shards, and every step reads from hundreds of them."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    study = make(tmp_path, tokens_per_shard=40)
    assert len(json.loads((study.folder / "tokens/train" / SHARDS).read_text())) > 500
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, limits[1]))
    try:
        ids = all_ids(tokens_of(study))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert np.array_equal(ids, all_ids(tokens_of(made)))


def test_altered_hashes_are_found(made, tmp_path):
    folder = shutil.copytree(made.folder, tmp_path / "results")
    path = folder / "tokens/parts/0/train-00000.sha256"
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(
        DamagedArtifactError, match=r"parts/0/train-00000\.sha256: missing or altered; delete .*manifest"
    ):
        all_ids(Tokens(open_artifact(folder / "tokens/train")))


def test_blocks_have_the_hashes_of_their_bytes(monkeypatch):
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", 10)
    for size in (0, 1, 9, 10, 11, 20, 37):
        content, hasher = bytes(range(size)), shards_module.BlockHasher()
        for first in range(0, size, 7):
            hasher.update(content[first : first + 7])
        expected = [hashlib.sha256(content[first : first + 10]).digest() for first in range(0, size, 10)]
        assert hasher.digests() == b"".join(expected)


@pytest.mark.parametrize("vocab_size", [60_000, 100_000])
@pytest.mark.parametrize("tokens_per_shard", [1, 7, 64, 10_000])
def test_tokens_of_either_width_are_read_as_written(tmp_path, monkeypatch, vocab_size, tokens_per_shard):
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", 64)
    rng, dtype = np.random.default_rng(tokens_per_shard), dtype_for(vocab_size)
    with write_artifact(tmp_path / "part", "token_part", TokensConfig(split="train"), {}) as draft:
        writer = ShardWriter(draft.folder, "train", dtype, tokens_per_shard)
        documents = [rng.integers(vocab_size, size=int(size)).tolist() for size in rng.integers(1, 90, 12)]
        for number, ids in enumerate(documents):
            writer.add(ids, str(number), "files")
        shards = writer.close()
    part = open_artifact(tmp_path / "part")
    with write_artifact(tmp_path / "tokens", "tokens", TokensConfig(split="train"), {"part": part}) as draft:
        listed = [in_split(shard, part, "part", 0) for shard in shards]
        write_json(draft.folder / SHARDS, listed)
        draft.metrics["dtype"] = dtype.str
    tokens, expected = Tokens(open_artifact(tmp_path / "tokens")), sum(documents, [])
    assert len(tokens) == len(expected)
    indices = rng.permutation(tokens.num_sequences(9))
    for index, sample in zip(indices.tolist(), tokens.sequences(indices, 9).tolist(), strict=True):
        assert sample == expected[9 * index :][:10]
    shard = rng.choice(sorted((tmp_path / "part").glob("*.bin")))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 128
    shard.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=rf"{shard.name}: the sha256 of its block"):
        tokens = Tokens(open_artifact(tmp_path / "tokens"))
        tokens.sequences(np.arange(len(tokens) - 1), 1)


def test_ids_are_never_cast(tmp_path):
    assert (dtype_for(65_536).str, dtype_for(65_537).str) == ("<u2", "<u4")
    with pytest.raises(OverflowError):
        ShardWriter(tmp_path, "train", dtype_for(65_536), 100).add([1, 65_536], "id", "source")


def test_part_of_another_tokenizer_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(made.folder.parent / "data"))
    folder = shutil.copytree(made.folder, tmp_path / "results")
    study = DataStudy(study_of(corpus=corpus_of(num_parts=3), tokenizer={"vocab_size": 290}), folder)
    tokenizer = study.tokenizer(open_artifact(folder / "corpus"))
    config = study.configs["tokens/train"]
    part = open_artifact(folder / "tokens/parts/0")
    with pytest.raises(DamagedArtifactError, match=r"parts/0: made with tokenizer .*; tokenize this part again"):
        tokenizing_module.build_tokens(config, tokenizer, [part], folder=tmp_path)


def test_tokenizer_is_trained_on_the_beginning_of_a_large_split(made, tmp_path, monkeypatch):
    corpus = open_artifact(made.folder / "corpus")
    first = list(documents_of(corpus, "train"))[:10]
    monkeypatch.setattr(tokenizer_module, "TRAINING_BYTES", sum(len(document.text.encode()) for document in first))
    assert list(tokenizer_module._training_texts(corpus)) == [document.text for document in first]
    study = DataStudy(study_of(tokenizer={"vocab_size": 262}), tmp_path)
    small = study.tokenizer(corpus).file("tokenizer.json").read_bytes()
    monkeypatch.setattr(tokenizer_module, "TRAINING_BYTES", 10**9)
    assert study.tokenizer(corpus).file("tokenizer.json").read_bytes() != small


def test_vocabulary_of_another_size_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(made.folder))
    study = DataStudy(study_of(tokenizer={"vocab_size": 281, "file": "tokenizer/tokenizer.json"}), tmp_path)
    with pytest.raises(ConfigError, match="the largest id is 279, so it must be 280; got 281"):
        study.tokenizer()


def quantize_config(**keys) -> QuantizeConfig:
    return QuantizeConfig(
        model_id="quantlm/2L-4bit", bits=4, group_size=128, calibration_sequence_length=32, seed=7,
        **{"num_calibration_samples": 8} | keys,
    )  # fmt: skip


def test_calibration_sets_are_disjoint_and_their_documents_listed(made, tmp_path):
    tokens, seen = tokens_of(made), []
    for number in range(3):
        samples = draw_calibration(quantize_config(calibration_set=number), tokens, tmp_path / "c.csv")
        assert samples.shape == (8, 32)
        with (tmp_path / "c.csv").open() as file:
            rows = list(csv.DictReader(file))
        sequences = sorted({int(row["sequence"]) for row in rows})
        seen += sequences
        assert sum(int(row["num_tokens"]) for row in rows) == 8 * 33
        assert sorted(map(tuple, samples.tolist())) == sorted(
            map(tuple, tokens.sequences(sequences, 32)[:, :-1].tolist())
        )
    assert len(set(seen)) == 24
    with pytest.raises(OpenSpectraError, match="calibration set 0 needs sequences 0 to 9999"):
        draw_calibration(quantize_config(num_calibration_samples=10_000), tokens, tmp_path / "c.csv")


def test_split_too_small_for_a_sequence_names_length_and_keys(made):
    tokens = tokens_of(made, "valid")
    size = len(tokens)
    with pytest.raises(OpenSpectraError) as caught:
        tokens.num_sequences(size)
    assert str(caught.value) == (
        f"tokens: split `valid` has {size:,} tokens, and one sequence needs {size + 1:,}: {size:,} (training.sequence_length) "
        "and the one that follows; give more text under corpus, raise corpus.valid_fraction, or lower training.sequence_length."
    )
    assert tokens.num_sequences(size - 1) == 1
    with pytest.raises(OpenSpectraError, match=r"lower quantization\.calibration_sequence_length\.$"):
        tokens.num_sequences(size, "quantization.calibration_sequence_length")


def test_calibration_sets_have_model_ids(monkeypatch):
    monkeypatch.chdir(ROOT)
    section = study_of().quantization.model_dump() | {"num_calibration_sets": 3, "bits": [4, 3]}
    quantized = study_of(quantization=section).quantized
    assert list(quantized) == [f"quantlm/2L-{bits}bit{suffix}" for bits in (4, 3) for suffix in ("", "-c1", "-c2")]
    assert [config.calibration_set for config in quantized.values()] == [0, 1, 2] * 2


def test_end_of_text_written_out_in_a_document_is_text(made):
    encoder = load_tokenizer(open_artifact(made.folder / "tokenizer"))
    text = "before <|endoftext|> after"
    ids = encoder.encode(text).ids
    assert end_of_text_id(open_artifact(made.folder / "tokenizer")) not in ids
    assert encoder.decode(ids) == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("truncation", {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}),
        (
            "padding",
            {"strategy": {"Fixed": 600}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
             "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        ),
    ],
)  # fmt: skip
def test_tokenizer_that_alters_documents_is_refused(made, tmp_path, monkeypatch, key, value):
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path))
    content = json.loads((made.folder / "tokenizer/tokenizer.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(content | {key: value}))
    config = TokenizerConfig(vocab_size=280, file="t.json")
    with pytest.raises(
        ConfigError, match=rf"t\.json: `{key}` is set, which would alter every document; set it to null"
    ):
        build_tokenizer(config, folder=tmp_path)


def test_post_processor_adds_no_token(made, tmp_path, monkeypatch):
    """A template of a published tokenizer may begin every text with a token of its own."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(made.folder.parent / "data"))
    content = json.loads((made.folder / "tokenizer/tokenizer.json").read_text())
    token = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing", "single": [token, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    folder = shutil.copytree(made.folder, tmp_path / "results")
    (made.folder.parent / "data/t.json").write_text(json.dumps(content | {"post_processor": template}))
    study = DataStudy(
        study_of(
            corpus=corpus_of(num_parts=3), tokenizer={"vocab_size": 280, "file": "t.json", "post_processor": "remove"}
        ),
        folder,
    )
    assert np.array_equal(all_ids(Tokens(study.tokens("train"))), all_ids(tokens_of(made)))


@pytest.fixture
def ready(made, tmp_path, monkeypatch):
    """Two token files in a data folder, and the function that makes a study of them."""
    monkeypatch.setenv("OPENSPECTRA_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    ids = all_ids(tokens_of(made)).astype("<u2")
    ids[: len(ids) // 2].tofile(tmp_path / "data/a.bin")
    ids[len(ids) // 2 :].tofile(tmp_path / "data/b.bin")
    shutil.copy(made.folder / "tokenizer/tokenizer.json", tmp_path / "data/tokenizer.json")
    tokenizer = open_artifact(made.folder / "tokenizer")
    fingerprint = next(r.sha256 for r in tokenizer.manifest.files if r.path == "tokenizer.json")

    def study(**keys) -> DataStudy:
        files = {"files": {"one": ["a.bin"], "two": ["b.bin"]}, "tokenizer_sha256": fingerprint}
        section = files | {"valid_fraction": 0.1, "test_fraction": 0.1, "dtype": "uint16"} | keys
        loaded = study_of(
            corpus=None, token_files=section, evaluation=None,
            tokenizer={"vocab_size": 280, "file": "tokenizer.json"},
        )  # fmt: skip
        made = DataStudy(loaded, tmp_path / "ready")
        made.configs["tokens/parts"] = made.configs["tokens/parts"].model_copy(update={"tokens_per_shard": 997})
        return made

    return study


def test_ready_token_files_are_used_where_they_lie(ready, tmp_path):
    study = ready()
    train, valid, test = (Tokens(study.tokens(split)) for split in ("train", "valid", "test"))
    end = end_of_text_id(open_artifact(study.folder / "tokenizer"))
    files = [np.fromfile(tmp_path / f"data/{name}.bin", "<u2") for name in "ab"]
    borders = [len(ids) - len(ids[round(len(ids) * 0.8) :]) for ids in files]
    borders = [
        border + int(np.flatnonzero(ids[border - 1 :] == end)[0]) for border, ids in zip(borders, files, strict=True)
    ]
    expected = np.concatenate([ids[:border] for ids, border in zip(files, borders, strict=True)])
    assert len(train) == len(expected) and len(train) + len(valid) + len(test) == sum(map(len, files))
    found = all_ids(train)
    assert np.array_equal(found, expected[: len(found)])
    spans = [span for sample in train.trace(np.arange(train.num_sequences(LENGTH)), LENGTH) for span in sample]
    for span in spans:
        number = int(span.document_id.split(":")[1])
        ids = files["ab".index(span.document_id[0])]
        begin = int(([0, *(np.flatnonzero(ids == end) + 1)])[number])
        document = ids[begin:][: span.first_token + span.num_tokens]
        assert end not in document[:-1]
    assert not list(study.folder.rglob("*.bin"))
    found = [place.document_id for split in (train, valid, test) for place in split.documents()]
    counts = [int(np.count_nonzero(ids == end)) + (ids[-1] != end) for ids in files]
    assert len(found) == len(set(found)) == sum(counts)
    for split in (train, valid, test):
        for place in split.documents():
            name, number = place.document_id.split(":")
            ids = files["ab".index(name[0])]
            begin = int(([0, *(np.flatnonzero(ids == end) + 1)])[int(number)])
            assert np.array_equal(split.ids(place), ids[begin : begin + place.num_tokens])
            assert split.ids(place)[-1] == end or begin + place.num_tokens == len(ids)


def test_held_out_documents_of_token_files_become_tasks(ready, made, tmp_path, caplog):
    """Their texts are those of the documents that were tokenized; one cut within a character is passed over."""
    path, end = tmp_path / "data/b.bin", end_of_text_id(open_artifact(made.folder / "tokenizer"))
    encoder = load_tokenizer(open_artifact(made.folder / "tokenizer"))
    cut = encoder.encode("x" * 40 + "界").ids[:-1]
    ids = np.fromfile(path, "<u2")
    np.concatenate((ids, np.array([*cut, end], "<u2"))).tofile(path)
    study = ready()
    test, tokenizer = study.tokens("test"), open_artifact(study.folder / "tokenizer")
    config = TasksConfig(
        seed=1, num_documents=2, document_characters=10_000, num_items=9, tasks=["held_out_text", "cloze"]
    )
    first = build_tasks_from_tokens(config, test, tokenizer, tmp_path, "here")
    items = [json.loads(line) for line in (tmp_path / "held_out_text.jsonl").read_text().splitlines()]
    assert first["held_out_text"]["num_items"] == len(items) == 2 and first["cloze"]["num_items"] == 9
    places = {place.document_id: place for place in Tokens(test).documents()}
    texts = [document.text for document in documents_of(open_artifact(made.folder / "corpus"), "train")]
    for item in items:
        ids = Tokens(test).ids(places[item["document_id"]]).tolist()
        assert encoder.encode(item["text"], add_special_tokens=False).ids == ids[:-1]
        assert any(item["text"] in text for text in texts)  # the first and the last of a file were cut
    with pytest.raises(ConfigError, match=r"num_documents: task `held_out_text` finds \d+ items in .*tokens/test"):
        build_tasks_from_tokens(config.model_copy(update={"num_documents": 9999}), test, tokenizer, tmp_path, "here")
    assert f"passed over, as their text is not their tokens again: {list(places)[-1]}" in caplog.text


def test_ready_token_files_have_a_data_card(ready):
    study = ready(license="CC0-1.0")
    tokens = {split: study.tokens(split) for split in ("train", "valid", "test")}
    card = data_card(tokens.values())
    assert card.lengths is None and [title for title, _ in card.views] == [f"Split {s} by token file" for s in tokens]
    for split, artifact in tokens.items():
        rows = card.table[card.table["split"] == split]
        assert rows["file"].tolist() == ["a.bin", "b.bin"] and set(rows["license"]) == {"CC0-1.0"}
        assert rows["tokens"].sum() == artifact.manifest.metrics["num_tokens"]
        assert rows["documents"].sum() == artifact.manifest.metrics["num_documents"]
    assert card.table["hash"].nunique() == 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ids: ids[: len(ids) // 2], r"data/b\.bin: .* bytes where"),
        (
            lambda ids: np.concatenate((ids[:1000], ids[1000:1001] ^ 1, ids[1001:])),
            r"data/b\.bin: the sha256 of its block",
        ),
    ],
)
def test_altered_token_file_is_found(ready, tmp_path, damage, message):
    artifact = ready().tokens("train")
    path = tmp_path / "data/b.bin"
    damage(np.fromfile(path, "<u2")).tofile(path)
    with pytest.raises(DamagedArtifactError, match=message):
        all_ids(Tokens(artifact))


def test_token_file_of_another_tokenizer_or_with_unknown_ids_is_refused(ready, tmp_path):
    with pytest.raises(ConfigError, match=r"token_files\.tokenizer_sha256: 000000000000\.\.\., but the study's"):
        ready(tokenizer_sha256="0" * 64).tokens()
    ids = np.fromfile(tmp_path / "data/b.bin", "<u2")
    ids[1234] = 280
    ids.tofile(tmp_path / "data/b.bin")
    with pytest.raises(OpenSpectraError, match=r"b\.bin: token 1234 is 280, but the vocabulary has 280 entries"):
        ready().tokens()
    (tmp_path / "data/b.bin").write_bytes(b"abc")
    with pytest.raises(OpenSpectraError, match=r"b\.bin: 3 bytes are no uint16 tokens"):
        ready().tokens()


def test_wide_ids_read_as_narrow_ones_and_a_file_named_twice_are_refused(ready, tmp_path):
    """Each half of a 4-byte id is an id of the vocabulary, and 0 often the end of text: nothing else would tell."""
    path = tmp_path / "data/b.bin"
    np.fromfile(path, "<u2").astype("<u4").tofile(path)
    with pytest.raises(
        OpenSpectraError, match=r"b\.bin: every second id is 0, as in .* set token_files\.dtype to uint32"
    ):
        ready().tokens()
    wide = ready(dtype="uint32", files={"two": ["b.bin"]}).tokens()
    assert sum(entry["tokens"] for entry in wide.manifest.metrics["sources"].values()) == len(Tokens(wide))
    with pytest.raises(ValueError, match=r"`files` must name each file once; b\.bin would be read again"):
        ready(files={"one": ["a.bin", "b.bin"], "two": ["./b.bin"]})


def test_a_document_of_many_blocks_is_searched_for_its_end_once(ready, tmp_path, monkeypatch):
    """Once per block is quadratic: a file of 312 GB without an end of text would be read a thousand times over."""
    path, text = tmp_path / "data/b.bin", np.full(40 * 997, 7, "<u2")
    ids = np.fromfile(path, "<u2")
    np.concatenate((ids[:1500], text, ids[1500:])).tofile(path)
    searched = []
    find = token_files_module._TokenFile.document_after
    monkeypatch.setattr(
        token_files_module._TokenFile, "document_after", lambda file, at: searched.append(at) or find(file, at)
    )
    study = ready(files={"two": ["b.bin"]})
    tokens = Tokens(study.tokens("train"))
    longest = max(tokens.documents(), key=lambda place: place.num_tokens)
    assert longest.num_tokens > len(text)
    assert np.count_nonzero(tokens.ids(longest) == 7) >= len(text)
    assert len(searched) < 20  # the other documents that cross into a block; with each block of this one 55


def test_token_file_whose_documents_never_end_is_refused_at_once(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files_module, "LONGEST_DOCUMENT", 5000)
    np.full(6000, 7, "<u2").tofile(tmp_path / "data/b.bin")
    with pytest.raises(OpenSpectraError, match=r"b\.bin: no end-of-text token \(id 0\) among the first 5,000; set tok"):
        ready().tokens()


def test_end_of_text_at_the_end_of_a_token_file_is_taken_for_text(ready, tmp_path):
    path = tmp_path / "data/b.bin"
    ids = np.concatenate((np.fromfile(path, "<u2"), np.zeros(3000, "<u2")))
    ids.tofile(path)
    tokens = [ready().tokens(split).manifest.metrics["num_tokens"] for split in ("train", "valid", "test")]
    assert sum(tokens) == len(ids) + len(np.fromfile(tmp_path / "data/a.bin", "<u2"))
