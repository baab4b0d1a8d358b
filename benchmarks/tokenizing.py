"""Tokenizing: the stage's speed as a share of the raw speed of `tokenizers`, and its peak memory.

    python benchmarks/tokenizing.py --tokenizer data/tokenizer/20B_tokenizer.json data/corpora/*/train.parquet

Both sides encode the same documents with the same threads, in processes of their own that take turns; raw is
`encode_batch_fast` on texts in memory, ours goes from Parquet to a finished artifact: tokenizer loaded, shards, index and
hashes written. Each turn of ours is compared with the mean of the raw turns before and after it, as machines drift.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from machine import processor

HERE = Path(__file__).parent
RAW_BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with a column `text`")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=float, default=40, help="text per turn")
    parser.add_argument("--side", choices=("raw", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        take_turns({"raw": raw, "ours": ours}[options.side](options))
        return
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, tokenizers {version('tokenizers')}, {options.threads} threads"
    ]
    lines += ["", "| round | raw, tokens/s | ours, tokens/s | ratio | ratio per CPU second |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: |"]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_part(options, Path(folder) / "part")
        with side("raw", corpus) as raw_side, side("ours", corpus) as our_side:
            before = turn(raw_side)
            for number in range(1, options.rounds + 1):
                found, after = turn(our_side), turn(raw_side)
                speed, cpu_speed = (
                    (before[key] + after[key]) / 2 for key in ("tokens_per_second", "tokens_per_cpu_second")
                )
                ratios.append((found["tokens_per_second"] / speed, found["tokens_per_cpu_second"] / cpu_speed))
                rates = f"{speed:,.0f} | {found['tokens_per_second']:,.0f} | {ratios[-1][0]:.1%} | {ratios[-1][1]:.1%}"
                lines.append(f"| {number} | {rates} |")
                print(lines[-1], flush=True)
                before = after
    wall, cpu = (f"{statistics.median(values):.1%}" for values in zip(*ratios, strict=True))
    lines += [
        "",
        f"Of the raw speed, median: {wall}; per CPU second {cpu}. Peak memory {found['peak_megabytes']:,.0f} MB.",
    ]
    (HERE / "results/tokenizing.md").write_text("\n".join(lines) + "\n")
    print(lines[-1])


@contextmanager
def side(name: str, corpus: Path) -> Iterator[subprocess.Popen]:
    """Start the process of one side, which waits for its turns."""
    command = [sys.executable, *sys.argv, "--side", name, "--corpus", str(corpus)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def turn(process: subprocess.Popen) -> dict[str, float]:
    """Let a side tokenize the part once."""
    print(file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def take_turns(tokenize: Callable[[], int]) -> None:
    """Tokenize once for every line that comes in, and answer with the speed."""
    for _ in sys.stdin:
        started = now()
        print(json.dumps(measured(tokenize(), started)), flush=True)


def make_part(options: argparse.Namespace, folder: Path) -> Path:
    """Write the first `megabytes` of the files, in turns, as one part of a corpus."""
    import pyarrow.parquet

    from openspectra.artifacts import write_artifact
    from openspectra.config import PartConfig
    from openspectra.data.documents import Document, write_documents

    texts, size = [], 0
    columns = [pyarrow.parquet.read_table(path)["text"].to_pylist() for path in options.files]
    for row in range(max(map(len, columns))):
        for column in columns:
            if row < len(column) and size < options.megabytes * 1e6:
                texts.append(column[row])
                size += len(column[row].encode())
    config = PartConfig(num_parts=1, weights=None, valid_fraction=0, test_fraction=0, sample_fraction=1.0)
    with write_artifact(folder, "part", config, {}) as draft:
        documents = (Document(f"{n:016x}", text, "benchmark") for n, text in enumerate(texts))
        write_documents(documents, draft.folder / "train.parquet")
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB, {options.threads} threads")
    return folder


def raw(options: argparse.Namespace) -> Callable[[], int]:
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    import pyarrow.parquet
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    texts = pyarrow.parquet.read_table(options.corpus / "train.parquet")["text"].to_pylist()
    tokenizer.encode_batch_fast(texts[:RAW_BATCH])  # threads and caches are up

    def tokenize() -> int:
        batches = (texts[first : first + RAW_BATCH] for first in range(0, len(texts), RAW_BATCH))
        return sum(sum(map(len, tokenizer.encode_batch_fast(batch))) for batch in batches)

    return tokenize


def ours(options: argparse.Namespace) -> Callable[[], int]:
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    from openspectra.artifacts import open_artifact, write_artifact
    from openspectra.config import TokenizerConfig, TokenPartConfig
    from openspectra.data.tokenizer import load_tokenizer
    from openspectra.data.tokenizing import build_token_part

    folder = options.corpus.parent
    config = TokenizerConfig(vocab_size=1, file=None)
    with write_artifact(folder / "tokenizer", "tokenizer", config, {}) as draft:
        (draft.folder / "tokenizer.json").write_bytes(options.tokenizer.read_bytes())
        (draft.folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer, part = open_artifact(folder / "tokenizer"), open_artifact(options.corpus)
    load_tokenizer(tokenizer).encode_batch_fast(["threads are up"] * RAW_BATCH)
    config = TokenPartConfig(splits=["train"])

    def tokenize() -> int:
        with write_artifact(folder / "tokens", "token_part", config, {"part": part, "tokenizer": tokenizer}) as draft:
            draft.metrics |= build_token_part(config, part, tokenizer, draft.folder)
        return draft.metrics["splits"]["train"]["num_tokens"]

    return tokenize


def now() -> tuple[float, float]:
    """Return wall and CPU seconds; CPU seconds are those of all threads."""
    return time.perf_counter(), time.process_time()


def measured(num_tokens: int, started: tuple[float, float]) -> dict[str, float]:
    seconds, cpu_seconds = (after - before for after, before in zip(now(), started, strict=True))
    return {
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_cpu_second": num_tokens / cpu_seconds,
        "peak_megabytes": peak_megabytes(),
    }


def peak_megabytes() -> float:
    """Return the peak of this process alone: `ru_maxrss` starts from what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


if __name__ == "__main__":
    main()
