"""The reading stage: one job's share of a source, every row accounted for, clean documents spread over the parts."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from openspectra.artifacts import config_hash, write_csv
from openspectra.data.config import ReadConfig
from openspectra.data.documents import DOCUMENT_BYTES, BucketWriter, RawDocument, hash_of
from openspectra.data.local_files import INPUT_COLUMNS, list_files, record_input
from openspectra.data.rows import Row
from openspectra.data.sources import rows_of
from openspectra.errors import OpenSpectraError

WHAT = {
    "damaged_file": "the file is truncated or damaged",
    "invalid_json": "not JSON",
    "invalid_csv": "no row of the table",
    "missing_field": "the field is missing",
    "null": "the text is null",
    "wrong_type": "the text is no string",
    "invalid_utf8": "not UTF-8",
    "lone_surrogate": "half of a surrogate pair",
    "empty": "the text is empty",
    "too_long": "longer than corpus.max_document_bytes",
}
"""Each problem in words."""


def read_source(config: ReadConfig, folder: Path) -> dict[str, Any]:
    """Write the clean documents of one job by part (`<part>.arrow`: hash, text, source, place, split); return the counts.

    read = documents + skipped, always. `skipped.csv` lists every place left out and why, `inputs.csv` every file read, with its
    hash; `listing` stands for the files of all jobs, which must be the same to each. Raises `OpenSpectraError` naming place
    and problem where the source's policy is `fail`.
    """
    files = list_files(config.name, config.source)
    share = files[config.job :: config.source.num_jobs]
    counts, skipped, part_bytes = Counter(), Counter(), Counter()
    num_bytes = 0
    writer = BucketWriter(folder, config.num_parts)
    with (folder / "skipped.csv").open("w", encoding="utf-8", newline="") as file:
        listing = csv.writer(file, lineterminator="\n")
        listing.writerow(("place", "problem", "cause"))
        for row in rows_of(config, share):
            counts["read"] += 1
            text, problem = clean(row, config)
            if problem:
                _apply_policy(config, row, problem)
                skipped[problem] += 1
                listing.writerow((row.place, problem, row.cause))
                continue
            content = text.encode()
            counts["documents"] += 1
            num_bytes += len(content)
            document = RawDocument(hash_of(content), text, config.name, row.place, row.split)
            part_bytes[writer.add(document)] += len(content) + DOCUMENT_BYTES
    writer.close()
    write_csv(folder / "inputs.csv", INPUT_COLUMNS, map(record_input, share))
    return {
        "counts": {"read": counts["read"], "documents": counts["documents"], "skipped": dict(sorted(skipped.items()))},
        "bytes": num_bytes,
        "part_bytes": [part_bytes[part] for part in range(config.num_parts)],
        "listing": config_hash([(file.name, file.split, file.bytes) for file in files]),
    }


def clean(row: Row, config: ReadConfig) -> tuple[str, str | None]:
    """Return the text of a row and no problem, or no text and the first problem found."""
    content = row.content
    if row.problem:
        return "", row.problem
    if content is None:
        return "", "null"
    if not isinstance(content, str | bytes):
        return "", "wrong_type"
    if len(content) > config.max_document_bytes:
        return "", "too_long"
    try:
        text = content.decode() if isinstance(content, bytes) else content
        size = len(text.encode())
    except UnicodeDecodeError:
        return "", "invalid_utf8"
    except UnicodeEncodeError:
        return "", "lone_surrogate"
    if size > config.max_document_bytes:
        return "", "too_long"
    if not text.strip():
        return "", "empty"
    return (text, None) if len(text) >= config.min_characters else ("", "too_short")


def _apply_policy(config: ReadConfig, row: Row, problem: str) -> None:
    if problem != "too_short" and config.source.dirty.get(problem, "fail") == "fail":
        cause = f" ({row.cause})" if row.cause else ""
        raise OpenSpectraError(
            f"{row.place}: {WHAT[problem]}{cause}; mend the source, or set "
            f"corpus.sources.{config.name}.dirty.{problem}: skip, which leaves out, counts and lists such documents."
        )
