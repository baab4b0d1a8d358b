"""The model card: `README.md` of an exported folder, so that the folder can go to a hub as it is."""

from pathlib import Path
from typing import Any

from openspectra.artifacts import Artifact
from openspectra.data.card import card_of
from openspectra.export.config import ExportConfig
from openspectra.identity import kind_label, suite_name
from openspectra.model.config import LlamaShape
from openspectra.model.families import load_family
from openspectra.model_ids import QUANTLM, ModelId

WHAT = {
    "floatlm": "a language model trained in floating point",
    "trilm": "a ternary language model, trained from scratch with weights in {-1, 0, 1} times one scale per shard of a matrix",
    "bilm": "a binary language model, trained from scratch with weights in {-1, 1} times one scale per shard of a matrix",
    "bitnet": "a replication of BitNet b1.58: ternary weights, and 8-bit activations behind a norm before each linear layer",
    "quantlm": "a language model trained in floating point whose linear layers GPTQ quantized afterwards",
}
FORMATS = {
    "transformers": "Hugging Face folder, weights unpacked",
    "gptq": "GPTQ folder (`qweight`, `scales`, `qzeros`, `g_idx`)",
    "packed-2bit": "safetensors, four ternary weights a byte",
    "packed-1.6bit": "safetensors, five ternary weights a byte",
    "packed-1bit": "safetensors, eight binary weights a byte",
    "gguf-f16": "GGUF, F16",
    "gguf-q8_0": "GGUF, Q8_0",
    "gguf-tq1_0": "GGUF, TQ1_0: linear layers at 1.69 bits a weight, embedding and head in F16",
    "gguf-tq2_0": "GGUF, TQ2_0: linear layers at 2.06 bits a weight, embedding and head in F16",
}
PAPER = "[Spectra](https://arxiv.org/abs/2407.12327)"


def model_card(
    config: ExportConfig,
    model: Artifact,
    tokens_valid: Artifact,
    evaluations: list[Artifact],
    certificate: dict[str, Any],
    shape: LlamaShape,
    folder: Path,
) -> str:
    """Return the card in Markdown, with the header that hubs read."""
    model_id = ModelId.parse(config.model)
    study = model.folder.absolute().parents[1].name
    title = f"{kind_label(model_id.kind)} {config.model.partition('/')[2]}"
    parts = [
        *_header(config.format, model_id),
        f"# {title}, {config.format}",
        f"This is {_what(model_id.family)}: `{config.model}` of the study `{study}`, made by OpenSpectra, the open reproduction "
        f"of {PAPER}. Its weights come from the artifact with manifest `{model.sha256}`; `manifest.json` beside this file "
        "lists every file with its hash.",
        "## Size",
        _size(certificate, model.manifest.metrics, shape, folder),
        "## Scores",
        *_scores(evaluations, model.manifest.metrics),
        "## Is it the same model?",
        *_certificate(certificate),
        "## How to load it",
        *_loading(config, model_id.family, folder),
        "## The text it was trained on",
        *_text(tokens_valid),
        "The model continues text; it follows no instructions, and nothing was done against wrong or harmful output.",
    ]
    return "\n\n".join(parts) + "\n"


def is_stock(family: str) -> bool:
    """Return whether unmodified `transformers` computes a family."""
    return family == QUANTLM or load_family(family).is_stock_llama


def _what(family: str) -> str:
    own = f"{kind_label(family)}, trained from scratch with the quantizers of arXiv 2306.01841"
    return WHAT.get(family, own)


def _header(form: str, model: ModelId) -> list[str]:
    gptq = "gptqmodel" if model.bits == 6 else "transformers"  # which reads no 6 bits
    library = {"transformers": "transformers", "gptq": gptq}.get(form, "gguf" if "gguf" in form else "openspectra")
    library = library if is_stock(model.family) else "openspectra"
    tags = f"tags: [openspectra, spectra, {model.family}]"
    return [f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{tags}\n---"]


def _size(certificate: dict[str, Any], metrics: dict[str, Any], shape: LlamaShape, folder: Path) -> str:
    rows = [
        ("format", FORMATS[certificate["format"]]),
        ("weight files", f"{certificate['bytes']:,} bytes"),
        ("parameters", f"{metrics['num_parameters']:,}, {metrics['num_linear_parameters']:,} of them in linear layers"),
        ("bits per linear weight, stored", f"{certificate['bits_per_weight_stored']:.3f}"),
        ("bits per linear weight, by the paper's rule", f"{certificate['bits_per_weight_rule']:g}"),
        ("size by the paper's rule", f"{certificate['model_size_bits_rule'] / 1e6:,.2f} Mbit"),
        ("layers, width, heads", f"{shape.num_hidden_layers}, {shape.hidden_size}, {shape.num_attention_heads}"),
        ("longest text", f"{shape.max_position_embeddings:,} tokens"),
        ("entries in the vocabulary", f"{shape.vocab_size:,}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _scores(evaluations: list[Artifact], metrics: dict[str, Any]) -> list[str]:
    if not evaluations:
        loss = metrics.get("valid_loss")
        known = f" Validation loss of the training: {loss:.4f} nats per token." if loss is not None else ""
        return [f"It was not evaluated.{known}"]
    rows = ["| suite | task | metric | value | standard error | chance |", "|---|---|---|---:|---:|---:|"]
    for evaluation in evaluations:
        for row in evaluation.rows("scores.csv"):
            error = f"{float(row['stderr']):.4f}" if row["stderr"] not in ("", "N/A") else ""
            cells = (
                suite_name(evaluation),
                row["task"],
                row["metric"],
                f"{float(row['value']):.4f}",
                error,
                row["chance"],
            )
            rows.append(f"| {' | '.join(cells)} |")
    return ["With lm-eval, from the unpacked weights:", "\n".join(rows)]


def _certificate(certificate: dict[str, Any]) -> list[str]:
    exact = (
        "every weight equals the model's"
        if certificate["round_trip_exact"]
        else f"{certificate['num_tensors_rounded']} tensors are rounded, by {certificate['largest_weight_difference']:.3g} at most"
    )
    return [
        f"Read back from these files by {certificate['loader']}: {exact}. On {certificate['num_tokens']:,} held-out tokens the "
        f"logits differ by {certificate['largest_logit_difference']:.3g} at most, the same token comes first at "
        f"{100 * certificate['argmax_agreement']:.3f} % of positions, and perplexity is {certificate['perplexity']:.4f} where the "
        f"model has {certificate['perplexity_of_model']:.4f} ({certificate['perplexity_difference_percent']:+.4f} %). All of it "
        "stands in `certificate.json`.",
        *certificate["notes"],
    ]


def _loading(config: ExportConfig, family: str, folder: Path) -> list[str]:
    here = "FOLDER"
    own = f'```bash\nopenspectra generate {here} "def main("\n```'
    parts = [f"`{here}` is where this file lies.", own]
    if config.format.startswith("gguf"):
        (path,) = folder.glob("*.gguf")
        return [*parts, "With llama.cpp:", f'```bash\nllama-cli -m {here}/{path.name} -no-cnv -p "def main("\n```']
    if config.format == "gptq":
        code = "from gptqmodel import BACKEND, GPTQModel\n"
        return [*parts, "In Python:", f'```python\n{code}model = GPTQModel.load("{here}", backend=BACKEND.TORCH)\n```']
    if config.format == "transformers":
        first = "" if is_stock(family) else "import openspectra.model.spectra_llama\n"
        code = f"{first}from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        code += f'model = AutoModelForCausalLM.from_pretrained("{here}")\n'
        code += f'tokenizer = AutoTokenizer.from_pretrained("{here}")'
    else:
        code = "from openspectra.export.loading import load_model\n"
        code += f'model, tokenizer = load_model("{here}")  # a model of transformers, unpacked'
    return [*parts, "In Python:", f"```python\n{code}\n```"]


def _text(tokens_valid: Artifact) -> list[str]:
    """Return the licence of every source of the text, as the study gives it."""
    parents = tokens_valid.manifest.parents
    if "corpus" in parents:
        card = card_of(tokens_valid.open_parent(parents["corpus"]))
        licences = {name: source["license"] for name, source in card.items()}
    else:
        configs = [tokens_valid.open_parent(parent).manifest.config for parent in parents.values()]
        licences = {name: config.get("license") for config in configs for name in config.get("files", ())}
    rows = [f"| {name} | {licence or 'not stated in the study'} |" for name, licence in licences.items()]
    return ["\n".join(["| source | licence |", "|---|---|", *rows])] if rows else ["Its licence is not known."]
