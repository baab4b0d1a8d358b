"""Exports: every format is the same model when it is read back, and no loader takes a damaged or malicious file."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from data_study import DataStudy, corpus_of, study_of, texts
from safetensors.torch import load_file, save_file

from openspectra.artifacts import MANIFEST, Artifact, open_artifact, record_file, write_artifact
from openspectra.config import Config, validate
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.export import llama_cpp
from openspectra.export.certificate import compare
from openspectra.export.config import FAMILIES, ExportConfig, format_problem
from openspectra.export.generate import Sampling, generate
from openspectra.export.gguf_file import read_gguf, vocabulary
from openspectra.export.loading import load_model, read_stored
from openspectra.export.packed import read_packed, write_packed
from openspectra.export.stage import evaluations_of, export_model, valid_tokens_of
from openspectra.export.stored import Stored, expected_shapes, is_linear, read_dense
from openspectra.model.config import LlamaShape
from openspectra.model.hugging_face import exported_weights, save_model
from openspectra.model.llama import Llama
from openspectra.strict_yaml import read_yaml
from openspectra.study import Study, load_study
from openspectra.work import jobs_of

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(num_tokens=8, temperature=0, top_k=0, top_p=1.0, seed=0)
MODELS = {
    "trilm/1L": LlamaShape(
        vocab_size=384, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, scales_per_matrix=2,
    ),
    "floatlm/1L": LlamaShape(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64,
    ),
}  # fmt: skip


class ModelConfig(Config):
    model_id: str
    family: str


@dataclass
class Study1L:
    """A folder with the data and models of a small study, and the exports that were made of them."""

    folder: Path

    def export(self, model_id: str, form: str) -> Artifact:
        """Return a model in a format, made once."""
        out = self.folder / "exports" / model_id / form
        if not (out / MANIFEST).exists():
            model = open_artifact(self.folder / model_id)
            config = ExportConfig(model=model_id, format=form)
            tokens = valid_tokens_of(model)
            with write_artifact(out, "export", config, {"model": model, "tokens_valid": tokens}) as draft:
                export_model(config, model, tokens, evaluations_of(model), draft)
        return open_artifact(out, "export")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Study1L:
    folder = tmp_path_factory.mktemp("small")
    (folder / "data").mkdir()
    lines = (json.dumps({"text": text}) + "\n" for text in texts(60))
    (folder / "data/a.jsonl").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENSPECTRA_DATA", str(folder / "data"))
        valid = DataStudy(study_of(corpus=corpus_of()), folder).tokens("valid")
    tokenizer = open_artifact(folder / "tokenizer")
    for model_id, shape in MODELS.items():
        family = model_id.partition("/")[0]
        model = Llama(shape, family)
        model.reset_parameters(1)
        config = ModelConfig(model_id=model_id, family=family)
        with write_artifact(
            folder / model_id, "pretrain", config, {"tokens_valid": valid, "tokenizer": tokenizer}
        ) as draft:
            draft.metrics |= save_model(model, family, "float32", tokenizer, draft.folder)
    return Study1L(folder)


@pytest.fixture
def damaged(small, tmp_path):
    """A function that copies an export, to be damaged."""

    def copy(model_id: str, form: str) -> Path:
        return Path(shutil.copytree(small.export(model_id, form).folder, tmp_path / "copy"))

    return copy


def discrete(family: str, scales: int, dtype: str, quantized_embedding: bool = False) -> Stored:
    """Return random weights of a discrete family with so many scales in each matrix."""
    shape = LlamaShape(
        vocab_size=384, hidden_size=192, intermediate_size=384, num_hidden_layers=1, num_attention_heads=4,
        scales_per_matrix=scales, quantized_embedding=quantized_embedding,
    )  # fmt: skip
    model = Llama(shape, family)
    model.reset_parameters(scales)
    return Stored(shape, "floatlm", 0, exported_weights(model, dtype), 0, "")


@pytest.mark.parametrize("scales", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("family", "form", "bits"),
    [("trilm", "packed-1.6bit", 1.6), ("trilm", "packed-2bit", 2.0), ("bilm", "packed-1bit", 1.0)],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_packed_round_trip_is_exact(tmp_path, family, form, bits, scales, dtype):
    source = discrete(family, scales, dtype)
    write_packed(source, form, family, f"{family}/1L", tmp_path)
    read = read_packed(tmp_path)
    assert read.shape.scales_per_matrix == scales
    for name, weight in source.weights.items():
        assert read.weights[name].dtype == weight.dtype and torch.equal(read.weights[name], weight), name
    stored = load_file(tmp_path / "model.safetensors")
    for name in (name for name in source.weights if is_linear(name)):
        body, flat = stored[f"{name}.packed"].nbytes, source.weights[name].numel()
        assert 8 * body / flat == pytest.approx(bits, abs=0.01) and 8 * body / flat <= 1.01 * bits
        assert stored[f"{name}.scales"].numel() == scales
    write_packed(read, form, family, f"{family}/1L", tmp_path)
    assert all(torch.equal(stored[name], again) for name, again in load_file(tmp_path / "model.safetensors").items())


@pytest.mark.parametrize(
    ("family", "form", "bits"), [("tbt_w2a16", "packed-1.6bit", 1.6), ("tbt_w1a16", "packed-1bit", 1.0)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_quantized_embedding_is_packed_with_a_scale_for_each_row(tmp_path, family, form, bits, dtype):
    source = discrete(family, 2, dtype, quantized_embedding=True)
    write_packed(source, form, family, f"{family}/1L", tmp_path)
    read, stored = read_packed(tmp_path), load_file(tmp_path / "model.safetensors")
    assert read.shape.quantized_embedding and read.linear_bytes < sum(tensor.nbytes for tensor in stored.values())
    for name, weight in source.weights.items():
        assert read.weights[name].dtype == weight.dtype and torch.equal(read.weights[name], weight), name
    assert 8 * stored["model.embed_tokens.weight.packed"].nbytes / (384 * 192) == pytest.approx(bits, abs=0.01)
    assert stored["model.embed_tokens.weight.scales"].shape == (384, 1) and "lm_head.weight" in stored


def test_weights_that_are_not_discrete_are_refused(tmp_path):
    source = discrete("floatlm", 1, "float32")
    with pytest.raises(OpenSpectraError, match=r"trilm/1L: model.layers.0.self_attn.q_proj.weight: a shard holds more"):
        write_packed(source, "packed-2bit", "trilm", "trilm/1L", tmp_path)


@pytest.mark.parametrize(
    ("model_id", "form"),
    [
        ("trilm/1L", "transformers"), ("trilm/1L", "packed-1.6bit"), ("trilm/1L", "gguf-f16"), ("trilm/1L", "gguf-tq1_0"),
        ("trilm/1L", "gguf-tq2_0"), ("floatlm/1L", "gguf-f16"), ("floatlm/1L", "gguf-q8_0"),
    ],
)  # fmt: skip
def test_an_export_is_certified_carded_and_goes_on_with_a_text(small, model_id, form):
    export = small.export(model_id, form)
    certificate = json.loads(export.file("certificate.json").read_text())
    assert certificate == export.manifest.metrics
    exact = form in ("transformers", "packed-1.6bit")
    assert certificate["round_trip_exact"] == exact == (certificate["num_tensors_rounded"] == 0)
    assert (certificate["largest_logit_difference"] == 0) == exact
    assert abs(certificate["perplexity_difference_percent"]) <= (0 if exact else 0.5 if form == "gguf-q8_0" else 0.02)
    assert certificate["num_tokens"] >= 64 and certificate["perplexity"] > 1
    shown = export.file("README.md").read_text()
    for part in (
        small.folder.name,
        open_artifact(small.folder / model_id).sha256,
        "library_name",
        "was not evaluated",
    ):
        assert part in shown
    pieces: list[str] = []
    generate(export.folder, "def value", GREEDY, pieces.append)
    assert pieces[0] == "def value" and len(pieces) > 2 and pieces[-1] == "\n"
    if exact:
        own: list[str] = []
        generate(small.folder / model_id, "def value", GREEDY, own.append)
        assert own == pieces


def test_draws_depend_on_the_seed_alone(small):
    def drawn(seed: int) -> str:
        pieces: list[str] = []
        sampling = Sampling(num_tokens=12, temperature=1.0, top_k=50, top_p=0.9, seed=seed)
        generate(small.folder / "floatlm/1L", "x", sampling, pieces.append)
        return "".join(pieces)

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("bits", [2, 5, 7])
def test_widths_that_no_gptq_folder_holds_are_refused_before_anything_runs(bits):
    assert f"gptq folders hold 3, 4, 6, 8 bits, and quantlm/1L-{bits}bit has {bits}" in format_problem(
        f"quantlm/1L-{bits}bit", "gptq"
    )
    assert format_problem("quantlm/1L-6bit", "gptq") is None


def test_a_ternary_gguf_without_a_block_of_one_scale_is_refused():
    shape = MODELS["trilm/1L"].model_copy(update={"hidden_size": 128, "intermediate_size": 256, "scales_per_matrix": 2})
    assert "weights of one scale in some matrix" in format_problem("trilm/1L", "gguf-tq2_0", shape)
    assert format_problem("trilm/1L", "gguf-tq2_0", shape.model_copy(update={"scales_per_matrix": 1})) is None


def test_logits_that_are_no_numbers_certify_nothing():
    class Answers:
        def __init__(self, value: float):
            self.value = value

        def __call__(self, ids):
            return SimpleNamespace(logits=torch.full((1, ids.shape[1], 8), self.value))

    sequences = np.zeros((1, 5), np.int64)
    assert compare(Answers(0.0), Answers(0.0), sequences).largest_logit_difference == 0
    with pytest.raises(OpenSpectraError, match="its export gives logits that are no finite numbers"):
        compare(Answers(0.0), Answers(float("nan")), sequences)


def test_a_reader_that_goes_away_ends_the_text(small):
    """As `openspectra generate ... | head -c 1` does; torch aborts a process that ends while it computes."""
    command = [
        sys.executable,
        "-m",
        "openspectra.cli",
        "generate",
        str(small.folder / "floatlm/1L"),
        "x",
        "--tokens",
        "60",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as said:
        assert said.stdout.read(1) == "x"
        said.stdout.close()
        assert said.stderr.read() == ""
    assert said.returncode == 1


def test_a_prompt_that_leaves_no_room_or_is_no_text_is_refused(small):
    with pytest.raises(ConfigError, match=r"PROMPT: \d+ tokens where .* reads 64 at most; shorten it."):
        generate(small.folder / "floatlm/1L", "def value " * 100, GREEDY, print)
    with pytest.raises(ConfigError, match="PROMPT: holds bytes that are no UTF-8"):
        generate(small.folder / "floatlm/1L", b"\xff\xfe".decode(errors="surrogateescape"), GREEDY, print)


@pytest.mark.parametrize("form", ["gguf-tq1_0", "gguf-tq2_0"])
def test_ternary_blocks_of_two_scales_are_stored_in_half_precision(small, form):
    """Two scales a matrix: of rows of 256, o_proj's scales meet at 128; of rows of 512, down_proj's between two blocks."""
    export = small.export("trilm/1L", form)
    (path,) = export.folder.glob("*.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_output.weight"] == kinds["token_embd.weight"] == kinds["output.weight"] == "F16"
    ternary = {f"blk.0.{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down")}
    assert {name for name, kind in kinds.items() if kind == form[5:].upper()} == ternary
    (note,) = export.manifest.metrics["notes"]
    assert note.startswith("1 of 7 matrices stored in F16 (o_proj)")
    weights, dense = read_gguf(path).weights, read_dense(small.folder / "trilm/1L").weights
    assert all(torch.equal(weights[name], dense[name].half().float()) for name in dense if dense[name].dim() == 2)


def test_what_fits_no_block_is_refused(small, tmp_path):
    config = ExportConfig(model="trilm/1L", format="gguf-tq2_0")
    source = discrete("trilm", 1, "float32")
    from openspectra.export.stage import write_format

    with pytest.raises(OpenSpectraError, match="no matrix fits into blocks of 256 weights"):
        write_format(config, open_artifact(small.folder / "trilm/1L"), source, tmp_path)


def test_unmodified_transformers_loads_what_was_written(small):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = small.export("trilm/1L", "transformers").folder
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("def value = x", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_model(folder).model(ids).logits)
    with pytest.raises(ValueError, match="openspectra-packed"):  # never taken for a plain Llama
        AutoModelForCausalLM.from_pretrained(small.export("trilm/1L", "packed-1.6bit").folder)


def test_metadata_of_a_gguf_is_that_of_the_model(small):
    (path,) = small.export("floatlm/1L", "gguf-f16").folder.glob("*.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert fields["general.architecture"] == "llama" and fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2" and fields["tokenizer.ggml.add_bos_token"] is False
    tokenizer = json.loads((small.folder / "tokenizer/tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    assert fields["tokenizer.ggml.tokens"][: len(vocab)] == sorted(vocab, key=vocab.get)
    assert fields["tokenizer.ggml.token_type"][0] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.token_type"][len(vocab) :] == [gguf.TokenType.UNUSED] * (384 - len(vocab))
    assert len(fields["tokenizer.ggml.merges"]) == len(tokenizer["model"]["merges"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("pre_tokenizer",), {"type": "Metaspace"}, "pre_tokenizer.type is 'Metaspace'"),
        (("pre_tokenizer", "use_regex"), False, "use_regex is False"),
        (("pre_tokenizer", "add_prefix_space"), True, "add_prefix_space is True"),
        (("normalizer",), {"type": "Lowercase"}, "normalizer is {'type': 'Lowercase'}"),
        (("model", "type"), "Unigram", "model.type is 'Unigram'"),
        (("model", "byte_fallback"), True, "byte_fallback is True"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_apply_otherwise_is_refused(small, tmp_path, key, value, message):
    content = json.loads((small.folder / "tokenizer/tokenizer.json").read_text())
    *above, last = key
    target = content
    for name in above:
        target = target[name]
    target[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(OpenSpectraError, match=message):
        vocabulary(tmp_path / "tokenizer.json", 384)


def test_normalizer_and_added_tokens_are_told(small, tmp_path):
    content = json.loads((small.folder / "tokenizer/tokenizer.json").read_text()) | {"normalizer": {"type": "NFC"}}
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 300, "content": "    ", "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    words = vocabulary(tmp_path / "tokenizer.json", 384)
    assert (words.tokens[300], words.types[300]) == ("    ", gguf.TokenType.USER_DEFINED)
    assert words.types[299] == words.types[383] == gguf.TokenType.UNUSED
    assert "NFC" in words.notes[0]
    with pytest.raises(OpenSpectraError, match="id 300 has no row"):
        vocabulary(tmp_path / "tokenizer.json", 300)


# --- damaged and malicious files --------------------------------------------------------------------------------------

FILES = {
    ("trilm/1L", "transformers"): "model.safetensors",
    ("trilm/1L", "packed-1.6bit"): "model.safetensors",
    ("trilm/1L", "gguf-tq2_0"): "trilm-1L-TQ2_0.gguf",
}
EVERY = pytest.mark.parametrize(("made", "name"), FILES.items(), ids=[form for _, form in FILES])


def refused(folder: Path, form: str) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(DamagedArtifactError) as caught:
        read_stored(folder, form)
    (line,) = str(caught.value).splitlines()
    assert str(folder) in line and len(line) < 600
    return line


@EVERY
def test_a_flipped_bit_is_refused(damaged, made, name):
    folder = damaged(*made)
    content = bytearray((folder / name).read_bytes())
    content[-100] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=f"{name}: its sha256 differs"):
        load_model(folder)
    with pytest.raises(DamagedArtifactError, match="its sha256 differs"):
        generate(folder, "x", GREEDY, print)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm-was-done"),))


@EVERY
def test_a_pickle_is_refused_and_not_run(damaged, made, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = damaged(*made)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    assert "a pickle, which may run code" in refused(folder, made[1])
    (folder / "pytorch_model.bin").rename(folder / name)
    assert "not a whole" in refused(folder, made[1])
    torch.save({"weight": torch.zeros(2)}, folder / name)
    assert "not a whole" in refused(folder, made[1])
    assert not Path("harm-was-done").exists()


@EVERY
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(damaged, made, name, kept):
    folder = damaged(*made)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "not a whole" in refused(folder, made[1])


@pytest.mark.parametrize("form", ["transformers", "packed-1.6bit"])
def test_tensors_of_another_model_are_refused(damaged, form):
    folder = damaged("trilm/1L", form)
    path, suffix = folder / "model.safetensors", "" if form == "transformers" else ".packed"
    good, name = load_file(path), f"model.layers.0.mlp.up_proj.weight{suffix}"
    for change, message in (
        ({name: good[name][:-1].clone()}, "has shape"),
        ({"model.norm.weight": good["model.norm.weight"] * float("nan")}, "not finite"),
        ({"model.layers.7.mlp.up_proj.weight": torch.zeros(2)}, "is none of the config's model"),
        ({name: None}, "is missing"),
    ):
        tensors = {key: value for key, value in (good | change).items() if value is not None}
        save_file(tensors, path, {"format": "pt"})
        assert message in refused(folder, form)


def test_bytes_that_pack_no_states_are_refused(damaged):
    folder = damaged("trilm/1L", "packed-1.6bit")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight.packed"][5] = 243
    save_file(tensors, path, {"format": "pt"})
    assert "up_proj.weight: a byte holds no states" in refused(folder, "packed-1.6bit")


@pytest.mark.parametrize("form", ["transformers", "packed-1.6bit"])
def test_absurd_headers_of_safetensors_are_refused(damaged, form):
    folder = damaged("trilm/1L", form)
    path = folder / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    for content in (
        struct.pack("<Q", 2**62),
        struct.pack("<Q", len(header)) + header,
        struct.pack("<Q", 10) + b"{" * 10,
    ):
        path.write_bytes(content)
        assert "not a whole safetensors file" in refused(folder, form)


@pytest.mark.parametrize("form", ["transformers", "packed-1.6bit"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**12}, "tensors where the config has 1,000,000,000,000 layers"),
        ({"hidden_size": 10**14}, "has shape"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_act": "gelu"}, "hidden_act: must be silu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ({"eos_token_id": 10**9}, "eos_token_id"),
        ({"model_type": "gpt2"}, "model_type"),
    ],
)
def test_absurd_configs_are_refused(damaged, form, change, message):
    folder = damaged("trilm/1L", form)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert message in refused(folder, form)
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json: not a readable JSON file" in refused(folder, form)


def test_absurd_headers_of_gguf_are_refused(damaged):
    folder = damaged("trilm/1L", "gguf-tq2_0")
    path = folder / FILES["trilm/1L", "gguf-tq2_0"]
    good = path.read_bytes()
    start = good[:8]

    def key(name: bytes, kind: int) -> bytes:
        return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)

    text, number, array = gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT8, gguf.GGUFValueType.ARRAY
    for content in (
        start + struct.pack("<QQ", 2**62, 0),
        start + struct.pack("<QQ", 0, 2**62),
        start + struct.pack("<QQ", 0, 1) + key(b"a", text) + struct.pack("<Q", 2**63),
        start + struct.pack("<QQ", 0, 1) + key(b"a", array) + struct.pack("<IQ", number, 2**60),
        start + struct.pack("<QQ", 0, 1) + key(b"a", array) + struct.pack("<IQ", array, 1) * 5000,
        start + struct.pack("<QQ", 0, 1) + key(b"a", 99),
        start + struct.pack("<QQ", 1, 0) + struct.pack("<Q", 1) + b"w" + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
        b"GGUX" + good[4:],
        good[:4] + struct.pack("<I", 77) + good[8:],
    ):
        path.write_bytes(content)
        assert "not a whole GGUF file" in refused(folder, "gguf-tq2_0")


def with_hashes(folder: Path) -> Path:
    """Write the manifest of altered files anew, as whoever alters them can."""
    content = json.loads((folder / MANIFEST).read_text())
    content["files"] = [record_file(folder / each["path"], folder).model_dump() for each in content["files"]]
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", ["transformers", "packed-2bit"])
@pytest.mark.parametrize(
    "keys",
    [
        {"rope_parameters": "x"},
        {"rope_parameters": [1]},
        {"eos_token_id": True},
        {"quantization_config": "x"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"_attn_implementation": "somebody/kernels"},
        {"head_dim": 24},
    ],
    ids=lambda keys: "-".join(map(str, next(iter(keys.items()))))[:40],
)
def test_a_config_that_libraries_stumble_over_is_refused_in_one_line_or_has_no_effect(damaged, form, keys):
    folder = damaged("trilm/1L", form)
    whole = load_model(folder).model.state_dict()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    try:
        found = load_model(with_hashes(folder)).model.state_dict()
    except OpenSpectraError as error:
        assert len(str(error).splitlines()) == 1 and str(folder) in str(error)
    else:
        assert all(torch.equal(found[name], weight) for name, weight in whole.items())


def test_a_manifest_without_a_format_is_refused_in_one_line(damaged):
    folder = damaged("trilm/1L", "packed-2bit")
    content = json.loads((folder / MANIFEST).read_text())
    del content["config"]["format"]
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DamagedArtifactError, match="no model in its format .KeyError: 'format'"):
        load_model(folder)


def test_gguf_of_another_architecture_is_refused(damaged):
    folder = damaged("floatlm/1L", "gguf-f16")
    (path,) = folder.glob("*.gguf")
    good = path.read_bytes()

    def with_number(name: str, value: int) -> str:
        place = good.index(name.encode()) + len(name) + 4
        path.write_bytes(good[:place] + struct.pack("<I", value) + good[place + 4 :])
        return refused(folder, "gguf-f16")

    assert "layers" in with_number("llama.block_count", 2**31)
    assert "has shape" in with_number("llama.feed_forward_length", 97)
    assert "num_attention_heads" in with_number("llama.attention.head_count", 3)
    path.write_bytes(good.replace(b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama",
                                  b"general.architecture" + struct.pack("<IQ", 8, 5) + b"gpt-2"))  # fmt: skip
    assert "general.architecture: must be llama; got 'gpt-2'" in refused(folder, "gguf-f16")
    path.write_bytes(good.replace(b"blk.0.ffn_up.weight", b"blk.7.ffn_up.weight"))
    assert "mlp.up_proj.weight is missing" in refused(folder, "gguf-f16")


def test_gptq_folders_are_checked_before_gptqmodel_sees_them(tmp_path, small):
    """A folder as gptqmodel writes it, and what it would take on trust; `test_tiny_study.py` loads real ones."""
    shape = MODELS["floatlm/1L"]
    config = json.loads((small.folder / "floatlm/1L/config.json").read_text())
    tensors = {name: torch.zeros(size) for name, size in expected_shapes(shape).items() if not is_linear(name)}
    for name, (outputs, inputs) in {
        name: size for name, size in expected_shapes(shape).items() if is_linear(name)
    }.items():
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
        tensors[f"{layer}.qzeros"] = torch.zeros(1, outputs // 8, dtype=torch.int32)
        tensors[f"{layer}.scales"] = torch.zeros(1, outputs)
        tensors[f"{layer}.g_idx"] = torch.zeros(inputs, dtype=torch.int32)
    name = "model.layers.0.mlp.up_proj.qweight"
    for settings, change, message in (
        ({"bits": 10**6, "group_size": -1}, {}, "quantization_config: must have bits 3, 4, 6 or 8"),
        ({"bits": 4, "group_size": 0}, {}, "quantization_config: must have bits 3, 4, 6 or 8"),
        ("none", {}, "quantization_config: must have bits 3, 4, 6 or 8"),
        ({"bits": 4, "group_size": -1}, {name: tensors[name][1:].clone()}, "qweight has shape"),
        ({"bits": 8, "group_size": -1}, {}, "qweight has shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        save_file(tensors | change, tmp_path / "model.safetensors", {"format": "pt"})
        assert message in refused(tmp_path, "gptq")
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Harmful()))
    assert "not a whole safetensors file" in refused(tmp_path, "gptq")


def test_a_damaged_tokenizer_is_refused(damaged):
    folder = damaged("floatlm/1L", "gguf-f16")
    (folder / "tokenizer.json").write_text("{")
    from openspectra.export.loading import load_tokenizer

    with pytest.raises(DamagedArtifactError, match="tokenizer.json: not a readable tokenizer"):
        load_tokenizer(folder)


# --- in a study -------------------------------------------------------------------------------------------------------


def test_exports_of_a_study_are_artifacts_with_jobs(tmp_path):
    study = load_study(ROOT / "studies/demo.yaml")
    places = [place for place, stage in study.artifacts.items() if stage == "export"]
    assert places == ["exports/trilm/1.1M/packed-1.6bit", "exports/floatlm/1.1M/gguf-f16"]
    jobs = {job.name: job for job in jobs_of(study)}
    assert jobs[places[0]].rule == "export_model"
    assert {"trilm/1.1M", "evaluation/1.1M", "tokens/valid"} == set(jobs[places[0]].after)
    content = read_yaml(ROOT / "studies/demo.yaml") | {"exports": {"quantlm-4bit": ["gptq"], "trilm": ["gguf-f16"]}}
    assert list(validate(Study, content, "x.yaml").exported) == [
        *(f"exports/quantlm/{size}-4bit/gptq" for size in ("0.4M", "0.6M", "1.1M")),
        *(f"exports/trilm/{size}/gguf-f16" for size in ("0.4M", "0.6M", "1.1M")),
    ]


@pytest.mark.parametrize(
    ("exports", "message"),
    [
        ({"trilm/9M": ["gguf-f16"]}, r"exports.trilm/9M: no model of this study; name one of floatlm/0.4M"),
        (
            {"trilm/1.1M": ["gptq"]},
            r"exports.trilm/1.1M: trilm/1.1M: gptq holds no trilm; choose among transformers, packed",
        ),
        ({"trilm/1.1M": ["gguf-tq2_0"]}, "needs rows of a multiple of 256 weights of one scale in some matrix"),
        ({"trilm/1.1M": ["gguf"]}, r"exports.trilm/1.1M.0: input should be 'transformers'"),
        ({"trilm/1.1M": []}, r"exports.trilm/1.1M: list should have at least 1 item"),
    ],
)
def test_exports_that_cannot_be_are_named_before_anything_runs(tmp_path, monkeypatch, exports, message):
    import yaml

    content = read_yaml(ROOT / "studies/demo.yaml") | {"exports": exports}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        load_study(tmp_path / "study.yaml")


def test_every_format_suits_some_family():
    from openspectra.export.card import FORMATS
    from openspectra.model.families import FAMILY_NAMES

    assert set(FORMATS) == set(FAMILIES) and all(FAMILIES.values())
    assert {family for families in FAMILIES.values() for family in families} == {*FAMILY_NAMES, "quantlm"}


def test_the_report_shows_every_certificate(small):
    from openspectra.reporting.exports import exports_section
    from openspectra.reporting.load import Results

    made = [small.export("trilm/1L", "packed-1.6bit"), small.export("floatlm/1L", "gguf-f16")]
    section = exports_section(Results(made, [], None, None, None))
    table = section.tables["exports.csv"]
    assert list(zip(table["model"], table["format"], strict=True)) == [
        ("trilm/1L", "packed-1.6bit"),
        ("floatlm/1L", "gguf-f16"),
    ]
    (view,) = section.parts
    assert [row.cells[3].text for row in view.rows] == ["exact", "rounded"]
    assert all(len(row.cells) == len(view.columns) for row in view.rows)
    assert not exports_section(Results([], [], None, None, None)).parts


@pytest.mark.skipif(not llama_cpp.installed(), reason="llama-cpp-python is not installed (extra gguf-run)")
def test_llama_cpp_agrees(small):
    facts = json.loads((small.export("trilm/1L", "gguf-f16").folder / "run.json").read_text())["llama_cpp"]
    assert facts["num_texts_with_equal_ids"] == facts["num_texts"]
    assert facts["argmax_agreement"] >= 0.999
    assert np.isfinite(facts["largest_logit_difference"])
