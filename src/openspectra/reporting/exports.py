"""The certificates of all exports in one table: what can be taken away, how large it is, and whether it is the same model."""

from typing import Any

import pandas as pd

from openspectra.artifacts import Artifact
from openspectra.identity import run_facts_of
from openspectra.model_ids import ModelId
from openspectra.reporting.formats import Cell, counted, signed
from openspectra.reporting.load import Results
from openspectra.reporting.provenance import SHORT_HASH
from openspectra.reporting.section import Row, Section, View

COLUMNS = (
    "model",
    "format",
    "bytes",
    "bits_per_weight_stored",
    "bits_per_weight_rule",
    "round_trip_exact",
    "num_tensors_rounded",
    "largest_weight_difference",
    "largest_logit_difference",
    "argmax_agreement",
    "perplexity",
    "perplexity_difference_percent",
    "num_tokens",
    "loader",
    "notes",
)
LLAMA_CPP = ("llama_cpp_argmax_agreement", "llama_cpp_texts_with_equal_ids")


def exports_table(results: Results) -> pd.DataFrame:
    """Return the certificate of every export, one a row; what llama.cpp said of a GGUF stands in the last columns."""
    rows = [_row(artifact) for artifact in results.artifacts if artifact.manifest.stage == "export"]
    return pd.DataFrame(rows, columns=[*COLUMNS, *LLAMA_CPP])


def exports_section(results: Results) -> Section:
    """Return the table of certificates; empty where the study exports nothing."""
    table = exports_table(results)
    if table.empty:
        return Section("exports", "Models to take away", "Exports")
    columns = [
        ("file", "bytes"),
        ("stored", "bits per linear weight"),
        ("by rule", "bits per linear weight"),
        ("round trip", "weights read back"),
        ("logits", "largest difference"),
        ("same first token", "% of positions"),
        ("perplexity", "difference, %"),
        ("read by", ""),
    ]
    was_run = bool(table[LLAMA_CPP[0]].notna().any())
    columns += [("llama.cpp", "same first token, %")] * was_run
    anchors = [each.sha256[:SHORT_HASH] for each in results.artifacts if each.manifest.stage == "export"]
    records = table.to_dict("records")
    rows = [_view_row(row, anchor, was_run) for row, anchor in zip(records, anchors, strict=True)]
    count = int(table["num_tokens"].max())
    return Section(
        "exports",
        "Models to take away",
        "Exports",
        f"What was written, read back by the program named and held against its model: on {counted(count)} tokens of the valid "
        "split, in float32. Each folder below exports/ holds its certificate and a model card, and can go to a hub as it is.",
        [f"{row['model']}, {row['format']}: {row['notes']}" for row in records if row["notes"]],
        [View(columns, rows)],
        {"exports.csv": table},
    )


def _row(artifact: Artifact) -> dict[str, Any]:
    certificate = artifact.manifest.metrics
    said = run_facts_of(artifact).get("llama_cpp", {})
    texts = f"{said['num_texts_with_equal_ids']} of {said['num_texts']}" if said else ""
    return {
        **{key: certificate[key] for key in COLUMNS},
        "notes": " ".join(certificate["notes"]),
        LLAMA_CPP[0]: said.get("argmax_agreement"),
        LLAMA_CPP[1]: texts,
    }


def _view_row(row: dict[str, Any], anchor: str, was_run: bool) -> Row:
    model = ModelId.parse(row["model"])
    rounded = f"{row['largest_weight_difference']:.2g} at most, in {row['num_tensors_rounded']} tensors"
    cells = [
        Cell(counted(row["bytes"]), row["bytes"]),
        Cell(f"{row['bits_per_weight_stored']:.3f}", row["bits_per_weight_stored"]),
        Cell(f"{row['bits_per_weight_rule']:g}", row["bits_per_weight_rule"]),
        Cell("exact" if row["round_trip_exact"] else "rounded", detail=None if row["round_trip_exact"] else rounded),
        Cell(f"{row['largest_logit_difference']:.2g}", row["largest_logit_difference"]),
        Cell(f"{100 * row['argmax_agreement']:.3f}", row["argmax_agreement"]),
        Cell(signed(row["perplexity_difference_percent"]), row["perplexity_difference_percent"]),
        Cell(row["loader"]),
    ]
    if was_run:
        agreement = row[LLAMA_CPP[0]]
        cells.append(Cell("" if pd.isna(agreement) else f"{100 * agreement:.3f}", agreement))
    return Row(f"{row['model']}, {row['format']}", model.kind, row["model"], cells, anchor)
