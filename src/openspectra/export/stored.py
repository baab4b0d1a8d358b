"""The weights of a folder, whatever its format, as dense tensors under Hugging Face's names; what is damaged is refused.

Nothing is taken on trust: shapes come from the config, and a file must hold exactly these tensors before a model is
built. A pickle, which could run code when it is read, is never opened.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openspectra.config import validate
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.export.config import GPTQ_FOLDER_BITS
from openspectra.model.config import LlamaShape
from openspectra.model.families import FAMILY_NAMES, load_family
from openspectra.model.hugging_face import WEIGHTS
from openspectra.model.llama import DecoderLayer

AGAIN = "fetch the folder again, or export it anew."
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block, by the last part of their name."""
MOST_BYTES = 100_000_000
"""Of a JSON file beside the weights."""


SMALLEST = LlamaShape(vocab_size=1, hidden_size=2, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1)
"""What a family adds to a block has the same names at every size; a config that was read may be absurd."""


class Stored(NamedTuple):
    """What a folder holds."""

    shape: LlamaShape
    family: str
    """The family, where it is one that a plain Llama does not express; else `floatlm`: the weights say all."""
    end_of_text: int
    weights: dict[str, Tensor]
    """Dense tensors by Hugging Face's names."""
    linear_bytes: int
    """Bytes that the linear layers of the blocks take in the file, scales included."""
    loader: str
    """Program and version that read it."""


def is_linear(name: str) -> bool:
    """Return whether a tensor belongs to a linear layer of a block."""
    return any(part in LINEAR for part in name.split("."))


def expected_shapes(shape: LlamaShape, family: str = "floatlm") -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model by Hugging Face's names."""
    hidden, inner, rows = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    block = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    block |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    block |= {"mlp.down_proj.weight": (hidden, inner)}
    if load_family(family).has_block_norms:
        block |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    with torch.device("meta"):
        smallest = DecoderLayer(SMALLEST, load_family(family), "fused")
    block |= {name: (1,) for name, _ in smallest.named_parameters() if ".activations." in name}
    layers = {
        f"model.layers.{number}.{name}": size
        for number in range(shape.num_hidden_layers)
        for name, size in block.items()
    }
    embeddings = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    return layers | embeddings | {"model.norm.weight": (hidden,)}


def check_layers(shape: LlamaShape, num_tensors: int, path: Path) -> None:
    """Raise `DamagedArtifactError` where a file has less tensors than a config has layers: no list is made of absurd counts."""
    if shape.num_hidden_layers > num_tensors:
        raise DamagedArtifactError(
            f"{path}: {num_tensors} tensors where the config has {shape.num_hidden_layers:,} layers; {AGAIN}"
        )


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise `DamagedArtifactError` where tensors are missing, unknown, of another shape, or not finite."""
    for name, size in expected.items():
        if name not in found:
            raise DamagedArtifactError(f"{path}: tensor {name} is missing; {AGAIN}")
        if tuple(found[name].shape) != tuple(size):
            raise DamagedArtifactError(
                f"{path}: tensor {name} has shape {tuple(found[name].shape)}, the config wants {tuple(size)}; {AGAIN}"
            )
        if found[name].is_floating_point() and not torch.isfinite(found[name]).all():
            raise DamagedArtifactError(f"{path}: tensor {name} holds numbers that are not finite; {AGAIN}")
    if unknown := sorted(set(found) - set(expected)):
        raise DamagedArtifactError(f"{path}: tensor {unknown[0]} is none of the config's model; {AGAIN}")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file. Raises `DamagedArtifactError` for what is no whole safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise DamagedArtifactError(f"{path}: not a whole safetensors file ({reason}); {AGAIN}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `DamagedArtifactError` for anything else."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"{path}: not a readable JSON file ({error}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise DamagedArtifactError(f"{path}: holds no JSON object; {AGAIN}")
    return content


def refuse_pickles(folder: Path) -> None:
    """Raise `DamagedArtifactError` where a pickle lies beside the weights."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in PICKLES:
            raise DamagedArtifactError(f"{path}: a pickle, which may run code when read; take weights in safetensors.")


def config_of(folder: Path) -> tuple[LlamaShape, str, int]:
    """Return shape, family and end-of-text id in a folder's `config.json`.

    Raises `DamagedArtifactError` for a model of another kind, or numbers that no Llama has.
    """
    path = folder / "config.json"
    config = read_json(path)
    rope = config.get("rope_parameters") or {}
    settings = {
        "model_type": (config.get("model_type"), ("llama", "openspectra", "openspectra-packed")),
        "family": (config.get("family", "floatlm"), FAMILY_NAMES),
        "hidden_act": (config.get("hidden_act"), ("silu",)),
        "tie_word_embeddings": (config.get("tie_word_embeddings", False), (False,)),
        "rope_parameters.rope_type": (rope.get("rope_type", "default"), ("default",)),
        "num_key_value_heads": (config.get("num_key_value_heads"), (config.get("num_attention_heads"), None)),
    }
    for key, (value, allowed) in settings.items():
        if value not in allowed:
            raise DamagedArtifactError(
                f"{path}: {key}: must be {' or '.join(map(str, allowed))}; got {value!r}; {AGAIN}"
            )
    known = {key: config[key] for key in LlamaShape.model_fields if key in config}
    known |= {"scales_per_matrix": config.get("pretraining_model_parallel", 1)}
    if theta := config.get("rope_theta", rope.get("rope_theta")):
        known["rope_theta"] = theta
    end = config.get("eos_token_id")
    shape = checked_shape(known, path)
    if not isinstance(end, int) or not 0 <= end < shape.vocab_size:
        raise DamagedArtifactError(
            f"{path}: eos_token_id: must be an id below {shape.vocab_size:,}; got {end!r}; {AGAIN}"
        )
    return shape, config.get("family", "floatlm"), end


def checked_shape(known: dict[str, Any], path: Path) -> LlamaShape:
    """Return an architecture. Raises `DamagedArtifactError` in one line where there is none with these numbers."""
    try:
        return validate(LlamaShape, known, str(path))
    except ConfigError as error:
        raise DamagedArtifactError(f"{error.problems[0].rstrip('.')}; {AGAIN}") from None


def read_dense(folder: Path) -> Stored:
    """Return what a plain Hugging Face folder holds."""
    import transformers

    shape, family, end_of_text = config_of(folder)
    weights: dict[str, Tensor] = {}
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        weights |= read_safetensors(path)
    path = paths[0] if paths else folder / WEIGHTS
    if not weights:
        raise DamagedArtifactError(f"{path}: no weights there; {AGAIN}")
    check_layers(shape, len(weights), path)
    check_tensors(weights, expected_shapes(shape, family), path)
    return Stored(
        shape, family, end_of_text, weights, linear_bytes(weights), f"transformers {transformers.__version__}"
    )


def linear_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of the tensors that belong to linear layers."""
    return sum(tensor.nbytes for name, tensor in tensors.items() if is_linear(name))


def read_gptq(folder: Path) -> Stored:
    """Return what a GPTQ folder holds, dequantized by gptqmodel to half precision."""
    shape, family, end_of_text = config_of(folder)
    path = folder / WEIGHTS
    packed = read_safetensors(path)
    check_layers(shape, len(packed), path)
    check_tensors(packed, _gptq_shapes(folder, shape), path)
    model = _load_gptq(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    check_tensors(weights, expected_shapes(shape, family), path)
    import gptqmodel

    return Stored(shape, family, end_of_text, weights, linear_bytes(packed), f"gptqmodel {gptqmodel.__version__}")


def _gptq_shapes(folder: Path, shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a GPTQ folder: words of 32 bits, scales and zero points by group, order of rows."""
    path = folder / "config.json"
    settings = read_json(path).get("quantization_config")
    settings = settings if isinstance(settings, dict) else {}
    bits, group = settings.get("bits"), settings.get("group_size")
    if bits not in GPTQ_FOLDER_BITS or not isinstance(group, int) or group == 0 or group < -1:
        raise DamagedArtifactError(
            f"{path}: quantization_config: must have bits 3, 4, 6 or 8 and a group_size; got {bits!r} and {group!r}; {AGAIN}"
        )
    shapes = expected_shapes(shape)
    for name in [name for name in shapes if is_linear(name)]:
        outputs, inputs = shapes.pop(name)
        layer, groups = name.removesuffix(".weight"), 1 if group == -1 else math.ceil(inputs / group)
        shapes[f"{layer}.qweight"] = (inputs * bits // 32, outputs)
        shapes[f"{layer}.qzeros"] = (groups, outputs * bits // 32)
        shapes[f"{layer}.scales"] = (groups, outputs)
        shapes[f"{layer}.g_idx"] = (inputs,)
    return shapes


def _load_gptq(folder: Path):
    from openspectra.quantization.gptq import SETTINGS

    os.environ.update(SETTINGS)
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import dequantize_model

    loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    return dequantize_model(loaded.model)
