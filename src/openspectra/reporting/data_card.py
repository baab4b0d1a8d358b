"""The data card of a study: per source what was read, kept and left out, and what each split holds of it."""

from collections.abc import Iterable
from typing import Any

from openspectra.artifacts import Artifact
from openspectra.data.corpus import CARD, card_of
from openspectra.reporting.formats import counted
from openspectra.reporting.provenance import SettingsTable

NOTE = "not stated"


def data_cards(artifacts: Iterable[Artifact]) -> list[SettingsTable]:
    """Return a table of the corpus by source, one per split, and one of benchmark items found; none without a corpus."""
    artifacts = list(artifacts)
    corpus = next((a for a in artifacts if any(record.path == CARD for record in a.manifest.files)), None)
    if corpus is None:
        return []
    card = card_of(corpus)
    names = list(card)
    tables = [SettingsTable("Documents by source", names, _counts(card))]
    for split in ("train", "valid", "test"):
        tokens = next((a.manifest.metrics for a in artifacts if a.manifest.config.get("split") == split), {})
        tables.append(SettingsTable(f"Split {split} by source", names, _split(card, split, tokens.get("sources", {}))))
    found = next((a.manifest.metrics for a in artifacts if a.manifest.stage == "contamination"), None)
    if found:
        keys = {"num_items": "Items", "num_too_short": "Items under 13 words", "num_found": "Items found in train"}
        rows = [(title, [counted(found[name][key]) for name in found]) for key, title in keys.items()]
        tables.append(
            SettingsTable("Benchmark items that share 13 words in a row with the train split", list(found), rows)
        )
    return tables


def _counts(card: dict[str, Any]) -> list[tuple[str, list[str]]]:
    counts = [source["counts"] for source in card.values()]
    reasons = sorted({reason for count in counts for reason in count["skipped"]})
    return [
        ("Licence", [source["license"] or NOTE for source in card.values()]),
        ("Read", [counted(count["read"]) for count in counts]),
        ("Kept", [counted(count["kept"]) for count in counts]),
        ("Duplicates", [counted(count["duplicates"]) for count in counts]),
        *((f"Skipped: {reason}", [counted(count["skipped"].get(reason, 0)) for count in counts]) for reason in reasons),
    ]


def _split(card: dict[str, Any], split: str, tokens: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return documents, bytes and lengths by source, and tokens where the split was tokenized."""
    of = [source["splits"][split] for source in card.values()]
    rows = [
        ("Documents", [counted(entry["documents"]) for entry in of]),
        ("Bytes", [counted(entry["bytes"]) for entry in of]),
    ]
    if tokens:
        counts = [tokens.get(name, {}).get("tokens", 0) for name in card]
        rows.append(("Tokens, end of text included", [counted(count) for count in counts]))
        ratios = [f"{entry['bytes'] / count:.2f}" if count else "" for entry, count in zip(of, counts, strict=True)]
        rows.append(("Bytes per token", ratios))
    powers = sorted({int(power) for entry in of for power in entry["length_log2_bytes"]})
    for power in powers:
        counts = [entry["length_log2_bytes"].get(str(power), 0) for entry in of]
        rows.append(
            (f"Documents of {2**power:,} to {2 ** (power + 1) - 1:,} bytes", [counted(count) for count in counts])
        )
    return rows
