"""From a source of text to normalized documents, divided into train, valid and test.

A document's id is the hash of its text. Id alone decides its split and its place, so the corpus does not depend on
the order in which files lie on disk, and no document can stand in two splits.
"""

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openspectra.config import CorpusConfig, DatasetsCorpus
from openspectra.errors import ConfigError, OpenSpectraError

TEST_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are not part of the embedded corpus: its test packages and other people's code."""


class Document(NamedTuple):
    """One text with its id (first 16 hexadecimal digits of its sha256) and where it came from."""

    id: str
    text: str
    source: str


def build_corpus(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `valid.parquet`, `test.parquet` (id, text, source; ordered by id); return the counts.

    read = kept + empty + too_short + duplicate + invalid_utf8 + over_limit, always. Raises `OpenSpectraError` where
    a split would be empty.
    """
    counts = Counter()
    documents: dict[str, Document] = {}
    for source, content in read_source(config):
        counts["read"] += 1
        try:
            text = content.decode("utf-8").replace("\r\n", "\n") if isinstance(content, bytes) else content
        except UnicodeDecodeError:
            counts["invalid_utf8"] += 1
            continue
        if not text.strip():
            counts["empty"] += 1
        elif len(text) < config.min_characters:
            counts["too_short"] += 1
        else:
            document = Document(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16], text, source)
            counts["duplicate"] += document.id in documents
            # of equal texts the first source in alphabetical order stays, whatever the order of reading
            documents[document.id] = min(document, documents.get(document.id, document))
    kept = sorted(documents.values())[: config.max_documents]
    counts["over_limit"] = len(documents) - len(kept)
    counts["kept"] = len(kept)
    splits = {"train": [], "valid": [], "test": []}
    for document in kept:
        splits[split_of(document.id, config)].append(document)
    for split, members in splits.items():
        if not members:
            raise OpenSpectraError(
                f"corpus: split `{split}` is empty (of {len(kept)} documents); give more documents or other fractions."
            )
        write_documents(members, folder / f"{split}.parquet")
    return {
        "counts": {key: counts[key] for key in _COUNTERS},
        "documents": {split: len(members) for split, members in splits.items()},
        "bytes": {split: sum(len(d.text.encode()) for d in members) for split, members in splits.items()},
    }


_COUNTERS = ("read", "kept", "empty", "too_short", "duplicate", "invalid_utf8", "over_limit")


def split_of(document_id: str, config: CorpusConfig) -> str:
    """Return the split a document belongs to: a function of its id alone."""
    position = int(document_id[8:], 16) / 2**32  # not the leading digits, which decide the order
    if position < config.test_fraction:
        return "test"
    return "valid" if position < config.test_fraction + config.valid_fraction else "train"


def read_source(config: CorpusConfig) -> Iterator[tuple[str, bytes | str]]:
    """Yield (source, content) of every document the config names, in any order."""
    if isinstance(config.documents, DatasetsCorpus):
        yield from _read_datasets(config.documents)
    else:
        yield from _read_stdlib()


def write_documents(documents: list[Document], path: Path) -> None:
    """Write documents as Parquet with columns id, text and source."""
    import pyarrow
    import pyarrow.parquet

    columns = dict(zip(Document._fields, zip(*documents, strict=True), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def read_documents(path: Path) -> list[Document]:
    """Return the documents of a Parquet file written by `write_documents`."""
    import pyarrow.parquet

    return [Document(**row) for row in pyarrow.parquet.read_table(path).to_pylist()]


def _read_stdlib() -> Iterator[tuple[str, bytes]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        # _sysconfigdata holds the paths of the machine that built the interpreter
        if not TEST_FOLDERS.intersection(relative.parts) and not path.name.startswith("_sysconfigdata"):
            yield relative.as_posix(), path.read_bytes()


def _read_datasets(source: DatasetsCorpus) -> Iterator[tuple[str, str]]:
    import datasets

    missing = [name for name in source.data_files or () if not any(Path().glob(name))]
    if missing:
        raise ConfigError(
            [f"corpus.documents.data_files: no file matches {name!r}; check the path." for name in missing]
        )
    rows = datasets.load_dataset(
        source.path,
        source.name,
        data_files=source.data_files,
        revision=source.revision,
        split=source.split,
        streaming=True,
    )
    for number, row in enumerate(rows):
        text = row.get(source.text_field)
        if text is not None and not isinstance(text, str):
            raise OpenSpectraError(
                f"corpus: row {number} of {source.path}: field `{source.text_field}` holds {type(text).__name__}, not text."
            )
        if text is None and source.text_field not in row:
            raise ConfigError(
                [
                    f"corpus.documents.text_field: {source.path} has no field {source.text_field!r}; it has {sorted(row)}."
                ]
            )
        yield f"{source.path}:{number}", text or ""
