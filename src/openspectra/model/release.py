"""Released weights as a model of a study: a folder of the hub, or a local one of that layout, without any training.

Expected is what the authors publish: a plain Llama folder in half precision, the ternary models unpacked, with
`pretraining_model_parallel` for the number of scales of a matrix.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from openspectra.artifacts import write_csv
from openspectra.data.local_files import data_folder
from openspectra.data.tokenizer import TOKENIZER_FILES
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.model.config import ReleaseConfig
from openspectra.model.families import load_family
from openspectra.model.size import counted_parameters, model_size_bits, quantized_embedding

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.json", "*.safetensors", "*.bin")
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STATE_COLUMNS = ("layer", "num_weights", "num_scales", "sparsity")


def import_release(config: ReleaseConfig, folder: Path) -> dict[str, Any]:
    """Write the Hugging Face folder of a released model and, of a discrete family, `states.csv`; return its counts.

    `states.csv` says of each matrix how many scales it has and which share of its weights is zero. Raises `ConfigError`
    for another architecture than the study's size has, `OpenSpectraError` for weights that are missing or not discrete.
    """
    from transformers import AutoModelForCausalLM

    source = _folder_of(config)
    _check_architecture(config, source)
    model, info = AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", local_files_only=True, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise OpenSpectraError(
            f"{config.model_id}: {source}: no weights for {missing[0]} ({len(missing)} missing); fetch the folder anew."
        )
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            raise OpenSpectraError(f"{config.model_id}: {source / name}: missing; put the model's tokenizer there.")
        shutil.copyfile(source / name, folder / name)
    family = load_family(config.family)
    linear = {name: weight for name, weight in model.state_dict().items() if name.split(".")[-2] in MATRICES}
    states = {}
    if config.family != "floatlm":
        rows = [_states(config, name, weight) for name, weight in linear.items()]
        write_csv(folder / "states.csv", STATE_COLUMNS, rows)
        zeros = sum(row["sparsity"] * row["num_weights"] for row in rows)
        states = {"sparsity": zeros / sum(row["num_weights"] for row in rows)}
    if config.shape.quantized_embedding:
        _check_embedding(config, model.get_input_embeddings().weight.detach())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_linear = sum(weight.numel() for weight in linear.values())
    shape = config.shape.model_copy(update={"vocab_size": model.config.vocab_size})
    counted = counted_parameters(num_parameters, shape, config.vocab_size)
    embedding = quantized_embedding(shape, config.vocab_size)
    return {
        "num_parameters": num_parameters,
        "num_counted_parameters": counted,
        "num_linear_parameters": num_linear,
        "bits_per_weight": family.bits_per_weight,
        "model_size_bits": model_size_bits(num_linear, counted, family.bits_per_weight, *embedding),
        "tokens_seen": config.tokens_seen,
        **states,
    }


def _folder_of(config: ReleaseConfig) -> Path:
    """Return the folder with the released files; one of the hub is fetched into its cache."""
    local = data_folder() / config.source
    if local.is_dir():
        return local
    if not HUB_ID.fullmatch(config.source):
        raise ConfigError(
            [f"released: {config.source}: no folder {local}, and no name of a repository on the hub; correct it."]
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(config.source, revision=config.revision, allow_patterns=list(FILES)))
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OpenSpectraError(
            f"released: {config.source}: cannot be had ({reason}); run `snakemake prefetch` where there is a network, or put "
            f"the folder at {local}."
        ) from None


def _check_architecture(config: ReleaseConfig, source: Path) -> None:
    try:
        found = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OpenSpectraError(f"{source / 'config.json'}: not readable ({error}); fetch the folder anew.") from None
    wanted = {
        key: getattr(config.shape, key)
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    wanted |= {"model_type": "llama", "pretraining_model_parallel": config.shape.scales_per_matrix}
    differing = [
        f"{key} {found.get(key)}, not {value}"
        for key, value in wanted.items()
        if found.get(key, value if key == "pretraining_model_parallel" else None) != value
    ]
    if differing:
        raise ConfigError(
            [
                f"released: {config.model_id}: {source / 'config.json'}: {', '.join(differing)}; name the folder of this size."
            ]
        )


def _check_embedding(config: ReleaseConfig, weight) -> None:
    """Raise `OpenSpectraError` for an embedding that is to be counted as quantized and is not."""
    from openspectra.model.llama import is_discrete
    from openspectra.model.shards import by_row

    if not is_discrete(weight, by_row(*weight.shape)):
        raise OpenSpectraError(
            f"{config.model_id}: model.embed_tokens.weight holds several magnitudes in a row: no quantized embedding; drop "
            f"`families.{config.family}.quantized_embedding`."
        )


def _states(config: ReleaseConfig, name: str, weight) -> dict[str, Any]:
    """Return scales and zeros of a matrix. Raises `OpenSpectraError` where it has more magnitudes than scales."""
    magnitudes = weight.abs().unique()
    num_scales = int((magnitudes > 0).sum())
    if num_scales > config.shape.scales_per_matrix:
        raise OpenSpectraError(
            f"{config.model_id}: {name} holds {num_scales:,} magnitudes where {config.shape.scales_per_matrix} scales are "
            f"expected: no weights of a {config.family}; give the unpacked release."
        )
    zeros = float((weight == 0).double().mean())
    layer = name.removesuffix(".weight")
    return {"layer": layer, "num_weights": weight.numel(), "num_scales": num_scales, "sparsity": round(zeros, 6)}
