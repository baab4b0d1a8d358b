"""The stage `export`: a model in the format of somebody's tool, its certificate, and its card."""

import logging
import shutil
from pathlib import Path

from openspectra.artifacts import Artifact, ArtifactDraft, open_artifact, write_json
from openspectra.data.tokenizer import TOKENIZER_FILES
from openspectra.errors import ConfigError, DamagedArtifactError
from openspectra.export import llama_cpp
from openspectra.export.card import model_card
from openspectra.export.certificate import CERTIFICATE, certificate, compare, held_out
from openspectra.export.config import ExportConfig, format_problem
from openspectra.export.loading import MODEL_STAGES, build, gguf_path, load_tokenizer, read_stored
from openspectra.export.stored import Stored, read_dense, read_json
from openspectra.model_ids import ModelId

logger = logging.getLogger("openspectra.export")


def export_model(
    config: ExportConfig,
    model: Artifact,
    tokens_valid: Artifact,
    evaluations: list[Artifact],
    draft: ArtifactDraft,
    num_threads: int = 1,
) -> None:
    """Fill `draft` with the files of the format, `certificate.json` and `README.md`.

    The certificate comes from what was read back. Where llama.cpp is installed a GGUF is run by it too; its agreement and
    speed are facts of this run and stand in `run.json`.
    """
    if problem := format_problem(config.model, config.format):
        raise ConfigError([f"--format: {problem}"])
    model.verify()
    folder = draft.folder
    source = read_dense(model.folder)
    if problem := format_problem(config.model, config.format, source.shape):
        raise ConfigError([f"--format: {config.model}: {problem}"])
    notes = write_format(config, model, source, folder)
    export = read_stored(folder, config.format)
    original = build(source, model.folder, "transformers")
    sequences = held_out(tokens_valid, source.shape.max_position_embeddings)
    compared = compare(original, build(export, folder, config.format), sequences)
    made = certificate(model, config.format, source, export, compared, folder, notes)
    write_json(folder / CERTIFICATE, made)
    draft.metrics |= made
    if config.format.startswith("gguf") and llama_cpp.installed():
        tokenizer = load_tokenizer(folder)
        draft.run["llama_cpp"] = llama_cpp.agreement(gguf_path(folder), original, tokenizer, sequences, num_threads)
    card = model_card(config, model, tokens_valid, evaluations, made, source.shape, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_format(config: ExportConfig, model: Artifact, source: Stored, folder: Path) -> list[str]:
    """Write the files of a format, tokenizer included; return sentences on what is stored otherwise than its name says."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(model.file(name), folder / name)
    if config.format == "transformers":
        _copy(model, folder, [record.path for record in model.manifest.files if _is_hugging_face(record.path)])
        return []
    if config.format == "gptq":
        names = [record.path for record in model.manifest.files if record.path.startswith("gptq/")]
        _copy(model, folder, [name for name in names if name.removeprefix("gptq/") not in TOKENIZER_FILES], "gptq/")
        _spell_rope_theta(folder / "config.json", source.shape.rope_theta)
        return ["Of the programs that read GPTQ, gptqmodel alone has 6 bits."] * (ModelId.parse(config.model).bits == 6)
    if config.format.startswith("packed"):
        from openspectra.export.packed import write_packed

        family = ModelId.parse(config.model).family
        write_packed(source, config.format, family, config.model, folder)
        return ["The embedding is packed too, with one scale for each row."] * source.shape.quantized_embedding
    from openspectra.export.gguf_file import write_gguf

    kind = config.format.removeprefix("gguf-").upper()
    path = folder / f"{config.model.replace('/', '-')}-{kind}.gguf"
    return write_gguf(source, config.format, config.model, folder / "tokenizer.json", path)


def valid_tokens_of(model: Artifact) -> Artifact:
    """Return the valid split that a model's training was validated on, or that lies beside a released model.

    Raises `ConfigError` where there is none.
    """
    node = model
    try:
        while node.manifest.stage in MODEL_STAGES:
            if "tokens_valid" in node.manifest.parents:
                return node.open_parent(node.manifest.parents["tokens_valid"])
            if "model" not in node.manifest.parents:
                break
            node = node.open_parent(node.manifest.parents["model"])
        return open_artifact(study_folder(model) / "tokens/valid", "tokens")
    except DamagedArtifactError as error:
        raise ConfigError(
            [
                f"--valid: {model.folder}: no valid split is known for this model; name the token shards to compare on. "
                f"Its own: {error}"
            ]
        ) from None


def evaluations_of(model: Artifact) -> list[Artifact]:
    """Return the evaluations that lie beside a model in its study and were made from exactly this one."""
    model_id = model.manifest.config["model_id"]
    paths = sorted((study_folder(model) / "evaluation" / model_id).glob("*/manifest.json"))
    found = [open_artifact(path, "evaluate") for path in paths]
    return [each for each in found if each.manifest.parents["model"].sha256 == model.sha256]


def study_folder(model: Artifact) -> Path:
    """Return the folder of the study that a model's folder belongs to: `results/<study>` of `results/<study>/trilm/99M`."""
    return model.folder.absolute().parents[1]


def _copy(model: Artifact, folder: Path, names: list[str], prefix: str = "") -> None:
    for name in names:
        shutil.copyfile(model.folder / name, folder / name.removeprefix(prefix))


def _is_hugging_face(name: str) -> bool:
    files = ("config.json", "generation_config.json", "model.safetensors.index.json")
    return name in files or ("/" not in name and name.endswith(".safetensors"))


def _spell_rope_theta(path: Path, rope_theta: float) -> None:
    """Write the base of the rotary angles where transformers 4 looks for it; it would silently take 10000."""
    write_json(path, read_json(path) | {"rope_theta": rope_theta})
