"""From documents as read to the corpus: exact duplicates removed, a mixture sampled, train, valid and test divided.

The hash of its text alone decides a document's part, place, split and whether a sample holds it. So the corpus does
not depend on the order in which files lie on disk, no document can stand in two splits, and parts are made in
parallel: each holds one range of hashes. A part works in slices of its range, in bounded memory.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openspectra.artifacts import Artifact, write_json
from openspectra.data.config import CorpusConfig, PartConfig, SourcesConfig
from openspectra.data.documents import BucketWriter, Document, DocumentWriter, RawDocument, iterate, write_documents
from openspectra.errors import OpenSpectraError

SPLITS = ("test", "valid", "train")
"""In this order a split keeps a document that several claim: results come from test."""
SLICE_BYTES = 32_000_000
"""Text of a part that is sorted in memory at a time."""
MAX_SLICES = 500
"""Files written side by side."""
CARD = "data_card.json"


def list_sources(config: SourcesConfig, *jobs: Artifact, folder: Path) -> dict[str, Any]:
    """Return what the jobs of all sources read: their counts, and bytes of clean text, by source.

    The artifact has no files; its parents are the jobs, so that a part of the corpus needs to name one artifact only.
    """
    sources = {name: {"read": 0, "documents": 0, "skipped": Counter(), "bytes": 0} for name in config.sources}
    for job in jobs:
        source, metrics = sources[job.manifest.config["name"]], job.manifest.metrics
        source["read"] += metrics["counts"]["read"]
        source["documents"] += metrics["counts"]["documents"]
        source["skipped"].update(metrics["counts"]["skipped"])
        source["bytes"] += metrics["bytes"]
    return {name: source | {"skipped": dict(sorted(source["skipped"].items()))} for name, source in sources.items()}


def build_part(config: PartConfig, sources: Artifact, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` of one part, ordered by hash; return the counts by source.

    documents = kept + duplicates + not_sampled, for every source. Raises `OpenSpectraError` for a part too large.
    """
    shares = _shares(config, sources)
    counts: dict[str, Counter] = defaultdict(Counter)
    card = {split: defaultdict(_Card) for split in SPLITS}
    writers = {split: DocumentWriter(folder / f"{split}.parquet") for split in SPLITS}
    for slice_path in _slices(config, sources.parents("source"), folder):
        last = None
        for split, document in sorted(
            ((_split_of(raw, config), raw) for raw in iterate(slice_path, RawDocument)),
            key=lambda entry: (entry[1].hash, SPLITS.index(entry[0]), entry[1].source, entry[1].place),
        ):
            counted = counts[document.source]
            counted["documents"] += 1
            if document.hash == last:
                counted["duplicates"] += 1
            elif _position(document.hash, 16) >= shares[document.source]:
                counted["not_sampled"] += 1
            else:
                counted["kept"] += 1
                kept = Document(document.hash[:16], document.text, document.source, document.place)
                writers[split].add(kept)
                card[split][document.source].add(kept, document.hash)
            last = document.hash
    for writer in writers.values():
        writer.close()
        if not writer.path.exists():
            write_documents([], writer.path)
    return {
        "counts": {source: dict(sorted(counted.items())) for source, counted in sorted(counts.items())},
        "card": {split: {source: of[source].as_dict() for source in sorted(of)} for split, of in card.items()},
    }


def build_corpus(config: CorpusConfig, sources: Artifact, *parts: Artifact, folder: Path) -> dict[str, Any]:
    """Check that sources and parts balance, write `test.parquet` and the data card; return the counts.

    read = kept + duplicates + skipped, for every source. Raises `OpenSpectraError` where a split would be empty.
    """
    parts = parts_of(parts, "part")
    counts = {name: _balance(name, sources.manifest.metrics[name], parts) for name in config.sources}
    card = {
        name: {
            "license": source.license,
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
                "give more documents, other fractions, or the `separator` of documents in .txt files."
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


def parts_of(artifacts: Iterable[Artifact], stage: str) -> list[Artifact]:
    """Return the parts (`part` or `token_part`) among `artifacts`, in order."""
    parts = [artifact for artifact in artifacts if artifact.manifest.stage == stage]
    return sorted(parts, key=lambda part: part.manifest.config["part"])


def role_of(artifact: Artifact) -> str:
    """Return the role of a part, or of a source's job, among the parents of what is made from many."""
    config = artifact.manifest.config
    return f"part_{config['part']:05d}" if "part" in config else f"source_{config['name']}_{config['job']:05d}"


def documents_of(corpus: Artifact, split: str) -> Iterator[Document]:
    """Yield the documents of one split of the whole corpus, in order, each part checked before it is read.

    Raises `DamagedArtifactError` where a part is missing, altered, or not the one that the corpus was made from.
    """
    for part in parts_of(corpus.parents("part"), "part"):
        yield from iterate(part.file(f"{split}.parquet"))


def read_documents(path: Path) -> list[Document]:
    """Return all documents of a Parquet file at once: for splits known to be small."""
    return list(iterate(path))


def card_of(corpus: Artifact) -> dict[str, Any]:
    """Return the data card: per source its licence, counts, and per split documents, bytes, lengths and hash."""
    return json.loads(corpus.file(CARD).read_text(encoding="utf-8"))


class _Card:
    """Documents, bytes, a histogram of lengths (documents of 2^k to 2^(k+1) - 1 bytes by k), and a hash of them all.

    The hash is the sum of the documents' own, modulo 2^128: equal for equal documents, in whatever files, order, jobs
    and parts they came.
    """

    def __init__(self):
        self.documents, self.bytes, self.lengths, self.hash = 0, 0, Counter(), 0

    def add(self, document: Document, document_hash: str) -> None:
        size = len(document.text.encode())
        self.documents += 1
        self.bytes += size
        self.lengths[size.bit_length() - 1] += 1
        self.hash = (self.hash + int(document_hash, 16)) % 2**128

    def as_dict(self) -> dict[str, Any]:
        lengths = {str(power): self.lengths[power] for power in sorted(self.lengths)}
        totals = {"documents": self.documents, "bytes": self.bytes, "hash": f"{self.hash:032x}"}
        return totals | {"length_log2_bytes": lengths}


def merged(cards: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the entry of a data card for all documents of several entries together."""
    total = _Card()
    for card in filter(None, cards):
        total.documents += card["documents"]
        total.bytes += card["bytes"]
        total.lengths.update({int(power): count for power, count in card["length_log2_bytes"].items()})
        total.hash = (total.hash + int(card["hash"], 16)) % 2**128
    return total.as_dict()


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

    By weights, the bytes that are kept of the sources stand in the ratio of the weights; the source that runs out
    first is taken up to `sample_fraction`.
    """
    size = {name: source["bytes"] for name, source in sources.manifest.metrics.items()}
    if config.weights is None:
        return dict.fromkeys(size, config.sample_fraction)
    wanted = {name: config.weights[name] / size[name] for name in size if size[name]}
    return {name: config.sample_fraction * share / max(wanted.values()) for name, share in wanted.items()}


def _slices(config: PartConfig, jobs: list[Artifact], folder: Path) -> Iterator[Path]:
    """Yield files of raw documents that together are the part: one narrow range of hashes each, in their order."""
    size = sum(job.manifest.metrics["part_bytes"][config.part] for job in jobs)
    count = max(1, math.ceil(size / SLICE_BYTES))
    if count > MAX_SLICES:
        raise OpenSpectraError(
            f"corpus.num_parts: part {config.part} has {size / 1e9:.0f} GB of text; raise {config.num_parts} to "
            f"{math.ceil(config.num_parts * count / MAX_SLICES)} or more."
        )
    with TemporaryDirectory(dir=folder) as scratch:
        writer = BucketWriter(Path(scratch), config.num_parts * count, first=config.part * count, count=count)
        name = f"{config.part:05d}.parquet"
        for job in jobs:
            if any(record.path == name for record in job.manifest.files):
                for document in iterate(job.file(name), RawDocument):
                    writer.add(document)
        writer.close()
        yield from (bucket.path for bucket in writer.writers if bucket.path.exists())


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
