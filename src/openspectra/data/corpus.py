"""From documents as read to the corpus: exact duplicates removed, a mixture sampled, train, valid and test divided.

The hash of its text alone decides a document's part, place, split and whether a sample holds it. So the corpus does
not depend on the order in which files lie on disk, no document can stand in two splits, and parts are made in
parallel: each holds one range of hashes. A part works in slices of its range, in bounded memory.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from openspectra.artifacts import Artifact, parts_of, write_json
from openspectra.data.card import CARD, Card, merged
from openspectra.data.config import CorpusConfig, PartConfig, SourcesConfig
from openspectra.data.documents import (
    BucketWriter,
    Document,
    DocumentWriter,
    RawDocument,
    bucket_path,
    iterate,
    iterate_raw,
    write_documents,
)
from openspectra.errors import OpenSpectraError

SPLITS = ("test", "valid", "train")
"""In this order a split keeps a document that several claim: results come from test."""
SLICE_BYTES = 32_000_000
"""Memory of the documents of a part that are sorted at a time."""
DRAWN = 1000
"""Documents held at a time of those that are drawn at random."""
MAX_SLICES = 500
"""Files written side by side."""


def list_sources(config: SourcesConfig, parts: list[Artifact], folder: Path) -> dict[str, Any]:
    """Return what the jobs of all sources read: their counts, and bytes of clean text, by source.

    The artifact has no files; its parents are the jobs, so that a part of the corpus needs to name one artifact only.
    Raises `OpenSpectraError` where jobs of one source saw other files than each other, or found no document.
    """
    sources = {}
    for name in config.sources:
        own = [job for job in parts if job.manifest.config["name"] == name]
        metrics = [job.manifest.metrics for job in own]
        if not own or len(own) < own[0].manifest.config["source"]["num_jobs"]:
            raise OpenSpectraError(f"corpus.sources.{name}: only {len(own)} of its jobs are given; give all.")
        if len({of_job["listing"] for of_job in metrics}) > 1:
            raise OpenSpectraError(
                f"corpus.sources.{name}: files came, went or changed between its {len(own)} jobs, so some would be read "
                f"twice or never; delete the folders of its jobs, {own[0].folder} to {own[-1].folder}, and run the same "
                "command again."
            )
        totals = {key: sum(of_job["counts"][key] for of_job in metrics) for key in ("read", "documents")}
        skipped = sum((Counter(of_job["counts"]["skipped"]) for of_job in metrics), Counter())
        if not totals["documents"]:
            raise OpenSpectraError(
                f"corpus.sources.{name}: no document in {totals['read']:,} rows read ({_counted(skipped)}); correct its "
                f"`files`, `split` or `where`, or take the source out."
            )
        size = sum(of_job["bytes"] for of_job in metrics)
        sources[name] = totals | {"skipped": dict(sorted(skipped.items())), "bytes": size}
    return sources


def build_part(config: PartConfig, sources: Artifact, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` of one part, ordered by hash; return the counts by source.

    documents = kept + duplicates + not_sampled, for every source. Raises `OpenSpectraError` for a part too large.
    """
    shares = _shares(config, sources)
    counts: dict[str, Counter] = defaultdict(Counter)
    card = {split: defaultdict(Card) for split in SPLITS}
    writers = {split: DocumentWriter(folder / f"{split}.parquet") for split in SPLITS}
    for slice_path in _slices(config, sources.parents("source"), folder):
        for document_hash, (rank, raw) in sorted(_kept(slice_path, config, shares, counts).items()):
            split = SPLITS[rank]
            counts[raw.source]["kept"] += 1
            writers[split].add(Document(document_hash[:16], raw.text, raw.source, raw.place))
            card[split][raw.source].add(raw.text, document_hash)
    for writer in writers.values():
        writer.close()
    return {
        "counts": {source: dict(sorted(counted.items())) for source, counted in sorted(counts.items())},
        "card": {split: {source: of[source].as_dict() for source in sorted(of)} for split, of in card.items()},
    }


def build_corpus(config: CorpusConfig, sources: Artifact, parts: list[Artifact], folder: Path) -> dict[str, Any]:
    """Check that sources and parts balance, write `test.parquet` and the data card; return the counts.

    read = kept + duplicates + skipped, for every source. Raises `OpenSpectraError` where a split would be empty.
    """
    parts = parts_of(parts, "part")
    counts = {name: _balance(name, sources.manifest.metrics[name], parts) for name in config.sources}
    card = {
        name: {
            "license": source.license,
            "weight": source.weight,
            "counts": counts[name],
            "splits": {
                split: merged(part.manifest.metrics["card"][split].get(name) for part in parts) for split in SPLITS
            },
        }
        for name, source in config.sources.items()
    }
    totals = {split: merged(entry["splits"][split] for entry in card.values()) for split in reversed(SPLITS)}
    for split, total in totals.items():
        if not total["documents"]:
            raise OpenSpectraError(
                f"corpus: split `{split}` is empty (of {sum(c['kept'] for c in counts.values())} documents); "
                "give more documents, another corpus.valid_fraction or corpus.test_fraction, or the `separator` of documents "
                "in .txt files."
            )
    write_documents((d for part in parts for d in iterate(part.file("test.parquet"))), folder / "test.parquet")
    write_json(folder / CARD, card)
    return {
        "counts": {key: sum(entry[key] for entry in counts.values()) for key in ("read", "kept", "duplicates")}
        | {"skipped": dict(sorted(sum((Counter(entry["skipped"]) for entry in counts.values()), Counter()).items()))},
        "documents": {split: total["documents"] for split, total in totals.items()},
        "bytes": {split: total["bytes"] for split, total in totals.items()},
        "num_parts": len(parts),
    }


def documents_of(corpus: Artifact, split: str) -> Iterator[Document]:
    """Yield the documents of one split of the whole corpus, in order, each part checked before it is read.

    Raises `DamagedArtifactError` where a part is missing, altered, or not the one that the corpus was made from.
    """
    for part in parts_of(corpus.parents("part"), "part"):
        yield from iterate(part.file(f"{split}.parquet"))


class ShuffledDocuments:
    """The documents of a Parquet file that are not blank, in the order that a seed draws, `DRAWN` in memory at a time.

    The file is read anew for every `DRAWN` documents that are asked for: of a test split of a gigabyte few are.
    """

    def __init__(self, path: Path, seed: str):
        self.path = path
        self._rows = [row for row, document in enumerate(iterate(path)) if document.text.strip()]
        Random(seed).shuffle(self._rows)

    def __iter__(self) -> Iterator[Document]:
        for start in range(0, len(self._rows), DRAWN):
            rows = self._rows[start : start + DRAWN]
            wanted = set(rows)
            found = {row: document for row, document in enumerate(iterate(self.path)) if row in wanted}
            yield from map(found.pop, rows)


def _kept(
    path: Path, config: PartConfig, shares: dict[str, float], counts: dict[str, Counter]
) -> dict[str, tuple[int, RawDocument]]:
    """Return the documents of a slice that the corpus holds, by hash, with the number of their split; count the others.

    Of the copies that their sources' samples hold, one is kept: the first by split, source and place.
    """
    kept: dict[str, tuple[int, RawDocument]] = {}

    def order(entry: tuple[int, RawDocument]) -> tuple[int, str, str]:
        return entry[0], entry[1].source, entry[1].place

    for raw in iterate_raw(path):
        counts[raw.source]["documents"] += 1
        if _position(raw.hash, 16) >= shares[raw.source]:
            counts[raw.source]["not_sampled"] += 1
            continue
        found = SPLITS.index(_split_of(raw, config)), raw
        held = kept.setdefault(raw.hash, found)
        if held is not found:
            kept[raw.hash], (_, copy) = sorted((held, found), key=order)
            counts[copy.source]["duplicates"] += 1
    return kept


def _counted(skipped: Counter) -> str:
    return ", ".join(f"{count:,} {problem}" for problem, count in sorted(skipped.items())) or "none left out"


def _split_of(raw: RawDocument, config: PartConfig) -> str:
    """Return the split that the source gave, else the one that follows from the hash."""
    if raw.split:
        return raw.split
    position = _position(raw.hash, 8)  # not the leading digits, which decide the order
    if position < config.test_fraction:
        return "test"
    return "valid" if position < config.test_fraction + config.valid_fraction else "train"


def _position(document_hash: str, digit: int) -> float:
    """Return the place in [0, 1) that eight digits of a hash give."""
    return int(document_hash[digit : digit + 8], 16) / 2**32


def _shares(config: PartConfig, sources: Artifact) -> dict[str, float]:
    """Return the share of each source's documents that the sample holds.

    By weights, the sampled bytes of the sources, duplicates included, stand in the ratio of the weights; the source that
    runs out first is taken up to `sample_fraction`.
    """
    size = {name: source["bytes"] for name, source in sources.manifest.metrics.items()}
    if config.weights is None:
        return dict.fromkeys(size, config.sample_fraction)
    wanted = {name: config.weights[name] / size[name] for name in size}
    return {name: config.sample_fraction * share / max(wanted.values()) for name, share in wanted.items()}


def _slices(config: PartConfig, jobs: list[Artifact], folder: Path) -> Iterator[Path]:
    """Yield files of raw documents that together are the part: one narrow range of hashes each, in their order."""
    size = sum(job.manifest.metrics["part_bytes"][config.part] for job in jobs)
    count = max(1, math.ceil(size / SLICE_BYTES))
    if count > MAX_SLICES:
        raise OpenSpectraError(
            f"corpus.num_parts: part {config.part} has {size / 1e9:.0f} GB of documents; raise {config.num_parts} to "
            f"{math.ceil(config.num_parts * count / MAX_SLICES)} or more."
        )
    with TemporaryDirectory(dir=folder) as scratch:
        writer = BucketWriter(Path(scratch), config.num_parts * count, first=config.part * count, count=count)
        for job in jobs:
            name = bucket_path(job.folder, config.part).name
            if job.has(name):
                for document in iterate_raw(job.file(name)):
                    writer.add(document)
        writer.close()
        yield from filter(Path.exists, writer.paths)


def _balance(name: str, source: dict[str, Any], parts: Iterable[Artifact]) -> dict[str, Any]:
    """Return read, kept, duplicates and skipped (by reason) of one source. Raises `OpenSpectraError` if they disagree."""
    read, skipped = source["read"], Counter(source["skipped"])
    placed = sum((Counter(part.manifest.metrics["counts"].get(name, {})) for part in parts), Counter())
    if placed["not_sampled"]:
        skipped["not_sampled"] = placed["not_sampled"]
    counts = {
        "read": read,
        "kept": placed["kept"],
        "duplicates": placed["duplicates"],
        "skipped": dict(sorted(skipped.items())),
    }
    if read != counts["kept"] + counts["duplicates"] + sum(skipped.values()):
        raise OpenSpectraError(f"corpus: the counts of source `{name}` do not add up: {counts}; rerun `read_source`.")
    return counts
