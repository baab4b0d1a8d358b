"""Typed configs with closed schemas: one per stage, each with only the keys that stage reads.

The types are the single source: they validate what is read, and `workflow/schemas/study.schema.json` is written
from them. A stage's resolved config is part of its artifact's identity, so nothing about the machine belongs here.
"""

import difflib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from openspectra.errors import ConfigError
from openspectra.model.families import FAMILY_NAMES

PositiveInt = Annotated[int, Field(ge=1, le=10**15)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
SizeLabel = Annotated[str, Field(pattern=r"^[0-9A-Za-z]+(\.[0-9]+)?[A-Za-z]?$", max_length=16)]
Bits = Literal[3, 4, 6, 8]
FamilyName = Literal[FAMILY_NAMES]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Split = Literal["train", "valid", "test"]
BuiltTask = Literal["held_out_text", "cloze", "continuation", "minimal_pairs"]
"""The benchmarks that a study can build from its test split; any other task is lm-eval's."""
BUILT_TASKS: tuple[BuiltTask, ...] = get_args(BuiltTask)

C = TypeVar("C", bound=BaseModel)

FLOPS_PER_PARAMETER = 6
"""Floating-point operations per parameter and token of one training step (forward 2, backward 4)."""
COMPILED_FROM_FLOPS = 1e14
"""Runs from this size on compile their blocks: about 15 minutes on two CPU cores, of which compiling takes under one."""


class Config(BaseModel):
    """Base of every config: unknown keys, loose types, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


class LlamaShape(Config):
    """Architecture, in the names of Hugging Face's Llama."""

    vocab_size: PositiveInt
    """Rows of embedding and head, padding included."""
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt = 2048  # paper, released configs
    rms_norm_eps: Rate = 1e-5  # paper, released configs
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0  # paper, released configs
    initializer_range: Rate = 0.02
    """Standard deviation of the initial normal draw."""
    scales_per_matrix: PositiveInt = 1
    """Scales of a ternary matrix: the MP column of the published model table."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the blocks' linear layers: those a family or a quantizer changes."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """All parameters: linear layers, two norms per block and a final one, untied embedding and head."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_linear_parameters + norms + 2 * self.vocab_size * self.hidden_size

    @model_validator(mode="after")
    def _divisible(self):
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"`num_attention_heads` must split `hidden_size` into heads of even width; "
                f"got {self.num_attention_heads} and {self.hidden_size}."
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % self.scales_per_matrix:
                raise ValueError(
                    f"`scales_per_matrix` must divide `{name}`; got {self.scales_per_matrix} and {getattr(self, name)}."
                )
        return self


Problem = Literal[
    "damaged_file",
    "invalid_json",
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


DataPath = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_confined)]
"""A path, or a pattern with `*`, below the data folder: `data`, or what OPENSPECTRA_DATA names."""


class SourceConfig(Config):
    """What all sources of documents share."""

    license: str | None = None
    """Licence of the texts, for the data card."""
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Share of this source in the mixture, by bytes as read; without weights every source is taken whole."""
    dirty: dict[Problem, Literal["fail", "skip"]] = {}
    """What to do with dirty documents: `fail` where a problem is not listed; `skip` leaves out, counts and lists them."""
    num_jobs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Jobs that read the source in parallel, each a share of its files; changes no document. More than files: some idle."""


class StdlibSource(SourceConfig):
    """The embedded corpus: the standard library of the interpreter that runs the workflow, without its tests."""

    adapter: Literal["python_stdlib"]


class FilesSource(SourceConfig):
    """Local files: .txt (a document each), .jsonl (a document per line) or .parquet; text and JSON also as .gz or .zst."""

    adapter: Literal["files"]
    files: (
        Annotated[list[DataPath], Field(min_length=1)]
        | Annotated[dict[Split, Annotated[list[DataPath], Field(min_length=1)]], Field(min_length=1)]
    )
    """Paths or patterns; given by split, the documents keep that split, else it follows from their hash."""
    text_field: str = "text"
    separator: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """What stands between the documents of a .txt file (an empty line: two line ends); without it a file is one document."""
    where: dict[str, str] = {}
    """Fields (`meta.set` for one inside another) and the value each must have: other rows are not of this source."""


class HubSource(SourceConfig):
    """A data set of the Hugging Face hub, streamed through `datasets`: the only source that needs the network."""

    adapter: Literal["hub"]
    path: Annotated[str, Field(min_length=1)]
    name: str | None = None
    """Configuration of the data set, where it has several."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """Commit of the hub repository, so that two runs read the same text."""
    split: str | Annotated[dict[Split, str], Field(min_length=1)] = "train"
    """The hub's split; given by split of ours, the documents keep it, else it follows from their hash."""
    text_field: str = "text"
    where: dict[str, str] = {}
    """As for files."""


Source = Annotated[StdlibSource | FilesSource | HubSource, Field(discriminator="adapter")]


class BenchmarkFiles(Config):
    """Items of a benchmark, as files, for the check of contamination."""

    files: Annotated[list[DataPath], Field(min_length=1)]
    fields: list[str] | None = None
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
    """Longer documents, or lines of JSON, are dirty: `too_long`. The tokenizer needs 140 bytes of memory for each."""
    num_parts: Annotated[int, Field(ge=1, le=1000)] = 1
    """Parts of the corpus, by hash of the documents: as many jobs de-duplicate and tokenize in parallel."""
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


class BenchmarksConfig(Config):
    """The items of lm-eval's own tasks, fetched where there is a network."""

    tasks: list[str]


class ContaminationConfig(Config):
    """The search for benchmark items in the train split."""

    benchmarks: dict[SourceName, BenchmarkFiles]
    ngram_words: PositiveInt = 13
    """Words in a row that make a hit; 13 as in GPT-3 (arXiv 2005.14165, appendix C)."""


class TokenizerConfig(Config):
    """A byte-level BPE: trained on the train split, or loaded from a `tokenizer.json`."""

    vocab_size: PositiveInt
    """Entries to train, or expected in `file`; the model pads them to a multiple of 128 x scales_per_matrix."""
    file: DataPath | None = None
    """A ready `tokenizer.json`, relative to the data folder (`data`, or what OPENSPECTRA_DATA names)."""
    end_of_text: str = "<|endoftext|>"
    """Token written after every document."""


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
    dtype: Literal["uint16", "uint32"] = "uint16"
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    """Share of each file, from its end and by whole documents, on which choices are made."""
    tokens_per_shard: PositiveInt = 2**26
    """Tokens that share an index of their documents."""
    part: Annotated[int, Field(ge=0)] = 0

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Source and path of every file, in the order of the tokens."""
        return [(name, path) for name, paths in self.files.items() for path in paths]


class TokensConfig(Config):
    """One split as a single row of tokens, from the shards of all parts."""

    split: Split


class PretrainConfig(Config):
    """One training run, everything resolved: architecture, recipe, order of text."""

    model_id: str
    family: FamilyName
    shape: LlamaShape
    seed: Seed
    """Seeds the initial draw and the order of text: equal for the twins of a size."""
    precision: Precision
    sequence_length: PositiveInt
    """Tokens the model reads per training sample."""
    global_batch_size: PositiveInt
    """Sequences per optimizer step."""
    micro_batch_size: PositiveInt
    """Sequences per forward and backward pass."""
    max_steps: PositiveInt
    """Optimizer steps of the whole run."""
    warmup_steps: Annotated[int, Field(ge=0)]
    """Optimizer steps until the peak learning rate is reached."""
    schedule: Literal["cosine", "linear"]
    peak_lr: Rate
    min_lr: Annotated[float, Field(ge=0, le=1)]
    """Learning rate at the last step of a cosine schedule."""
    lr_drop_step: PositiveInt | None = None
    """First step that follows the lower peak."""
    peak_lr_after_drop: Rate | None = None
    weight_decay: Fraction
    weight_decay_stop_step: PositiveInt | None = None
    """First step without weight decay."""
    adam_betas: Annotated[list[float], Field(min_length=2, max_length=2)]
    adam_eps: Rate
    gradient_clip_norm: Annotated[float, Field(gt=0)]
    checkpoint_every_steps: PositiveInt
    """Regular interval of the kept weights and of the states from which an interrupted run goes on."""
    valid_every_steps: PositiveInt
    """Interval of validation and of the measurements of discrete weights."""
    valid_sequences: PositiveInt
    """Sequences of the valid split in each validation."""
    log_every_steps: PositiveInt
    export_dtype: Literal["float32", "float16"]
    """Precision of the saved weights."""

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length

    @property
    def uses_loss_scaling(self) -> bool:
        """Whether half-precision gradients need a dynamic loss scale."""
        return self.precision == "16-mixed"

    @property
    def is_compiled(self) -> bool:
        """Whether blocks are compiled: by the size of the run, never by a stopwatch, for it changes the last digits."""
        tokens = self.max_steps * self.tokens_per_step
        return FLOPS_PER_PARAMETER * self.shape.num_parameters * tokens >= COMPILED_FROM_FLOPS

    @cached_property
    def checkpoint_steps(self) -> frozenset[int]:
        """Steps whose weights are kept: 1, 2, 4, ... up to the regular interval, then its multiples.

        The last step is not among them: it is the model itself.
        """
        # ASSUME: the paper announces 500+ checkpoints for 18 runs and states no interval
        early = (2**power for power in range(self.checkpoint_every_steps.bit_length()))
        regular = range(self.checkpoint_every_steps, self.max_steps, self.checkpoint_every_steps)
        return frozenset(step for step in (*early, *regular) if step < self.max_steps)

    @property
    def summary(self) -> str:
        """What the run does, in one line."""
        rates = f"{self.peak_lr:g}" + (f" -> {self.peak_lr_after_drop:g}" if self.peak_lr_after_drop else "")
        return (
            f"{self.shape.num_parameters:,} parameters, peak rate {rates}, {self.max_steps:,} steps of "
            f"{self.global_batch_size} x {self.sequence_length} = {self.tokens_per_step:,} tokens"
        )

    @model_validator(mode="after")
    def _consistent(self):
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"`micro_batch_size` must divide `global_batch_size`; got {self.micro_batch_size} and {self.global_batch_size}."
            )
        if self.sequence_length > self.shape.max_position_embeddings:
            raise ValueError(
                f"`sequence_length` must not exceed `max_position_embeddings`; "
                f"got {self.sequence_length} and {self.shape.max_position_embeddings}."
            )
        if (self.lr_drop_step is None) != (self.peak_lr_after_drop is None):
            raise ValueError("`lr_drop_step` and `peak_lr_after_drop` go together; give both or neither.")
        return self


class CheckpointConfig(Config):
    """The weights of one step of a training run."""

    model_id: str
    family: FamilyName
    step: PositiveInt


class QuantizeConfig(Config):
    """GPTQ of one FloatLM (paper, section on QuantLM), in gptqmodel's names."""

    model_id: str
    bits: Bits
    group_size: Annotated[int, Field(ge=-1)]
    """Weights of a row that share a scale; -1: the whole row."""
    sym: Literal[True] = True
    desc_act: bool = False  # ASSUME: GPTQ's plain order; the paper does not state it
    damp_percent: Annotated[float, Field(gt=0, lt=1)] = 0.01  # ASSUME: GPTQ's default; the paper does not state it
    num_calibration_samples: PositiveInt
    calibration_sequence_length: PositiveInt
    calibration_set: Annotated[int, Field(ge=0)] = 0
    """Which of the disjoint sets that the seed gives."""
    seed: Seed
    """Seeds the draw of calibration sequences from the train split."""


class TasksConfig(Config):
    """Benchmarks built from the documents of the test split (see `evaluation/build_tasks.py`)."""

    seed: Seed
    num_documents: PositiveInt
    """Test documents whose text is scored for perplexity and bits per byte."""
    document_characters: PositiveInt
    """Characters of each such document, from its beginning."""
    num_items: PositiveInt
    """Items per task."""
    tasks: Annotated[list[BuiltTask], Field(min_length=1)] = list(BUILT_TASKS)
    """Which are built; `minimal_pairs` needs Python source."""


class EvaluateConfig(Config):
    """One suite of lm-eval tasks on one model."""

    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    batch_size: PositiveInt
    dtype: Literal["float32", "float16", "bfloat16"]
    """Precision of the weights during evaluation; log-softmax is always computed in float32."""
    limit: PositiveInt | None = None
    """Items per task, for smoke runs."""


class ReportConfig(Config):
    """The page that shows a study."""

    study: str
    title: str
    seed: Seed
    """Seeds the resampling of documents behind every interval."""
    num_resamples: PositiveInt
    """Bootstrap resamples per interval."""


def describe_problems(source: str, error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line per problem of a failed validation: file, key, value received, and the way out."""
    return [_describe(source, problem, model) for problem in error.errors(include_url=False)]


def _describe(source: str, problem: dict[str, Any], model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    if problem["type"] == "extra_forbidden":
        names = _valid_names(model)
        close = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.5)
        remedy = f"did you mean `{close[0]}`?" if close else "remove it."
        return f"{source}: {path}: unknown key; {remedy}"
    if problem["type"] == "missing":
        return f"{source}: {path}: required key is missing; add it."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "value_error":
        return f"{source}: {path}: {message}."
    return f"{source}: {path}: {message[0].lower() + message[1:]}; got {shown}."


def _valid_names(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for part in parts for name in part.get("properties", {})})


def validate(model: type[C], data: Any, source: str) -> C:
    """Return `data` as `model`. Raises `ConfigError` with every problem, each naming `source` and key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe_problems(source, error, model)) from None
    except RecursionError:
        raise ConfigError([f"{source}: nested too deeply; a config has a handful of levels."]) from None


def read_config(model: type[C], path: Path) -> C:
    """Return the resolved stage config in the JSON file `path`. Raises `ConfigError` naming file, key and remedy."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; check --config."]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: not a readable JSON config ({error}); let the workflow write it again."]) from None
    return validate(model, data, str(path))
