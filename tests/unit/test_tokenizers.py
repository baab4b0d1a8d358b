"""Tokenizers of others: every stage encodes as training does, text that does not come back is counted, ids may have holes."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run
from data_study import ROOT, DataStudy, corpus_of, study_of, texts
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from openspectra.data.config import TokenizerConfig
from openspectra.data.round_trip import RoundTrip
from openspectra.data.tokenizer import build_tokenizer, load_tokenizer, num_ids
from openspectra.data.tokens import Tokens
from openspectra.errors import ConfigError, OpenSpectraError

DIGITS = str.maketrans("0123456789", "абвгдежзик")
SPECIALS = ["<|endoftext|>", "<bos>", "<eos>"]
STRANGE = [
    "def f(x):\n    return x",
    " leading and  double  spaces ",
    "a literal <|endoftext|> and <bos> in a text",
    "naïve 界 \U0001f600",
    "e\u0301 decomposed",
    "",
]


def byte_level(vocab_size: int = 300) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(60), trainer)
    return tokenizer


def template(tokenizer: Tokenizer, single: str) -> Tokenizer:
    specials = [(token, tokenizer.token_to_id(token)) for token in SPECIALS]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return tokenizer


def llama_style() -> Tokenizer:
    """Return a tokenizer as Llama's: a space in front of every text, unknown characters as bytes, `<bos>` before all."""
    alphabet = sorted({character for text in texts(60) for character in text.replace(" ", "▁")})
    vocab = {
        token: number
        for number, token in enumerate([*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *alphabet])
    }
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<eos>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return template(tokenizer, "<bos> $A")


def words_only() -> Tokenizer:
    """Return a tokenizer that drops white space and every character but ASCII."""
    tokenizer = byte_level()
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"].items()
    content["model"]["vocab"] = {token: number for token, number in vocab if token.isascii()}
    content["model"]["merges"] = []
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, content["pre_tokenizer"]]}
    return Tokenizer.from_str(json.dumps(content))


KINDS = {
    "plain": byte_level,
    "bos": lambda: template(byte_level(), "<bos> $A"),
    "eos": lambda: template(byte_level(), "$A <eos>"),
    "llama": llama_style,
}


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A data folder with a text file; tokenizers go there as `t.json`."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("OPENSPECTRA_DATA", str(folder))
    rows = [json.dumps({"text": text}) + "\n" for text in texts(60)]
    (folder / "text.jsonl").write_text("".join(rows))
    return folder


def study_with(tokenizer: Tokenizer, data: Path, texts: list[str] | None = None, **keys) -> DataStudy:
    tokenizer.save(str(data / "t.json"))
    if texts is not None:
        (data / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    section = {"file": "t.json", "vocab_size": num_ids(tokenizer), "post_processor": "remove"} | keys
    return DataStudy(study_of(corpus=corpus_of(), tokenizer=section), data.parent / "made")


@pytest.mark.parametrize("kind", KINDS)
def test_every_loader_encodes_as_training_does(data, kind):
    study = study_with(KINDS[kind](), data, [text for text in STRANGE if text] + texts(60))
    tokens = Tokens(study.tokens("train"))
    folder = data.parent / "made/tokenizer"
    artifact = study.tokenizer(study.corpus())
    training = load_tokenizer(artifact)
    expected = [training.encode(text, add_special_tokens=False).ids for text in STRANGE]
    # of what was tokenized: the ids of each document and the end of text after it, and nothing else
    length = len(tokens) - 1
    (row,) = tokens.sequences([0], length)
    ((*spans,),) = tokens.trace([0], length)
    assert len(row) == sum(span.num_tokens for span in spans) and (row == 0).sum() == len(spans)
    assert not {1, 2} & set(row.tolist())  # `<bos>` and `<eos>` stand nowhere
    loaded = AutoTokenizer.from_pretrained(folder)
    assert [loaded(text)["input_ids"] for text in STRANGE] == expected
    assert [loaded.encode(text, add_special_tokens=False) for text in STRANGE] == expected
    assert [Tokenizer.from_file(str(folder / "tokenizer.json")).encode(STRANGE[0]).ids] == [expected[0]]
    ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": num_ids(training), "max_position_embeddings": 64}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**shape, **ids)).save_pretrained(folder)
    from openspectra.evaluation.language_model import LanguageModel

    lm = LanguageModel(pretrained=str(folder), device="cpu", dtype=torch.float32)
    assert [list(lm.tok_encode(text)) for text in STRANGE[:-1]] == expected[:-1]
    model = LlamaForCausalLM.from_pretrained(folder)
    made = model.generate(**loaded(STRANGE[:2], return_tensors="pt", padding=True), max_new_tokens=2, do_sample=False)
    assert made.shape[0] == 2 and loaded.padding_side == "left"


@pytest.mark.parametrize(("kind", "added"), [("bos", "<bos>"), ("eos", "<eos>")])
def test_tokenizer_that_adds_tokens_is_refused_unless_told(data, kind, added):
    study = study_with(KINDS[kind](), data, post_processor="refuse")
    with pytest.raises(ConfigError, match=f"its post-processor adds {added} to every text.*post_processor: remove"):
        study.tokenizer(study.corpus())


def test_unchanged_file_keeps_its_published_fingerprint(data):
    study = study_with(byte_level(), data)
    study.tokenizer(study.corpus())
    assert (data / "t.json").read_bytes() == (data.parent / "made/tokenizer/tokenizer.json").read_bytes()


def test_byte_level_tokenizer_is_exact_and_a_normalizer_is_counted():
    exact = byte_level()
    round_trip = RoundTrip(exact)
    for text in STRANGE:
        assert round_trip.lost_bytes(text, exact.encode(text, add_special_tokens=False).ids) == 0
    composed = byte_level()
    composed.normalizer = normalizers.NFC()
    ids = composed.encode("e\u0301", add_special_tokens=False).ids
    assert RoundTrip(composed).lost_bytes("e\u0301", ids) == len("e\u0301".encode())
    assert RoundTrip(composed)._is_byte_level and not RoundTrip(words_only())._is_byte_level
    lower = byte_level()
    lower.normalizer = normalizers.Lowercase()
    assert RoundTrip(lower).lost_bytes("ABc", lower.encode("ABc").ids) == 2


def test_added_token_that_takes_spaces_is_no_exact_tokenizer():
    greedy = byte_level()
    greedy.add_tokens([AddedToken("def", lstrip=True, normalized=False)])
    text = "a   def f"
    assert RoundTrip(greedy).lost_bytes(text, greedy.encode(text).ids) > 0


def test_text_that_does_not_come_back_is_refused_then_counted_as_far_as_allowed(data):
    documents = texts(60)
    study = study_with(words_only(), data, documents)
    with pytest.raises(
        OpenSpectraError, match="do not come back from their tokens; tokenizer.max_lost_fraction allows a share of 0"
    ):
        study.tokens("train")
    study = study_with(words_only(), data, documents, max_lost_fraction=0.5)
    counts = study.tokens("train").manifest.metrics["sources"]["files"]
    from openspectra.data.corpus import documents_of

    kept = [document.text for document in documents_of(study.corpus(), "train")]
    assert counts["bytes"] == sum(len(text.encode()) for text in kept)
    assert counts["lost_bytes"] == sum(
        len(character.encode()) for text in kept for character in text if character.isspace() or not character.isascii()
    )


def test_text_in_a_script_that_the_tokenizer_does_not_know_is_one_line(data):
    russian = [f"слово{number} и ещё одно" for number in range(60)]
    with pytest.raises(OpenSpectraError, match="do not come back from their tokens"):
        study_with(words_only(), data, russian).tokens("train")
    study = study_with(words_only(), data, [text.translate(DIGITS) for text in russian], max_lost_fraction=1.0)
    with pytest.raises(OpenSpectraError, match="no token for any document of the valid split"):
        study.tokens("train")


@pytest.mark.parametrize("largest", [531, 70_511])
def test_rows_follow_the_largest_id(data, largest):
    tokenizer = byte_level()
    content = json.loads(tokenizer.to_str())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] = largest
    holed = Tokenizer.from_str(json.dumps(content))
    assert num_ids(holed) == largest + 1 != holed.get_vocab_size()
    study = study_with(holed, data)
    tokens = study.tokens("train")
    assert tokens.manifest.metrics["dtype"] == ("<u2" if largest < 2**16 else "<u4")
    assert study.study.pretrained["floatlm/2L"].shape.vocab_size > largest
    ids = load_tokenizer(study.tokenizer(study.corpus())).encode(holed.decode([largest])).ids
    assert max(ids) <= largest
    wrong = TokenizerConfig(file="t.json", vocab_size=holed.get_vocab_size())
    with pytest.raises(ConfigError, match=f"the largest id is {largest:,} .*must be {largest + 1}; got 300"):
        build_tokenizer(wrong, folder=data)


def test_check_names_what_is_wrong_with_the_tokenizer_file(data, tmp_path):
    template(byte_level(), "<bos> $A").save(str(data / "t.json"))
    content = (ROOT / "studies/tiny.yaml").read_text()
    for section, said in (
        ("tokenizer: {file: t.json, vocab_size: 300}", "its post-processor adds <bos> to every text"),
        ("tokenizer: {file: t.json, vocab_size: 299, post_processor: remove}", "must be 300; got 299"),
    ):
        (tmp_path / "x.yaml").write_text(content.replace("tokenizer:\n  vocab_size: 512", section))
        finished = run("openspectra", "check", "x.yaml", cwd=tmp_path, OPENSPECTRA_DATA=str(data))
        assert finished.returncode == 2 and said in finished.stdout and len(finished.stdout.splitlines()) == 1


def test_end_token_that_a_text_could_hold_and_dropout_are_refused(data):
    tokenizer = byte_level()
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    with pytest.raises(ConfigError, match="'<|endoftext|>' written out in a text would end it"):
        study = study_with(Tokenizer.from_str(json.dumps(content)), data)
        study.tokenizer(study.corpus())
    tokenizer.model.dropout = 0.1
    with pytest.raises(ConfigError, match="`model.dropout` is set, which would alter every document"):
        study = study_with(tokenizer, data)
        study.tokenizer(study.corpus())
