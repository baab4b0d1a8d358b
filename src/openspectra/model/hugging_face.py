"""The model as a Hugging Face folder: what `transformers`, lm-eval and gptqmodel load without code of ours."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openspectra.artifacts import Artifact, write_json
from openspectra.data.tokenizer import TOKENIZER_FILES, end_of_text_id
from openspectra.model.config import LlamaShape
from openspectra.model.families import load_family
from openspectra.model.llama import Llama
from openspectra.model.size import counted_parameters, model_size_bits, quantized_embedding

WEIGHTS = "model.safetensors"


def save_model(model: Llama, family: str, dtype: str, tokenizer: Artifact, folder: Path) -> dict[str, Any]:
    """Write the Hugging Face folder of a model (effective weights, config, tokenizer); return its counts."""
    save_file(exported_weights(model, dtype), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / "config.json", hugging_face_config(model.shape, family, dtype, end_of_text_id(tokenizer)))
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer.file(name), folder / name)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    vocab_size = tokenizer.manifest.metrics["vocab_size"]
    counted = counted_parameters(num_parameters, model.shape, vocab_size)
    linear, width = model.shape.num_linear_parameters, model.family.bits_per_weight
    return {
        "num_parameters": num_parameters,
        "num_counted_parameters": counted,
        "num_linear_parameters": linear,
        "bits_per_weight": width,
        "model_size_bits": model_size_bits(linear, counted, width, *quantized_embedding(model.shape, vocab_size)),
    }


def exported_weights(model: Llama, dtype: str) -> dict[str, torch.Tensor]:
    """Return the effective weights of a model under Hugging Face's names, on the CPU."""
    precision = getattr(torch, dtype)
    return {name: tensor.to(precision).contiguous().cpu() for name, tensor in model.export_state_dict().items()}


def hugging_face_config(shape: LlamaShape, family: str, dtype: str, end_of_text: int) -> dict[str, Any]:
    """Return the `config.json` with which `transformers` builds the same model.

    Unmodified for families that a stock Llama expresses; the others name a model type of this package, so that no
    program takes them for a plain Llama.
    """
    stock = load_family(family).is_stock_llama
    return {
        "architectures": ["LlamaForCausalLM" if stock else "SpectraForCausalLM"],
        "model_type": "llama" if stock else "openspectra",
        **({} if stock else {"family": family}),
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
        **shape.model_dump(exclude={"scales_per_matrix", "initialization"}),
    }
