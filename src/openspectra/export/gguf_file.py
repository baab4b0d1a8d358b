"""GGUF, the file of llama.cpp: weights, architecture and tokenizer in one, written and read back with the `gguf` package.

A matrix of ternary weights goes into blocks of 256 weights of a row with one half-precision scale (TQ1_0, TQ2_0). Where
a row is no multiple of 256, or two scales meet inside a block, that matrix is stored in half precision instead.
"""

import json
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from torch import Tensor

from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.export.config import TERNARY_BLOCK
from openspectra.export.stored import (
    AGAIN,
    Stored,
    check_layers,
    check_tensors,
    checked_shape,
    expected_shapes,
    is_linear,
)
from openspectra.model.config import LlamaShape

TYPES = {"gguf-f16": Type.F16, "gguf-q8_0": Type.Q8_0, "gguf-tq1_0": Type.TQ1_0, "gguf-tq2_0": Type.TQ2_0}
FILE_TYPES = {
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    Type.TQ1_0: gguf.LlamaFileType.MOSTLY_TQ1_0,
    Type.TQ2_0: gguf.LlamaFileType.MOSTLY_TQ2_0,
}
TERNARY = (Type.TQ1_0, Type.TQ2_0)
PRE_TOKENIZER = "gpt-2"
"""llama.cpp's name of the pattern by which `ByteLevel` of the tokenizers library cuts a text: that of GPT-2."""
MOST_ITEMS = 2**24
"""Items of a list in a header; the largest vocabularies have a few hundred thousand."""
ARCHITECTURE = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA]
SHAPE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""Our names of the architecture's numbers, and those of GGUF."""


class Vocabulary(NamedTuple):
    """A tokenizer in the words of GGUF."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    notes: list[str]
    """What llama.cpp does otherwise than the tokenizer."""


def write_gguf(source: Stored, form: str, model_id: str, tokenizer_json: Path, path: Path) -> list[str]:
    """Write a model into one file; return sentences on what is stored otherwise than the format's name says.

    Raises `OpenSpectraError` where nothing fits the format, a weight is beyond half precision, or llama.cpp has no name for
    how the tokenizer cuts a text.
    """
    wanted, shape = TYPES[form], source.shape
    words = vocabulary(tokenizer_json, shape.vocab_size)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_facts(writer, shape, model_id, FILE_TYPES[wanted])
    _add_vocabulary(writer, words, source.end_of_text)
    names, halves = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers), []
    num_linear = 0
    for name in expected_shapes(shape):
        weight = _array(name, source.weights[name], shape)
        kind = _type_of(name, weight, wanted)
        num_linear += is_linear(name)
        if is_linear(name) and kind != wanted:
            halves.append(name.removesuffix(".weight"))
        if kind == Type.F16 and not np.isfinite(weight.astype(np.float16)).all():
            raise OpenSpectraError(
                f"{model_id}: {name}: holds weights beyond half precision, 65504; export format transformers."
            )
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), quantize(weight, kind), raw_dtype=kind)
    if len(halves) == num_linear:
        raise OpenSpectraError(
            f"{model_id}: no matrix fits into blocks of {TERNARY_BLOCK} weights with one scale, as {form} has them; export "
            "format gguf-f16 or packed-2bit."
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kept = f"{len(halves)} of {num_linear} matrices stored in F16 ({', '.join(_kinds(halves))}): no whole blocks of one scale"
    notes = words.notes + ([f"{kept}."] if halves else [])
    return notes + ["The embedding, quantized in training, is stored in F16."] * shape.quantized_embedding


def vocabulary(tokenizer_json: Path, num_rows: int) -> Vocabulary:
    """Return a byte-level BPE as llama.cpp reads it, with one entry for each of the `num_rows` rows of the embedding.

    Raises `OpenSpectraError` for a tokenizer that llama.cpp would apply otherwise.
    """
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    model, pre, normalizer = content["model"], content.get("pre_tokenizer") or {}, content.get("normalizer")
    settings = {
        "model.type": (model["type"], "BPE"),
        "model.byte_fallback": (model.get("byte_fallback") or False, False),
        "model.ignore_merges": (model.get("ignore_merges") or False, False),
        "pre_tokenizer.type": (pre.get("type"), "ByteLevel"),
        "pre_tokenizer.add_prefix_space": (pre.get("add_prefix_space"), False),
        "pre_tokenizer.use_regex": (pre.get("use_regex", True), True),
        "normalizer": (normalizer, normalizer if normalizer in (None, {"type": "NFC"}) else None),
    }
    for key, (value, expected) in settings.items():
        if value != expected:
            raise OpenSpectraError(
                f"{tokenizer_json}: {key} is {value!r}, and GGUF has a truthful name for {expected!r} only; export another "
                "format."
            )
    tokens = {index: token for token, index in model["vocab"].items()}
    types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    if max(tokens) >= num_rows:
        raise OpenSpectraError(f"{tokenizer_json}: id {max(tokens)} has no row among the embedding's {num_rows}.")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary(
        [tokens.get(index, f"[unused{index}]") for index in range(num_rows)],
        [types.get(index, gguf.TokenType.UNUSED) for index in range(num_rows)],
        merges,
        ["The tokenizer brings text to Unicode's form NFC first, llama.cpp does not: give it such text."]
        * bool(normalizer),
    )


def read_gguf(path: Path) -> Stored:
    """Return what a file holds, dequantized, under Hugging Face's names. Raises `DamagedArtifactError` for a broken one."""
    try:
        reader = BoundedReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        end_of_text = reader.fields["tokenizer.ggml.eos_token_id"].contents()
    except Exception as error:  # of whatever kind: the reader trusts its file
        reason = str(error).partition("\n")[0]
        raise DamagedArtifactError(f"{path}: not a whole GGUF file ({reason}); {AGAIN}") from None
    if fields.get("general.architecture") != ARCHITECTURE:
        raise DamagedArtifactError(
            f"{path}: general.architecture: must be {ARCHITECTURE}; got {fields.get('general.architecture')!r}; {AGAIN}"
        )
    known = {ours: fields.get(f"{ARCHITECTURE}.{theirs}") for ours, theirs in SHAPE_KEYS.items()}
    shape = checked_shape(known, path)
    check_layers(shape, len(reader.tensors), path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    weights, linear = {}, 0
    for name in expected_shapes(shape):
        tensor = stored.pop(names.get_name(name, try_suffixes=(".weight",)), None)
        if tensor is None:
            raise DamagedArtifactError(f"{path}: tensor of {name} is missing; {AGAIN}")
        if tensor.tensor_type not in (Type.F32, *FILE_TYPES):
            raise DamagedArtifactError(
                f"{path}: {tensor.name}: type {tensor.tensor_type.name} is none of ours; {AGAIN}"
            )
        weights[name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=True))
        linear += tensor.n_bytes if is_linear(name) else 0
    weights |= {name: torch.tensor([]) for name in stored}  # that no tensor of the model is called
    check_tensors(weights, expected_shapes(shape), path)
    for name in filter(_is_turned, weights):
        heads = shape.num_attention_heads
        weights[name] = weights[name].view(heads, -1, 2, shape.hidden_size).transpose(1, 2).reshape(weights[name].shape)
    return Stored(shape, "floatlm", end_of_text, weights, linear, f"gguf {_version()}")


class BoundedReader(gguf.GGUFReader):
    """A reader that stays inside its file, and does not count to what a broken header says."""

    def _get(self, offset, dtype, count=1, override_order=None):
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if int(offset) < 0 or end > len(self.data):
            raise ValueError(f"its header leads to byte {end:,} of {len(self.data):,}")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type == gguf.GGUFValueType.ARRAY:
            kind, length = int(self._get(orig_offs, np.uint32)[0]), int(self._get(orig_offs + 4, np.uint64)[0])
            if kind == gguf.GGUFValueType.ARRAY or length > MOST_ITEMS:
                raise ValueError(f"its header has a list of {length:,} items of kind {kind}")
        return super()._get_field_parts(orig_offs, raw_type)


def _add_facts(writer: gguf.GGUFWriter, shape: LlamaShape, model_id: str, file_type: int) -> None:
    writer.add_name(model_id)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_attention_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)


def _add_vocabulary(writer: gguf.GGUFWriter, words: Vocabulary, end_of_text: int) -> None:
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of a byte-level BPE
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)  # the text of training has none
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _array(name: str, weight: Tensor, shape: LlamaShape) -> np.ndarray:
    """Return a weight in float32, the outputs of q and k in the order of llama.cpp's rotary positions: pairs side by side."""
    if _is_turned(name):
        weight = weight.view(shape.num_attention_heads, 2, -1, shape.hidden_size).transpose(1, 2).reshape(weight.shape)
    return weight.float().contiguous().numpy()


def _is_turned(name: str) -> bool:
    return name.endswith(("q_proj.weight", "k_proj.weight"))


def _type_of(name: str, weight: np.ndarray, wanted: Type) -> Type:
    """Return how a tensor is stored: norms in float32; ternary formats hold whole blocks of linear layers only."""
    if weight.ndim == 1:
        return Type.F32
    if wanted not in TERNARY:
        return wanted
    if not is_linear(name) or weight.shape[1] % TERNARY_BLOCK:
        return Type.F16
    is_exact = np.array_equal(
        dequantize(quantize(weight, wanted), wanted), weight.astype(np.float16).astype(np.float32)
    )
    return wanted if is_exact else Type.F16


def _kinds(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
