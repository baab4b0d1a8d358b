"""Tokenizing: the stage's speed as a share of the raw speed of `tokenizers`.

    python benchmarks/tokenizing.py --tokenizer data/tokenizer/20B_tokenizer.json data/corpora/*/train.parquet

Raw is `encode_batch_fast` on texts in memory, ours goes from Parquet to shards with index and hashes, with the same
tokenizer, documents and threads. Both take their turn at every stretch of text, a second or two each, one before the
other in every second pair: machines drift by more than the difference within a few seconds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet
from machine import processor

from openspectra.data.documents import Document, iterate, write_documents
from openspectra.data.encoding import Encoder
from openspectra.data.shards import ShardWriter, dtype_for

HERE = Path(__file__).parent
RAW_BATCH = 256
STRETCH_BYTES = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with a column `text`")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3, help="times that the whole text is gone through")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    from tokenizers import Tokenizer

    tokenizer, stretches = Tokenizer.from_file(str(options.tokenizer)), stretches_of(options.files)
    dtype = dtype_for(tokenizer.get_vocab_size())
    encoder = Encoder(tokenizer, dtype)
    tokenizer.encode_batch_fast(stretches[0])  # threads and caches are up
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for number, texts in enumerate(stretches):
            write_documents(
                (Document(f"{n:016x}", text, "web") for n, text in enumerate(texts)), Path(folder, str(number))
            )
        for number in range(options.passes * len(stretches)):
            texts, path = stretches[number % len(stretches)], Path(folder, str(number % len(stretches)))
            sides = {
                "raw": lambda texts=texts: raw(tokenizer, texts),
                "ours": lambda path=path: ours(encoder, dtype, path),
            }
            found = {
                name: speeds(sides[name]) for name in sorted(sides, reverse=(number // len(stretches) + number) % 2)
            }
            pairs.append((*found["raw"], *found["ours"]))
    wall, cpu = ([pair[2 + n] / pair[n] for pair in pairs] for n in (0, 1))
    low, _, high = statistics.quantiles(wall, n=4)
    raw_rate, our_rate = (statistics.median(column) for column in (list(zip(*pairs, strict=True))[n] for n in (0, 2)))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, tokenizers {version('tokenizers')}, {options.threads} threads, "
        f"{len(pairs)} pairs of {STRETCH_BYTES / 1e6:.0f} MB",
        "",
        f"Raw {raw_rate:,.0f} tokens/s, ours {our_rate:,.0f} (medians).",
        f"Of the raw speed: {statistics.median(wall):.1%} (median of the pairs; half of them {low:.1%} to {high:.1%}), "
        f"per CPU second {statistics.median(cpu):.1%}.",
    ]
    print("\n".join(lines))
    (HERE / "results/tokenizing.md").write_text("\n".join(lines) + "\n")


def stretches_of(files: list[Path]) -> list[list[str]]:
    """Return the texts of all files in turns, divided into stretches of equal size; what is left over goes."""
    columns = [pyarrow.parquet.read_table(path)["text"].to_pylist() for path in files]
    stretches, size = [[]], 0
    for row in range(max(map(len, columns))):
        for text in (column[row] for column in columns if row < len(column)):
            stretches[-1].append(text)
            size += len(text.encode())
            if size >= STRETCH_BYTES:
                stretches.append([])
                size = 0
    return stretches[:-1] or stretches


def raw(tokenizer, texts: list[str]) -> int:
    batches = (texts[first : first + RAW_BATCH] for first in range(0, len(texts), RAW_BATCH))
    return sum(sum(map(len, tokenizer.encode_batch_fast(batch))) for batch in batches)


def ours(encoder: Encoder, dtype: np.dtype, path: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "train", dtype, 2**26)
        for document, ids, _, _ in encoder.encode(iterate(path)):
            writer.add(ids, document.id, document.source)
        writer.close()
    return writer.num_tokens


def speeds(tokenize: Callable[[], int]) -> tuple[float, float]:
    """Return tokens per second and per CPU second, the latter over all threads."""
    started, cpu_started = time.perf_counter(), time.process_time()
    num_tokens = tokenize()
    return num_tokens / (time.perf_counter() - started), num_tokens / (time.process_time() - cpu_started)


if __name__ == "__main__":
    main()
