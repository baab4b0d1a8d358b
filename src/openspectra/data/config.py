"""Configs of the data stages: which text, how it is divided, how it becomes tokens."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from openspectra.config import Config, Fraction, PositiveInt, Rate, Text

Split = Literal["train", "valid", "test"]

Problem = Literal[
    "damaged_file",
    "invalid_json",
    "invalid_csv",
    "missing_field",
    "null",
    "wrong_type",
    "invalid_utf8",
    "lone_surrogate",
    "empty",
    "too_long",
]
"""What can be wrong with a document, or with the file that should hold it."""
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=40)]


def _confined(pattern: str) -> str:
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or pattern.startswith("~"):
        raise ValueError(f"must be a path below the data folder, without `..`; got {pattern!r}")
    return pattern


DataPath = Annotated[Text, Field(max_length=300), AfterValidator(_confined)]
"""A path, or a pattern with `*`, below the data folder: `data`, or what OPENSPECTRA_DATA names."""


class SourceConfig(Config):
    """What all sources of documents share."""

    license: Text | None = None
    """Licence of the texts, for the data card."""
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Share of this source in the mixture, by bytes as read, duplicates included; without weights every source is whole."""
    dirty: dict[Problem, Literal["fail", "skip"]] = {}
    """What to do with dirty documents: `fail` where a problem is not listed; `skip` leaves out, counts and lists them."""
    num_jobs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Jobs that read the source in parallel, each a share of its files; changes no document. More than files: some idle."""


class StdlibSource(SourceConfig):
    """The embedded corpus: the standard library of the interpreter that runs the workflow, without its tests."""

    adapter: Literal["python_stdlib"]


class FilesSource(SourceConfig):
    """Local files: .txt (a document each), .jsonl, .json, .csv, .tsv, .parquet or .arrow (a document per row), and folders of
    `datasets.save_to_disk`; text, JSON and CSV also packed as .gz, .zst, .bz2 or .xz."""

    adapter: Literal["files"]
    files: (
        Annotated[list[DataPath], Field(min_length=1)]
        | Annotated[dict[Split, Annotated[list[DataPath], Field(min_length=1)]], Field(min_length=1)]
    )
    """Paths or patterns; given by split, the documents keep that split, else it follows from their hash."""
    text_field: Text = "text"
    """Field or column that holds the text; `data.text` for one inside another, where no field has that very name."""
    separator: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """What stands between the documents of a .txt file (an empty line: two line ends); without it a file is one document."""
    where: dict[Text, str | int] = {}
    """Fields (`meta.set` for one inside another) and the value each must have: other rows are not of this source."""


class HubSource(SourceConfig):
    """A data set of the Hugging Face hub, streamed through `datasets`: the only source that needs the network."""

    adapter: Literal["hub"]
    path: Text
    name: Text | None = None
    """Configuration of the data set, where it has several."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """Commit of the hub repository, so that two runs read the same text."""
    split: Text | Annotated[dict[Split, Text], Field(min_length=1)] = "train"
    """The hub's split; given by split of ours, the documents keep it, else it follows from their hash."""
    text_field: Text = "text"
    where: dict[Text, str | int] = {}
    """As for files."""


Source = Annotated[StdlibSource | FilesSource | HubSource, Field(discriminator="adapter")]


class BenchmarkFiles(Config):
    """Items of a benchmark, as files, for the check of contamination."""

    files: Annotated[list[DataPath], Field(min_length=1)]
    fields: list[Text] | None = None
    """Fields joined to an item's text; without it every field that holds text."""


class CorpusConfig(Config):
    """Which documents, and how they are divided into train, valid and test."""

    sources: Annotated[dict[SourceName, Source], Field(min_length=1)]
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the documents, by hash of their text, on which choices are made."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of the documents from which every reported number comes."""
    sample_fraction: Rate = 1.0
    """Share of the documents that are kept, by hash of their text; of a mixture, of its fullest source."""
    min_characters: PositiveInt = 1
    """Shorter documents are left out and counted."""
    max_document_bytes: Annotated[int, Field(ge=1, le=100_000_000)] = 5_000_000
    """Longer documents, or lines of JSON, are dirty: `too_long`. What memory they need: docs/data.md."""
    num_parts: Annotated[int, Field(ge=1, le=900)] = 1
    """Parts of the corpus, by hash of the documents: as many jobs de-duplicate and tokenize in parallel. Whoever reads
    text holds a file of each open, and many systems let a process open 1,024."""
    benchmarks: dict[SourceName, BenchmarkFiles] = {}
    """Items given as files, whose 13-grams are looked for in the train split: further benchmarks, or those of a task of
    `evaluation` by its name. Items of all other tasks are fetched as lm-eval reads them."""

    @model_validator(mode="after")
    def _weighted_alike(self):
        without = [name for name, source in self.sources.items() if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(f"`weight` must be given for every source or for none; it is missing for {without}.")
        return self


class ReadConfig(Config):
    """One job that reads a source: its share of the files, normalized and spread over the parts of the corpus."""

    name: SourceName
    source: Source
    job: Annotated[int, Field(ge=0)] = 0
    min_characters: PositiveInt
    max_document_bytes: PositiveInt
    num_parts: PositiveInt


class SourcesConfig(Config):
    """All sources of a corpus, as read."""

    sources: list[SourceName]


class PartConfig(Config):
    """One part of the corpus: the documents whose hash lies in its range."""

    part: Annotated[int, Field(ge=0)] = 0
    num_parts: PositiveInt
    weights: dict[SourceName, float] | None
    valid_fraction: Fraction
    test_fraction: Fraction
    sample_fraction: Rate


class ContaminationConfig(Config):
    """The search for benchmark items in the train split."""

    benchmarks: dict[SourceName, BenchmarkFiles]
    ngram_words: PositiveInt = 13
    """Words in a row that make a hit; 13 as in GPT-3 (arXiv 2005.14165, appendix C)."""


class TokenizerConfig(Config):
    """A byte-level BPE: trained on the train split, or loaded from a `tokenizer.json`."""

    vocab_size: PositiveInt
    """Entries to train; of `file` its largest id plus one. The model pads them to a multiple of 128 x scales_per_matrix."""
    file: DataPath | None = None
    """A ready `tokenizer.json`, relative to the data folder (`data`, or what OPENSPECTRA_DATA names)."""
    end_of_text: Text = "<|endoftext|>"
    """Token written after every document."""
    post_processor: Literal["refuse", "remove"] = "refuse"
    """Of a `file` that adds tokens to every text (such as `<bos>`): training text has none, so no other stage may add any."""
    max_lost_fraction: Fraction = 0.0
    """Share of the bytes of a split that may fail to come back from their tokens; texts that lose some have no bits per byte."""


class TokenPartConfig(Config):
    """One part of the corpus as token shards."""

    part: Annotated[int, Field(ge=0)] = 0
    splits: list[Split]
    tokens_per_shard: PositiveInt = 2**26
    """Tokens of a file and of the index that goes with it: 128 MB of 2-byte tokens."""


class TokenFilesConfig(Config):
    """Text that is tokens already: files of little-endian ids, documents ended by the tokenizer's end-of-text token."""

    files: Annotated[dict[SourceName, Annotated[list[DataPath], Field(min_length=1)]], Field(min_length=1)]
    """Paths by source, without patterns; each file is one part."""
    tokenizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Fingerprint of the `tokenizer.json` that made them."""
    dtype: Literal["uint16", "uint32"]
    """What an id is stored as."""
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of each file, before its test documents and by whole documents, on which choices are made."""
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of each file, from its end and by whole documents, from which every reported number comes."""
    license: Text | None = None
    """Licence of the texts, for the data card."""

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Source and path of every file, in the order of the tokens."""
        return [(name, path) for name, paths in self.files.items() for path in paths]

    @model_validator(mode="after")
    def _each_once(self):
        counts = Counter(Path(path).as_posix() for _, path in self.parts)
        if twice := [path for path, count in counts.items() if count > 1]:
            raise ValueError(f"`files` must name each file once; {', '.join(twice)} would be read again.")
        return self


class TokenFilePartConfig(TokenFilesConfig):
    """One of the files, indexed where it lies."""

    part: Annotated[int, Field(ge=0)] = 0
    tokens_per_shard: PositiveInt = 2**26
    """Tokens that share an index of their documents."""


class TokensConfig(Config):
    """One split as a single row of tokens, from the shards of all parts."""

    split: Split
