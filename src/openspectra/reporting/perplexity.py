"""Perplexity and bits per byte on each corpus: every source of the test text, and the corpora that tasks of lm-eval hold.

Bits per byte come first: unlike perplexity per token they can be compared between tokenizers.
"""

import json
import math

import pandas as pd

from openspectra.artifacts import Artifact
from openspectra.identity import kind_label
from openspectra.reporting.drawing import (
    PAIR_INCHES,
    Drawing,
    colour_of,
    legend_below,
    look_of,
    marker_of,
    panel,
    to_drawing,
)
from openspectra.reporting.formats import Cell, given, missing
from openspectra.reporting.load import HELD_OUT, Results
from openspectra.reporting.section import FigureGroup, Row, Section, View
from openspectra.reporting.statistics import DocumentLosses, document_losses
from openspectra.reporting.tables import DECIMALS

LABELS = {
    "lambada_openai": "LAMBADA, last word",
    "wikitext": "WikiText-2",
    "paloma_ptb": "Penn Treebank",
    "paloma_c4_en": "C4",
    "cosmopedia": "Cosmopedia",
    "paloma_dolma-v1_5": "Dolma",
    "paloma_m2d2_s2orc_unsplit": "S2ORC",
    "paloma_m2d2_wikipedia_unsplit": "Wikipedia",
    "paloma_falcon-refinedweb": "RefinedWeb",
    "slimpajama_validation": "SlimPajama, validation",
}
"""What corpora are called on the page, by task; others have the name of their task."""
LAST_WORD = "lambada_openai"
TABLE = (
    *("model_id", "corpus", "bits_per_byte", "perplexity", "loss", "loss_low", "loss_high"),
    *("num_documents", "num_tokens"),
)
ROW_INCHES, LEFT_INCHES, LEGEND_COLUMNS = 0.3, 1.6, 3
NATS_PER_BIT = math.log(2)


def perplexity_section(results: Results, num_resamples: int, seed: int) -> Section:
    """Return every corpus's numbers; empty where no text was scored."""
    corpora = {name: document_losses(rows, num_resamples, seed) for name, rows in documents_by_corpus(results).items()}
    table = perplexity_table(results, corpora)
    reasons = missing_corpora(results)
    if table.empty and not reasons:
        return Section("perplexity", "Perplexity by corpus", "Perplexity")
    notes = [f"Missing: {name}: {reason}" for name, reason in reasons.items()]
    names = list(dict.fromkeys(table["corpus"]))
    drawings = corpus_panel(results, table)
    figure = FigureGroup(
        "Bits per byte by corpus",
        "The largest size of which FloatLM and TriLM are there, all its models; further left is better.",
        drawings,
        pairs=True,
    )
    return Section(
        "perplexity",
        "Perplexity by corpus",
        "Perplexity",
        "Bits per byte of text, below them the perplexity per token. Of LAMBADA the perplexity of the last word alone, which "
        "is what its task measures. All numbers with intervals over documents stand in perplexity.csv.",
        notes,
        [*([figure] if drawings else []), *([_view(results, table, names)] if names else [])],
        {"perplexity.csv": table} if len(table) else {},
    )


def documents_by_corpus(results: Results) -> dict[str, pd.DataFrame]:
    """Return the scored documents of each corpus: the test text by source, then the others in the order of their labels."""
    found = {}
    sources = _sources(results.artifacts)
    own = results.documents.assign(source=results.documents["document_id"].map(sources))
    for source, rows in own.dropna(subset=["source"]).groupby("source", sort=True):
        found[f"Test text: {source}"] = rows.drop(columns="source")
    order = list(LABELS)
    tasks = sorted(set(results.corpora["task"]), key=lambda task: (order.index(task) if task in order else 99, task))
    for task in tasks:
        found[_label(task)] = results.corpora[results.corpora["task"] == task]
    return found


def missing_corpora(results: Results) -> dict[str, str]:
    """Return why a corpus that the study names is not there, by its label."""
    found = {}
    for artifact in results.artifacts:
        if artifact.manifest.stage == "evaluate":
            for row in artifact.rows("missing.csv"):
                reason = row["reason"].removeprefix(f"evaluate.tasks: {row['task']}: ")
                found[_label(row["task"])] = reason
    return found


def perplexity_table(results: Results, corpora: dict[str, DocumentLosses]) -> pd.DataFrame:
    """Return one row per model and corpus: bits per byte, perplexity and loss (nats) per token with its interval."""
    rows = []
    for model in results.models:
        name = str(model.id)
        for corpus, losses in corpora.items():
            if loss := losses.loss(name):
                numbers = [losses.bits_per_byte(name), math.exp(loss.value), loss.value, loss.low, loss.high]
                rounded = [None if number is None else round(number, DECIMALS) for number in numbers]
                rows.append([name, corpus, *rounded, losses.num_documents, losses.num_tokens])
    last_word = results.scores[(results.scores["task"] == LAST_WORD) & (results.scores["metric"] == "perplexity")]
    for score in last_word.to_dict("records"):
        loss = math.log(score["value"])
        count = int(score["num_samples"])
        rows.append(
            [score["model_id"], LABELS[LAST_WORD], None, round(score["value"], DECIMALS), round(loss, DECIMALS)]
        )
        rows[-1] += [None, None, count, None]
    return pd.DataFrame(rows, columns=list(TABLE))


def corpus_panel(results: Results, table: pd.DataFrame) -> list[Drawing]:
    """Return a row of marks per corpus, of the largest size that has both a FloatLM and a TriLM."""
    scored = table.dropna(subset=["bits_per_byte"])
    sizes = [size for size in results.sizes if {f"floatlm/{size}", f"trilm/{size}"} <= set(scored["model_id"])]
    if not sizes:
        return []
    models = [model for model in results.study_models if model.id.size == sizes[-1]]
    models = [model for model in models if str(model.id) in set(scored["model_id"])]
    corpora = [name for name in dict.fromkeys(table["corpus"]) if name in set(scored["corpus"])]
    size = (PAIR_INCHES[0], ROW_INCHES * len(corpora))
    with panel(size, legend_rows=-(-len(models) // LEGEND_COLUMNS), left=LEFT_INCHES) as (figure, axes):
        for model in models:
            own = scored[scored["model_id"] == str(model.id)].set_index("corpus")["bits_per_byte"]
            places = [len(corpora) - 1 - corpora.index(name) for name in own.index]
            kind = model.id.kind
            axes.plot(
                own, places, color=colour_of(kind), lw=0, marker=marker_of(kind), ms=look_of(kind).marker_size,
                mfc="none" if model.id.bits else colour_of(kind), label=kind_label(kind),
            )  # fmt: skip
        axes.set_yticks(range(len(corpora)), list(reversed(corpora)))
        axes.set_ylim(-0.6, len(corpora) - 0.4)
        axes.set(title=sizes[-1], xlabel="Bits per byte")
        axes.locator_params(axis="x", nbins=6)
        legend_below(figure, axes, LEGEND_COLUMNS)
        return [to_drawing(figure, "bits_per_byte_by_corpus", f"Bits per byte of size {sizes[-1]}, one row per corpus")]


def _view(results: Results, table: pd.DataFrame, names: list[str]) -> View:
    cells = {(row["model_id"], row["corpus"]): row for row in table.to_dict("records")}
    rows = []
    for model in results.models:
        reason = "; ".join(model.missing) or "not scored on this corpus"
        own = [_cell(cells.get((str(model.id), name)), reason) for name in names]
        rows.append(Row(str(model.id), model.id.kind, model.id.size, own))
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        for reason in dict.fromkeys(cell.missing for cell in row.cells if cell.missing):
            by_reason.setdefault(reason, []).append(row.name)
    reasons = [f"{', '.join(models)}: {reason}." for reason, models in by_reason.items()]
    return View([(name, "bits per byte\nperplexity") for name in names], rows, reasons)


def _cell(row: dict | None, reason: str) -> Cell:
    if row is None:
        return missing(reason)
    perplexity = f"{row['perplexity']:,.4g}"
    if given(row["bits_per_byte"]):
        return Cell(f"{row['bits_per_byte']:.3f}", row["bits_per_byte"], perplexity)
    return Cell("\u2013", row["perplexity"], perplexity)


def _sources(artifacts: list[Artifact]) -> dict[str, str]:
    """Return the source of each test document."""
    lines = [
        line
        for artifact in artifacts
        if artifact.manifest.stage == "tasks" and artifact.has(f"{HELD_OUT}.jsonl")
        for line in artifact.file(f"{HELD_OUT}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {item["document_id"]: item["source"] for item in map(json.loads, lines)}


def _label(task: str) -> str:
    return LABELS.get(task.partition(" (")[0], task)
