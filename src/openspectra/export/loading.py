"""A model from a folder, in whatever format it was exported: `model, tokenizer = load_model("folder")`.

Every file is checked against the folder's manifest, then against the architecture, before a model is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from openspectra.artifacts import Artifact, open_artifact
from openspectra.errors import ConfigError, DamagedArtifactError, OpenSpectraError
from openspectra.export.stored import AGAIN, Stored, read_dense, read_gptq, refuse_pickles
from openspectra.model.spectra_llama import SpectraConfig, SpectraForCausalLM

MODEL_STAGES = ("pretrain", "checkpoint", "release", "quantize")
GGUF = "*.gguf"


class Loaded(NamedTuple):
    """A model that computes in float32, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_model(folder: Path | str) -> Loaded:
    """Return model and tokenizer of a model artifact or an export. Raises `DamagedArtifactError` for a damaged folder."""
    artifact = open_model(Path(folder))
    with malformed_in_one_line(artifact.folder):
        form = format_of(artifact)
        model = build(read_stored(artifact.folder, form), artifact.folder, form)
    return Loaded(model, load_tokenizer(artifact.folder))


@contextmanager
def malformed_in_one_line(folder: Path) -> Iterator[None]:
    """Tell in one line what libraries say of files whose hashes are right and whose content is none of a model's.

    They raise errors of every kind, for a key of another type as for one that asks for a program that is not installed.
    """
    try:
        yield
    except (OpenSpectraError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DamagedArtifactError(
            f"{folder}: no model in its format ({type(error).__name__}: {reason}); {AGAIN}"
        ) from error


def open_model(folder: Path) -> Artifact:
    """Return a model or an export, every file checked. Raises `ConfigError` for another stage's folder."""
    artifact = open_artifact(folder)
    stages = (*MODEL_STAGES, "export")
    if artifact.manifest.stage not in stages:
        raise ConfigError([f"{folder}: made by stage {artifact.manifest.stage}; give a model or an export."])
    artifact.verify()
    return artifact


def format_of(artifact: Artifact) -> str:
    """Return the format of a folder; a model is a Hugging Face folder by itself."""
    return artifact.manifest.config["format"] if artifact.manifest.stage == "export" else "transformers"


def read_stored(folder: Path, form: str) -> Stored:
    """Return what a folder of a format holds, dense. Raises `DamagedArtifactError` for a damaged one."""
    refuse_pickles(folder)
    if form == "gptq":
        return read_gptq(folder)
    if form.startswith("packed"):
        from openspectra.export.packed import read_packed

        return read_packed(folder)
    if form.startswith("gguf"):
        from openspectra.export.gguf_file import read_gguf

        return read_gguf(gguf_path(folder))
    return read_dense(folder)


def gguf_path(folder: Path) -> Path:
    """Return the one GGUF file of a folder."""
    paths = sorted(folder.glob(GGUF))
    if len(paths) != 1:
        raise DamagedArtifactError(f"{folder}: {len(paths)} GGUF files where one is expected; {AGAIN}")
    return paths[0]


def build(stored: Stored, folder: Path, form: str) -> PreTrainedModel:
    """Return the model of `transformers` with these weights, in float32; of a Hugging Face folder as `transformers` loads it."""
    logging.disable_progress_bar()
    if form == "transformers":
        settings = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
    shape, is_plain = stored.shape, stored.family == "floatlm"
    settings = {
        **shape.model_dump(exclude={"scales_per_matrix", "initialization", "rope_theta"}),
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "num_key_value_heads": shape.num_attention_heads,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), stored.end_of_text),
    }
    config = LlamaConfig(**settings) if is_plain else SpectraConfig(family=stored.family, **settings)
    kind = LlamaForCausalLM if is_plain else SpectraForCausalLM
    weights = {name: tensor.float() for name, tensor in stored.weights.items()}
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer beside the weights."""
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = str(error).partition("\n")[0]
        raise DamagedArtifactError(
            f"{folder / 'tokenizer.json'}: not a readable tokenizer ({reason}); {AGAIN}"
        ) from None
