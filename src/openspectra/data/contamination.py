"""Benchmark items in the training text: 13 words in a row that both hold (GPT-3, arXiv 2005.14165, appendix C).

Words are runs of letters and digits, those of ASCII in lower case; white space and punctuation separate them. N-grams are compared as 64-bit
hashes, and hits are listed with their words, so that they can be read: every item that is found, with up to
`LISTED_DOCUMENTS` documents. What stands in thousands of documents is a licence or a menu, and no more of them says more;
perplexity corpora are searched for too, and are full of such passages.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openspectra.artifacts import Artifact, parts_of, write_csv
from openspectra.data.config import ContaminationConfig
from openspectra.data.documents import iterate
from openspectra.data.formats import ENDINGS, format_of, has_fields, read_rows
from openspectra.data.local_files import (
    INPUT_COLUMNS,
    LocalFile,
    as_listed,
    matching_files,
    record_input,
)
from openspectra.data.order import mix
from openspectra.data.read import WHAT
from openspectra.data.rows import Row, field_of
from openspectra.errors import ConfigError, OpenSpectraError
from openspectra.printable import escaped

LISTED_DOCUMENTS = 100
"""Documents listed of an item, the first by their ids, which are their hashes: a sample of all that no order of files decides."""
HIT_COLUMNS = ("benchmark", "item", "document_id", "source", "num_ngrams", "first_ngram")
FILTER_BITS = 24
MAX_ITEM_BYTES = 100_000_000
SEARCHED_BYTES = 4_000_000
"""Text whose n-grams are in memory at a time, some 40 bytes for each of its bytes."""
_GAP = re.compile(rb"[ \n.,]|\xe3\x80")  # the latter begins U+3000 to U+303F: Chinese and Japanese stops
ORDER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: what is multiplied by it stands before what is added."""


class Ngrams(NamedTuple):
    """The n-grams of all items: sorted hashes, and the number of the item each comes from; items may share some."""

    hashes: np.ndarray
    items: np.ndarray
    filter: np.ndarray
    """Whether some hash begins with these `FILTER_BITS` bits: rules out nearly all text at one look each."""
    names: list[tuple[str, str]]
    """Benchmark and name of each item."""


def check_contamination(
    config: ContaminationConfig,
    corpus: Artifact,
    folder: Path,
    tasks: Artifact | None = None,
    benchmarks: Artifact | None = None,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Write `inputs.csv`, the benchmark files with their hashes, and `hits.csv`, one row per item and train document that share an n-gram, at most `LISTED_DOCUMENTS` of an item; return counts by benchmark.

    `tasks` (built by the study) and `benchmarks` (fetched of lm-eval's tasks) hold items as `<task>.jsonl`; of a task that
    the config gives as files, the files count.

    `num_too_short` items have fewer words in every field than an n-gram has, and cannot be checked. `num_not_listed`, where
    there are any, are the pairs of item and document beyond those of `hits.csv`.
    """
    found = chain.from_iterable(map(_items_of, filter(None, (tasks, benchmarks))))
    inputs: list[dict[str, Any]] = []
    items = [*_file_items(config, inputs), *(item for item in found if item[0] not in config.benchmarks)]
    ngrams = index_items([texts for *_, texts in items], [entry[:2] for entry in items], config.ngram_words)
    paths = [part.file("train.parquet") for part in parts_of(corpus.parents("part"), "part")]
    search = partial(_search, ngrams=ngrams, num_words=config.ngram_words)
    if num_processes == 1 or len(paths) == 1:
        hits, num_documents = _merged(map(search, paths), len(items))
    else:
        with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
            hits, num_documents = _merged(pool.map(search, paths), len(items))
    write_csv(folder / "inputs.csv", (*INPUT_COLUMNS, "items"), inputs)
    write_csv(folder / "hits.csv", HIT_COLUMNS, (dict(zip(HIT_COLUMNS, hit, strict=True)) for hit in hits))
    found = np.flatnonzero(num_documents).tolist()
    num_found = Counter(benchmark for benchmark, _ in {ngrams.names[item] for item in found})
    not_listed: Counter[str] = Counter()
    for item in np.flatnonzero(num_documents > LISTED_DOCUMENTS).tolist():
        not_listed[ngrams.names[item][0]] += int(num_documents[item]) - LISTED_DOCUMENTS
    total = Counter(benchmark for benchmark, *_ in items)
    checked = Counter(ngrams.names[item][0] for item in np.unique(ngrams.items).tolist())
    return {
        name: {"num_items": total[name], "num_too_short": total[name] - checked[name], "num_found": num_found[name]}
        | ({"num_not_listed": not_listed[name]} if not_listed[name] else {})
        for name in sorted(total)
    }


def index_items(texts: list[list[str]], names: list[tuple[str, str]], num_words: int) -> Ngrams:
    """Return the n-grams of items, each given as the texts of its fields; no n-gram crosses from field to field."""
    hashes, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for number, fields in enumerate(texts):
        for field in fields:
            hashes.append(ngram_hashes(field.encode(errors="replace"), num_words)[0])
            numbers.append(np.full(len(hashes[-1]), number))
    pairs = np.unique(np.rec.fromarrays([np.concatenate(hashes), np.concatenate(numbers)], names="hash,number"))
    seen = np.zeros(2**FILTER_BITS, bool)
    seen[pairs["hash"] >> np.uint64(64 - FILTER_BITS)] = True
    return Ngrams(np.ascontiguousarray(pairs["hash"]), np.ascontiguousarray(pairs["number"]), seen, names)


def ngram_hashes(text: bytes, num_words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a hash per n-gram (uint64), and the first byte and the end of each in `text` (UTF-8)."""
    codes = np.frombuffer(text, np.uint8)
    letters = _LETTERS[codes]
    if not text.isascii():
        letters[_is_separator(codes)] = 0
    inside = letters > 0
    starts = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    ends = np.flatnonzero(inside & ~np.concatenate((inside[1:], [False]))) + 1
    if len(starts) < num_words:
        return np.empty(0, np.uint64), starts[:0], ends[:0]
    lengths = ends - starts
    first_letters = np.cumsum(lengths) - lengths
    position = np.arange(lengths.sum()) - np.repeat(first_letters, lengths)
    values = letters[inside] * mix(np.arange(lengths.max(), dtype=np.uint64))[position]
    words = mix(np.add.reduceat(values, first_letters) + lengths.astype(np.uint64))
    count = len(words) - num_words + 1
    return _hashes_of_runs(words, num_words), starts[:count], ends[num_words - 1 :]


def _hashes_of_runs(words: np.ndarray, num_words: int) -> np.ndarray:
    """Return a hash for each `num_words` words in a row, put together from runs of 1, 2, 4, ... words."""
    count = len(words) - num_words + 1
    hashes, runs, length, taken = np.zeros(count, np.uint64), words, 1, 0
    while True:
        if num_words & length:
            hashes = mix(hashes * ORDER + runs[taken : taken + count])
            taken += length
        if taken == num_words:
            return hashes
        runs = mix(runs[:-length] * ORDER + runs[length:])
        length *= 2


def _is_separator(codes: np.ndarray) -> np.ndarray:
    """Return which bytes of UTF-8 belong to the punctuation, spaces and symbols of U+0080 to BF, U+2000 to 207F, U+3000 to 3F."""
    two = codes[:-1] == 0xC2
    three = np.isin(codes[:-2], (0xE2, 0xE3)) & (codes[1:-1] == 0x80) | (codes[:-2] == 0xE2) & (codes[1:-1] == 0x81)
    found = np.zeros(len(codes), bool)
    for offset, first in ((0, two), (1, two), (0, three), (1, three), (2, three)):
        found[offset : offset + len(first)] |= first
    return found


def _letters() -> np.ndarray:
    """Return the lower-case letter or digit of each byte, 0 for all that separates words; bytes of UTF-8 are letters."""
    table = np.zeros(256, np.uint64)
    for byte in range(256):
        if byte >= 128 or chr(byte).isalnum():
            table[byte] = byte if byte >= 128 else ord(chr(byte).lower())
    return table


_LETTERS = _letters()


Hits = list[tuple[int, tuple]]
"""The number of an item with a row of `hits.csv`."""


def _merged(parts: Iterable[tuple[Hits, np.ndarray]], num_items: int) -> tuple[list[tuple], np.ndarray]:
    """Return the rows of `hits.csv` in order, and in how many documents each item was found [num_items].

    Parts come in the order of the ids of their documents, so that the first hits of an item are those that are kept.
    """
    rows, num_documents = [], np.zeros(num_items, np.int64)
    for hits, counts in parts:
        listed = np.minimum(num_documents, LISTED_DOCUMENTS)
        for item, row in hits:
            if listed[item] < LISTED_DOCUMENTS:
                listed[item] += 1
                rows.append(row)
        num_documents += counts
    return sorted(rows), num_documents


def _search(path: Path, ngrams: Ngrams, num_words: int) -> tuple[Hits, np.ndarray]:
    """Return the first `LISTED_DOCUMENTS` hits of each item in one part, and in how many documents each was found."""
    hits, num_documents = [], np.zeros(len(ngrams.names), np.int64)
    for document in iterate(path):
        text = document.text.encode()
        counts, first_words = Counter(), {}
        for hashes, starts, ends in ngrams_in_turns(text, num_words):
            candidates = np.flatnonzero(ngrams.filter[hashes >> np.uint64(64 - FILTER_BITS)])
            if not len(candidates):
                continue
            found = _found(hashes, candidates, ngrams)
            for item, ngram, count in zip(*(column.tolist() for column in found), strict=True):
                counts[item] += count
                first_words.setdefault(item, text[starts[ngram] : ends[ngram]])
        for item, words in first_words.items():
            num_documents[item] += 1
            if num_documents[item] <= LISTED_DOCUMENTS:
                words = " ".join(words.decode(errors="replace").split())
                hits.append((item, (*ngrams.names[item], document.id, document.source, counts[item], escaped(words))))
    return hits, num_documents


def _found(hashes: np.ndarray, candidates: np.ndarray, ngrams: Ngrams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the items that a document shares n-grams with, and of each the first such n-gram and their number.

    An n-gram that the document repeats is looked at once: with all items that have it, it would fill the memory.
    """
    different, first, repeats = np.unique(hashes[candidates], return_index=True, return_counts=True)
    begins, ends = (np.searchsorted(ngrams.hashes, different, side) for side in ("left", "right"))
    sharing = ends - begins
    entries = np.arange(sharing.sum()) + np.repeat(begins - np.cumsum(sharing) + sharing, sharing)
    items, places, counts = ngrams.items[entries], np.repeat(candidates[first], sharing), np.repeat(repeats, sharing)
    order = np.lexsort((places, items))
    found, start = np.unique(items[order], return_index=True)
    if not len(found):
        return found, found, found
    return found, places[order][start], np.add.reduceat(counts[order], start)


def ngrams_in_turns(text: bytes, num_words: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield what `ngram_hashes` returns for a text, in order, each n-gram once, for `SEARCHED_BYTES` of it at a time.

    A turn ends between two words; the next begins with the last n-gram of the one before, which it passes over.
    """
    begin, reach, known = 0, SEARCHED_BYTES, 0
    while True:
        gap = _GAP.search(text, reach)
        end = gap.start() if gap else len(text)
        hashes, starts, ends = ngram_hashes(text[begin:end], num_words)
        yield hashes[known:], starts[known:] + begin, ends[known:] + begin
        if not gap:
            return
        if len(hashes):
            begin, known = begin + int(starts[-1]), 1
        reach = end + SEARCHED_BYTES


def _file_items(config: ContaminationConfig, inputs: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield benchmark, item (`file:row`) and texts of every item of the benchmark files; add the files to `inputs`."""
    for name, benchmark in config.benchmarks.items():
        files: dict[Path, LocalFile] = {}
        for pattern in benchmark.files:
            try:
                paths = matching_files(pattern)
            except ConfigError as error:
                raise ConfigError(
                    [f"corpus.benchmarks.{name}.files: {problem}" for problem in error.problems]
                ) from None
            if not paths:
                raise ConfigError(
                    [f"corpus.benchmarks.{name}.files: no file matches {pattern!r}; put it into the data folder."]
                )
            files |= {path.resolve(): as_listed(path) for path in paths}
        before = len(inputs)
        for file in sorted(files.values()):
            if format_of(file.path) is None or not has_fields(file.path):
                raise ConfigError(
                    [
                        f"corpus.benchmarks.{name}.files: {file.path}: no ending of a table; give {ENDINGS}, but not .txt."
                    ]
                )
            count = 0
            for place, item, *_ in _rows(file.path, file.name):
                if unknown := [field for field in benchmark.fields or () if not field_of(item, field)[0]]:
                    raise ConfigError(
                        [f"corpus.benchmarks.{name}.fields: {file.path} has {sorted(item)}; got {sorted(unknown)}."]
                    )
                fields = [field_of(item, field)[1] for field in benchmark.fields] if benchmark.fields else item
                yield name, place, list(_strings(fields))
                count += 1
            inputs.append(record_input(file) | {"items": count})
        if not sum(entry["items"] for entry in inputs[before:]):
            raise ConfigError([f"corpus.benchmarks.{name}.files: no item in {benchmark.files}; correct them."])


def _items_of(benchmarks: Artifact) -> Iterator[tuple[str, str, list[str]]]:
    for record in benchmarks.manifest.files:
        if record.path.endswith(".jsonl"):
            name = Path(record.path).stem
            for _, item, *_ in _rows(benchmarks.file(record.path), record.path):
                yield name, item["item_id"], list(_strings(item))


def _rows(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a benchmark file, empty lines left out. Raises `OpenSpectraError` of one line for a dirty one."""
    for row in read_rows(path, name, MAX_ITEM_BYTES):
        if row.content == "":
            continue
        if row.problem:
            raise OpenSpectraError(f"{path}: {row.place}: {WHAT[row.problem]} ({row.cause}); mend it.")
        yield row


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in an item, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))
