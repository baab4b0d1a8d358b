"""The model as a Hugging Face folder: what `transformers`, lm-eval and gptqmodel load without code of ours."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openspectra.artifacts import Artifact, write_json
from openspectra.config import LlamaShape, PretrainConfig
from openspectra.data.tokenizer import TOKENIZER_FILES, end_of_text_id
from openspectra.model.llama import Llama
from openspectra.model.size import bits_per_weight, model_size_bits


def save_model(model: Llama, config: PretrainConfig, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the Hugging Face folder of a model (effective weights, config, tokenizer); return its counts."""
    dtype = getattr(torch, config.export_dtype)
    state = {name: tensor.to(dtype).contiguous().cpu() for name, tensor in model.export_state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json", hugging_face_config(config.shape, config.export_dtype, end_of_text_id(tokenizer))
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer.file(name), folder / name)
    shape, width = config.shape, bits_per_weight(config.family)
    return {
        "num_parameters": shape.num_parameters,
        "num_linear_parameters": shape.num_linear_parameters,
        "bits_per_weight": width,
        "model_size_bits": model_size_bits(shape.num_linear_parameters, shape.num_parameters, width),
    }


def hugging_face_config(shape: LlamaShape, dtype: str, end_of_text: int) -> dict[str, Any]:
    """Return the `config.json` with which unmodified `transformers` builds the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "dtype": dtype,
        "torch_dtype": dtype,
        "num_key_value_heads": shape.num_attention_heads,
        "head_dim": shape.head_dim,
        # both spellings: transformers 5 reads rope_parameters, 4 reads rope_theta and would silently take 10000
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "pretraining_model_parallel": shape.scales_per_matrix,  # the authors' name for scales per matrix
        **shape.model_dump(exclude={"scales_per_matrix"}),
    }
