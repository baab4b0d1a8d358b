"""Packed safetensors: discrete weights at 2, 1.6 or 1 bits each, head and norms as they are.

The folder is a Hugging Face folder but for its weights: of a linear layer it holds `weight.packed` (uint8, the flat
matrix, `model/packing.py`) and `weight.scales`, one for each shard, of a quantized embedding the same, one for each row.
Its model type keeps other programs from taking it for a plain Llama; `export/loading.py` reads it.
"""

from pathlib import Path

import safetensors
from safetensors.torch import save_file

from openspectra.artifacts import write_json
from openspectra.errors import DamagedArtifactError, OpenSpectraError
from openspectra.export.stored import (
    AGAIN,
    Stored,
    check_layers,
    check_tensors,
    config_of,
    expected_shapes,
    is_linear,
    linear_bytes,
    read_json,
    read_safetensors,
)
from openspectra.model.config import LlamaShape
from openspectra.model.hugging_face import WEIGHTS, hugging_face_config
from openspectra.model.packing import FIVE_TRITS, ONE_BIT, TWO_BITS, Packing, pack, unpack
from openspectra.model.shards import Shards, by_row, column_parallel, row_parallel

PACKINGS: dict[str, Packing] = {"packed-2bit": TWO_BITS, "packed-1.6bit": FIVE_TRITS, "packed-1bit": ONE_BIT}
ROW_PARALLEL = ("o_proj.weight", "down_proj.weight")
"""Matrices that are cut along their inputs; the others are cut along their outputs (`model/llama.py`)."""
MODEL_TYPE = "openspectra-packed"


def write_packed(source: Stored, form: str, family: str, model_id: str, folder: Path) -> None:
    """Write weights and config of a discrete model into `folder`. Raises `OpenSpectraError` for latent weights."""
    tensors, packing = {}, PACKINGS[form]
    for name, weight in source.weights.items():
        shards = shards_of(name, tuple(weight.shape), source.shape)
        if not shards:
            tensors[name] = weight.contiguous()
            continue
        try:
            packed, found = pack(weight, shards, packing)
        except ValueError as error:
            raise OpenSpectraError(f"{model_id}: {name}: {error}") from None
        tensors |= {f"{name}.packed": packed, f"{name}.scales": found.contiguous()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    dtype = str(source.weights["lm_head.weight"].dtype).removeprefix("torch.")
    config = hugging_face_config(source.shape, family, dtype, source.end_of_text)
    config |= {"model_type": MODEL_TYPE, "architectures": [], "packing": form}
    write_json(folder / "config.json", config)


def read_packed(folder: Path) -> Stored:
    """Return what a packed folder holds, unpacked. Raises `DamagedArtifactError` for what no export wrote."""
    shape, family, end_of_text = config_of(folder)
    form, path = read_json(folder / "config.json").get("packing"), folder / WEIGHTS
    if form not in PACKINGS:
        raise DamagedArtifactError(
            f"{folder / 'config.json'}: packing: must be one of {', '.join(PACKINGS)}; got {form!r}; {AGAIN}"
        )
    packing, tensors = PACKINGS[form], read_safetensors(path)
    check_layers(shape, len(tensors), path)
    dense = expected_shapes(shape, family)
    shards = {name: cut for name, size in dense.items() if (cut := shards_of(name, size, shape))}
    expected = {name: size for name, size in dense.items() if name not in shards}
    for name, cut in shards.items():
        outputs, inputs = dense[name]
        expected[f"{name}.packed"] = (-(-outputs * inputs // packing.per_byte),)
        expected[f"{name}.scales"] = tuple(1 if place in cut.dims else size for place, size in enumerate(cut.view))
    check_tensors(tensors, expected, path)
    weights = {name: tensors[name] for name in dense if name not in shards}
    for name, cut in shards.items():
        try:
            weights[name] = unpack(tensors[f"{name}.packed"], tensors[f"{name}.scales"], cut, dense[name], packing)
        except (ValueError, RuntimeError) as error:
            raise DamagedArtifactError(f"{path}: {name}: {str(error).partition(chr(10))[0]}; {AGAIN}") from None
    loader = f"openspectra, safetensors {safetensors.__version__}"
    return Stored(shape, family, end_of_text, weights, linear_bytes(tensors), loader)


def shards_of(name: str, size: tuple[int, ...], shape: LlamaShape) -> Shards | None:
    """Return which weights of a linear layer or a quantized embedding share a scale; None for what is not discrete."""
    if shape.quantized_embedding and name == "model.embed_tokens.weight":
        return by_row(*size)
    if not is_linear(name):
        return None
    cut = row_parallel if name.endswith(ROW_PARALLEL) else column_parallel
    return cut(*size, shape.scales_per_matrix)
