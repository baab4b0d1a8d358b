"""The data card of a study: per source what was read, kept and left out, and what each split holds of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from openspectra.artifacts import Artifact, config_hash, parts_of
from openspectra.data.card import CARD, card_of, merged
from openspectra.data.contamination import LISTED_DOCUMENTS
from openspectra.reporting.drawing import (
    SMALL_INCHES,
    Drawing,
    colour_of,
    legend_below,
    log_x_axis,
    looks,
    panel,
    to_drawing,
)
from openspectra.reporting.formats import Cell, counted, missing, percent, scaled
from openspectra.reporting.provenance import SHORT_HASH
from openspectra.reporting.section import FigureGroup, Row, View

SPLITS = ("train", "valid", "test")
LEGEND_COLUMNS = 3
ALL = "all"


@dataclass(frozen=True)
class DataCard:
    """What the page shows of the data."""

    views: list[tuple[str, View]]
    """Tables with their titles."""
    lengths: FigureGroup | None
    """Nothing for ready token files, whose text is not here."""
    table: pd.DataFrame
    """One row per split and source, or per split and token file: license, documents, bytes, tokens, hash."""


def data_card(artifacts: Iterable[Artifact]) -> DataCard | None:
    """Return the tables and figures of the corpus, or of ready token files; nothing where there is neither."""
    artifacts = list(artifacts)
    corpus = next((a for a in artifacts if a.has(CARD)), None)
    if corpus is None:
        tokens = next((a for a in artifacts if a.manifest.stage == "tokens"), None)
        parts = parts_of(tokens.parents("token_part"), "token_part") if tokens else []
        return _token_files(parts) if parts else None
    card = card_of(corpus)
    table = _table(card, artifacts)
    totals = {split: merged(source["splits"][split] for source in card.values()) for split in SPLITS}
    views = [("Documents by source", _counts(card))]
    views += [(f"Split {split} by source", _split(table, split, totals[split])) for split in SPLITS]
    found = next((a for a in artifacts if a.manifest.stage == "contamination"), None)
    if found:
        words = found.manifest.config["ngram_words"]
        title = f"Benchmark items that share {words} words in a row with the train split"
        views.append((title, _contamination(found.manifest.metrics, words)))
    lengths = FigureGroup(
        "Lengths of documents",
        "Share of a source's documents by their length, in bins of a factor of two.",
        [_lengths(card, split) for split in SPLITS],
    )
    return DataCard(views, lengths, table)


def _token_files(parts: list[Artifact]) -> DataCard:
    rows = []
    for part in parts:
        config, metrics = part.manifest.config, part.manifest.metrics
        (path,) = {shard["path"] for split in metrics["splits"].values() for shard in split["shards"]}
        for split, of_split in metrics["splits"].items():
            ((source, counts),) = of_split["sources"].items()
            rows.append(
                {
                    "split": split,
                    "source": source,
                    "file": path,
                    "license": config["license"],
                    "documents": counts["documents"],
                    "tokens": counts["tokens"],
                    "hash": config_hash([part.record(shard["hashes"]).sha256 for shard in of_split["shards"]]),
                }
            )
    table = pd.DataFrame(rows)
    columns = [
        ("Source", ""),
        ("Documents", ""),
        ("Tokens", "end of text included"),
        ("Hash", "of the bytes"),
        ("Licence", ""),
    ]
    views = []
    for split in SPLITS:
        of_split = table[table["split"] == split]
        if of_split.empty:
            continue
        cells = [
            [
                Cell(row["source"]),
                _count(row["documents"]),
                _count(row["tokens"]),
                Cell(row["hash"][:SHORT_HASH]),
                _licence(row["license"]),
            ]
            for row in of_split.to_dict("records")
        ]
        names = zip(of_split["file"], cells, strict=True)
        views.append((f"Split {split} by token file", View(columns, [_row(n, *row) for n, row in enumerate(names)])))
    return DataCard(views, None, table)


def _share(of: dict[str, float], name: str) -> Cell:
    return Cell(percent(of[name] / sum(of.values())), of[name])


def _licence(text: str | None) -> Cell:
    return Cell(text) if text else missing("the study does not state a licence")


def _table(card: dict[str, Any], artifacts: list[Artifact]) -> pd.DataFrame:
    tokens = {
        a.manifest.config["split"]: a.manifest.metrics["sources"] for a in artifacts if a.manifest.stage == "tokens"
    }
    rows = [
        {
            "split": split,
            "source": name,
            "license": source["license"],
            "documents": source["splits"][split]["documents"],
            "bytes": source["splits"][split]["bytes"],
            "tokens": tokens[split].get(name, {}).get("tokens", 0) if split in tokens else None,
            "lost_bytes": tokens[split].get(name, {}).get("lost_bytes", 0) if split in tokens else None,
            "hash": source["splits"][split]["hash"],
        }
        for split in SPLITS
        for name, source in card.items()
    ]
    return pd.DataFrame(rows).astype({"tokens": "Int64", "lost_bytes": "Int64"})


def _counts(card: dict[str, Any]) -> View:
    reasons = sorted({reason for source in card.values() for reason in source["counts"]["skipped"]})
    columns = [(title, "") for title in ("Read", "Kept", "Duplicates", *(f"Skipped: {reason}" for reason in reasons))]
    kept_bytes = {name: sum(split["bytes"] for split in source["splits"].values()) for name, source in card.items()}
    weights = {name: source["weight"] for name, source in card.items() if source["weight"]}
    if weights:
        columns += [("Weight", "% of bytes"), ("Kept", "% of bytes")]
    rows = []
    for number, (name, source) in enumerate(card.items()):
        counts = source["counts"]
        numbers = [
            counts["read"],
            counts["kept"],
            counts["duplicates"],
            *(counts["skipped"].get(r, 0) for r in reasons),
        ]
        shares = [_share(of, name) for of in (weights, kept_bytes) if weights]
        rows.append(_row(number, name, [*map(_count, numbers), *shares, _licence(source["license"])]))
    return View([*columns, ("Licence", "")], rows)


def _split(table: pd.DataFrame, split: str, total: dict[str, Any]) -> View:
    """Return documents, bytes and hash by source and in all, and tokens where the split was tokenized."""
    of = table[table["split"] == split]
    total = total | {"source": ALL, "tokens": of["tokens"].sum(), "lost_bytes": of["lost_bytes"].sum()}
    is_tokenized = of["tokens"].notna().all()
    loses_text = is_tokenized and total["lost_bytes"] > 0
    rows = []
    for number, row in enumerate([*of.to_dict("records"), *([total] if len(of) > 1 else [])]):
        cells = [_count(row["documents"]), _count(row["bytes"])]
        if is_tokenized:
            ratio = row["bytes"] / row["tokens"] if row["tokens"] else None
            cells += [_count(row["tokens"]), Cell("", None) if ratio is None else Cell(f"{ratio:.2f}", ratio)]
        if loses_text:
            share = row["lost_bytes"] / row["bytes"] if row["bytes"] else 0.0
            cells.append(Cell(f"{1e6 * share:,.2f}", share))
        rows.append(_row(number, row["source"], [*cells, Cell(row["hash"][:SHORT_HASH] if row["documents"] else "")]))
    tokens = [("Tokens", "end of text included"), ("Bytes per token", "")] if is_tokenized else []
    tokens += [("Lost by the tokenizer", "bytes per million")] if loses_text else []
    return View([("Documents", ""), ("Bytes", ""), *tokens, ("Hash", "of the documents")], rows)


def _contamination(found: dict[str, Any], words: int) -> View:
    columns = {
        "num_items": ("Items", ""),
        "num_too_short": (f"Under {words} words", ""),
        "num_found": ("Found in train", ""),
    }
    if any("num_not_listed" in entry for entry in found.values()):
        columns["num_not_listed"] = ("Hits not listed", f"documents of an item beyond the first {LISTED_DOCUMENTS}")
    rows = [Row(name, "", "", [_count(entry.get(key, 0)) for key in columns]) for name, entry in found.items()]
    return View([*columns.values()], rows)


def _lengths(card: dict[str, Any], split: str) -> Drawing:
    """Return the histograms of one split: a line per source that has documents in it."""
    sources = {name: source["splits"][split] for name, source in card.items()}
    legend_rows = -(-sum(bool(entry["documents"]) for entry in sources.values()) // LEGEND_COLUMNS)
    with panel(SMALL_INCHES, legend_rows) as (figure, axes):
        for number, (name, entry) in enumerate(sources.items()):
            if entry["documents"]:
                counts = {int(power): count for power, count in entry["length_log2_bytes"].items()}
                powers = range(min(counts), max(counts) + 1)
                shares = [100 * counts.get(power, 0) / entry["documents"] for power in powers]
                edges = [2.0**power for power in (*powers, max(counts) + 1)]
                colour = colour_of(_kind(number))
                axes.stairs(shares, edges, baseline=None, color=colour, linewidth=1.4, label=name)
        axes.set_title(split)
        axes.set_xlabel("Bytes")
        axes.set_ylabel("Documents (%)")
        axes.set_ylim(bottom=0)
        log_x_axis(axes, scaled)
        legend_below(figure, axes, LEGEND_COLUMNS)
        named = ", ".join(name for name, entry in sources.items() if entry["documents"])
        return to_drawing(figure, f"lengths_{split}", f"Histogram of document lengths in split {split}: {named}.")


def _kind(number: int) -> str:
    """Return the kind of model whose colour serves for a source, in the order of the legend."""
    kinds = list(looks())
    return kinds[number % len(kinds)]


def _row(number: int, name: str, cells: list[Cell]) -> Row:
    return Row(name, _kind(number) if name != ALL else "", ALL if name == ALL else "", cells)


def _count(value: float) -> Cell:
    return Cell(counted(value), float(value))
